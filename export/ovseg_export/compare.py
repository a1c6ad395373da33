"""Judge the outputs of two runs of one model: instances, embeddings, mask logits.

Every function returns figures by name; which of them has which limit stands in `families`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]
Figures = dict[str, float]

_SAME_SCORE = 1e-3
"""Rows whose scores differ by more are different detections."""
_ROWS_OF_AN_EXCHANGE = 20


def differences(expected: np.ndarray, found: np.ndarray) -> Figures:
    """Largest and mean absolute difference of two arrays of one shape."""
    if expected.size == 0:
        return {"max": 0.0, "mean": 0.0}
    delta = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    return {"max": float(delta.max()), "mean": float(delta.mean())}


def compare_embeddings(expected: Outputs, found: Outputs) -> Figures:
    """`cosine`: smallest of rows of `embedding` [N, D]; `relative`: largest difference over largest value."""
    a, b = (item["embedding"].astype(np.float64).reshape(len(item["embedding"]), -1) for item in (expected, found))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return {
        "cosine": float(cosine.min()),
        "relative": float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)),
    }


def compare_logits(expected: Outputs, found: Outputs) -> Figures:
    """`logit`: largest difference of `low_res_masks` [N, M, H, W]; `mask_iou`: smallest of masks above 0."""
    a, b = expected["low_res_masks"], found["low_res_masks"]
    return {"logit": float(np.abs(a - b).max()), "mask_iou": min(mask_ious(a > 0, b > 0), default=1.0)}


def compare_instances(expected: Outputs, found: Outputs) -> Figures:
    """Match the detections of two runs and measure how they differ.

    Args:
        expected: Paddle's outputs: `boxes` [M, 6] (class, score, x0, y0, x1, y1) with `counts` [N], or
            `labels` and `scores`; `masks` [M, H, W] where the model gives them.
        found: those of the ONNX model.

    Returns:
        `instances`, `matched`: rows of Paddle, and those with a partner.
        `detections`: rows of Paddle with a class and a score above 0: a picture without a detection may have
        one row that says so.
        `at_cut`: detections without a partner that both runs have at the end of a long list of one length, with
        one score: which of those are kept is chance.
        `unmatched`: share of the others without a partner.
        `box` (pixels), `score`: largest differences of matched ones; `box_mean`, `score_mean`: the means.
        `mask_iou`: intersections over unions, summed over matched instances; `mask_iou_least`: of the worst.

    """
    rows_a, rows_b = _rows(expected), _rows(found)
    pairs: list[tuple[int, int]] = []
    at_cut = unmatched = 0
    for (start_a, end_a), (start_b, end_b) in zip(_images(expected), _images(found), strict=True):
        one, other = rows_a[start_a:end_a], rows_b[start_b:end_b]
        matched = _match(one, other)
        pairs += [(start_a + i, start_b + j) for i, j in matched]
        exchanged = _exchanged(one, other, matched)
        alone = sum(int((rows[:, 0] >= 0).sum()) for rows in (one, other)) - 2 * len(matched)
        at_cut += exchanged
        unmatched += max(0, alone - exchanged)
    total = len(rows_a) + len(rows_b)
    first, second = [i for i, _ in pairs], [j for _, j in pairs]
    figures: Figures = {
        "instances": len(rows_a),
        "detections": int(((rows_a[:, 0] >= 0) & (rows_a[:, 1] > 0)).sum()),
        "matched": len(pairs),
        "at_cut": at_cut,
        "unmatched": unmatched / max(total, 1),
    }
    for name, columns in (("score", slice(1, 2)), ("box", slice(2, None))):
        if name == "score" or "boxes" in expected:
            found_differences = differences(rows_a[first, columns], rows_b[second, columns])
            figures |= {name: found_differences["max"], f"{name}_mean": found_differences["mean"]}
    if "masks" in expected:
        figures |= _compare_masks(expected["masks"], found["masks"], pairs)
    return figures


def mask_ious(a: np.ndarray, b: np.ndarray) -> list[float]:
    """IoU of each of the masks [..., H, W]; two empty ones have 1."""
    sizes = (-1, a.shape[-2] * a.shape[-1])
    a, b = a.reshape(sizes), b.reshape(sizes)
    union = (a | b).sum(1)
    return [float(i / u) if u else 1.0 for i, u in zip((a & b).sum(1), union, strict=True)]


def _exchanged(one: np.ndarray, other: np.ndarray, matched: Sequence[tuple[int, int]]) -> int:
    """Rows of one image that two lists of detections exchange where both are cut off at a number.

    They have as many rows as each other, and as many without a partner, all with the lowest score of both but for 1e-4.
    One row in `_ROWS_OF_AN_EXCHANGE` may be exchanged: a short list was not cut off, and so each of its rows counts.
    """
    if not len(one) or len(one) != len(other):
        return 0
    alone = len(one) - len(matched)
    lowest = max(rows[:, 1].min() for rows in (one, other)) + 1e-4
    partners = zip(*matched, strict=True) if matched else ((), ())
    scores = [np.delete(rows[:, 1], list(taken)) for rows, taken in zip((one, other), partners, strict=True)]
    if alone * _ROWS_OF_AN_EXCHANGE > len(one) or any((left > lowest).any() for left in scores):
        return 0
    return 2 * alone


def _compare_masks(a: np.ndarray, b: np.ndarray, pairs: Sequence[tuple[int, int]]) -> Figures:
    if a.shape[1:] != b.shape[1:]:
        return {"mask_iou": 0.0, "mask_iou_least": 0.0}
    both = either = 0
    least = 1.0
    for i, j in pairs:  # one by one: a hundred masks of a large picture are gigabytes
        one, other = a[i] > 0, b[j] > 0
        intersection, union = int((one & other).sum()), int((one | other).sum())
        both, either = both + intersection, either + union
        least = min(least, intersection / union if union else 1.0)
    return {"mask_iou": both / either if either else 1.0, "mask_iou_least": least}


def _rows(outputs: Outputs) -> np.ndarray:
    """Detections as rows of class, score and, if there are any, box corners."""
    if "boxes" in outputs:
        rows = outputs["boxes"]
        # Without a detection Paddle gives one row of -1, or none.
        return rows[: int(outputs["counts"].sum())].astype(np.float64)
    rows = np.stack([outputs["labels"], outputs["scores"]], axis=1).astype(np.float64)
    return rows[rows[:, 0] >= 0]


def _images(outputs: Outputs) -> list[tuple[int, int]]:
    """First and last row of each image of a batch."""
    if "boxes" not in outputs:
        return [(0, len(_rows(outputs)))]
    ends = np.cumsum(outputs["counts"].reshape(-1)).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _match(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows of one class and nearly one score; pairs with the nearest boxes, or scores, come first."""
    if not len(a) or not len(b):
        return []
    possible = (a[:, None, 0] == b[None, :, 0]) & (np.abs(a[:, None, 1] - b[None, :, 1]) <= _SAME_SCORE)
    score = np.abs(a[:, None, 1] - b[None, :, 1])
    distance = np.abs(a[:, None, 2:] - b[None, :, 2:]).max(-1) + score if a.shape[1] > 2 else score
    rows, columns = np.nonzero(possible)
    pairs, used_a, used_b = [], set(), set()
    for k in np.argsort(distance[rows, columns], kind="stable"):
        i, j = int(rows[k]), int(columns[k])
        if i not in used_a and j not in used_b:
            pairs.append((i, j))
            used_a.add(i)
            used_b.add(j)
    return sorted(pairs)

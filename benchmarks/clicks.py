"""Corrective clicks: mean IoU on the held-out composites after one click, two, ...

The first click is the point of the object that is farthest from its edge. Each further one goes to the middle of the
largest error, as a positive or negative point, and the last logits go back to the model (`result.refine`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ovseg import create_pipeline

COMPOSITES = Path(__file__).parent.parent / "tests" / "data" / "composites"


def scenes(mix: str) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """The held-out scenes: BGR image, and the visible mask of each object in it."""
    for path in sorted((COMPOSITES / mix).glob("*.png")):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        yield cv2.imread(str(path.with_suffix(".jpg"))), [ids == i for i in np.unique(ids) if i]


def middle(mask: np.ndarray) -> list[float]:
    """The middle of the pixel of a mask that is farthest from its outside."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = divmod(int(depth.argmax()), depth.shape[1])
    return [x - 0.5, y - 0.5]


def correction(mask: np.ndarray, truth: np.ndarray) -> tuple[list[float], int]:
    """Where to click, and with which label: the middle of the largest part of what is missing or too much."""
    largest, where, label = 0, truth, 1
    for error, kind in ((truth & ~mask, 1), (mask & ~truth, 0)):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(error.astype(np.uint8), connectivity=8)
        if count > 1:
            index = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            area = int(stats[index, cv2.CC_STAT_AREA])
            if area > largest:
                largest, where, label = area, parts == index, kind
    return middle(where), label


def curve(mix: str, clicks: int, model_dir: str | None, multimask: bool) -> tuple[np.ndarray, int]:
    """Mean IoU after each click, and the number of objects."""
    pipeline = create_pipeline("open_vocabulary_segmentation", device="cpu", threads=1, model_dir=model_dir)
    rows: list[list[float]] = []
    for pixels, truths in scenes(mix):
        with pipeline.open(pixels) as image:
            result = image.segment(points=[middle(truth) for truth in truths], multimask=multimask)
            scores: list[list[float]] = [[] for _ in truths]
            for click in range(clicks):
                masks = [mask.astype(bool) for mask in result["masks"]]
                for row, mask, truth in zip(scores, masks, truths, strict=True):
                    row.append(float((mask & truth).sum() / (mask | truth).sum()))
                if click + 1 < clicks:
                    found = [correction(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
                    result = result.refine(points=[[point] for point, _ in found], labels=[[kind] for _, kind in found])
        rows += scores
    return np.array(rows).mean(axis=0), len(rows)


def main() -> None:
    """Print a row of a table for each set of scenes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=4)
    parser.add_argument("--model-dir")
    parser.add_argument("--multimask", action="store_true", help="first click: the best of three masks")
    given = parser.parse_args()
    print("| | " + " | ".join(f"{i} click{'s' * (i > 1)}" for i in range(1, given.clicks + 1)) + " | gain |")
    print("|---" * (given.clicks + 2) + "|")
    for mix in ("ordinary", "crowded"):
        means, count = curve(mix, given.clicks, given.model_dir, given.multimask)
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        print(
            f"| {mix} composites, {count} objects | {cells} | {100 * (means[-1] - means[0]):.1f} points |", flush=True
        )


if __name__ == "__main__":
    main()

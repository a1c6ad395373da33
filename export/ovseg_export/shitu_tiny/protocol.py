"""What ShiTu-tiny is measured on: identities and composites that no weight has seen. Seeded; written before training.

    python -m ovseg_export.shitu_tiny.protocol --assets export/work/assets --rec model.onnx --det model.onnx

Embedding: 200 emoji are held out of every training set (`held_out`), whatever their style; the test draws them
in a style that no training set has (Noto Emoji). An identity is one emoji of one code point, so that it is not
another one's gender or skin tone. The gallery has one picture of each, cut to its box, on white. Five queries of each
show it turned by up to 20 degrees, scaled, in perspective, in other light, hidden by up to a quarter in half of
the cases, on a photograph that training never showed, and cut at its box, which is off by a little. The same with
OpenMoji drawings is there for choices during training (`STYLES`).

Detector: 200 `ordinary` composites of the validation split: its objects, its photographs. Truth is the box of
what is visible of each object; AP at IoU 0.5 is COCO's, of all objects.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from ovseg_export.scenes.compose import MIXES, compose
from ovseg_export.scenes.library import Library, ObjectRecord

STYLES = {"test": "noto", "development": "openmoji"}
IDENTITIES = 200
VIEWS = 5  # queries of an identity
COMPOSITES = 200
CANVAS = 224  # side of the picture that a query is cut from, pixels
SEED = 20_000
MATCH_IOU = 0.5

Embed = Callable[[list[np.ndarray]], np.ndarray]
"""BGR pictures of any size to embeddings [N, D]."""
Detect = Callable[[np.ndarray], np.ndarray]
"""A BGR picture to rows [K, 5]: score, xmin, ymin, xmax, ymax in its pixels."""


@cache
def held_out(assets: Path) -> frozenset[str]:
    """Keys of the emoji that nothing is trained on: 200 of one code point that both validation styles draw."""
    validation = Library(assets, "val").objects
    styles = [{r.key for r in validation if r.set == style} for style in STYLES.values()]
    keys = sorted(key for key in set.intersection(*styles) if "-" not in key)
    chosen = np.random.default_rng(SEED).permutation(len(keys))[:IDENTITIES]
    return frozenset(keys[i] for i in chosen)


def trainable(assets: Path) -> Callable[[ObjectRecord], bool]:
    """Which objects of the split `train` may enter a weight; for `Library(keep=...)`."""
    out = held_out(assets)
    return lambda record: record.split == "train" and record.key not in out


# ------------------------------------------------------------------ embedding


@dataclass(frozen=True)
class Retrieval:
    """Gallery pictures, and queries with the number of the gallery picture that is right."""

    keys: list[str]
    gallery: list[np.ndarray]
    queries: list[np.ndarray]
    truth: np.ndarray


def retrieval(assets: Path, style: str, views: int = VIEWS) -> Retrieval:
    """The gallery and the queries of a style."""
    keep = held_out(assets)
    library = Library(assets, "val")
    records = sorted((r for r in library.objects if r.set == style and r.key in keep), key=lambda r: r.key)
    others = sorted((r for r in library.objects if r.set == style and r.key not in keep), key=lambda r: r.key)
    queries = []
    for identity, record in enumerate(records):
        for view in range(views):
            rng = np.random.default_rng([SEED, identity, view])
            queries.append(query(rng, library, library.object_pixels(record), others))
    gallery = [on_white(library.object_pixels(record)) for record in records]
    return Retrieval([r.key for r in records], gallery, queries, np.repeat(np.arange(len(records)), views))


def on_white(bgra: np.ndarray) -> np.ndarray:
    """An object cut to its box, with a margin of a twentieth, on white."""
    margin = round(max(bgra.shape[:2]) / 20)
    alpha = bgra[..., 3:].astype(np.float32) / 255
    flat = bgra[..., :3] * alpha + 255 * (1 - alpha)
    return cv2.copyMakeBorder(
        flat.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=(255,) * 3
    )


def query(rng: np.random.Generator, library: Library, bgra: np.ndarray, others: list[ObjectRecord]) -> np.ndarray:
    """A new view of an object, cut at its box (BGR)."""
    canvas = photo_window(rng, library)
    colour, alpha = view(rng, bgra, rng.uniform(90, 180))
    x, y, width, height = cv2.boundingRect((alpha >= 0.5).astype(np.uint8))
    canvas = canvas * (1 - alpha[..., None]) + colour
    if rng.random() < 0.5:
        occluder = library.object_pixels(others[int(rng.integers(len(others)))])
        for _ in range(20):
            over, cover = view(rng, occluder, rng.uniform(40, 120))
            dx = rng.uniform(x, x + width) - CANVAS / 2
            dy = rng.uniform(y, y + height) - CANVAS / 2
            shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
            over, cover = (cv2.warpAffine(part, shift, (CANVAS, CANVAS)) for part in (over, cover))
            hidden = float((cover * alpha).sum() / alpha.sum())
            if 0.05 <= hidden <= 0.25:
                canvas = canvas * (1 - cover[..., None]) + over
                break
    picture = camera(rng, canvas)
    left, top, right, bottom = np.array([x, y, x + width, y + height]) + rng.uniform(-0.05, 0.08, 4) * np.array(
        [-width, -height, width, height]
    )
    left, top = max(0, round(left)), max(0, round(top))
    return picture[top : round(bottom), left : round(right)]


def photo_window(rng: np.random.Generator, library: Library) -> np.ndarray:
    """A window of a photograph, float32 [CANVAS, CANVAS, 3]."""
    photo = library.draw_photo(rng)
    side = int(rng.uniform(0.3, 1.0) * min(photo.shape[:2]))
    y, x = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    window = cv2.resize(photo[y : y + side, x : x + side], (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    return window.astype(np.float32)


def view(rng: np.random.Generator, bgra: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """An object at the centre of the canvas: colour (premultiplied, float32, 0..255) and alpha (0..1)."""
    height, width = bgra.shape[:2]
    pixels = bgra.astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    factor = side / max(height, width)
    if factor < 1:
        size = max(2, round(width * factor)), max(2, round(height * factor))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        height, width = pixels.shape[:2]
        factor = side / max(height, width)
    angle, stretch = np.deg2rad(rng.uniform(-20, 20)), np.exp(rng.normal(0, 0.05))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    flat = (corners - [width / 2, height / 2]) * [factor * stretch, factor / stretch]
    flat = flat + rng.uniform(-0.07, 0.07, (4, 2)) * side
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    target = (flat @ turn + CANVAS / 2).astype(np.float32)
    warped = cv2.warpPerspective(pixels, cv2.getPerspectiveTransform(corners, target), (CANVAS, CANVAS))
    return warped[..., :3], warped[..., 3] / 255


def camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Light, blur, noise and JPEG: float32 to uint8 BGR."""
    grey = canvas.mean(2, keepdims=True)
    canvas = grey + (canvas - grey) * rng.uniform(0.7, 1.25)
    canvas = 255 * (np.clip(canvas, 0, 255) / 255) ** np.exp(rng.normal(0, 0.2))
    canvas = canvas * np.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.05, 3)) + rng.uniform(-20, 20)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.3))
    if rng.random() < 0.4:
        canvas = canvas + rng.normal(0, rng.uniform(2, 10), canvas.shape)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    quality = int(rng.integers(50, 96))
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def recall_at_1(data: Retrieval, embed: Embed) -> float:
    """Share of queries whose most similar gallery picture (cosine) is the right one."""
    gallery, queries = (normalised(embed(pictures)) for pictures in (data.gallery, data.queries))
    return float(((queries @ gallery.T).argmax(1) == data.truth).mean())


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


# ------------------------------------------------------------------ detector


def composites(assets: Path, count: int = COMPOSITES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Held-out scenes: BGR picture, boxes [K, 4] of what is visible of each object."""
    library = Library(assets, "val")
    for index in range(count):
        made = compose(np.random.default_rng([SEED, index]), library, 512, MIXES["ordinary"])
        yield made.image, visible_boxes(made.ids)


def visible_boxes(ids: np.ndarray) -> np.ndarray:
    """Boxes [K, 4] of the instances of a map [H, W]; 0 is background."""
    boxes = [cv2.boundingRect((ids == i).astype(np.uint8)) for i in np.unique(ids) if i]
    return np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.float64).reshape(-1, 4)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU [A, B] of boxes [A, 4] and [B, 4]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return np.asarray(inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9))


def not_suppressed(boxes: np.ndarray, threshold: float) -> list[int]:
    """Greedy non-maximum suppression: the numbers of the boxes [N, 4], best first, that no better one covers."""
    iou = box_iou(boxes, boxes)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not kept or iou[i, kept].max() <= threshold:
            kept.append(i)
    return kept


def ap50(pictures: Iterator[tuple[np.ndarray, np.ndarray]], detect: Detect) -> float:
    """Average precision at IoU 0.5, interpolated at 101 points of recall as COCO's."""
    scores, hits, total = [], [], 0
    for picture, truth in pictures:
        found = detect(picture)
        found = found[np.argsort(-found[:, 0], kind="stable")]
        iou = box_iou(found[:, 1:], truth)
        free = np.ones(len(truth), bool)
        for row, score in enumerate(found[:, 0]):
            candidates = np.where(free, iou[row], -1.0)
            best = int(candidates.argmax()) if len(truth) else -1
            hit = best >= 0 and candidates[best] >= MATCH_IOU
            if hit:
                free[best] = False
            scores.append(score)
            hits.append(hit)
        total += len(truth)
    order = np.argsort(-np.array(scores), kind="stable")
    true = np.cumsum(np.array(hits)[order])
    precision = true / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(true / total, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())


# ------------------------------------------------------------------ exported models


def embedder(path: Path) -> Embed:
    """An exported embedding network, fed as the pipeline feeds it."""
    from ovseg.session import Session

    session = Session(path, "cpu")
    size = int(str(session.inputs[0].shape[1]))

    def embed(pictures: list[np.ndarray]) -> np.ndarray:
        resized = (cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)[None] for picture in pictures)
        return np.concatenate([session.run({"pixels": pixels})["unit_embedding"] for pixels in resized])

    return embed


def detector(path: Path) -> Detect:
    """An exported detector, fed as the pipeline feeds it."""
    from ovseg.session import Session

    from . import MEAN, STD

    session = Session(path, "cpu")
    size = int(str(session.inputs[0].shape[-1]))

    def detect(picture: np.ndarray) -> np.ndarray:
        resized = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)[..., ::-1]
        x = ((resized.astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)
        scale = np.array([[size / picture.shape[0], size / picture.shape[1]]], np.float32)
        feeds = {"image": np.ascontiguousarray(x.transpose(2, 0, 1)[None]), "scale_factor": scale}
        return session.run(feeds)["boxes"][:, 1:]

    return detect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("export/work/assets"), help="the prepared store")
    parser.add_argument("--rec", type=Path, help="exported embedding network")
    parser.add_argument("--det", type=Path, help="exported detector")
    parser.add_argument("--style", choices=sorted(STYLES), default="test")
    args = parser.parse_args()
    figures = {}
    if args.rec:
        figures["recall@1"] = recall_at_1(retrieval(args.assets, STYLES[args.style]), embedder(args.rec))
    if args.det:
        figures["AP50"] = ap50(composites(args.assets), detector(args.det))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

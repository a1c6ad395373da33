"""Segmentation by example: in how many of 50 held-out scenes the region most like an example is the right one.

Of each scene one object is the target. Its example is another picture of it, made with a fixed seed: cut out, turned,
mirrored or not, smaller or larger, lighter or darker, and put on a part of a photograph that is not in the scene. The
first region of `pipeline.find_like` is right if its IoU with the target's mask is at least 0.5. Printed besides: in how
many scenes everything mode has such a region at all, which bounds the figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ovseg import create_pipeline

DATA = Path(__file__).parent.parent / "tests" / "data"
SCENES_EACH = 25


def targets(first: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield name, image, mask of the target, and example of each scene."""
    photos = [cv2.imread(str(path)) for path in sorted((DATA / "photos").glob("*.jpg"))]
    for mix in ("ordinary", "crowded"):
        folder = DATA / "composites" / mix
        for line in (folder / "index.jsonl").read_text("utf-8").splitlines()[first : first + SCENES_EACH]:
            scene = json.loads(line)
            pixels = cv2.imread(str(folder / scene["image"]))
            ids = cv2.imread(str(folder / scene["ids"]), cv2.IMREAD_UNCHANGED)
            # What is seen most of: an example of something hidden shows what the scene does not.
            chosen = max(scene["instances"], key=lambda item: (round(item["visible"], 1), item["pixels"]))
            mask = ids == chosen["id"]
            seed = scene["index"] + 1000 * (mix == "crowded")
            yield f"{mix} {scene['index']}: {chosen['name']}", pixels, mask, example(pixels, mask, photos, seed)


def example(pixels: np.ndarray, mask: np.ndarray, photos: list[np.ndarray], seed: int) -> np.ndarray:
    """Another picture of what a mask shows, 224x224 BGR."""
    rng = np.random.default_rng(seed)
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = 224
    scale = side * rng.uniform(0.65, 0.85) / max(width, height)
    turn = cv2.getRotationMatrix2D((x + width / 2, y + height / 2), rng.uniform(-15, 15), scale)
    turn[:, 2] += side / 2 - np.array([x + width / 2, y + height / 2])
    cut = cv2.warpAffine(pixels, turn, (side, side), flags=cv2.INTER_AREA)
    alpha = cv2.warpAffine(mask.astype(np.float32), turn, (side, side))[..., None]
    photo = photos[int(rng.integers(len(photos)))]
    top, left = (int(rng.integers(0, max(1, length - side))) for length in photo.shape[:2])
    ground = cv2.resize(photo[top : top + side, left : left + side], (side, side))
    lit = np.clip(cut * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15), 0, 255)
    made = (lit * alpha + ground * (1 - alpha)).astype(np.uint8)
    return made[:, ::-1].copy() if rng.random() < 0.5 else made


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two masks."""
    return float((one & other).sum() / (one | other).sum())


def main() -> None:
    """Print each scene that fails, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", help="SAM; SAM-tiny if left out")
    parser.add_argument("--embedding-model-dir", help="feature model; ShiTu-tiny-rec if left out")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene of each mix; 25 for the rest")
    parser.add_argument("--settings", type=json.loads, default={}, help="of everything mode, such as '{\"crops\": 1}'")
    given = parser.parse_args()
    pipeline = create_pipeline(
        "open_vocabulary_segmentation",
        device="cpu",
        threads=1,
        model_dir=given.model_dir,
        embedding_model_dir=given.embedding_model_dir,
    )
    first = found = count = 0
    for name, pixels, truth, shown in targets(given.first):
        result = pipeline.find_like(pixels, shown, **given.settings)
        scores = [iou(mask.astype(bool), truth) for mask in result["masks"]]
        count += 1
        found += max(scores, default=0) >= 0.5
        first += bool(scores) and scores[0] >= 0.5
        if not scores or scores[0] < 0.5:
            best = int(np.argmax(scores)) if scores else -1
            where = f"the best is number {best + 1} of {len(scores)}, IoU {scores[best]:.2f}" if scores else "no region"
            print(f"{name}: {where}", flush=True)
    print(f"{count} scenes: the right region is there in {found / count:.0%} and first in {first / count:.0%}")


if __name__ == "__main__":
    main()

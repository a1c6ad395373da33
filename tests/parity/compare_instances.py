"""Compare instance segmentation with PaddleX 3.7.2, result by result, on the same weights.

`make parity` runs it: one builder of each of the five families is made and exported here, PaddleX runs it in an
interpreter of its own, and every instance must be there, in the same order, within the limits. The exit status is 1
if one is not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg import create_pipeline
from ovseg.samples import samples
from ovseg.stages.detection import rounded_boxes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "export"))

from ovseg_export import export_model  # noqa: E402
from ovseg_export.builders.images import TEST_SIZES, synthetic_image  # noqa: E402

FAMILIES = {
    "mask_rtdetr": "Mask-RT-DETR-S",
    "mask_rcnn": "MaskRCNN-ResNet50-FPN",
    "cascade_mask_rcnn": "Cascade-MaskRCNN-ResNet50-FPN",
    "ppyoloe_seg": "PP-YOLOE_seg-S",
    "solov2": "SOLOv2",
}
# Random kernels make ragged masks, and rounding decides more of their pixels than of a trained model's. SOLOv2 has its
# official size and some hundred candidates, as a trained model: its scores come from counting the pixels of masks, so
# that one that rounding moves over the threshold of a small mask moves the scores around it.
OPTIONS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"smooth": 0.95},
    "cascade_mask_rcnn": {"smooth": 0.85},
    "solov2": {"image_size": (800, 1344), "class_logit": -9.5},
}
THRESHOLDS = (0.05, 0.5)
COORDINATE, SCORE, IOU = 0.05, 1e-4, 0.999


@dataclass(frozen=True)
class Size:
    """How large the pictures are: drawings, in times of `TEST_SIZES`, and the long side of photographs."""

    drawing: float
    photograph: int


# One pixel of a mask of less than 1,000 is more than the limit of IoU, and rounding in the networks moves one now and
# then: its value is within 1e-6 of the threshold, whether our sums are of 32 or of 64 bits. A larger picture has larger
# masks in the R-CNNs, whose masks are of one size until they are pasted, and more small ones in the others.
HALF, WHOLE = Size(2.5, 800), Size(4.0, 1280)  # of a megapixel
SIZES = {"mask_rcnn": WHOLE, "cascade_mask_rcnn": WHOLE}


@dataclass
class Difference:
    """The largest differences of one model, over all pictures and thresholds."""

    instances: int = 0
    wrong: int = 0
    coordinate: float = 0.0
    score: float = 0.0
    iou: float = 1.0
    small: int = 0

    @property
    def within_limits(self) -> bool:
        """Whether there was something to compare and all of it agrees."""
        agrees = self.coordinate <= COORDINATE and self.score <= SCORE and self.iou >= IOU
        return agrees and self.instances > 0 and self.wrong == 0

    def add(self, theirs: list[dict[str, Any]], their_masks: list[np.ndarray], ours: Any) -> None:
        """Take in the results of one picture; an instance at another place of the list is wrong."""
        self.instances += len(theirs)
        self.wrong += abs(len(theirs) - len(ours["boxes"]))
        for box, mask, our_box, our_mask in zip(theirs, their_masks, ours["boxes"], ours["masks"], strict=False):
            if (box["cls_id"], box["label"]) != (our_box["cls_id"], our_box["label"]):
                self.wrong += 1
                continue
            self.score = max(self.score, abs(box["score"] - our_box["score"]))
            if box["coordinate"]:
                apart = np.abs(np.subtract(box["coordinate"], our_box["coordinate"])).max()
                self.coordinate = max(self.coordinate, float(apart))
                x1, y1, x2, y2 = rounded_boxes(np.array([box["coordinate"]]))[0]
                our_mask = our_mask[y1:y2, x1:x2]
            # SOLOv2's graph may be a few pixels off the size of the picture: what both have is compared.
            rows, columns = np.minimum(mask.shape, our_mask.shape)
            mask, our_mask = mask[:rows, :columns], our_mask[:rows, :columns] != 0
            union = int((mask | our_mask).sum())
            iou = int((mask & our_mask).sum()) / union if union else 1.0
            self.iou = min(self.iou, iou)
            self.small += iou < IOU


def main() -> int:
    """Print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paddlex", required=True, help="Python interpreter that has paddlex and paddlepaddle.")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--keep", type=Path, help="Folder for models and results, which are used again from there.")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return compare(arguments.keep.resolve(), arguments.families, arguments.paddlex)
    with tempfile.TemporaryDirectory() as scratch:
        return compare(Path(scratch), arguments.families, arguments.paddlex)


def compare(base: Path, families: list[str], paddlex: str) -> int:
    """Compare the families; models and PaddleX's results go to `base`."""
    pictures = {size: write_pictures(base / f"pictures-{size.photograph}", size) for size in (HALF, WHOLE)}
    for family in families:
        if not (base / family / "onnx").exists():
            print(f"building and exporting {FAMILIES[family]} ...", file=sys.stderr, flush=True)
            importlib.import_module(f"ovseg_export.builders.{family}").build(
                base / family / "paddle", **OPTIONS.get(family, {})
            )
            # The pipeline is judged here, whatever the comparison of the export says of its own pictures.
            export_model(base / family / "paddle", base / family / "onnx", allow_mismatch=True)
    request = {
        "models": [
            (FAMILIES[family], str(base / family / "paddle"), [str(path) for path in pictures[SIZES.get(family, HALF)]])
            for family in families
        ],
        "thresholds": THRESHOLDS,
    }
    (base / "request.json").write_text(json.dumps(request))
    print("running PaddleX ...", file=sys.stderr, flush=True)
    runner = Path(__file__).with_name("run_paddlex_instances.py")
    done = subprocess.run(
        [paddlex, str(runner), str(base / "request.json")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        print("PaddleX failed.", file=sys.stderr)
        return 1
    print(
        f"{len(pictures[HALF])} pictures, thresholds {', '.join(map(str, THRESHOLDS))}; limits: same instances in the"
    )
    print(f"same order, coordinate {COORDINATE} px, score {SCORE}, IoU {IOU} of every mask inside its box.\n")
    print("| model | instances | not the same | coordinate, px | score | worst mask IoU | masks below | |")
    print("|---|---|---|---|---|---|---|---|")
    passed = True
    for family in families:
        found = measure(base, family, pictures[SIZES.get(family, HALF)])
        passed &= found.within_limits
        verdict = "passed" if found.within_limits else "MISSED"
        print(
            f"| {FAMILIES[family]} | {found.instances} | {found.wrong} | {found.coordinate:.4f} | {found.score:.1e} "
            f"| {found.iou:.5f} | {found.small} | {verdict} |",
            flush=True,
        )
    return 0 if passed else 1


def measure(base: Path, family: str, pictures: list[Path]) -> Difference:
    """Run our pipeline and compare each result with PaddleX's."""
    folder = next(path for path in (base / family / "onnx", base / family / "onnx-mismatch") if path.is_dir())
    pipeline: Any = create_pipeline("instance_segmentation", model_dir=folder, device="cpu")
    difference = Difference()
    for number, picture in enumerate(pictures):
        for threshold in THRESHOLDS:
            (ours,) = pipeline.predict(str(picture), threshold=threshold)
            name = f"{FAMILIES[family]}.{number}.{threshold}"
            theirs = json.loads((base / f"{name}.json").read_text())
            with np.load(base / f"{name}.npz") as masks:
                difference.add(theirs, [masks[str(i)] for i in range(len(masks.files))], ours)
    return difference


def write_pictures(base: Path, size: Size) -> list[Path]:
    """Write four drawings and three photographs, lossless."""
    base.mkdir(exist_ok=True)
    written = []
    pictures = {
        f"drawing{i}": synthetic_image(int(height * size.drawing), int(width * size.drawing), seed=i + 1)
        for i, (height, width) in enumerate(TEST_SIZES)
    }
    for sample in samples():
        pixels = cv2.imread(str(sample.path))
        scale = size.photograph / max(pixels.shape[:2])
        pictures[sample.name] = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for name, pixels in pictures.items():
        written.append(base / f"{name}.png")
        cv2.imwrite(str(written[-1]), pixels)
    return written


if __name__ == "__main__":
    sys.exit(main())

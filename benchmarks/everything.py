"""Everything mode over the original `SamAutomaticMaskGenerator`: the same masks, and the time, on the same weights.

Needs torch and segment-anything (pip install segment-anything). A network of the package with random weights is
exported to ONNX by the package's own exporter; see tests/original_sam.py. Both use one thread; times are CPU seconds,
which other work on the machine changes little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from ovseg import create_pipeline
from ovseg.samples import samples

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import original_sam

SETTINGS = {"points_per_side": 12, "pred_iou_thresh": 0.85, "stability_score_thresh": 0.5, "box_nms_thresh": 0.98}
PROMPTS = {
    "one point": {"points": [[210, 150]]},
    "points": {"points": [[210, 150], [300, 220], [100, 40]], "labels": [1, 1, 0]},
    "box": {"box": [120, 60, 330, 290]},
    "box and points": {"points": [[210, 150], [140, 80]], "labels": [1, 0], "box": [120, 60, 330, 290]},
}


def prompts(pipeline: object, package: object, sam: object) -> None:
    """Print how far logits and predicted IoU are from the package's predictor, for each kind of prompt."""
    from ovseg.stages.prompts import Prompt

    photo = cv2.imread(str(next(iter(samples())).path))
    predictor = package.SamPredictor(sam)
    predictor.set_image(photo, image_format="BGR")
    side = sam.image_encoder.img_size // 4
    earlier = np.random.default_rng(0).normal(0, 5, (1, side, side)).astype(np.float32)
    with pipeline.open(photo) as image:
        for name, parts in PROMPTS.items():
            worst = np.zeros(2)
            for mask in (None, earlier):
                for multimask in (False, True):
                    points = parts.get("points")
                    _, scores, logits = predictor.predict(
                        None if points is None else np.array(points, dtype=float),
                        None if points is None else np.array(parts.get("labels", [1] * len(points))),
                        None if "box" not in parts else np.array(parts["box"], dtype=float),
                        mask,
                        multimask,
                    )
                    ours = image.segment(Prompt(**parts, mask=mask), multimask=multimask).candidates(0)
                    order = np.argsort(-scores, kind="stable")
                    found = [np.abs(one["logits"] - logits[i]).max() for one, i in zip(ours, order, strict=True)]
                    iou = [abs(one["predicted_iou"] - scores[i]) for one, i in zip(ours, order, strict=True)]
                    worst = np.maximum(worst, [max(found), max(iou)])
            print(f"{name}, with and without mask, one and three masks: logits {worst[0]:.1e}, IoU {worst[1]:.1e}")


def main() -> None:
    """Print the figures for each prompt and each image."""
    package = original_sam.need()
    import torch

    torch.set_num_threads(1)
    sam = original_sam.network(size=512, width=256, encoder=192, depth=4, mlp=2048)
    with tempfile.TemporaryDirectory() as folder:
        encoder, decoder = original_sam.export(sam, Path(folder))
        pipeline = create_pipeline(
            "open_vocabulary_segmentation", device="cpu", threads=1, encoder=encoder, decoder=decoder, embedding_cache=0
        )
        prompts(pipeline, package, sam)
        generator = package.SamAutomaticMaskGenerator(sam, **SETTINGS)
        for sample in samples():
            pixels = cv2.imread(str(sample.path))
            seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
            for _ in range(2):
                start = time.process_time()
                theirs = generator.generate(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
                seconds["theirs"].append(time.process_time() - start)
                start = time.process_time()
                ours = pipeline.segment_everything(pixels, **SETTINGS)
                seconds["ours"].append(time.process_time() - start)
            masks = [mask.astype(bool) for mask in ours["masks"]]
            best = [
                max((found["segmentation"] & mask).sum() / (found["segmentation"] | mask).sum() for mask in masks)
                for found in theirs
            ]
            ratio = min(seconds["ours"]) / min(seconds["theirs"])
            print(
                f"{sample.name}: {len(theirs)} and {len(masks)} masks, worst IoU {min(best):.4f}, "
                f"{min(seconds['theirs']):.1f} s and {min(seconds['ours']):.1f} s of CPU, ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()

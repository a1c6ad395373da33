"""Write paddlex_instances.npz and .json: what PaddleX 3.7.2's own classes make of small inputs.

Run it where paddlex==3.7.2 and paddlepaddle are installed: `python tests/parity/make_paddlex_instances.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from paddlex.inference.models.instance_segmentation.processors import InstanceSegPostProcess
from paddlex.inference.models.instance_segmentation.result import InstanceSegResult
from paddlex.inference.models.object_detection.processors import (
    Normalize,
    PadStride,
    ReadImage,
    Resize,
    ToBatch,
    ToCHWImage,
)

SHAPES = ((48, 64), (64, 48), (100, 37), (19, 90), (33, 33), (7, 5))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LABELS = ["person", "dog", "kite"]
# Each is the sequence of one kind of inference.yml; sizes are width and height, as PaddleX turns them.
STEPS = {
    "fixed": [Resize([56, 40], interp="BICUBIC"), Normalize(1 / 255, [0.0] * 3, [1.0] * 3), ToCHWImage()],
    "ratio": [
        Resize([64, 48], keep_ratio=True, interp="BICUBIC"),
        Normalize(1 / 255, MEAN, STD),
        ToCHWImage(),
        PadStride(32),
    ],
    "floats": [
        Normalize(1 / 255, MEAN, STD),
        Resize([64, 48], keep_ratio=True, interp="LINEAR"),
        ToCHWImage(),
        PadStride(32),
    ],
}


def main() -> None:
    rng = np.random.default_rng(11)
    arrays, results = {}, {}
    post = InstanceSegPostProcess(labels=LABELS)
    for height, width in SHAPES:
        name = f"{height}x{width}"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        arrays[f"{name}.pixels"] = pixels
        for kind, steps in STEPS.items():
            datas = ReadImage(format="RGB")([pixels])
            for step in steps:
                datas = step(datas)
            im_shape, image, scale_factor = ToBatch(("img_size", "img", "scale_factors"))(datas)
            arrays |= {
                f"{name}.{kind}.im_shape": im_shape,
                f"{name}.{kind}.image": image,
                f"{name}.{kind}.scale_factor": scale_factor,
            }
        # Some reach beyond the image; none lies outside of it, where PaddleX pairs boxes with wrong masks.
        centres, halves = rng.uniform(0.05, 0.95, (12, 2)), rng.uniform(0.03, 0.4, (12, 2))
        corners = np.concatenate([centres - halves, centres + halves], axis=1)
        boxes = (corners * [width, height, width, height]).astype(np.float32)
        classes, scores = rng.integers(-1, 3, 12), rng.uniform(0, 1, 12).astype(np.float32)
        scores[0] = 0.5  # neither above nor below
        rows = np.concatenate([classes[:, None], scores[:, None], boxes], axis=1).astype(np.float32)
        masks = (rng.uniform(0, 1, (12, height, width)) > 0.5).astype(np.int32)
        arrays |= {f"{name}.rows": rows, f"{name}.masks": masks.astype(np.uint8)}
        for threshold in (0.05, 0.5):
            # (width, height), as PaddleX hands it over.
            found = post.apply(masks, (width, height), boxes=rows, threshold=threshold)
            results[f"{name}.{threshold}"] = plain(found)
            solo = post.apply(masks, (width, height), class_id=[abs(classes), scores], threshold=threshold)
            results[f"{name}.{threshold}.solo"] = plain(solo)
    here = Path(__file__).parent
    np.savez_compressed(here / "paddlex_instances.npz", **arrays)
    (here / "paddlex_instances.json").write_text(json.dumps(results) + "\n")

    rows = arrays["7x5.rows"]
    found = post.apply(arrays["7x5.masks"], (5, 7), boxes=rows, threshold=0.05)
    data = {
        "input_path": "folder/caf\u00e9.jpg",
        "page_index": None,
        "input_img": arrays["7x5.pixels"],
        **found,
    }
    InstanceSegResult(data).save_to_json(str(here / "paddlex_instances_result.json"))


def plain(found: dict[str, list]) -> dict[str, list]:
    boxes = [
        {
            key: [float(number) for number in value]
            if key == "coordinate"
            else float(value)
            if key == "score"
            else value
            for key, value in box.items()
        }
        for box in found["boxes"]
    ]
    masks = [[*mask.shape, hashlib.sha1(mask.astype(np.uint8).tobytes()).hexdigest()] for mask in found["masks"]]
    return {"boxes": boxes, "masks": masks}


if __name__ == "__main__":
    main()

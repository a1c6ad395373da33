"""Run PaddleX's pipeline instance_segmentation on model folders and pictures, and write what it finds.

Run by compare_instances.py, with an interpreter that has paddlex==3.7.2 and paddlepaddle.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")

import numpy as np
from paddlex import create_pipeline


def main() -> None:
    """`request.json` holds models (name, folder, pictures) and thresholds; results go beside it."""
    request_file = Path(sys.argv[1])
    request = json.loads(request_file.read_text())
    for name, folder, pictures in request["models"]:
        module = {
            "module_name": "instance_segmentation",
            "model_name": name,
            "model_dir": folder,
            "batch_size": 1,
            "threshold": 0.5,
        }
        config = {"pipeline_name": "instance_segmentation", "SubModules": {"InstanceSegmentation": module}}
        pipeline = create_pipeline(config=config, device="cpu")
        for number, picture in enumerate(pictures):
            for threshold in request["thresholds"]:
                (result,) = pipeline.predict(picture, threshold=threshold)
                boxes = [
                    {
                        "cls_id": int(box.get("cls_id", box.get("class_id"))),
                        "label": box["label"],
                        "score": float(box["score"]),
                        "coordinate": [float(value) for value in box.get("coordinate", ())],
                    }
                    for box in result["boxes"]
                ]
                masks = {str(i): np.asarray(mask) != 0 for i, mask in enumerate(result["masks"])}
                place = request_file.parent / f"{name}.{number}.{threshold}"
                place.with_name(place.name + ".json").write_text(json.dumps(boxes))
                np.savez_compressed(place.with_name(place.name + ".npz"), **masks)


if __name__ == "__main__":
    main()

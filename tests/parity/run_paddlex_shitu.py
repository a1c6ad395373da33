"""Run PaddleX's pipeline PP-ShiTuV2 on model folders, a gallery and queries, and write what it finds.

Run by compare_shitu.py, with an interpreter that has paddlex==3.7.2 and paddlepaddle.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")

import numpy as np
from paddlex import create_pipeline
from paddlex.inference.models.image_feature.processors import NormalizeFeatures


def repair() -> None:
    """Make PaddleX 3.7.2 able to build an index at all.

    It splits the results of a batch where they are lists, and the features are an array: each image gets those of the
    whole batch, [1, D] instead of [D], and `FaissBuilder.build` fails with "too many values to unpack".
    """
    normalise = NormalizeFeatures.__call__
    NormalizeFeatures.__call__ = lambda self, preds: list(normalise(self, preds))


def make_pipeline(detection: str, recognition: str) -> Any:
    """Return the pipeline on two model folders."""
    modules = {
        "Detection": {
            "module_name": "text_detection",
            "model_name": "PP-ShiTuV2_det",
            "model_dir": detection,
            "batch_size": 1,
        },
        "Recognition": {
            "module_name": "text_recognition",
            "model_name": "PP-ShiTuV2_rec",
            "model_dir": recognition,
            "batch_size": 1,
        },
    }
    return create_pipeline(config={"pipeline_name": "PP-ShiTuV2", "SubModules": modules}, device="cpu")


def plain(box: dict[str, Any]) -> dict[str, Any]:
    """Return a box as JSON takes it."""
    return {
        "labels": box["labels"],
        "rec_scores": [None if score is None else float(score) for score in box["rec_scores"]],
        "det_score": float(box["det_score"]),
        "coordinate": [float(value) for value in box["coordinate"]],
    }


def main() -> None:
    """`request.json` holds models, gallery, labels, queries and indexes; results go beside it."""
    request_file = Path(sys.argv[1])
    request = json.loads(request_file.read_text())
    repair()
    pipeline = make_pipeline(request["detection"], request["recognition"])
    embeddings = [result["feature"] for result in pipeline.rec_model(request["gallery"])]
    np.save(request_file.with_name("embeddings.npy"), np.array(embeddings))
    for number, index in enumerate(request["indexes"]):
        built = pipeline.build_index(
            request["gallery"], request["labels"], metric_type=index["metric"], index_type=index["type"]
        )
        results = list(pipeline.predict(request["queries"], index=built, **index["options"]))
        found = [[plain(box) for box in result["boxes"]] for result in results]
        request_file.with_name(f"found.{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""PaddleX as it comes: the pipeline of the same name, or its model, on the Paddle archive of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from paddlex import create_model, create_pipeline
from paddlex.inference.models.image_feature.processors import NormalizeFeatures

Call = Callable[[int], list[Any]]
Number = Callable[[list[Any]], float]


class Side:
    """A pipeline or a model; `ovseg_side.Side` says what its parts are."""

    def __init__(self, call: Call, number: Number) -> None:
        self.call, self.number = call, number


def load(request: dict[str, Any]) -> Side:
    """Make what the request names."""
    cv2.setNumThreads(request["threads"])
    _repair()
    subject = request["subject"]
    pipelines = {
        "open_vocabulary_segmentation": _promptable,
        "instance_segmentation": _instances,
        "PP-ShiTuV2": _recognition,
    }
    return Side(*pipelines.get(subject["runs"], _model)(subject, request))


def _boxes(results: list[Any]) -> float:
    return float(sum(len(result["boxes"]) for result in results))


def _repair() -> None:
    """Make PaddleX 3.7.2 able to use several images' features at once.

    It splits the results of a batch where they are lists, and the features are an array: each image gets those of the
    whole batch, and no index can be built.
    """
    normalise = NormalizeFeatures.__call__
    NormalizeFeatures.__call__ = lambda self, preds: list(normalise(self, preds))


def _pipeline(name: str, modules: dict[str, Any]) -> Any:
    return create_pipeline(config={"pipeline_name": name, "SubModules": modules}, device="cpu")


def _name(folder: str) -> str:
    """The name that an archive gives its model, which PaddleX's code goes by."""
    config = yaml.safe_load((Path(folder) / "inference.yml").read_text(encoding="utf-8"))
    return str(config["Global"]["model_name"])


def _module(kind: str, folder: str) -> dict[str, Any]:
    return {"module_name": kind, "model_name": _name(folder), "model_dir": folder, "batch_size": 1}


def _promptable(subject: dict[str, Any], request: dict[str, Any]) -> tuple[Call, Number]:
    # PaddleX's pipeline of that name hands the call on to this model, loads a second one for points, and asks for an
    # extra that neither needs.
    model = create_model(_name(folder := subject["paddle"]["model"]), model_dir=folder, device="cpu")

    def call(batch: int) -> list[Any]:
        return list(model.predict([subject["image"]] * batch, prompts={"box_prompt": subject["boxes"]}))

    return call, lambda results: float(sum(np.count_nonzero(mask) for result in results for mask in result["masks"]))


def _instances(subject: dict[str, Any], request: dict[str, Any]) -> tuple[Call, Number]:
    module = _module("instance_segmentation", subject["paddle"]["model"]) | {"threshold": 0.5}
    pipeline = _pipeline("instance_segmentation", {"InstanceSegmentation": module})
    threshold = request["settings"]["threshold"]

    def call(batch: int) -> list[Any]:
        pipeline.instance_segmentation_model.batch_sampler.batch_size = batch
        return list(pipeline.predict([subject["image"]] * batch, threshold=threshold))

    return call, _boxes


def _recognition(subject: dict[str, Any], request: dict[str, Any]) -> tuple[Call, Number]:
    paddle = subject["paddle"]
    modules = {
        "Detection": _module("text_detection", paddle["detection"]),
        "Recognition": _module("text_recognition", paddle["recognition"]),
    }
    pipeline = _pipeline("PP-ShiTuV2", modules)
    index = pipeline.build_index(subject["gallery"], subject["labels"], index_type="Flat")

    def call(batch: int) -> list[Any]:
        for sampler in (pipeline.batch_sampler, pipeline.det_model.batch_sampler, pipeline.rec_model.batch_sampler):
            sampler.batch_size = batch
        return list(pipeline.predict([subject["image"]] * batch, index=index))

    return call, _boxes


def _model(subject: dict[str, Any], request: dict[str, Any]) -> tuple[Call, Number]:
    model = create_model(_name(folder := subject["paddle"]["model"]), model_dir=folder, device="cpu")
    pixels = cv2.imread(subject["image"])
    options = {} if subject["family"] in ("shitu_rec", "clip_vit") else {"threshold": 0.5}
    options |= {key: value for key, value in request["settings"].items() if key in options}

    def call(batch: int) -> list[Any]:
        return list(model.predict([pixels] * batch, batch_size=batch, **options))

    if options:
        return call, _boxes
    return call, lambda results: float(sum(abs(result["feature"]).sum() for result in results))

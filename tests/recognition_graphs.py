"""Small ONNX graphs with the inputs and outputs of image recognition, and model folders that hold them.

What they give has a meaning: the detector finds the left and the right half of an image, each with its brightness as
the score; the embedding of an image is the colours of its eight parts, less medium grey.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

SIZE = 32
DIM = 24

_HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def _detector(batch: str) -> str:
    half = SIZE // 2
    return f"""{_HEAD}
    detector (float[{batch},3,{SIZE},{SIZE}] image, float[{batch},2] scale_factor)
        => (float[rows,6] boxes, int32[images] counts)
    <float[1,2,4] halves = {{0, 0, {half}, {SIZE}, {half}, 0, {SIZE}, {SIZE}}},
     int64[4] turned = {{1, 0, 1, 0}}, int64[1] axis1 = {{1}}, int64[3] column = {{-1, 2, 1}}, int64[2] six = {{-1, 6}},
     int32[1] found = {{2}}>
    {{
        colours = AveragePool <kernel_shape = [{SIZE}, {half}], strides = [{SIZE}, {half}]> (image)
        brightness = ReduceMean <axes = [1], keepdims = 0> (colours)
        scores = Reshape (brightness, column)
        classes = Sub (scores, scores)
        whwh = Gather <axis = 1> (scale_factor, turned)
        scales = Unsqueeze (whwh, axis1)
        corners = Div (halves, scales)
        rows3 = Concat <axis = 2> (classes, scores, corners)
        boxes = Reshape (rows3, six)
        shape = Shape <start = 0, end = 1> (image)
        counts = Expand (found, shape)
    }}"""


EMBEDDER = f"""{_HEAD}
    embedder (float[batch,3,16,16] image) => (float[n,{DIM}] embedding)
    <int64[2] shape = {{-1, {DIM}}}, float grey = {{0.5}}>
    {{
        colours = AveragePool <kernel_shape = [8, 4], strides = [8, 4]> (image)
        flat = Reshape (colours, shape)
        embedding = Sub (flat, grey)
    }}"""
_UNIT = {"type": "Resize", "keep_ratio": False, "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}


def write_detector(folder: Path, batch: str = "batch", **changes: Any) -> Path:
    """Write a detector's folder; `changes` replace entries of its model.yaml."""
    preprocess = _UNIT | {"size": [SIZE, SIZE], "interp": "cubic"}
    return _write(folder, _detector(batch), "picodet", preprocess, {"name": "halves", "labels": ["object"]} | changes)


def write_embedder(folder: Path, graph: str = EMBEDDER, **changes: Any) -> Path:
    """Write a feature model's folder; `changes` replace entries of its model.yaml."""
    preprocess = _UNIT | {"size": [16, 16], "interp": "linear"}
    return _write(folder, graph, "shitu_rec", preprocess, {"name": "colours"} | changes)


def _write(folder: Path, text: str, family: str, preprocess: dict[str, Any], facts: dict[str, Any]) -> Path:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    every = {
        "format": 1,
        "family": family,
        "task": "image_recognition",
        "files": {"model": {"path": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}},
        "preprocess": preprocess,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(every | facts))
    return folder


def plain(colour: tuple[int, int, int], height: int = 20, width: int = 30) -> np.ndarray:
    """Return an image of one colour (B, G, R)."""
    return np.full((height, width, 3), colour, np.uint8)


def halves(left: tuple[int, int, int], right: tuple[int, int, int], height: int = 20, width: int = 60) -> np.ndarray:
    """Return an image whose halves have a colour each."""
    return np.hstack([plain(left, height, width // 2), plain(right, height, width // 2)])

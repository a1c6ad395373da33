"""Let the graph of a feature model begin with the bytes of an image and end with embeddings of unit length.

What is before and after a small network takes longer in numpy than within ONNX Runtime: a tenth of all the time of
ShiTu-tiny-rec. And a device is sent a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ovseg.session import Session
from ovseg.stages.detection import Preprocessing, read_preprocessing
from ovseg.stages.embedding import normalise

_MOST_OFF = 1e-5
"""Largest difference of a number of an embedding of unit length."""
_LEAST = np.float32(1e-20)
"""Is added to the length of an embedding, so that zeros stay zeros; no network's length is changed by it."""


def take_pixels(path: Path, preprocess: Mapping[str, Any], pictures: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Add normalising to both ends of the graph of a file, where it gives the same embeddings.

    The input `image` is replaced by `pixels` [N, H, W, 3] uint8, B, G, R, the resized image as it is; the output
    `embedding` by `unit_embedding`.

    Args:
        path: the ONNX file, replaced if the ends can be added; its external data stays as it is.
        preprocess: that of `model.yaml`.
        pictures: inputs of the graph, made of resized bytes, to compare on.

    Returns:
        Whether the file is another now: not where images are normalised before they are resized, or padded after it.
    """
    how = read_preprocessing(preprocess, f"{path}: preprocess")
    if how.normalise_first or how.keep_ratio or how.padded(how.size) != how.size:
        return False
    pixels = [_pixels(feeds["image"], how) for feeds in pictures]
    factor, offset = how.line
    whole = Session(path, "cpu")
    expected = [
        normalise(whole.run({"image": images[..., ::-1].transpose(0, 3, 1, 2) * factor + offset})["embedding"])
        for images in pixels
    ]
    del whole  # a large model is in memory once
    made = path.with_name(f"{path.name}.ends")  # in the same folder, for its external data
    onnx.save(_with_ends(onnx.load(str(path), load_external_data=False), how), str(made))
    onnx.checker.check_model(str(made))
    session = Session(made, "cpu")
    found = [session.run({"pixels": images})["unit_embedding"] for images in pixels]
    del session
    if not all(np.allclose(a, b, rtol=0, atol=_MOST_OFF) for a, b in zip(expected, found, strict=True)):
        made.unlink()
        return False
    made.replace(path)
    return True


def _pixels(images: np.ndarray, how: Preprocessing) -> np.ndarray:
    """The resized images, N x H x W x 3 uint8 BGR, that normalised ones were made of."""
    mean, std = (np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in (how.mean, how.std))
    rgb = np.rint(images * std + mean).astype(np.uint8)
    return np.ascontiguousarray(rgb.transpose(0, 2, 3, 1)[..., ::-1])


def _with_ends(model: ModelProto, how: Preprocessing) -> ModelProto:
    graph = model.graph
    batch, channels, *sides = (dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    embedding = graph.output[0].type.tensor_type.shape
    factor, offset = how.line
    constants = {
        "pixels_rgb": np.array([2, 1, 0]),
        "pixels_factor": factor,
        "pixels_offset": offset,
        "embedding_axis": np.array([1]),
        "embedding_least": _LEAST,
    }
    # The cast comes first: TensorRT takes bytes for nothing else.
    head = [
        helper.make_node("Cast", ["pixels"], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels_float"], ["pixels_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["pixels_planes", "pixels_rgb"], ["pixels_ordered"], axis=1),
        helper.make_node("Mul", ["pixels_ordered", "pixels_factor"], ["pixels_scaled"]),
        helper.make_node("Add", ["pixels_scaled", "pixels_offset"], ["image"]),
    ]
    tail = [
        helper.make_node("Mul", ["embedding", "embedding"], ["embedding_squares"]),
        helper.make_node("ReduceSum", ["embedding_squares", "embedding_axis"], ["embedding_square"]),
        helper.make_node("Sqrt", ["embedding_square"], ["embedding_length"]),
        helper.make_node("Add", ["embedding_length", "embedding_least"], ["embedding_divisor"]),
        helper.make_node("Div", ["embedding", "embedding_divisor"], ["unit_embedding"]),
    ]
    nodes = [*head, *graph.node, *tail]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, *sides, channels]))
    shape = [dim.dim_param or dim.dim_value for dim in embedding.dim]
    graph.output.append(helper.make_tensor_value_info("unit_embedding", TensorProto.FLOAT, shape))
    return model

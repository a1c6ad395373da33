"""Small ONNX graphs with SAM's inputs and outputs, and model folders that hold them.

Their masks have a meaning, so that a test can tell a wrong coordinate or a wrong image from a right one: a
box gives its own inside, a point a disc around it (a negative one takes it away), and the brightness of the
image shifts the edge. The encoder and the shift have random weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
LOW = SIZE // 4
RADIUS = 12.0
_FLOAT = TensorProto.FLOAT


def _model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sam", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _value(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _FLOAT, shape)


def encoder() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.05, (4, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["embedding_0"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["image"], ["embedding_1"]),
    ]
    outputs = [_value("embedding_0", [1, 4, LOW, LOW]), _value("embedding_1", [1, 3, 1, 1])]
    return _model(nodes, [_value("image", [1, 3, SIZE, SIZE])], outputs, {"weights": weights})


def _constants() -> dict[str, np.ndarray]:
    centres = (np.arange(LOW, dtype=np.float32) + 0.5) * 4
    rng = np.random.default_rng(1)
    return {
        "grid_x": np.broadcast_to(centres[None, :], (1, 1, LOW, LOW)).copy(),
        "grid_y": np.broadcast_to(centres[:, None], (1, 1, LOW, LOW)).copy(),
        "mix": rng.normal(0, 0.05, (1, 4, 1, 1)).astype(np.float32),
        "radius": np.array(RADIUS, np.float32),
        "channels": np.array([1], np.int64),
        "all_but_n": np.array([1, 2, 3], np.int64),
        "image_shape": np.array([0, 1, 1, 1], np.int64),
    }


def _image_term() -> list:
    """Nodes that make `shift` [1,1,LOW,LOW] of the embeddings."""
    return [
        helper.make_node("Mul", ["embedding_0", "mix"], ["mixed"]),
        helper.make_node("ReduceSum", ["mixed", "channels"], ["local"], keepdims=1),
        helper.make_node("ReduceMean", ["embedding_1"], ["brightness"], axes=[1], keepdims=1),
        helper.make_node("Add", ["local", "brightness"], ["shift"]),
    ]


def _box_term(corners: list[str]) -> list:
    """Nodes that make `inside` [N,1,LOW,LOW]: pixels to the nearest side, positive inside."""
    x1, y1, x2, y2 = corners
    return [
        helper.make_node("Sub", ["grid_x", x1], ["right_of_x1"]),
        helper.make_node("Sub", ["grid_y", y1], ["below_y1"]),
        helper.make_node("Sub", [x2, "grid_x"], ["left_of_x2"]),
        helper.make_node("Sub", [y2, "grid_y"], ["above_y2"]),
        helper.make_node("Min", ["right_of_x1", "below_y1", "left_of_x2", "above_y2"], ["inside"]),
    ]


def _embeddings() -> list:
    return [_value("embedding_0", [1, 4, LOW, LOW]), _value("embedding_1", [1, 3, 1, 1])]


def box_decoder(count: int | str = "N") -> onnx.ModelProto:
    nodes = [
        *_image_term(),
        helper.make_node("Split", ["boxes"], ["c0", "c1", "c2", "c3"], axis=1),
        *(helper.make_node("Reshape", [f"c{i}", "image_shape"], [f"corner{i}"]) for i in range(4)),
        *_box_term([f"corner{i}" for i in range(4)]),
        helper.make_node("Add", ["inside", "shift"], ["low_res_masks"]),
    ]
    outputs = [_value("low_res_masks", [count, 1, LOW, LOW])]
    return _model(nodes, [*_embeddings(), _value("boxes", [count, 4])], outputs, _constants())


def point_decoder() -> onnx.ModelProto:
    nodes = [
        *_image_term(),
        helper.make_node("Split", ["points"], ["px", "py"], axis=2),
        helper.make_node("Reshape", ["px", "image_shape"], ["x"]),
        helper.make_node("Reshape", ["py", "image_shape"], ["y"]),
        helper.make_node("Sub", ["grid_x", "x"], ["dx"]),
        helper.make_node("Sub", ["grid_y", "y"], ["dy"]),
        helper.make_node("Mul", ["dx", "dx"], ["dx2"]),
        helper.make_node("Mul", ["dy", "dy"], ["dy2"]),
        helper.make_node("Add", ["dx2", "dy2"], ["d2"]),
        helper.make_node("Sqrt", ["d2"], ["distance"]),
        helper.make_node("Sub", ["radius", "distance"], ["disc"]),
        helper.make_node("Add", ["disc", "shift"], ["low_res_masks"]),
    ]
    outputs = [_value("low_res_masks", [1, 1, LOW, LOW])]
    return _model(nodes, [*_embeddings(), _value("points", [1, 1, 2])], outputs, _constants())


def general_decoder(mask_axis: str = "N") -> onnx.ModelProto:
    """Box: its inside. Points: the union of positive discs without the negative ones."""
    constants = _constants() | {
        "tl": np.array(2, np.float32),
        "br": np.array(3, np.float32),
        "positive": np.array(1, np.float32),
        "negative": np.array(0, np.float32),
        "padding": np.array(-1, np.float32),
        "far": np.array(-1e3, np.float32),
        "one": np.array(1, np.float32),
        "point_axis": np.array([1], np.int64),
        "to_grid": np.array([0, -1, 1, 1], np.int64),
        "needs_padding": np.array(-20, np.float32),
        # The single-mask token and three others, which a test can tell from it.
        "tokens": np.array([0, -100, -200, 100], np.float32).reshape(1, 4, 1, 1),
    }
    nodes = [
        *_image_term(),
        helper.make_node("Split", ["point_coords"], ["xs3", "ys3"], axis=2),
        helper.make_node("Reshape", ["xs3", "to_grid"], ["xs"]),  # [N,P,1,1]
        helper.make_node("Reshape", ["ys3", "to_grid"], ["ys"]),
        helper.make_node("Reshape", ["point_labels", "to_grid"], ["labels"]),
    ]
    for label in ("tl", "br", "positive", "negative", "padding"):
        nodes += [
            helper.make_node("Equal", ["labels", label], [f"is_{label}"]),
            helper.make_node("Cast", [f"is_{label}"], [f"{label}_1"], to=_FLOAT),
            helper.make_node("ReduceMax", [f"{label}_1"], [f"any_{label}"], axes=[1], keepdims=1),
        ]
    for corner, label in (("1", "tl"), ("2", "br")):
        for axis in "xy":
            nodes += [
                helper.make_node("Mul", [f"{axis}s", f"{label}_1"], [f"{axis}{corner}_only"]),
                helper.make_node("ReduceSum", [f"{axis}{corner}_only", "point_axis"], [f"{axis}{corner}"], keepdims=1),
            ]
    nodes += [
        *_box_term(["x1", "y1", "x2", "y2"]),
        helper.make_node("Sub", ["grid_x", "xs"], ["dx"]),
        helper.make_node("Sub", ["grid_y", "ys"], ["dy"]),
        helper.make_node("Mul", ["dx", "dx"], ["dx2"]),
        helper.make_node("Mul", ["dy", "dy"], ["dy2"]),
        helper.make_node("Add", ["dx2", "dy2"], ["d2"]),
        helper.make_node("Sqrt", ["d2"], ["distance"]),
        helper.make_node("Sub", ["radius", "distance"], ["disc"]),
        helper.make_node("Where", ["is_positive", "disc", "far"], ["positive_discs"]),
        helper.make_node("ReduceMax", ["positive_discs"], ["in_positive"], axes=[1], keepdims=1),
        helper.make_node("Where", ["is_negative", "disc", "far"], ["negative_discs"]),
        helper.make_node("ReduceMax", ["negative_discs"], ["in_negative"], axes=[1], keepdims=1),
        helper.make_node("Neg", ["in_negative"], ["out_of_negative"]),
        helper.make_node("Min", ["in_positive", "out_of_negative"], ["from_points"]),
        helper.make_node("Cast", ["any_tl"], ["has_box"], to=TensorProto.BOOL),
        helper.make_node("Where", ["has_box", "inside", "from_points"], ["prompted"]),
        # Points without a padding point are not what SAM was trained with: let the mask vanish.
        helper.make_node("Add", ["any_tl", "any_padding"], ["complete"]),
        helper.make_node("Sub", ["one", "complete"], ["incomplete"]),
        helper.make_node("Mul", ["incomplete", "needs_padding"], ["penalty"]),
        helper.make_node("Add", ["prompted", "penalty"], ["checked"]),
        helper.make_node("Reshape", ["has_mask_input", "image_shape"], ["has_mask"]),
        helper.make_node("Mul", ["mask_input", "has_mask"], ["mask_prompt"]),
        helper.make_node("Add", ["checked", "mask_prompt"], ["with_mask"]),
        helper.make_node("Add", ["with_mask", "shift"], ["single"]),
        helper.make_node("Add", ["single", "tokens"], ["low_res_masks"]),
        helper.make_node("ReduceMean", ["low_res_masks"], ["iou_predictions"], axes=[2, 3], keepdims=0),
    ]
    inputs = [
        *_embeddings(),
        _value("point_coords", ["N", "P", 2]),
        _value("point_labels", ["N", "P"]),
        _value("mask_input", [mask_axis, 1, LOW, LOW]),
        _value("has_mask_input", [mask_axis]),
    ]
    outputs = [_value("low_res_masks", ["N", 4, LOW, LOW]), _value("iou_predictions", ["N", 4])]
    return _model(nodes, inputs, outputs, constants)


DECODERS = {
    "general": (general_decoder, ["box", "point"]),
    "one_mask": (lambda: general_decoder("masks"), ["box", "point"]),
    "boxes": (box_decoder, ["box"]),
    "points": (point_decoder, ["point"]),
}


def write_folder(folder: Path, kind: str = "general", name: str | None = None) -> Path:
    """Write a model folder with a decoder of `kind`, a key of DECODERS."""
    folder.mkdir(parents=True)
    decoder, prompts = DECODERS[kind]
    files = {}
    for role, model in (("encoder", encoder()), ("decoder", decoder())):
        data = model.SerializeToString()
        (folder / f"{role}.onnx").write_bytes(data)
        files[role] = {"path": f"{role}.onnx", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    facts = {
        "format": 1,
        "name": name or f"test-{kind}",
        "family": "sam",
        "task": "open_vocabulary_segmentation",
        "files": files,
        "preprocess": {
            "type": "SAMProcessor",
            "size": SIZE,
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
        },
        "labels": [],
        "opset": 17,
        "licence": "Apache-2.0",
        "source": "random weights",
        "prompts": prompts,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    return folder

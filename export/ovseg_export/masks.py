"""Cut a graph of instance segmentation before it spreads its masks over the image.

Paddle's graphs paste all their masks, a hundred in general, at the size of the image: 0.8 GB of floats at 1080p,
several times over, and more time than the network itself. The runtime pastes those that the threshold leaves, so the
graph may end at the masks' own resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ovseg.session import Session
from ovseg.stages.masks import paste_into_boxes, resize_masks
from ovseg_export.split import select
from ovseg_export.tidy import reads

LOW_RES, SIZE = "low_res_masks", "mask_size"
_MOST_PIXELS_OFF = 1e-5
"""Share of the pixels of all masks that rounding may put on the other side of the threshold."""
_SAME_PIXELS = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Sigmoid", "Greater"}


@dataclass(frozen=True)
class _Place:
    """Where a graph is cut: its tensors to the names they get, and how the runtime goes on from there."""

    tensors: Mapping[str, str]
    paste: str
    threshold: float

    @property
    def facts(self) -> dict[str, Any]:
        return {"paste": self.paste, "threshold": self.threshold}


def cut_pasting(path: Path, pictures: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any] | None:
    """Let the graph of a file end before the pasting, where the runtime gives the same masks from there.

    The output `masks` is replaced by `low_res_masks` and, where they are resized to the image, `mask_size`.

    Args:
        path: the ONNX file, without external data; replaced if the graph can be cut.
        pictures: inputs of single images, to compare on.

    Returns:
        How the runtime pastes: `paste` (`resize` or `boxes`) and `threshold`; None if the file is as it was.
    """
    model = onnx.load(str(path))
    place = _resized(model) or _in_boxes(model)
    if place is None:
        return None
    cut = _cut(model, place)
    whole, part = Session(path, "cpu"), Session(cut.SerializeToString(), "cpu")
    # By turns, so that no two pictures' masks are in memory.
    if not all(_same(whole.run(feeds), part.run(feeds), place) for feeds in pictures):
        return None
    onnx.save(cut, str(path))
    return place.facts


def _resized(model: ModelProto) -> _Place | None:
    """The input of the resize that `masks` end with, with nothing after it but a threshold."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    name, threshold, sigmoid = "masks", None, False
    while (node := makers.get(name)) is not None and node.op_type in _SAME_PIXELS:
        if node.op_type == "Greater":
            if threshold is not None or node.input[1] not in constants:
                return None
            threshold = float(numpy_helper.to_array(constants[node.input[1]]).reshape(-1)[0])
        sigmoid |= node.op_type == "Sigmoid"
        name = node.input[0]
    if node is None or threshold is None or not _is_bilinear(node):
        return None
    if sigmoid:
        threshold = math.log(threshold / (1 - threshold))
    return _Place({node.input[0]: LOW_RES, node.input[3]: SIZE}, "resize", threshold)


def _is_bilinear(node: NodeProto) -> bool:
    if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
        return False
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    centres = values.get("coordinate_transformation_mode", b"half_pixel")
    return values.get("mode") == b"linear" and centres in (b"half_pixel", b"pytorch_half_pixel")


def _in_boxes(model: ModelProto) -> _Place | None:
    """The only masks [K, h, w] that the loop which makes `masks` reads: it puts them into their boxes (R-CNN)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    name = "masks"
    while (node := makers.get(name)) is not None and node.op_type in ("Identity", "Cast"):
        name = node.input[0]
    if node is None or node.op_type != "Loop":
        return None
    types = {value.name: value.type.tensor_type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    read = [name for name in sorted(reads(node)) if name in types and name in makers]
    masks = [
        name for name in read if types[name].elem_type == onnx.TensorProto.FLOAT and len(types[name].shape.dim) == 3
    ]
    return _Place({masks[0]: LOW_RES}, "boxes", 0.5) if len(masks) == 1 else None


def _cut(model: ModelProto, place: _Place) -> ModelProto:
    part = ModelProto()
    part.CopyFrom(model)
    kinds = {LOW_RES: onnx.TensorProto.FLOAT, SIZE: onnx.TensorProto.INT64}
    known = {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for tensor, name in place.tensors.items():
        part.graph.node.append(helper.make_node("Identity", [tensor], [name], name=f"output_{name}"))
        part.graph.output.append(helper.make_tensor_value_info(name, kinds[name], None))
        if tensor in known:
            part.graph.output[-1].type.CopyFrom(known[tensor])
    kept = [value.name for value in part.graph.output if value.name != "masks"]
    return select(part, kept)


def _same(whole: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray], place: _Place) -> bool:
    """Whether the runtime's masks are those of the whole graph."""
    masks = whole["masks"]
    low_res = part[LOW_RES].reshape(-1, *part[LOW_RES].shape[-2:])
    if len(low_res) != len(masks):
        # Without a detection the graph has one made-up mask of its own size, which nobody will paste.
        return not (whole.get("boxes", whole.get("scores"))[..., :2] > 0).any()
    every, size = np.arange(len(masks)), masks.shape[1:]
    if place.paste == "resize":
        pasted = resize_masks(low_res, every, part[SIZE][-2:], *size, threshold=place.threshold)
    else:
        pasted = paste_into_boxes(low_res, whole["boxes"][:, 2:6], *size, threshold=place.threshold)
    off = sum(int(((one != 0) != (other > 0)).sum()) for one, other in zip(pasted, masks, strict=True))
    return off <= _MOST_PIXELS_OFF * masks.size

"""Small ONNX graphs with the inputs and outputs of instance segmentation, and model folders that hold them.

What they find has a meaning: boxes are shares of the original image, which the graph computes from `im_shape`
and `scale_factor`; scores are shares of the brightness; a mask is its box, 4 pixels wider on each side.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import yaml

SIZE = 32
LABELS = ("person", "dog", "traffic light", "kite")
# class, share of the brightness as score, shares of width and height as corners
FOUND = (
    (2, 0.9, (0.25, 0.125, 0.75, 0.5)),
    (0, 0.6, (-0.1, 0.5, 0.3, 1.2)),
    (2, 0.3, (0.5, 0.5, 0.52, 0.9)),
)

_HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


# The last steps of the graph, which leaves the masks [many, high, wide] as `abcd`, by `paste` of model.yaml.
_ENDS = {
    "whole": ("int32[many,high,wide] masks", "masks = Cast <to = 6> (abcd)"),
    # Of the size of the image already, so that resizing changes nothing; a logit is 0.5 or -0.5.
    "resize": (
        "float[images,many,high,wide] low_res_masks, int64[4] mask_size",
        """shares0 = Cast <to = 1> (abcd)
        shares1 = Sub (shares0, half)
        low_res_masks = Unsqueeze (shares1, axis0)
        mask_size = Shape (low_res_masks)""",
    ),
    # All of the box.
    "boxes": ("float[many,4,4] low_res_masks", "low_res_masks = ConstantOfShape <value = float[1] {1.0}> (fours)"),
}


def _graph(batch: str, paste: str = "whole") -> str:
    outputs, end = _ENDS[paste]
    shares = ", ".join(str(share) for _, _, box in FOUND for share in box)
    base = ", ".join(str(score) for _, score, _ in FOUND)
    classes = ", ".join(str(number) for number, _, _ in FOUND)
    count = len(FOUND)
    return f"""{_HEAD}
    detector (float[{batch},2] im_shape, float[{batch},3,{SIZE},{SIZE}] image, float[{batch},2] scale_factor)
        => (float[rows,6] boxes, int32[images] counts, {outputs})
    <float[1,{count},4] shares = {{{shares}}}, float[1,{count}] base = {{{base}}},
     float[1,{count},1] classes = {{{classes}}},
     float margin = {{4.0}}, float half = {{0.5}}, float one = {{1.0}},
     int64[3] fours = {{{count}, 4, 4}}, int64[1] axis0 = {{0}},
     int64[4] turned = {{1, 0, 1, 0}}, int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}},
     int64[2] six = {{-1, 6}},
     int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}}, int64 i3 = {{3}}, int64 i4 = {{4}},
     int64 i5 = {{5}},
     int64[3] columns_shape = {{1, 1, -1}}, int64[3] rows_shape = {{1, -1, 1}},
     int64[3] box_shape = {{-1, 1, 1}},
     float f0 = {{0.0}}, int32[1] found = {{{count}}}>
    {{
        ratio = Div (im_shape, scale_factor)
        shifted = Add (ratio, half)
        original = Floor (shifted)
        whwh = Gather <axis = 1> (original, turned)
        sides = Unsqueeze (whwh, axis1)
        corners = Mul (sides, shares)
        mean = ReduceMean <axes = [1, 2, 3], keepdims = 0> (image)
        means = Unsqueeze (mean, axis1)
        score = Mul (means, base)
        scores = Unsqueeze (score, axis2)
        ones = Div (scores, scores)
        labels = Mul (ones, classes)
        rows3 = Concat <axis = 2> (labels, scores, corners)
        boxes = Reshape (rows3, six)
        shape = Shape <start = 0, end = 1> (image)
        counts = Expand (found, shape)
        size = Gather <axis = 0> (original, i0)
        height = Gather <axis = 0> (size, i0)
        width = Gather <axis = 0> (size, i1)
        ys = Range (f0, height, one)
        xs = Range (f0, width, one)
        y = Reshape (ys, rows_shape)
        x = Reshape (xs, columns_shape)
        left0 = Gather <axis = 1> (boxes, i2)
        top0 = Gather <axis = 1> (boxes, i3)
        right0 = Gather <axis = 1> (boxes, i4)
        bottom0 = Gather <axis = 1> (boxes, i5)
        left1 = Reshape (left0, box_shape)
        top1 = Reshape (top0, box_shape)
        right1 = Reshape (right0, box_shape)
        bottom1 = Reshape (bottom0, box_shape)
        left = Sub (left1, margin)
        top = Sub (top1, margin)
        right = Add (right1, margin)
        bottom = Add (bottom1, margin)
        a = GreaterOrEqual (x, left)
        b = Less (x, right)
        c = GreaterOrEqual (y, top)
        d = Less (y, bottom)
        ab = And (a, b)
        cd = And (c, d)
        abcd = And (ab, cd)
        {end}
    }}"""


def _without_boxes() -> str:
    """SOLOv2's outputs: two masks of the padded size, one of them empty, scores 0.5 and 0.4."""
    return f"""{_HEAD}
    solo (float[1,2] im_shape, float[1,3,height,width] image, float[1,2] scale_factor)
        => (int64 counts, int64[n] labels, float[n] scores, uint8[n,high,wide] masks)
    <int64 counts0 = {{2}}, int64[2] labels0 = {{3, 1}}, float[2] scores0 = {{0.5, 0.4}},
     float half = {{0.5}}, float f0 = {{0.0}}, float one = {{1.0}}, int64 i0 = {{0}}, int64 i1 = {{1}},
     float[2,1,1] limits = {{3.0, 1000.0}},
     int64[3] columns_shape = {{1, 1, -1}}, int64[3] rows_shape = {{1, -1, 1}}>
    {{
        counts = Identity (counts0)
        labels = Identity (labels0)
        scores = Identity (scores0)
        ratio = Div (im_shape, scale_factor)
        shifted = Add (ratio, half)
        original = Floor (shifted)
        size = Gather <axis = 0> (original, i0)
        height0 = Gather <axis = 0> (size, i0)
        width0 = Gather <axis = 0> (size, i1)
        ys = Range (f0, height0, one)
        xs = Range (f0, width0, one)
        y = Reshape (ys, rows_shape)
        x = Reshape (xs, columns_shape)
        a = GreaterOrEqual (x, limits)
        b = GreaterOrEqual (y, limits)
        ab = And (a, b)
        masks = Cast <to = 2> (ab)
    }}"""


_RESIZE = {"type": "Resize", "size": [SIZE, SIZE], "keep_ratio": False, "interp": "cubic"}
_UNIT = {"mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
_KEEP = {"type": "Resize", "size": [SIZE, 48], "keep_ratio": True, "interp": "linear", "pad_stride": 16}
_PASTES: dict[str, dict[str, Any]] = {
    "resized": {"paste": "resize", "threshold": 0.0},
    "in_boxes": {"paste": "boxes", "threshold": 0.5},
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "batch": ("mask_rtdetr", _graph("batch"), _RESIZE | _UNIT),
    "single": ("ppyoloe_seg", _graph("1"), _RESIZE | _UNIT),
    "resized": ("mask_rtdetr", _graph("1", "resize"), _RESIZE | _UNIT),
    "in_boxes": ("mask_rcnn", _graph("1", "boxes"), _RESIZE | _UNIT),
    "without_boxes": ("solov2", _without_boxes(), _KEEP | _UNIT | {"normalize_first": True}),
}


def write_folder(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a model folder; `changes` replace entries of its model.yaml."""
    family, text, preprocess = KINDS[kind]
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    facts = {
        "format": 1,
        "name": f"tiny-{kind}",
        "family": family,
        "task": "instance_segmentation",
        "files": {"model": {"path": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}},
        "preprocess": preprocess,
        "labels": list(LABELS),
        "postprocess": {"masks": _PASTES[kind]} if kind in _PASTES else {},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(facts | changes))
    return folder

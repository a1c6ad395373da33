"""Operators and small computations that the detection families share."""

from __future__ import annotations

import paddle
from paddle import _C_ops
from paddle.base.layer_helper import LayerHelper


def multiclass_nms(
    boxes: paddle.Tensor,
    scores: paddle.Tensor,
    rois_num: paddle.Tensor | None = None,
    *,
    score_threshold: float,
    nms_threshold: float,
    nms_top_k: int,
    keep_top_k: int,
    background: int = -1,
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """The operator `multiclass_nms3`, which Paddle has no public function for.

    Args:
        boxes: [N, M, 4], or [R, C, 4] with `rois_num`.
        scores: [N, C, M], or [R, C] with `rois_num`.
        rois_num: int32 [N], rows of each picture, where the batch is flattened.
        score_threshold: Boxes at or below it are dropped first.
        nms_threshold: IoU above which the lower box of one class goes.
        nms_top_k: Boxes of one class that enter, -1 for all.
        keep_top_k: Boxes of one picture that are kept.
        background: Class that is skipped.

    Returns:
        Rows [K, 6] (class, score, x0, y0, x1, y1), their index int32 [K, 1], count of each picture int32 [N].
    """
    if paddle.framework.in_dynamic_or_pir_mode():
        rows, index, count = _C_ops.multiclass_nms3(
            boxes,
            scores,
            rois_num,
            score_threshold,
            nms_top_k,
            keep_top_k,
            nms_threshold,
            True,
            1.0,
            background,
        )
        return rows, count, index
    helper = LayerHelper("multiclass_nms3")
    rows = helper.create_variable_for_type_inference(boxes.dtype)
    index = helper.create_variable_for_type_inference("int32")
    count = helper.create_variable_for_type_inference("int32")
    inputs = {"BBoxes": boxes, "Scores": scores}
    if rois_num is not None:
        inputs["RoisNum"] = rois_num
    helper.append_op(
        type="multiclass_nms3",
        inputs=inputs,
        attrs={
            "background_label": background,
            "score_threshold": score_threshold,
            "nms_top_k": nms_top_k,
            "nms_threshold": nms_threshold,
            "keep_top_k": keep_top_k,
            "nms_eta": 1.0,
            "normalized": True,
        },
        outputs={"Out": rows, "Index": index, "NmsRoisNum": count},
    )
    for output in (rows, index, count):
        output.stop_gradient = True
    return rows, count, index


def cell_centres(sides: list[tuple[int, int, int]], offset: float) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Centres of the cells of several grids, in cells.

    Args:
        sides: (rows, columns, stride) of each grid.
        offset: Place of the centre within a cell.

    Returns:
        Centres (x, y) float32 [M, 2] and strides float32 [M, 1], grid after grid, row by row.
    """
    centres, strides = [], []
    for rows, columns, stride in sides:
        y, x = paddle.meshgrid(paddle.arange(rows) + offset, paddle.arange(columns) + offset)
        centres.append(paddle.stack([x, y], axis=-1).astype("float32").reshape([-1, 2]))
        strides.append(paddle.full([rows * columns, 1], stride, dtype="float32"))
    return paddle.concat(centres), paddle.concat(strides)


def boxes_from_distances(centres: paddle.Tensor, distances: paddle.Tensor) -> paddle.Tensor:
    """Boxes [N, M, 4] from centres [M, 2] and distances [N, M, 4] to left, top, right, bottom."""
    left_top, right_bottom = paddle.split(distances, 2, axis=-1)
    return paddle.concat([centres - left_top, centres + right_bottom], axis=-1)


def box_scale(scale_factor: paddle.Tensor) -> paddle.Tensor:
    """[N, 2] (height, width) → [N, 1, 4] in the order of box coordinates."""
    scale_y, scale_x = paddle.split(scale_factor, 2, axis=-1)
    return paddle.concat([scale_x, scale_y, scale_x, scale_y], axis=-1).reshape([-1, 1, 4])

"""Detection: RoI pooling, proposals, and the several kinds of non-maximum suppression (NMS).

Boxes are [x1, y1, x2, y2]. ONNX's NonMaxSuppression compares as Paddle does (a score counts if it is above
the threshold, a box goes if its overlap is above the threshold, of equal scores the lower index comes first),
and returns rows (batch, class, box) in the order of batch, class, falling score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import Graph
from ovseg_export.lower.nn import need_channels_first, shape_of
from ovseg_export.program import Op, Value

_LOWEST = float(np.finfo(np.float32).min)
_BOX_CLIP = float(np.log(1000.0 / 16.0))  # the largest log-size step that generate_proposals takes


def roi_align(g: Graph, op: Op) -> str:
    """`aligned` moves the coordinates by half a pixel; boxes come image after image, `boxes_num` of each."""
    need_channels_first(op)
    rois = g[op.inputs[1]]
    if op.inputs[2] is None:
        raise UnsupportedCase("it takes the number of boxes from level-of-detail data")
    return g.op(
        "RoiAlign",
        g[op.inputs[0]],
        rois,
        images_of_rows(g, rois, g.vector(op.inputs[2])),
        output_height=op.attributes["pooled_height"],
        output_width=op.attributes["pooled_width"],
        sampling_ratio=max(op.attributes["sampling_ratio"], 0),
        spatial_scale=op.attributes["spatial_scale"],
        coordinate_transformation_mode="half_pixel" if op.attributes["aligned"] else "output_half_pixel",
    )


def images_of_rows(g: Graph, rows: str, counts: str) -> str:
    """The image that each row belongs to: how many images end at or before it. [rows] int64."""
    index = g.unsqueeze(g.range(g.dim(rows, 0)), 1)
    ends = g.unsqueeze(g.op("CumSum", counts, g.const(0, np.int64)), 0)
    passed = g.cast(g.op("GreaterOrEqual", index, ends), "int64")
    return g.reduce("ReduceSum", passed, [1], False)


def rows_per_image(g: Graph, images: str, batch: str) -> str:
    """How many rows belong to each of `batch` images. [batch] int64."""
    same = g.op("Equal", g.unsqueeze(images, 0), g.unsqueeze(g.range(batch), 1))
    return g.reduce("ReduceSum", g.cast(same, "int64"), [1], False)


def column(g: Graph, rows: str, index: int) -> str:
    return g.gather(rows, g.const(index, np.int64), 1)


def corners(g: Graph, boxes: str) -> tuple[str, ...]:
    """x1, y1, x2, y2 of boxes [..., 4], each [..., 1]."""
    return g.ops("Split", [boxes, g.i64(1, 1, 1, 1)], 4, axis=-1)


def distribute_fpn_proposals(g: Graph, op: Op) -> tuple[str | tuple[str, ...], ...]:
    """Boxes go to the pyramid level that fits their size.

    The level is floor(refer_level + log2(sqrt(area) / refer_scale)) (Feature Pyramid Networks, equation 1).

    The logarithm is not taken: a box belongs to level L or above where its size ratio is at least
    2^(L - refer_level), and counting these comparisons is exact at the borders.
    """
    rois, attributes, dtype = g[op.inputs[0]], op.attributes, op.outputs[0].elements[0].dtype
    low, high = attributes["min_level"], attributes["max_level"]
    offset = g.const(float(attributes["pixel_offset"]), dtype)
    x1, y1, x2, y2 = corners(g, rois)
    width, height = g.op("Sub", x2, x1), g.op("Sub", y2, y1)
    area = g.op("Mul", g.op("Add", width, offset), g.op("Add", height, offset))
    zero = g.const(0, dtype)
    broken = g.op("Or", g.op("Less", width, zero), g.op("Less", height, zero))
    size = g.op("Sqrt", g.op("Where", broken, zero, area))
    ratio = g.op("Add", g.op("Div", size, g.const(attributes["refer_scale"], dtype)), g.const(1e-6, dtype))
    borders = g.const([2.0 ** (level - attributes["refer_level"]) for level in range(low + 1, high + 1)], dtype)
    passed = g.cast(g.op("GreaterOrEqual", ratio, borders), "int64")
    level = g.reduce("ReduceSum", passed, [1], False)
    count = g.dim(rois, 0)
    images = batch = ""
    if len(op.inputs) > 1 and op.inputs[1] is not None:
        numbers = g.vector(op.inputs[1])
        images, batch = images_of_rows(g, rois, numbers), g.shape(numbers)
    boxes, counts, order = [], [], []
    for i in range(high - low + 1):
        index = g.reshape(g.op("NonZero", g.op("Equal", level, g.const(i, np.int64))), -1)
        order.append(index)
        boxes.append(g.gather(rois, index))
        if images:
            counts.append(g.cast(rows_per_image(g, g.gather(images, index), batch), "int32"))
    places = g.concat(order)
    restore = g.op("ScatterElements", places, places, g.range(count), axis=0)
    restore = g.cast(g.unsqueeze(restore, 1), "int32")
    return tuple(boxes), tuple(counts), restore


def generate_proposals(g: Graph, op: Op) -> tuple[str, ...]:
    """Decode the best anchors, clip them, drop small ones, and suppress overlaps; image by image.

    An image without any proposal gets one empty box with the score 0. It takes part from the start, with a
    score that lets it through only then.
    """
    a, dtype = op.attributes, "float32"
    if a["eta"] < 1:
        raise UnsupportedCase(f"its overlap threshold adapts (eta {a['eta']})")
    if a["nms_thresh"] <= 0:
        raise UnsupportedCase("it does not suppress overlaps")
    scores, deltas, image_size, anchors, variances = (g[value] for value in op.inputs[:5])
    scores = g.reshape(g.transpose(scores, 0, 2, 3, 1), 0, -1)
    deltas = g.op("Reshape", g.transpose(deltas, 0, 2, 3, 1), g.i64(0, -1, 4))
    anchors, variances = g.reshape(anchors, -1, 4), g.reshape(variances, -1, 4)
    count = g.op("Shape", scores, start=1, end=2)
    if a["pre_nms_top_n"] > 0:
        count = g.op("Min", count, g.i64(a["pre_nms_top_n"]))
    scores, index = g.ops("TopK", [scores, count], 2, axis=1, largest=1, sorted=1)
    deltas = g.op("GatherND", deltas, g.unsqueeze(index, 2), batch_dims=1)
    deltas = g.op("Mul", deltas, g.gather(variances, index))
    boxes = _decode(g, g.gather(anchors, index), deltas, float(a["pixel_offset"]))
    boxes, valid = _clip(g, boxes, image_size, a["min_size"], float(a["pixel_offset"]))
    scores = g.op("Where", valid, scores, g.const(-np.inf, dtype))
    # the spare box of an image without proposals
    none = g.op("Not", g.cast(g.reduce("ReduceMax", g.cast(valid, "int32"), [1], True), "bool"))
    spare = g.op("Where", none, g.const(0, dtype), g.const(-np.inf, dtype))
    scores = g.concat([scores, spare], 1)
    images = g.op("Shape", scores, start=0, end=1)
    empty = g.op("Expand", g.const(np.zeros((1, 1, 4), dtype)), g.concat([images, g.i64(1, 4)]))
    boxes = g.concat([boxes, empty], 1)
    limit = g.i64(a["post_nms_top_n"]) if a["post_nms_top_n"] > 0 else g.op("Shape", scores, start=1, end=2)
    chosen = g.op(
        "NonMaxSuppression",
        _inclusive(g, boxes, bool(a["pixel_offset"])),
        g.unsqueeze(scores, 1),
        limit,
        g.const([a["nms_thresh"]], dtype),
        g.const([_LOWEST], dtype),
    )
    place = g.gather(chosen, g.i64(0, 2), 1)
    number = rows_per_image(g, column(g, chosen, 0), images)
    return (
        g.op("GatherND", boxes, place),
        g.unsqueeze(g.op("GatherND", scores, place), 1),
        g.cast(number, op.outputs[2].dtype),  # Paddle writes int32, but may declare another type
    )


def _decode(g: Graph, anchors: str, deltas: str, offset: float) -> str:
    """Centre and size steps, relative to anchors, to corners. All [images, boxes, 4]."""
    half, plus = g.const(0.5, np.float32), g.const(offset, np.float32)
    x1, y1, x2, y2 = corners(g, anchors)
    dx, dy, dw, dh = corners(g, deltas)
    limit = g.const(_BOX_CLIP, np.float32)
    parts = {}
    for axis, (start, end, move, stretch) in enumerate([(x1, x2, dx, dw), (y1, y2, dy, dh)]):
        size = g.op("Sub", end, start)
        size = g.op("Add", size, plus) if offset else size
        centre = g.op("Add", start, g.op("Mul", half, size))
        centre = g.op("Add", g.op("Mul", move, size), centre)
        size = g.op("Mul", g.op("Exp", g.op("Min", stretch, limit)), size)
        reach = g.op("Mul", size, half)
        parts[axis] = g.op("Sub", centre, reach)
        far = g.op("Add", centre, reach)
        parts[axis + 2] = g.op("Sub", far, plus) if offset else far
    return g.concat([parts[i] for i in range(4)], -1)


def _clip(g: Graph, boxes: str, image_size: str, min_size: float, offset: float) -> tuple[str, str]:
    """Clip boxes to their image (height, width); and which of them are large enough. [images, boxes].

    Where pixels count, Paddle also asks for a centre within the image; of a clipped box it always is.
    """
    height, width = g.ops("Split", [image_size, g.i64(1, 1)], 2, axis=1)
    limits = g.unsqueeze(g.concat([width, height, width, height], 1), 1)
    if offset:
        limits = g.op("Sub", limits, g.const(offset, np.float32))
    boxes = g.op("Max", g.op("Min", boxes, limits), g.const(0, np.float32))
    x1, y1, x2, y2 = (g.squeeze(part, 2) for part in corners(g, boxes))
    plus, least = g.const(offset, np.float32), g.const(max(min_size, 1.0), np.float32)
    w, h = g.op("Add", g.op("Sub", x2, x1), plus), g.op("Add", g.op("Sub", y2, y1), plus)
    valid = g.op("And", g.op("GreaterOrEqual", w, least), g.op("GreaterOrEqual", h, least))
    return boxes, valid


def _inclusive(g: Graph, boxes: str, pixels: bool) -> str:
    """Boxes that include their last pixel are one larger at the right and bottom for the overlap."""
    return g.op("Add", boxes, g.const([0, 0, 1, 1], np.float32)) if pixels else boxes


def multiclass_nms(g: Graph, op: Op) -> tuple[str, ...]:
    """NMS for each class of each image, then the best `keep_top_k` of each image over all classes.

    Two layouts: scores [images, classes, boxes] with boxes [images, boxes, 4] that all classes share; or
    scores [rows, classes] with boxes [rows, classes, 4], where `rois_num` says how many rows each image has.
    """
    if op.attributes["nms_eta"] < 1:
        raise UnsupportedCase(f"its overlap threshold adapts (nms_eta {op.attributes['nms_eta']})")
    if shape_of(op.inputs[0])[-1] != 4:
        raise UnsupportedCase("its boxes are polygons")
    rank = len(shape_of(op.inputs[1]))
    rows, picked, index, images, batch = (_shared_boxes if rank == 3 else _boxes_by_class)(g, op)
    keep = op.attributes["keep_top_k"]
    if keep >= 0 and not _one_class(op):
        chosen = _best_of_each_image(g, picked, images, batch, keep)
        rows, index, images = g.gather(rows, chosen), g.gather(index, chosen), g.gather(images, chosen)
    number = rows_per_image(g, images, batch)
    return rows, g.cast(g.unsqueeze(index, 1), "int32"), g.cast(number, "int32")


def _one_class(op: Op) -> bool:
    """Whether there is one class, of which `_suppress` chooses no more than `keep_top_k` already."""
    return len(shape_of(op.inputs[1])) == 3 and shape_of(op.inputs[1])[1] == 1


def _suppress(g: Graph, op: Op, boxes: str, scores: str, candidates: int) -> str:
    """ONNX NMS of boxes [b, n, 4] and scores [b, c, n]; at most `nms_top_k` scores of a class take part.

    No more than `keep_top_k` of a class can stay in the end, so that no more are looked for: the time is quadratic.
    """
    a = op.attributes
    threshold = g.const(a["score_threshold"], np.float32)
    top = a["nms_top_k"]
    if top > -1 and not 0 <= candidates <= top:
        scores = _mask_beyond_best(g, op, scores, threshold, top)
    borders, overlap, least = (
        _inclusive(g, boxes, not a["normalized"]),
        g.const([a["nms_threshold"]], np.float32),
        g.reshape(threshold, 1),
    )

    def choose(most: str) -> str:
        return g.op("NonMaxSuppression", borders, scores, most, overlap, least)

    everything, keep = g.op("Shape", scores, start=2, end=3), a["keep_top_k"]
    chosen = choose(g.i64(keep) if keep >= 0 else everything)
    if not a["normalized"]:
        return chosen
    return _suppress_empty(g, op, boxes, chosen, lambda: choose(everything) if keep >= 0 else chosen)


def _suppress_empty(g: Graph, op: Op, boxes: str, chosen: str, choose_all: Callable[[], str]) -> str:
    """What ONNX's NMS chose, without the boxes of no area that touch a better such box of their class.

    Where some go, others come up: then all that NMS would choose is asked for.

    Their overlap is 0 / 0, which Paddle's multiclass_nms3 does not take for below the threshold (its other
    operators do); ONNX's keeps every box of no area. Clipping at the border of a picture makes many.
    """
    _, empty = _empty(g, boxes, chosen)
    count = g.reduce("ReduceSum", g.cast(empty, "int64"), None, False)
    branches = []
    for label in ("then", "else"):
        with g.region() as nodes:
            result = chosen
            if label == "then":
                everything = choose_all()
                found, without_area = _empty(g, boxes, everything)
                rows = g.reshape(g.op("NonZero", without_area), -1)
                corners_, owner = g.gather(found, rows), g.gather(g.gather(everything, g.i64(0, 1), 1), rows)
                alive = g.cast(_first_of_touching(g, op, corners_, owner), "int64")
                ones = g.op("Expand", g.i64(1), g.shape(without_area))
                kept = g.cast(g.op("ScatterElements", ones, rows, alive, axis=0), "bool")
                result = g.op("Compress", everything, kept, axis=0)
                if _one_class(op) and op.attributes["keep_top_k"] >= 0:
                    images, batch = column(g, result, 0), g.op("Shape", boxes, start=0, end=1)
                    first = _first_of_each_image(g, images, batch, op.attributes["keep_top_k"])
                    result = g.op("Compress", result, first, axis=0)
            result = g.identity_node(result)
            types = {result: Value(0, "int64", ())}
            branches.append(g.subgraph(nodes, f"empty_{label}_{op.index}", (), [result], types))
    several = g.op("Greater", count, g.const(1, np.int64))
    return g.ops("If", [several], 1, then_branch=branches[0], else_branch=branches[1])[0]


def _empty(g: Graph, boxes: str, chosen: str) -> tuple[str, str]:
    """The boxes [m, 4] that NMS chose, and which of them have no area [m]."""
    found = g.op("GatherND", boxes, g.gather(chosen, g.i64(0, 2), 1))
    first, last = g.ops("Split", [found, g.i64(2, 2)], 2, axis=1)
    area = g.reduce("ReduceProd", g.op("Sub", last, first), [1], False)
    return found, g.op("Equal", area, g.const(0, np.float32))


def _first_of_touching(g: Graph, op: Op, boxes: str, owner: str) -> str:
    """Which boxes [m, 4], best first, touch no better one that stays and has the same `owner` [m, 2]. [m]."""
    count = g.op("Shape", boxes, start=0, end=1)
    starts, ends = g.ops("Split", [boxes, g.i64(2, 2)], 2, axis=1)
    everything = g.op("Expand", g.const([True]), count)
    true = g.const(True)
    with g.region() as nodes:
        i, running, alive = g.fresh("i"), g.fresh("running"), g.fresh("alive")
        near = (
            g.op("LessOrEqual", starts, g.gather(ends, i)),
            g.op("GreaterOrEqual", ends, g.gather(starts, i)),
            g.op("Equal", owner, g.gather(owner, i)),
        )
        met = g.reduce("ReduceMin", g.cast(g.concat(near, 1), "int32"), [1], False)
        worse = g.op("And", g.cast(met, "bool"), g.op("Greater", g.range(count), i))
        goes = g.op("And", worse, g.gather(alive, i))
        results = [g.identity_node(running), g.identity_node(g.op("And", alive, g.op("Not", goes)))]
        flag, flags = Value(0, "bool", (), "scalar"), Value(0, "bool", ())
        types = {i: Value(0, "int64", (), "scalar"), running: flag, alive: flags}
        types |= dict(zip(results, (flag, flags), strict=True))
        body = g.subgraph(nodes, f"touching_{op.index}", [i, running, alive], results, types)
    return g.ops("Loop", [g.reshape(count), true, everything], 1, body=body)[0]


def _mask_beyond_best(g: Graph, op: Op, scores: str, threshold: str, top: int) -> str:
    """Scores [b, c, n] with all but the `top` best of each class below every threshold.

    Sorting is slow, and rarely more than `top` scores pass the threshold: so that is asked first.
    """
    passing = g.cast(g.op("Greater", scores, threshold), "int32")
    most = g.reduce("ReduceMax", g.reduce("ReduceSum", passing, [2], False), None, False)
    graphs = []
    for label in ("then", "else"):
        with g.region() as nodes:
            result = scores
            if label == "then":
                count = g.op("Min", g.op("Shape", scores, start=2, end=3), g.i64(top))
                values, places = g.ops("TopK", [scores, count], 2, axis=2, largest=1, sorted=1)
                empty = g.op("Expand", g.const(_LOWEST, np.float32), g.shape(scores))
                result = g.op("ScatterElements", empty, places, values, axis=2)
            result = g.identity_node(result)
            types = {result: Value(0, "float32", ())}
            graphs.append(g.subgraph(nodes, f"best_{label}_{op.index}", (), [result], types))
    crowded = g.op("Greater", most, g.const(top, np.int32))
    return g.ops("If", [crowded], 1, then_branch=graphs[0], else_branch=graphs[1])[0]


def _without_background(g: Graph, op: Op, scores: str, classes: int, axis: int) -> str:
    """The scores [b, c, n] with those of the background class below every threshold."""
    background = op.attributes["background_label"]
    if background < 0 or 0 <= classes <= background:
        return scores
    if classes < 0:
        raise UnsupportedCase("it has a background class, and a class count known at run time only")
    mask = (np.arange(classes) == background).reshape([-1 if i == axis else 1 for i in range(3)])
    return g.op("Where", g.const(mask), g.const(_LOWEST, np.float32), scores)


def _shared_boxes(g: Graph, op: Op) -> tuple[str, str, str, str, str]:
    """Rows (label, score, box), their scores, flat box numbers, images; and the image count."""
    boxes, scores = g[op.inputs[0]], g[op.inputs[1]]
    _, classes, candidates = shape_of(op.inputs[1])
    allowed = _without_background(g, op, scores, classes, 1)
    chosen = _suppress(g, op, boxes, allowed, candidates)
    images, labels, places = (column(g, chosen, i) for i in range(3))
    picked = g.op("GatherND", scores, chosen)
    corners_ = g.op("GatherND", boxes, g.gather(chosen, g.i64(0, 2), 1))
    rows = g.concat([g.unsqueeze(g.cast(labels, "float32"), 1), g.unsqueeze(picked, 1), corners_], 1)
    size = g.op("Shape", scores, start=2, end=3)
    index = g.op("Add", g.op("Mul", images, size), places)
    return rows, picked, index, images, g.op("Shape", scores, start=0, end=1)


def _boxes_by_class(g: Graph, op: Op) -> tuple[str, str, str, str, str]:
    """The same for boxes [rows, classes, 4].

    Classes take the place of ONNX's batch, images that of its classes: each image sees the scores of its own
    rows only. Paddle orders the result by image, class and row, not by score.
    """
    boxes, scores = g[op.inputs[0]], g[op.inputs[1]]
    rows, classes = shape_of(op.inputs[1])
    counts = g.vector(op.inputs[2])
    batch = g.shape(counts)
    owner = images_of_rows(g, scores, counts)
    by_class = g.transpose(scores, 1, 0)
    mine = g.op("Equal", g.unsqueeze(owner, 0), g.unsqueeze(g.range(batch), 1))
    spread = g.op("Where", g.unsqueeze(mine, 0), g.unsqueeze(by_class, 1), g.const(_LOWEST, np.float32))
    allowed = _without_background(g, op, spread, classes, 0)
    chosen = _suppress(g, op, g.transpose(boxes, 1, 0, 2), allowed, rows)
    labels, images, places = (column(g, chosen, i) for i in range(3))
    count, class_count = g.op("Shape", scores, start=0, end=1), g.op("Shape", scores, start=1, end=2)
    key = g.op("Add", g.op("Mul", g.op("Add", g.op("Mul", images, class_count), labels), count), places)
    _, order = g.ops("TopK", [key, g.shape(key)], 2, axis=0, largest=0, sorted=1)
    labels, images, places = (g.gather(name, order) for name in (labels, images, places))
    place = g.concat([g.unsqueeze(places, 1), g.unsqueeze(labels, 1)], 1)
    picked = g.op("GatherND", scores, place)
    columns = [g.unsqueeze(g.cast(labels, "float32"), 1), g.unsqueeze(picked, 1)]
    result = g.concat([*columns, g.op("GatherND", boxes, place)], 1)
    index = g.op("Add", g.op("Mul", places, class_count), labels)
    return result, picked, index, images, batch


def _best_of_each_image(g: Graph, scores: str, images: str, batch: str, keep: int) -> str:
    """The rows with the `keep` best scores of each image, in their present order.

    Rows are sorted by score, then by image; TopK leaves equal ones in order, so that the rank in an image is
    the distance from its first row.
    """
    count = g.shape(scores)
    _, by_score = g.ops("TopK", [scores, count], 2, axis=0, largest=1, sorted=1)
    ordered, by_image = g.ops("TopK", [g.gather(images, by_score), count], 2, axis=0, largest=0, sorted=1)
    order = g.gather(by_score, by_image)
    kept = g.op("Compress", order, _first_of_each_image(g, ordered, batch, keep), axis=0)
    return g.ops("TopK", [kept, g.shape(kept)], 2, axis=0, largest=0, sorted=1)[0]


def _first_of_each_image(g: Graph, images: str, batch: str, keep: int) -> str:
    """Which of rows that are ordered by image are among the first `keep` of theirs."""
    first = g.op("CumSum", rows_per_image(g, images, batch), g.const(0, np.int64), exclusive=1)
    rank = g.op("Sub", g.range(g.op("Shape", images, start=0, end=1)), g.gather(first, images))
    return g.op("Less", rank, g.const(keep, np.int64))


def overlap_matrix(g: Graph, boxes: str, normalized: bool) -> str:
    """IoU of all pairs of boxes [..., n, 4]: [..., n, n]. Boxes with a negative side have the area 0."""
    extra = g.const(0.0 if normalized else 1.0, np.float32)
    zero = g.const(0, np.float32)
    x1, y1, x2, y2 = corners(g, boxes)

    def across(name: str) -> str:
        return g.op("Reshape", name, g.concat([g.op("Shape", name, end=-2), g.i64(1, -1)]))

    width, height = g.op("Sub", x2, x1), g.op("Sub", y2, y1)
    broken = g.op("Or", g.op("Less", width, zero), g.op("Less", height, zero))
    area = g.op("Mul", g.op("Add", width, extra), g.op("Add", height, extra))
    area = g.op("Where", broken, zero, area)
    shared = []
    apart = ""
    for start, end in ((x1, x2), (y1, y2)):
        side = g.op("Sub", g.op("Min", end, across(end)), g.op("Max", start, across(start)))
        # asked of both boxes, not of `side`: Paddle lets boxes turned inside out overlap
        gap = g.op("Or", g.op("Greater", start, across(end)), g.op("Less", end, across(start)))
        apart = g.op("Or", apart, gap) if apart else gap
        shared.append(g.op("Add", side, extra))
    common = g.op("Mul", *shared)
    union = g.op("Sub", g.op("Add", area, across(area)), common)
    return g.op("Where", apart, zero, g.op("Div", common, union))


def matrix_nms(g: Graph, op: Op) -> tuple[str, ...]:
    """Scores decay with the overlap with better boxes of the class (SOLOv2, section 3.3).

    decay of box i = min over better boxes j of f(iou_ij) / f(largest iou of j with a box better than j).
    """
    a = op.attributes
    boxes, scores = g[op.inputs[0]], g[op.inputs[1]]
    _, classes, candidates = shape_of(op.inputs[1])
    lowest, one = g.const(_LOWEST, np.float32), g.const(1, np.float32)
    allowed = _without_background(g, op, scores, classes, 1)
    allowed = g.op("Where", g.op("Greater", allowed, g.const(a["score_threshold"], np.float32)), allowed, lowest)
    count = g.dim(scores, 2, candidates)
    if a["nms_top_k"] > -1:
        count = g.op("Min", count, g.i64(a["nms_top_k"]))
    best, index = g.ops("TopK", [allowed, count], 2, axis=2, largest=1, sorted=1)  # [b, c, k]
    flat = g.reshape(index, 0, -1)
    taken = g.op("GatherND", boxes, g.unsqueeze(flat, 2), batch_dims=1)
    taken = g.op("Reshape", taken, g.concat([g.shape(index), g.i64(4)]))
    overlap = g.op("Trilu", overlap_matrix(g, taken, a["normalized"]), g.const(-1, np.int64), upper=0)
    largest = g.unsqueeze(g.reduce("ReduceMax", overlap, [3], False), 2)  # of j, along the last axis
    if a["use_gaussian"]:
        difference = g.op("Sub", g.op("Mul", largest, largest), g.op("Mul", overlap, overlap))
        decay = g.op("Exp", g.op("Mul", difference, g.const(a["gaussian_sigma"], np.float32)))
    else:
        decay = g.op("Div", g.op("Sub", one, overlap), g.op("Sub", one, largest))
        decay = g.op("Where", g.op("IsNaN", decay), one, decay)
    better = g.op("Greater", g.unsqueeze(g.range(count), 1), g.unsqueeze(g.range(count), 0))
    decay = g.reduce("ReduceMin", g.op("Where", better, g.op("Min", decay, one), one), [3], False)
    decayed = g.op("Mul", best, decay)
    kept = g.op(
        "And",
        g.op("Greater", decayed, g.const(a["post_threshold"], np.float32)),
        g.op("Greater", best, lowest),
    )
    ranked = g.reshape(g.op("Where", kept, decayed, lowest), 0, -1)
    total = g.op("Shape", ranked, start=1, end=2)
    if a["keep_top_k"] > -1:
        total = g.op("Min", total, g.i64(a["keep_top_k"]))
    result, place = g.ops("TopK", [ranked, total], 2, axis=1, largest=1, sorted=1)  # [b, m]
    labels = g.op("Div", place, count)
    row = g.op("GatherElements", flat, place, axis=1)
    found = g.op("GatherND", boxes, g.unsqueeze(row, 2), batch_dims=1)
    columns = [g.unsqueeze(g.cast(labels, "float32"), 2), g.unsqueeze(result, 2), found]
    valid = g.op("Greater", result, lowest)
    start = g.op("Mul", g.range(g.op("Shape", scores, start=0, end=1)), g.dim(scores, 2, candidates))
    index = g.op("Add", row, g.unsqueeze(start, 1))
    flags = g.reshape(valid, -1)
    rows = g.op("Compress", g.reshape(g.concat(columns, 2), -1, 6), flags, axis=0)
    numbers = g.op("Compress", g.reshape(index, -1, 1), flags, axis=0)
    per_image = g.reduce("ReduceSum", g.cast(valid, "int32"), [1], False)
    return rows, g.cast(numbers, "int32"), per_image


def nms(g: Graph, op: Op) -> str:
    """Of boxes in order of preference, those that survive."""
    boxes = g[op.inputs[0]]
    count = g.dim(boxes, 0)
    preference = g.op("Neg", g.cast(g.range(count), "float32"))
    chosen = g.op(
        "NonMaxSuppression",
        g.unsqueeze(boxes, 0),
        g.unsqueeze(preference, 0, 1),
        count,
        g.const([op.attributes["threshold"]], np.float32),
        g.const([_LOWEST], np.float32),
    )
    return column(g, chosen, 2)


TABLE: dict[str, Lowering] = {
    "roi_align": roi_align,
    "distribute_fpn_proposals": distribute_fpn_proposals,  # type: ignore[dict-item]
    "generate_proposals": generate_proposals,
    "multiclass_nms3": multiclass_nms,
    "matrix_nms": matrix_nms,
    "nms": nms,
}

"""Operators that choose, order, gather or write elements."""

from __future__ import annotations

import numpy as np

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import MAX_INT64, Graph
from ovseg_export.lower.nn import shape_of
from ovseg_export.lower.shape import axis_of
from ovseg_export.program import Op, Value


def index_of(g: Graph, value: Value | None) -> str:
    """An index tensor as int64, which ND operators of ONNX need."""
    name = g[value]
    return name if value is not None and value.dtype == "int64" else g.cast(name, "int64")


def topk(g: Graph, op: Op) -> tuple[str, ...]:
    count = g.vector(op.inputs[1]) if len(op.inputs) > 1 else g.i64(op.attributes["k"])
    return g.ops(
        "TopK",
        [g[op.inputs[0]], count],
        2,
        axis=op.attributes["axis"],
        largest=int(op.attributes["largest"]),
        sorted=1,
    )


def argsort(g: Graph, op: Op) -> tuple[str, ...]:
    """TopK of everything: of equal elements it puts the one with the lower index first."""
    x, axis = g[op.inputs[0]], op.attributes["axis"]
    shape = shape_of(op.inputs[0])
    if not shape:
        return x, g.const(0, np.int64)
    count = g.dim(x, axis % len(shape), shape[axis])
    return g.ops("TopK", [x, count], 2, axis=axis, largest=int(op.attributes["descending"]), sorted=1)


def gather(g: Graph, op: Op) -> str:
    """Indices may have the shape [n, 1], which counts as [n]."""
    index = g[op.inputs[1]]
    if len(shape_of(op.inputs[1])) == 2:
        index = g.reshape(index, -1)
    return g.gather(g[op.inputs[0]], index, axis_of(g, op, 2))


def gather_nd(g: Graph, op: Op) -> str:
    index = index_of(g, op.inputs[1])
    if shape_of(op.inputs[1])[-1:] == (0,):
        raise UnsupportedCase("its index is empty")
    return g.op("GatherND", g[op.inputs[0]], index)


def scatter(g: Graph, op: Op) -> str:
    """Rows are replaced; without `overwrite` they are set to zero first and the updates are added up."""
    x, index, updates = g[op.inputs[0]], index_of(g, op.inputs[1]), g[op.inputs[2]]
    index = g.reshape(index, -1, 1)
    if op.attributes["overwrite"]:
        return g.op("ScatterND", x, index, updates)
    zeros = g.op("Mul", updates, g.const(0, op.outputs[0].dtype))
    return g.op("ScatterND", g.op("ScatterND", x, index, zeros), index, updates, reduction="add")


def scatter_nd_add(g: Graph, op: Op) -> str:
    return g.op("ScatterND", g[op.inputs[0]], index_of(g, op.inputs[1]), g[op.inputs[2]], reduction="add")


def index_select(g: Graph, op: Op) -> str:
    return g.gather(g[op.inputs[0]], g[op.inputs[1]], op.attributes["axis"])


def index_sample(g: Graph, op: Op) -> str:
    return g.op("GatherElements", g[op.inputs[0]], index_of(g, op.inputs[1]), axis=1)


def take_along_axis(g: Graph, op: Op) -> str:
    return g.op("GatherElements", g[op.inputs[0]], index_of(g, op.inputs[1]), axis=op.attributes["axis"])


def put_along_axis(g: Graph, op: Op) -> str:
    reduction = {"assign": None, "add": "add", "mul": "mul", "multiply": "mul"}[op.attributes["reduce"]]
    if not op.attributes.get("include_self", True):
        raise UnsupportedCase("it leaves the present elements out")
    index = index_of(g, op.inputs[1])
    return g.op(
        "ScatterElements",
        g[op.inputs[0]],
        index,
        g[op.inputs[2]],
        axis=op.attributes["axis"],
        reduction=reduction,
    )


def nonzero(g: Graph, op: Op) -> str:
    return g.transpose(g.op("NonZero", g[op.inputs[0]]), 1, 0)


def where(g: Graph, op: Op) -> str:
    condition, x, y = (g[value] for value in op.inputs[:3])
    if op.outputs[0].dtype == "bool":  # ONNX Runtime's Where has no boolean kernel
        return g.op("Or", g.op("And", condition, x), g.op("And", g.op("Not", condition), y))
    return g.op("Where", condition, x, y)


def masked_select(g: Graph, op: Op) -> str:
    x, mask = op.inputs[0], op.inputs[1]
    mask_name = g[mask]
    x_name = g[x]
    if shape_of(x) != shape_of(mask) or -1 in shape_of(x):
        mask_name = g.op("Expand", mask_name, g.shape(x_name))
    return g.op("Compress", g.reshape(x_name, -1), g.reshape(mask_name, -1))


def index_put(g: Graph, op: Op) -> str:
    """x[mask] = value with a boolean mask over the leading axes, or x[i, j, …] = value with integers."""
    x, value, dtype = op.inputs[0], op.inputs[2], op.outputs[0].dtype
    x_name, value_name = g[x], g[value]
    if value is not None and value.dtype != dtype:
        value_name = g.cast(value_name, dtype)
    indices, accumulate = g.parts(op.inputs[1]), op.attributes["accumulate"]
    elements = op.inputs[1].elements if op.inputs[1] is not None else ()
    masked = any(element.dtype == "bool" for element in elements)
    if masked and len(indices) > 1:
        raise UnsupportedCase("it mixes a mask with other indices")
    if masked:
        rest = len(shape_of(x)) - elements[0].rank
        if shape_of(value) in ((), (1,)) and not accumulate:
            return g.op("Where", g.unsqueeze(indices[0], *range(-rest, 0)), value_name, x_name)
        places = g.transpose(g.op("NonZero", indices[0]), 1, 0)
    else:
        rest = len(shape_of(x)) - len(indices)
        columns = [g.unsqueeze(g.cast(name, "int64"), -1) for name in indices]
        common = columns[0]
        for column in columns[1:]:
            common = g.op("Add", common, g.op("Mul", column, g.i64(0)))
        size = g.shape(common)
        places = g.concat([g.op("Expand", column, size) for column in columns], -1)
    target = g.op("Shape", places, end=-1)
    if rest:
        target = g.concat([target, g.op("Shape", x_name, start=-rest)])
    value_name = g.op("Expand", value_name, target)
    return g.op("ScatterND", x_name, places, value_name, reduction="add" if accumulate else None)


def set_value(g: Graph, op: Op) -> str:
    """x[starts:ends:steps] = numbers in the attribute."""
    dtype = op.outputs[0].dtype
    values = np.asarray(op.attributes["values"], dtype=dtype).reshape([int(n) for n in op.attributes["shape"]])
    return _assign(g, op, g.const(values), values.ndim, op.inputs[1:4])


def set_value_with_tensor(g: Graph, op: Op) -> str:
    """x[starts:ends:steps] = tensor."""
    value, dtype = op.inputs[1], op.outputs[0].dtype
    name = g[value]
    if value is not None and value.dtype != dtype:
        name = g.cast(name, dtype)
    return _assign(g, op, name, len(shape_of(value)), op.inputs[2:5])


def _assign(g: Graph, op: Op, value: str, value_rank: int, limits: tuple[Value | None, ...]) -> str:
    """Write `value` into a box of x.

    With steps of 1, x is taken apart around the box, one axis after another, and put together again: each
    element of the box's neighbourhood is copied once an axis. Other steps write through flat indices.
    """
    x, shape = g[op.inputs[0]], shape_of(op.inputs[0])
    rank = len(shape)
    if op.attributes.get("none_axes"):
        raise UnsupportedCase("its index adds axes")
    axes = [int(axis) % rank for axis in op.attributes["axes"]]
    dropped = sorted(int(axis) % rank for axis in op.attributes.get("decrease_axes") or ())
    starts, ends = g.vector(limits[0]), g.vector(limits[1])
    steps = g.need_ints(limits[2], "step")
    if not axes:  # x[...] = value
        return _fit(g, value, value_rank, x, rank, dropped)
    ends = _ends_of_single_elements(g, starts, ends, [axis in dropped for axis in axes])
    box = g.op("Slice", x, starts, ends, g.i64(*axes), g.i64(*steps))
    value = _fit(g, value, value_rank, box, rank, dropped)
    if any(step != 1 for step in steps):
        return _assign_by_index(g, x, value, starts, ends, axes, steps)
    pieces = [x]
    for i, axis in enumerate(axes[:-1]):
        start, end = g.slice(starts, i, i + 1, 0), g.slice(ends, i, i + 1, 0)
        pieces.append(g.op("Slice", pieces[-1], start, end, g.i64(axis)))
    for i in reversed(range(len(axes))):
        start, end = g.slice(starts, i, i + 1, 0), g.slice(ends, i, i + 1, 0)
        before = g.op("Slice", pieces[i], g.i64(0), start, g.i64(axes[i]))
        after = g.op("Slice", pieces[i], end, g.i64(MAX_INT64), g.i64(axes[i]))
        value = g.concat([before, value, after], axes[i])
    return value


def _ends_of_single_elements(g: Graph, starts: str, ends: str, dropped: list[bool]) -> str:
    """x[-1] comes as -1:0, which ONNX takes for empty."""
    last = g.op("And", g.op("Equal", starts, g.i64(-1)), g.const(dropped))
    return g.op("Where", last, g.i64(MAX_INT64), ends)


def _fit(g: Graph, value: str, value_rank: int, box: str, rank: int, dropped: list[int]) -> str:
    """Broadcast the value to the box: dropped axes are absent from it."""
    kept = rank - len(dropped)
    if value_rank > kept:  # surplus leading axes have size 1
        value = g.op("Reshape", value, g.op("Shape", value, start=value_rank - kept))
    elif value_rank < kept:
        value = g.unsqueeze(value, *range(kept - value_rank))
    value = g.unsqueeze(value, *dropped)
    return g.op("Expand", value, g.shape(box))


def _assign_by_index(g: Graph, x: str, value: str, starts: str, ends: str, axes: list[int], steps: list[int]) -> str:
    flat = g.range(g.reshape(g.op("Size", x), 1))
    places = g.op("Slice", g.op("Reshape", flat, g.shape(x)), starts, ends, g.i64(*axes), g.i64(*steps))
    result = g.op("ScatterElements", g.reshape(x, -1), g.reshape(places, -1), g.reshape(value, -1), axis=0)
    return g.op("Reshape", result, g.shape(x))


TABLE: dict[str, Lowering] = {
    "topk": topk,
    "argsort": argsort,
    "gather": gather,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_nd_add": scatter_nd_add,
    "index_select": index_select,
    "index_sample": index_sample,
    "take_along_axis": take_along_axis,
    "put_along_axis": put_along_axis,
    "nonzero": nonzero,
    "where": where,
    "masked_select": masked_select,
    "index_put": index_put,
    "set_value": set_value,
    "set_value_with_tensor": set_value_with_tensor,
}

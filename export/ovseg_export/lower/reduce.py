"""Operators that reduce axes, and running sums."""

from __future__ import annotations

import numpy as np

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import Graph
from ovseg_export.program import Op


def axes_of(g: Graph, op: Op, position: int = 1) -> list[int] | None:
    """The axes, from the attribute or the input that holds them; None for all axes."""
    if "axis" in op.attributes:
        axis = op.attributes["axis"]
        axes = [int(axis)] if isinstance(axis, int) else [int(item) for item in axis or ()]
    elif len(op.inputs) > position:
        axes = g.need_ints(op.inputs[position], "axis")
    else:
        axes = []
    return axes or None


def reduction(kind: str) -> Lowering:
    def lower(g: Graph, op: Op) -> str:
        source, target = op.inputs[0], op.outputs[0].dtype
        name = g[source]
        if source is not None and source.dtype != target:
            name = g.cast(name, target)
        if source is not None and source.rank == 0:
            return name
        return g.reduce(kind, name, axes_of(g, op), op.attributes.get("keepdim", False))

    return lower


def boolean(kind: str) -> Lowering:
    """`any` is the maximum of 0 and 1, `all` the minimum."""

    def lower(g: Graph, op: Op) -> str:
        name = g.cast(g[op.inputs[0]], "int32")
        if op.inputs[0] is not None and op.inputs[0].rank == 0:
            return g.cast(name, "bool")
        return g.cast(g.reduce(kind, name, axes_of(g, op), op.attributes.get("keepdim", False)), "bool")

    return lower


def p_norm(g: Graph, op: Op) -> str:
    """Norm along one axis, or of everything (asvector)."""
    x, order = g[op.inputs[0]], op.attributes["porder"]
    axes = None if op.attributes.get("asvector") else [op.attributes["axis"]]
    keepdim = op.attributes.get("keepdim", False)
    if order == 2:
        return g.reduce("ReduceL2", x, axes, keepdim)
    if order == 1:
        return g.reduce("ReduceL1", x, axes, keepdim)
    if order == float("inf"):
        return g.reduce("ReduceMax", g.op("Abs", x), axes, keepdim)
    if order <= 0:
        raise UnsupportedCase(f"its order is {order}")
    dtype = op.outputs[0].dtype
    total = g.reduce("ReduceSum", g.op("Pow", g.op("Abs", x), g.const(order, dtype)), axes, keepdim)
    return g.op("Pow", total, g.const(1 / order, dtype))


def logsumexp(g: Graph, op: Op) -> str:
    axes = None if op.attributes.get("reduce_all") else axes_of(g, op)
    return g.reduce("ReduceLogSumExp", g[op.inputs[0]], axes, op.attributes.get("keepdim", False))


def cumsum(g: Graph, op: Op) -> str:
    name = g[op.inputs[0]]
    if op.attributes.get("flatten"):
        name, axis = g.reshape(name, -1), g.const(0, np.int64)
    else:
        (number,) = g.need_ints(op.inputs[1], "axis")
        axis = g.const(number, np.int64)
    return g.op("CumSum", name, axis, exclusive=int(op.attributes["exclusive"]), reverse=int(op.attributes["reverse"]))


def arg(kind: str) -> Lowering:
    """Argmax and argmin; of equal elements the first one, as in Paddle."""

    def lower(g: Graph, op: Op) -> str:
        source = op.inputs[0]
        name = g[source]
        if source is not None and source.dtype == "int64":  # ONNX Runtime has no int64 kernel
            name = g.cast(name, "float64")
        if op.attributes.get("flatten"):
            axis = 0
            name = g.reshape(name, -1)
        else:
            (axis,) = g.need_ints(op.inputs[1], "axis")
        keepdims = bool(op.attributes.get("keepdims"))
        result = g.op(kind, name, axis=axis, keepdims=int(keepdims))
        if keepdims and op.attributes.get("flatten"):
            result = g.reshape(result, *[1] * op.outputs[0].rank)
        return result if op.outputs[0].dtype == "int64" else g.cast(result, op.outputs[0].dtype)

    return lower


TABLE: dict[str, Lowering] = {
    "mean": reduction("ReduceMean"),
    "sum": reduction("ReduceSum"),
    "prod": reduction("ReduceProd"),
    "max": reduction("ReduceMax"),
    "min": reduction("ReduceMin"),
    "amax": reduction("ReduceMax"),
    "amin": reduction("ReduceMin"),
    "mean_all": reduction("ReduceMean"),
    "any": boolean("ReduceMax"),
    "all": boolean("ReduceMin"),
    "p_norm": p_norm,
    "logsumexp": logsumexp,
    "cumsum": cumsum,
    "argmax": arg("ArgMax"),
    "argmin": arg("ArgMin"),
}

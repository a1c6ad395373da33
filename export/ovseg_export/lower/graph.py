"""The ONNX graph under construction: nodes, constants, and the ONNX name of every Paddle value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ovseg_export.errors import UnsupportedCase
from ovseg_export.program import Op, Value

Names = str | tuple[str, ...]

# Operators that are computed at once when every input is known: what programs use to make
# shapes, anchors and grids, and to bring weights into another form.
_FOLDED = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "ConstantOfShape",
        "CumSum",
        "Cos",
        "Div",
        "Equal",
        "Exp",
        "Expand",
        "Floor",
        "Gather",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "Shape",
        "Sin",
        "Size",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ]
)
_FOLDED_ELEMENTS = 1 << 24

MAX_INT64 = np.iinfo(np.int64).max


class Graph:
    """Emits ONNX nodes for one program; lowering functions get it together with the operation.

    Nodes go to the innermost open region. Constants belong to the whole graph, so that regions may use them.
    """

    def __init__(self, opset: int, lower: Callable[[Graph, Op], None]) -> None:
        self.opset = opset
        self._lower = lower
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: dict[int, Names] = {}
        self.roots: dict[int, int] = {}
        self.lengths: dict[str, str] = {}  # length of a tensor array → the array, as it was when measured
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._hint = ""

    # ---- Paddle values -------------------------------------------------------------------------------

    def names(self, value: Value | None) -> Names:
        """The ONNX name of a Paddle value; a tuple of names for a vector."""
        if value is None:
            raise UnsupportedCase("an input that it needs is absent")
        root = self.roots.get(value.id, value.id)
        if root not in self.values:
            raise UnsupportedCase("it reads a result that has no ONNX counterpart")
        return self.values[root]

    def __getitem__(self, value: Value | None) -> str:
        """The ONNX name of a Paddle tensor."""
        names = self.names(value)
        if isinstance(names, tuple):
            raise UnsupportedCase("it reads a list of tensors where one tensor is expected")
        return names

    def parts(self, value: Value | None) -> tuple[str, ...]:
        """The ONNX names of the tensors of a vector; of one tensor, its own name."""
        names = self.names(value)
        return names if isinstance(names, tuple) else (names,)

    def bind(self, value: Value, names: Names) -> None:
        self.values[self.roots.get(value.id, value.id)] = names

    def alias(self, result: Value, written: Value) -> None:
        """Let both names stand for the same memory, as after an operation in place."""
        self.roots[result.id] = self.roots.get(written.id, written.id)

    def run(self, ops: Sequence[Op]) -> None:
        """Lower operations in order; operations with regions come back here for them."""
        for op in ops:
            self._lower(self, op)

    # ---- constants -----------------------------------------------------------------------------------

    def const(self, data: Any, dtype: DTypeLike | None = None) -> str:
        """A constant of the graph; small equal ones are shared."""
        array = np.asarray(data, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._shared:
            return self._shared[key]
        name = self.fresh("const")
        self.constants[name] = array
        if key is not None:
            self._shared[key] = name
        return name

    def i64(self, *numbers: int) -> str:
        """A 1-D int64 constant."""
        return self.const(numbers, np.int64)

    def array(self, name: str | Value | None) -> np.ndarray | None:
        """The content of a value if it is known at conversion time."""
        if isinstance(name, Value):
            names = self.names(name)
            if isinstance(names, tuple):
                parts = [self.array(item) for item in names]
                known = [part.reshape(-1) for part in parts if part is not None]
                return np.concatenate(known) if known and len(known) == len(parts) else None
            name = names
        return self.constants.get(name) if name is not None else None

    def ints(self, value: str | Value | None) -> list[int] | None:
        """The content of an integer value as a flat list, if it is known."""
        array = self.array(value)
        return None if array is None else [int(number) for number in array.reshape(-1)]

    def need_ints(self, value: str | Value | None, what: str) -> list[int]:
        numbers = self.ints(value)
        if numbers is None:
            raise UnsupportedCase(f"its {what} is known at run time only")
        return numbers

    def number(self, value: str | Value | None) -> float | int | bool | None:
        """The content of a one-element value, if it is known."""
        array = self.array(value)
        return array.reshape(-1)[0].item() if array is not None and array.size == 1 else None

    # ---- nodes ---------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{self._hint}{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Emit a node with one output; its name is returned."""
        folded = self._fold(kind, inputs, attributes)
        return folded if folded is not None else self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> tuple[str, ...]:
        """Emit a node with several outputs."""
        outputs = tuple(self.fresh(kind) for _ in range(count))
        node = helper.make_node(kind, list(inputs), list(outputs), name=f"n{outputs[0]}", **_drop_none(attributes))
        self.nodes.append(node)
        return outputs

    def _fold(self, kind: str, inputs: Sequence[str], attributes: Mapping[str, Any]) -> str | None:
        if kind not in _FOLDED:
            return None
        known = [self.constants.get(name) for name in inputs]
        if any(array is None and name for name, array in zip(inputs, known, strict=True)):
            return None
        arrays = {name: array for name, array in zip(inputs, known, strict=True) if array is not None}
        if sum(array.size for array in arrays.values()) > _FOLDED_ELEMENTS:
            return None
        if kind in ("Expand", "ConstantOfShape", "Tile", "Range") and self._grows(kind, inputs):
            return None
        if kind == "Transpose":  # the reference evaluator is fine here too, but copies twice
            return self.const(np.ascontiguousarray(arrays[inputs[0]].transpose(attributes["perm"])))
        node = helper.make_node(kind, list(inputs), ["folded"], **_drop_none(attributes))
        (result,) = ReferenceEvaluator(node).run(None, arrays)
        return self.const(result)

    def _grows(self, kind: str, inputs: Sequence[str]) -> bool:
        """Whether a constant would come out larger than what makes it is worth."""
        arrays = [self.constants[name] for name in inputs]
        if kind == "Range":
            start, stop, step = (array.item() for array in arrays)
            return bool((stop - start) / step > 1 << 16)
        size = int(np.prod(arrays[-1])) * (arrays[0].size if kind == "Tile" else 1)
        return size > 1 << 16

    def identity_node(self, name: str) -> str:
        """A copy that is really a node: outputs of a graph must be made in it, and differ."""
        return self.ops("Identity", [name], 1)[0]

    @contextmanager
    def region(self) -> Iterator[list[NodeProto]]:
        """Collect the nodes of a nested graph; values bound inside are forgotten at its end."""
        outer_nodes, outer_values, outer_roots = self.nodes, self.values, self.roots
        self.nodes, self.values, self.roots = [], dict(outer_values), dict(outer_roots)
        try:
            yield self.nodes
        finally:
            self.nodes, self.values, self.roots = outer_nodes, outer_values, outer_roots

    # ---- shorthands that many lowerings share --------------------------------------------------------

    def cast(self, name: str, dtype: str) -> str:
        array = self.constants.get(name)
        if array is not None and array.dtype == dtype:
            return name
        return self.op("Cast", name, to=onnx_type(dtype))

    def shape(self, name: str) -> str:
        return self.op("Shape", name)

    def dim(self, name: str, axis: int, known: int = -1) -> str:
        """One size of a tensor as a 1-D int64 value of one element; constant if `known` is not negative."""
        if known >= 0:
            return self.i64(known)
        return self.op("Shape", name, start=axis, end=axis + 1 if axis != -1 else None)

    def concat(self, parts: Sequence[str], axis: int = 0) -> str:
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def reshape(self, name: str, *sizes: int) -> str:
        return self.op("Reshape", name, self.i64(*sizes))

    def squeeze(self, name: str, *axes: int) -> str:
        return self.op("Squeeze", name, self.i64(*axes)) if axes else name

    def unsqueeze(self, name: str, *axes: int) -> str:
        return self.op("Unsqueeze", name, self.i64(*axes)) if axes else name

    def slice(self, name: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", name, self.i64(start), self.i64(end), self.i64(axis), self.i64(step))

    def gather(self, name: str, indices: str, axis: int = 0) -> str:
        return self.op("Gather", name, indices, axis=axis)

    def transpose(self, name: str, *perm: int) -> str:
        return self.op("Transpose", name, perm=list(perm))

    def reduce(self, kind: str, name: str, axes: Sequence[int] | None, keepdims: bool) -> str:
        """`ReduceSum`, `ReduceMax`…: axes are an input since opset 13 (sum) or 18 (others)."""
        if kind == "ReduceSum" or self.opset >= 18:
            extra = () if axes is None else (self.i64(*axes),)
            return self.op(kind, name, *extra, keepdims=int(keepdims))
        return self.op(kind, name, axes=None if axes is None else list(axes), keepdims=int(keepdims))

    def range(self, count: str) -> str:
        """0, 1, … up to a 1-D int64 count of one element."""
        zero, one = self.const(0, np.int64), self.const(1, np.int64)
        return self.op("Range", zero, self.reshape(count), one)

    def vector(self, value: Value | None) -> str:
        """An integer tensor, or a vector of one-element tensors, as one 1-D int64 value."""
        known = self.ints(value)
        if known is not None:
            return self.i64(*known)
        if value is not None and value.kind == "vector":
            kinds = [element.dtype for element in value.elements]
            parts = [
                self.reshape(name if kind == "int64" else self.cast(name, "int64"), -1)
                for name, kind in zip(self.parts(value), kinds, strict=True)
            ]
            return self.concat(parts)
        name = self[value]
        if value is not None and value.dtype != "int64":
            name = self.cast(name, "int64")
        return name if value is not None and value.rank == 1 else self.reshape(name, -1)

    def scalar(self, value: Value | None) -> str:
        """A one-element tensor as a 0-D value."""
        name = self[value]
        return name if value is not None and value.rank == 0 else self.reshape(name)

    def subgraph(self, nodes: Sequence[NodeProto], name: str, inputs: Sequence[str], outputs: Sequence[str],
                 types: Mapping[str, Value]) -> GraphProto:  # fmt: skip
        """A nested graph; shapes are left open, because loops may change them."""
        return helper.make_graph(
            list(nodes),
            name,
            [helper.make_value_info(item, value_type(types[item])) for item in inputs],
            [helper.make_value_info(item, value_type(types[item])) for item in outputs],
        )


def value_type(value: Value) -> Any:
    """The ONNX type of a Paddle value, without sizes; of kind "scalar", with the shape []."""
    tensor = helper.make_tensor_type_proto(onnx_type(value.dtype), () if value.kind == "scalar" else None)
    return helper.make_sequence_type_proto(tensor) if value.kind == "array" else tensor


def onnx_type(dtype: str) -> int:
    if dtype == "bfloat16":
        return int(TensorProto.BFLOAT16)
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def node_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs nested in a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def _drop_none(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}

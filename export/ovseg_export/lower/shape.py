"""Operators that make, move or cut tensors without computing on their elements."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import MAX_INT64, Graph
from ovseg_export.lower.nn import shape_of
from ovseg_export.program import Op, Value


def reshape(g: Graph, op: Op) -> str:
    """0 keeps a size and -1 takes what is left, in both formats."""
    if "shape" in op.attributes:
        return g.reshape(g[op.inputs[0]], *op.attributes["shape"])
    return g.op("Reshape", g[op.inputs[0]], g.vector(op.inputs[1]))


def transpose(g: Graph, op: Op) -> str:
    rank = len(shape_of(op.inputs[0]))
    return g.transpose(g[op.inputs[0]], *(axis % rank for axis in op.attributes["perm"]))


def axis_of(g: Graph, op: Op, position: int) -> int:
    if "axis" in op.attributes:
        return int(op.attributes["axis"])
    return g.need_ints(op.inputs[position], "axis")[0]


def concat(g: Graph, op: Op) -> str:
    names = g.parts(op.inputs[0])
    vector = op.inputs[0]
    if vector is not None and vector.elements and len({element.dtype for element in vector.elements}) > 1:
        dtype = op.outputs[0].dtype
        names = tuple(
            name if element.dtype == dtype else g.cast(name, dtype)
            for name, element in zip(names, vector.elements, strict=True)
        )
    return g.concat(names, axis_of(g, op, 1))


def split(g: Graph, op: Op) -> tuple[str, ...]:
    sections = g.need_ints(op.inputs[1], "sections") if len(op.inputs) > 1 else list(op.attributes["sections"])
    axis = axis_of(g, op, 2)
    if -1 in sections:
        total = shape_of(op.inputs[0])[axis]
        if total < 0:
            raise UnsupportedCase("one of its sections takes what is left of a size known at run time only")
        sections[sections.index(-1)] = total - sum(size for size in sections if size >= 0)
    if len(sections) == 1:
        return (g[op.inputs[0]],)
    return g.ops("Split", [g[op.inputs[0]], g.i64(*sections)], len(sections), axis=axis)


def split_with_num(g: Graph, op: Op) -> tuple[str, ...]:
    count, axis = op.attributes["num"], axis_of(g, op, 1)
    if count == 1:
        return (g[op.inputs[0]],)
    total = shape_of(op.inputs[0])[axis]
    if total >= 0:
        return g.ops("Split", [g[op.inputs[0]], g.i64(*[total // count] * count)], count, axis=axis)
    more = {"num_outputs": count} if g.opset >= 18 else {}
    return g.ops("Split", [g[op.inputs[0]]], count, axis=axis, **more)


def unbind(g: Graph, op: Op) -> tuple[str, ...]:
    axis = int(op.attributes["axis"])
    count = len(op.outputs[0].elements) if op.outputs[0].kind == "vector" else len(op.outputs)
    x = g[op.inputs[0]]
    parts = (x,) if count == 1 else g.ops("Split", [x, g.i64(*[1] * count)], count, axis=axis)
    return tuple(g.squeeze(part, axis) for part in parts)


def builtin_split(g: Graph, op: Op) -> tuple[str, ...]:
    return g.parts(op.inputs[0])


def builtin_combine(g: Graph, op: Op) -> tuple[str, ...]:
    return tuple(g[value] for value in op.inputs)


def builtin_slice(g: Graph, op: Op) -> str:
    index: int = op.attributes["index"]
    return g.parts(op.inputs[0])[index]


def slice_(g: Graph, op: Op) -> str:
    """Starts and ends for the named axes; axes in `decrease_axis` are cut to one element and dropped."""
    axes = [int(axis) for axis in op.attributes["axes"]]
    starts = g.vector(op.inputs[1]) if len(op.inputs) > 1 else g.i64(*op.attributes["starts"])
    ends = g.vector(op.inputs[2]) if len(op.inputs) > 2 else g.i64(*op.attributes["ends"])
    dropped = [int(axis) for axis in op.attributes.get("decrease_axis") or ()]
    x = g[op.inputs[0]]
    index = g.ints(starts)
    if len(axes) == 1 and dropped == axes and index is not None and index[0] >= 0:
        return g.gather(x, g.const(index[0], np.int64), axes[0])
    if dropped:
        # x[-1] comes as the slice -1:0, which ONNX takes for empty: such an axis ends beyond all sizes
        ends = _open_ends(g, starts, ends, [axis in dropped for axis in axes])
    return g.squeeze(g.op("Slice", x, starts, ends, g.i64(*axes)), *dropped)


def _open_ends(g: Graph, starts: str, ends: str, dropped: list[bool]) -> str:
    """Ends, with "beyond all sizes" where the start is -1 on an axis that is cut to one element."""
    last = g.op("And", g.op("Equal", starts, g.i64(-1)), g.const(dropped))
    return g.op("Where", last, g.i64(MAX_INT64), ends)


def strided_slice(g: Graph, op: Op) -> str:
    axes = [int(axis) for axis in op.attributes["axes"]]
    starts, ends, strides = (g.vector(value) for value in op.inputs[1:4])
    dropped = [int(axis) for axis in op.attributes.get("decrease_axis") or ()]
    return g.squeeze(g.op("Slice", g[op.inputs[0]], starts, ends, g.i64(*axes), strides), *dropped)


def expand(g: Graph, op: Op) -> str:
    """-1 keeps the size of that axis: ONNX has 1 for it."""
    sizes = op.attributes.get("shape")
    known = [int(size) for size in sizes] if sizes is not None else g.ints(op.inputs[1])
    if known is not None:
        return g.op("Expand", g[op.inputs[0]], g.i64(*(1 if size == -1 else size for size in known)))
    target = g.vector(op.inputs[1])
    target = g.op("Where", g.op("Equal", target, g.i64(-1)), g.i64(1), target)
    return g.op("Expand", g[op.inputs[0]], target)


def expand_as(g: Graph, op: Op) -> str:
    if len(op.inputs) > 1 and op.inputs[1] is not None:
        return g.op("Expand", g[op.inputs[0]], g.shape(g[op.inputs[1]]))
    return g.op("Expand", g[op.inputs[0]], g.i64(*(1 if n == -1 else n for n in op.attributes["target_shape"])))


def broadcast_tensors(g: Graph, op: Op) -> tuple[str, ...]:
    """The common shape comes from adding up empty-handed copies: zeros of each shape."""
    names = g.parts(op.inputs[0])
    zeros = [g.op("ConstantOfShape", g.shape(name), value=_tensor(0, "int32")) for name in names]
    common = zeros[0]
    for zero in zeros[1:]:
        common = g.op("Add", common, zero)
    target = g.shape(common)
    return tuple(g.op("Expand", name, target) for name in names)


def tile(g: Graph, op: Op) -> str:
    """Repeats may have fewer or more entries than the tensor has axes; both are filled up at the front."""
    x, rank = g[op.inputs[0]], len(shape_of(op.inputs[0]))
    if len(op.inputs) > 1:
        repeats = g.vector(op.inputs[1])
        count = len(known) if (known := g.ints(repeats)) is not None else _count(op.inputs[1])
    else:
        repeats, count = g.i64(*op.attributes["repeat_times"]), len(op.attributes["repeat_times"])
    if count > rank:
        x = g.unsqueeze(x, *range(count - rank))
    elif count < rank:
        repeats = g.concat([g.i64(*[1] * (rank - count)), repeats])
    return g.op("Tile", x, repeats)


def _count(value: Value | None) -> int:
    """How many numbers a run-time vector of integers has."""
    if value is not None and value.kind == "vector":
        return len(value.elements)
    shape = shape_of(value)
    if len(shape) != 1 or shape[0] < 0:
        raise UnsupportedCase("it takes a list of unknown length")
    return shape[0]


def stack(g: Graph, op: Op) -> str:
    axis = int(op.attributes["axis"])
    return g.concat([g.unsqueeze(name, axis) for name in g.parts(op.inputs[0])], axis)


def squeeze(g: Graph, op: Op) -> str:
    """Only axes of size 1 go; without axes, all of them."""
    shape = shape_of(op.inputs[0])
    axes = op.attributes.get("axis")
    if axes is None:
        axes = g.need_ints(op.inputs[1], "axis") if len(op.inputs) > 1 else []
    axes = [int(axes)] if isinstance(axes, int) else list(axes)
    if not axes:
        if -1 in shape:
            raise UnsupportedCase("it names no axes, and a size is known at run time only")
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    kept = [axis for axis in axes if shape[axis] in (1, -1)]
    return g.squeeze(g[op.inputs[0]], *kept)


def unsqueeze(g: Graph, op: Op) -> str:
    """Axes are inserted one after another, each counted in the shape reached so far."""
    axes = op.attributes.get("axis")
    axes = [int(axis) for axis in axes] if axes is not None else g.need_ints(op.inputs[1], "axis")
    name, rank = g[op.inputs[0]], len(shape_of(op.inputs[0]))
    for axis in axes:
        name = g.unsqueeze(name, axis % (rank + 1))
        rank += 1
    return name


def flatten(g: Graph, op: Op) -> str:
    shape = shape_of(op.inputs[0])
    rank = len(shape)
    if rank == 0:
        return g.reshape(g[op.inputs[0]], 1)
    start, stop = op.attributes["start_axis"] % rank, op.attributes["stop_axis"] % rank
    if start == stop:
        return g[op.inputs[0]]
    x = g[op.inputs[0]]
    if all(size > 0 for size in shape[stop + 1 :]):
        return g.reshape(x, *[0] * start, -1, *shape[stop + 1 :])
    parts = [g.i64(*[0] * start, -1), g.op("Shape", x, start=stop + 1)]
    return g.op("Reshape", x, g.concat(parts))


def _tensor(number: float | int | bool, dtype: str) -> TensorProto:
    return numpy_helper.from_array(np.array([number], dtype=dtype))


def full(g: Graph, op: Op) -> str:
    shape, dtype = op.attributes["shape"], op.outputs[0].dtype
    if int(np.prod(shape)) > 1 << 16:
        return g.op("ConstantOfShape", g.i64(*shape), value=_tensor(op.attributes["value"], dtype))
    return g.const(np.full(shape, op.attributes["value"], dtype))


def full_int_array(g: Graph, op: Op) -> str:
    return g.const(op.attributes["value"], op.outputs[0].dtype)


def full_like(g: Graph, op: Op) -> str:
    dtype = op.outputs[0].dtype
    number = g.number(op.inputs[1]) if len(op.inputs) > 1 else op.attributes["value"]
    shape = g.shape(g[op.inputs[0]])
    if number is not None:
        return g.op("ConstantOfShape", shape, value=_tensor(number, dtype))
    return g.op("Expand", g.cast(g.scalar(op.inputs[1]), dtype), shape)


def full_with_tensor(g: Graph, op: Op) -> str:
    """Both the value and the shape may be tensors."""
    dtype = op.outputs[0].dtype
    shape = g.vector(op.inputs[1]) if len(op.inputs) > 1 else g.i64(*op.attributes["shape"])
    number = g.number(op.inputs[0])
    if number is not None:
        return g.op("ConstantOfShape", shape, value=_tensor(number, dtype))
    name = g.scalar(op.inputs[0])
    return g.op("Expand", name if op.inputs[0] and op.inputs[0].dtype == dtype else g.cast(name, dtype), shape)


def full_batch_size_like(g: Graph, op: Op) -> str:
    """The given shape, with one size taken from the input."""
    sizes = [int(size) for size in op.attributes["shape"]]
    target, source = op.attributes["output_dim_idx"], op.attributes["input_dim_idx"]
    known = shape_of(op.inputs[0])[source]
    parts = [g.i64(*sizes[:target])] if target else []
    parts.append(g.dim(g[op.inputs[0]], source, known))
    if sizes[target + 1 :]:
        parts.append(g.i64(*sizes[target + 1 :]))
    return g.op("ConstantOfShape", g.concat(parts), value=_tensor(op.attributes["value"], op.outputs[0].dtype))


def assign_value(g: Graph, op: Op) -> str:
    """A constant. Translated programs mark values not set yet by 1.77113e27, which no integer type holds."""
    shape, dtype = [int(size) for size in op.attributes["shape"]], np.dtype(op.outputs[0].dtype)
    values = op.attributes["values"]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = [min(max(value, limits.min), limits.max) for value in values]
    return g.const(np.asarray(values, dtype=dtype).reshape(shape))


def arange(g: Graph, op: Op) -> str:
    dtype = op.outputs[0].dtype
    names = []
    for value in op.inputs[:3]:
        number = g.number(value)
        names.append(g.cast(g.scalar(value), dtype) if number is None else g.const(number, dtype))
    return g.op("Range", *names)


def linspace(g: Graph, op: Op) -> str:
    """Count forwards from start in the first half, backwards from stop in the second, as Paddle does."""
    dtype = op.outputs[0].dtype
    if "float" not in dtype:
        raise UnsupportedCase(f"it makes {dtype}")
    limits = [g.number(value) for value in op.inputs[:3]]
    if None not in limits and int(limits[2] or 0) <= 1 << 16:
        return g.const(_linspace(float(limits[0] or 0), float(limits[1] or 0), int(limits[2] or 0), dtype))
    start, stop = (g.cast(g.scalar(value), dtype) for value in op.inputs[:2])
    count = g.cast(g.scalar(op.inputs[2]), "int64")
    one = g.const(1, np.int64)
    last = g.op("Sub", count, one)
    steps = g.cast(g.op("Max", last, one), dtype)
    step = g.op("Div", g.op("Sub", stop, start), steps)
    index = g.op("Range", g.const(0, np.int64), count, one)
    ahead = g.op("Add", start, g.op("Mul", step, g.cast(index, dtype)))
    back = g.op("Sub", stop, g.op("Mul", step, g.cast(g.op("Sub", last, index), dtype)))
    first_half = g.op("Or", g.op("Less", index, g.op("Div", count, g.const(2, np.int64))), g.op("Equal", count, one))
    return g.op("Where", first_half, ahead, back)


def _linspace(start: float, stop: float, count: int, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype).type
    index = np.arange(count)
    if count == 1:
        return np.full(1, start, dtype)
    step = (kind(stop) - kind(start)) / kind(count - 1)
    ahead, back = (
        kind(start) + step * index.astype(dtype),
        kind(stop) - step * (count - 1 - index).astype(dtype),
    )
    result: np.ndarray = np.where(index < count // 2, ahead, back).astype(dtype)
    return result


def meshgrid(g: Graph, op: Op) -> tuple[str, ...]:
    """Input i varies along axis i."""
    names = g.parts(op.inputs[0])
    count = len(names)
    sizes = g.concat([g.reshape(g.op("Size", name), 1) for name in names])
    result = []
    for i, name in enumerate(names):
        column = g.reshape(name, *(-1 if axis == i else 1 for axis in range(count)))
        result.append(g.op("Expand", column, sizes))
    return tuple(result)


def triangle(upper: bool) -> Lowering:
    """ONNX Runtime's Trilu has no int32 kernel."""

    def lower(g: Graph, op: Op) -> str:
        dtype, name = op.outputs[0].dtype, g[op.inputs[0]]
        wide = "int64" if dtype in ("int32", "int16", "int8", "uint8") else dtype
        name = name if wide == dtype else g.cast(name, wide)
        name = g.op("Trilu", name, g.const(op.attributes["diagonal"], np.int64), upper=int(upper))
        return name if wide == dtype else g.cast(name, dtype)

    return lower


def one_hot(g: Graph, op: Op) -> str:
    depth = op.attributes.get("num_classes") or g.need_ints(op.inputs[1], "class count")[0]
    values = g.const([0, 1], op.outputs[0].dtype)
    return g.op("OneHot", g[op.inputs[0]], g.const(depth, np.int64), values, axis=-1)


def shape(g: Graph, op: Op) -> str:
    """int32 in `shape`, int64 in `shape64`; constant if every size is known."""
    sizes, dtype = shape_of(op.inputs[0]), op.outputs[0].dtype
    if sizes and min(sizes) >= 0:
        return g.const(sizes, dtype)
    if not sizes:
        return g.const([], dtype)
    name = g.shape(g[op.inputs[0]])
    return name if dtype == "int64" else g.cast(name, dtype)


def numel(g: Graph, op: Op) -> str:
    return g.op("Size", g[op.inputs[0]])


def increment(g: Graph, op: Op) -> str:
    return g.op("Add", g[op.inputs[0]], g.const(op.attributes["value"], op.outputs[0].dtype))


def flip(g: Graph, op: Op) -> str:
    axes = [int(axis) for axis in op.attributes["axis"]]
    count = len(axes)
    starts, ends = g.i64(*[-1] * count), g.i64(*[-MAX_INT64] * count)
    return g.op("Slice", g[op.inputs[0]], starts, ends, g.i64(*axes), g.i64(*[-1] * count))


def roll(g: Graph, op: Op) -> str:
    """Elements move by `shifts`; what falls off one end comes in at the other."""
    shifts = g.need_ints(op.inputs[1], "shift") if len(op.inputs) > 1 else [int(s) for s in op.attributes["shifts"]]
    name, axes = g[op.inputs[0]], [int(axis) for axis in op.attributes["axis"]]
    if not axes:
        flat = g.reshape(name, -1)
        return g.op("Reshape", _roll(g, flat, shifts[0], 0, -1), g.shape(name))
    sizes = shape_of(op.inputs[0])
    for shift, axis in zip(shifts, axes, strict=True):
        name = _roll(g, name, shift, axis, sizes[axis])
    return name


def _roll(g: Graph, name: str, shift: int, axis: int, size: int) -> str:
    if size > 0:
        shift %= size
    if shift == 0:
        return name
    return g.concat([g.slice(name, -shift, MAX_INT64, axis), g.slice(name, 0, -shift, axis)], axis)


def repeat_interleave(g: Graph, op: Op) -> str:
    axis, count = op.attributes["dim" if "dim" in op.attributes else "axis"], op.attributes["repeats"]
    sizes = shape_of(op.inputs[0])
    axis %= len(sizes)
    name = g.unsqueeze(g[op.inputs[0]], axis + 1)
    name = g.op("Tile", name, g.i64(*[count if i == axis + 1 else 1 for i in range(len(sizes) + 1)]))
    target = [sizes[axis] * count if sizes[axis] > 0 else -1]
    if all(size > 0 for i, size in enumerate(sizes) if i > axis):
        return g.reshape(name, *[0] * axis, *target, *sizes[axis + 1 :])
    raise UnsupportedCase("it repeats an axis before one whose size is known at run time only")


def repeat_by_tensor(g: Graph, op: Op) -> str:
    """Element i appears repeats[i] times; of a single number, all elements that often.

    Position p shows the element whose run it falls in: the number of runs that end at or before p.
    """
    axis, sizes = op.attributes["axis"], shape_of(op.inputs[0])
    x, repeats = g[op.inputs[0]], g.vector(op.inputs[1])
    if shape_of(op.inputs[1]) in ((), (1,)):
        repeats = g.op("Expand", repeats, g.dim(x, axis, sizes[axis]))
    ends = g.op("CumSum", repeats, g.const(0, np.int64))
    position = g.unsqueeze(g.range(g.reduce("ReduceSum", repeats, [0], True)), 1)
    passed = g.cast(g.op("GreaterOrEqual", position, g.unsqueeze(ends, 0)), "int64")
    return g.gather(x, g.reduce("ReduceSum", passed, [1], False), axis)


def empty(g: Graph, op: Op) -> str:
    """Paddle leaves the content open; zeros are as good."""
    shape = g.vector(op.inputs[0]) if op.inputs else g.i64(*op.attributes["shape"])
    return g.op("ConstantOfShape", shape, value=_tensor(0, op.outputs[0].dtype))


def eye(g: Graph, op: Op) -> str:
    rows = g.number(op.inputs[0]) if op.inputs else op.attributes["num_rows"]
    columns = g.number(op.inputs[1]) if len(op.inputs) > 1 else op.attributes["num_columns"]
    if rows is None or columns is None:
        raise UnsupportedCase("its size is known at run time only")
    rows = int(rows)
    return g.const(np.eye(rows, rows if columns < 0 else int(columns), dtype=op.outputs[0].dtype))


TABLE: dict[str, Lowering] = {
    "reshape": reshape,
    "transpose": transpose,
    "concat": concat,
    "split": split,
    "split_with_num": split_with_num,
    "unbind": unbind,
    "unstack": unbind,
    "builtin.split": builtin_split,
    "builtin.combine": builtin_combine,
    "builtin.slice": builtin_slice,
    "slice": slice_,
    "strided_slice": strided_slice,
    "expand": expand,
    "expand_as": expand_as,
    "broadcast_tensors": broadcast_tensors,
    "tile": tile,
    "stack": stack,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "flatten": flatten,
    "full": full,
    "full_": full,
    "full_int_array": full_int_array,
    "full_like": full_like,
    "full_with_tensor": full_with_tensor,
    "full_batch_size_like": full_batch_size_like,
    "assign_value": assign_value,
    "assign_value_": assign_value,
    "arange": arange,
    "linspace": linspace,
    "meshgrid": meshgrid,
    "triu": triangle(upper=True),
    "tril": triangle(upper=False),
    "one_hot": one_hot,
    "shape": shape,
    "shape64": shape,
    "numel": numel,
    "increment": increment,
    "increment_": increment,
    "flip": flip,
    "roll": roll,
    "repeat_interleave": repeat_interleave,
    "repeat_interleave_with_tensor_index": repeat_by_tensor,
    "empty": empty,
    "eye": eye,
    "view_shape": reshape,
}
for _name in ("reshape", "squeeze", "unsqueeze", "flatten", "transpose"):
    TABLE[f"{_name}_"] = TABLE[_name]

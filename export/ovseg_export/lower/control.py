"""Branches, loops and tensor arrays.

Paddle writes into tensors and tensor arrays of enclosing blocks; ONNX regions cannot. So whatever a region
writes in place, and did not make itself, is carried through it: a further output of If, a further loop
variable of Loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import Graph, onnx_type
from ovseg_export.program import Op, Region, Value


def written_in_place(op: Op) -> Value | None:
    """The operand that an operation changes, if it changes one: names of such operations end in `_`."""
    if not op.name.endswith("_") or op.name in ("batch_norm_", "share_data_", "full_"):
        return None
    return op.inputs[1] if op.name == "assign_out_" and len(op.inputs) > 1 else op.inputs[0]


def outer_writes(regions: Sequence[Region]) -> list[Value]:
    """Values from outside the regions that operations inside write in place."""
    found: dict[int, Value] = {}
    for region in regions:
        own = {value.id for value in region.arguments}
        for op in region.ops:
            # The result of a write stands for what was written to, which is found here.
            own.update(value.id for value in op.outputs)
            target = written_in_place(op)
            targets = ([target] if target is not None else []) + outer_writes(op.regions)
            found.update((value.id, value) for value in targets if value.id not in own)
    return list(found.values())


def if_(g: Graph, op: Op) -> tuple[str, ...]:
    """A condition that is known at conversion time leaves its branch only."""
    condition = g.number(op.inputs[0])
    if condition is not None:
        region = op.regions[0 if condition else 1]
        g.run(region.ops)
        return tuple(g[value] for value in region.yields)
    hidden = outer_writes(op.regions)
    types = [*op.outputs, *hidden]
    graphs = []
    for region, label in zip(op.regions, ("then", "else"), strict=True):
        with g.region() as nodes:
            g.run(region.ops)
            names = [g.identity_node(g[value]) for value in (*region.yields, *hidden)]
            graphs.append(g.subgraph(nodes, f"{label}_{op.index}", (), names, dict(zip(names, types, strict=True))))
    if not types:
        return ()
    results = g.ops("If", [g.scalar(op.inputs[0])], len(types), then_branch=graphs[0], else_branch=graphs[1])
    for value, name in zip(hidden, results[len(op.outputs) :], strict=True):
        g.bind(value, name)
    return results[: len(op.outputs)]


def while_(g: Graph, op: Op) -> tuple[str, ...]:
    """The body yields the next condition, then the next values of the loop variables."""
    (body,) = op.regions
    hidden = outer_writes(op.regions)
    variables = [*body.arguments, *hidden]
    boolean = Value(0, "bool", (), "scalar")
    with g.region() as nodes:
        trip, condition_in = g.fresh("trip"), g.fresh("condition")
        inputs = [g.fresh("variable") for _ in variables]
        for value, name in zip(variables, inputs, strict=True):
            g.bind(value, name)
        g.run(body.ops)
        condition = g.identity_node(g.scalar(body.yields[0]))
        outputs = [condition] + [g.identity_node(g[value]) for value in (*body.yields[1:], *hidden)]
        types = {trip: Value(0, "int64", (), "scalar"), condition_in: boolean, condition: boolean}
        types.update(zip(inputs, variables, strict=True))
        types.update(zip(outputs[1:], variables, strict=True))
        graph = g.subgraph(nodes, f"body_{op.index}", [trip, condition_in, *inputs], outputs, types)
    start = [g[value] for value in (*op.inputs[1:], *hidden)]
    results = g.ops("Loop", ["", g.scalar(op.inputs[0]), *start], len(variables), body=graph)
    for value, name in zip(hidden, results[len(op.outputs) :], strict=True):
        g.bind(value, name)
    return results[: len(op.outputs)]


def select_input(g: Graph, op: Op) -> str:
    """The input that the mask counts off: 0 or 1."""
    mask, first, second = op.inputs
    graphs = []
    for value, label in ((second, "then"), (first, "else")):
        with g.region() as nodes:
            name = g.identity_node(g[value])
            graphs.append(g.subgraph(nodes, f"{label}_{op.index}", (), [name], {name: op.outputs[0]}))
    condition = g.cast(g.scalar(mask), "bool")
    return g.ops("If", [condition], 1, then_branch=graphs[0], else_branch=graphs[1])[0]


def create_array(g: Graph, op: Op) -> str:
    return g.op("SequenceEmpty", dtype=onnx_type(op.outputs[0].dtype))


def array_write(g: Graph, op: Op) -> str:
    """Appends where the index is the array's length; else replaces the element, or appends at the end."""
    array, tensor, index = op.inputs
    name = g[array]
    if g.lengths.get(g[index]) == name:
        return g.op("SequenceInsert", name, g[tensor])
    position = g.scalar(index)
    inserted = g.op("SequenceInsert", name, g[tensor], position)
    graphs = []
    for label in ("then", "else"):
        with g.region() as nodes:
            result = inserted
            if label == "then":
                follower = g.op("Add", position, g.const(1, "int64"))
                result = g.op("SequenceErase", inserted, follower)
            result = g.identity_node(result)
            graphs.append(g.subgraph(nodes, f"{label}_{op.index}", (), [result], {result: op.outputs[0]}))
    inside = g.op("Less", position, g.op("SequenceLength", name))
    return g.ops("If", [inside], 1, then_branch=graphs[0], else_branch=graphs[1])[0]


def array_read(g: Graph, op: Op) -> str:
    return g.op("SequenceAt", g[op.inputs[0]], g.scalar(op.inputs[1]))


def slice_array_dense(g: Graph, op: Op) -> str:
    """One element of a tensor array, as a tensor."""
    return g.op("SequenceAt", g[op.inputs[0]], g.reshape(g.vector(op.inputs[1])))


def array_length(g: Graph, op: Op) -> str:
    array = g[op.inputs[0]]
    length = g.op("SequenceLength", array)
    if op.outputs[0].rank == 1:
        length = g.reshape(length, 1)
    g.lengths[length] = array
    return length


def array_to_tensor(g: Graph, op: Op) -> tuple[str, ...]:
    """Concatenate or stack; the sizes along the axis, the second result, have no ONNX counterpart."""
    return (
        g.op(
            "ConcatFromSequence",
            g[op.inputs[0]],
            axis=op.attributes["axis"],
            new_axis=int(op.attributes["use_stack"]),
        ),
    )


TABLE: dict[str, Lowering] = {
    "if": if_,
    "while": while_,
    "select_input": select_input,
    "create_array": create_array,
    "array_write_": array_write,
    "array_read": array_read,
    "slice_array_dense": slice_array_dense,
    "array_length": array_length,
    "array_to_tensor": array_to_tensor,
}

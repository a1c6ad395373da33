"""The lowering: one table from Paddle operators to small functions that emit ONNX nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ovseg_export.errors import ProgramError, UnsupportedCase, UnsupportedOperators
from ovseg_export.lower import control, detection, elementwise, nn, reduce, select, shape
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import Graph
from ovseg_export.program import Op, Program

TABLE: dict[str, Lowering] = {
    **elementwise.TABLE,
    **reduce.TABLE,
    **nn.TABLE,
    **shape.TABLE,
    **select.TABLE,
    **detection.TABLE,
    **control.TABLE,
}


@dataclass(frozen=True)
class Unsupported:
    """An operator of a program that cannot be lowered: its name, the reason, and every place."""

    name: str
    reason: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        first, more = self.places[0], len(self.places) - 1
        others = f" and {more} more" if more else ""
        return f"{self.name} ×{len(self.places)} ({self.reason}; at {first}{others})"


def find_lowering(name: str) -> Lowering | None:
    """The function of an operator; one that works in place (`relu_`) shares that of its twin."""
    return TABLE.get(name) or TABLE.get(name.removesuffix("_"))


def scan(program: Program) -> list[Unsupported]:
    """Operators of the program, nested regions included, that the table lacks; most frequent first."""
    places: dict[str, list[str]] = {}
    for op in program.walk():
        if find_lowering(op.name) is None:
            places.setdefault(op.name, []).append(op.location)
    ranked = Counter({name: len(found) for name, found in places.items()}).most_common()
    return [Unsupported(name, "no lowering", tuple(places[name])) for name, _ in ranked]


def require_lowerings(program: Program) -> None:
    """Raise UnsupportedOperators, naming every operator that the table lacks, with its place and count."""
    problems = scan(program)
    if problems:
        raise refusal(problems)


def lower_program(program: Program, parameters: Mapping[str, np.ndarray], *, opset: int) -> Graph:
    """Emit the whole program.

    Args:
        program: what to lower.
        parameters: the parameters by name; they become constants under their own names.
        opset: ONNX operator set to emit for.

    Returns:
        The graph: its nodes and constants; `graph[port.value]` names inputs and outputs.

    Raises:
        UnsupportedOperators: naming every operator, or use of one, that cannot be lowered, with its place and
            count.
        ProgramError: an operator lacks what Paddle writes of it.

    """
    require_lowerings(program)
    refused: dict[tuple[str, str], list[str]] = {}

    def lower(graph: Graph, op: Op) -> None:
        try:
            _lower(graph, op)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            raise ProgramError(
                f"{op.location} is not written as Paddle writes it ({type(error).__name__}: {error}).",
                "Download or save the model again; report the model if that does not help.",
            ) from error
        except UnsupportedCase as reason:
            refused.setdefault((op.name, str(reason)), []).append(op.location)
            for value in op.outputs:  # keep going, to name every problem at once
                name = graph.fresh("refused")
                graph.bind(value, (name,) * len(value.elements) if value.kind == "vector" else name)

    graph = Graph(opset, lower)
    for port in program.inputs:
        graph.bind(port.value, port.name)
    for name, value in program.parameters.items():
        graph.constants[name] = parameters[name]
        graph.bind(value, name)
    graph.run(program.ops)
    if refused:
        raise refusal([Unsupported(name, reason, tuple(at)) for (name, reason), at in refused.items()])
    return graph


def _lower(graph: Graph, op: Op) -> None:
    function = find_lowering(op.name)
    assert function is not None  # scan() has refused every other program
    names = function(graph, op)
    written = control.written_in_place(op)
    if written is not None:
        graph.alias(op.outputs[0], written)
    if isinstance(names, str) or (len(op.outputs) == 1 and op.outputs[0].kind == "vector"):
        results = [names]
    else:
        results = list(names)
    for value, name in zip(op.outputs, results, strict=False):
        graph.bind(value, name)


def refusal(problems: list[Unsupported]) -> UnsupportedOperators:
    """The error that names all problems."""
    listed = "; ".join(str(problem) for problem in problems)
    return UnsupportedOperators(
        f"The program uses {len(problems)} operators that cannot become ONNX: {listed}.",
        "Export a model of a supported family, or report the operators named here.",
    )

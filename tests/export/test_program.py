"""The reader of Paddle programs: it needs no Paddle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ovseg_export.errors import ProgramError
from ovseg_export.lower import scan
from ovseg_export.program import Value, read_program

from ovseg.errors import ModelError


def tensor(*shape: int, dtype: str = "f32") -> dict[str, Any]:
    return {"#": "0.t_dtensor", "D": [{"#": f"0.t_{dtype}"}, list(shape), "NCHW", [], 0]}


def attribute(name: str, kind: str, data: Any) -> dict[str, Any]:
    return {"N": name, "AT": {"#": kind, "D": data}}


def operation(
    name: str, inputs: list[int], outputs: list[tuple[int, Any]], *attributes: Any, **more: Any
) -> dict[str, Any]:
    return {
        "#": name,
        "A": list(attributes),
        "I": [{"%": number} for number in inputs],
        "O": [{"%": number, "TT": kind} for number, kind in outputs],
        **more,
    }


def region(*ops: Any, args: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"#": "region", "blocks": [{"#": "block", "args": list(args), "ops": list(ops)}]}


def document(*ops: Any, version: int = 3) -> dict[str, Any]:
    return {
        "base_code": {"magic": "pir", "trainable": True, "version": version},
        "program": {"regions": [region(*ops)]},
    }


PARAMETER = {"#": "p", "A": [0, 1, 1, "conv.w"], "O": {"%": 1, "TT": tensor(8, 3, 3, 3)}}
INPUT = operation("1.data", [], [(2, tensor(-1, 3, 8, 8))], attribute("name", "0.a_str", "image"))
CONV = operation(
    "1.conv2d",
    [2, 1],
    [(3, tensor(-1, 8, 6, 6))],
    attribute("strides", "0.a_array", [{"#": "0.a_i32", "D": 1}, {"#": "0.a_i32", "D": 2}]),
    attribute("struct_name", "0.a_str", "/Stem/Conv2D/"),
)


def fetch(value: int, column: int) -> dict[str, Any]:
    names = attribute("name", "0.a_str", f"out{column}"), attribute("col", "0.a_i32", column)
    return operation("1.fetch", [value], [(100 + column, tensor(1))], *names)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def save(content: Any) -> Path:
        path = tmp_path / "inference.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return save


def test_inputs_outputs_parameters_and_operators(write: Any) -> None:
    program = read_program(write(document(PARAMETER, INPUT, CONV, fetch(3, 1), fetch(2, 0))))
    assert [(port.name, port.value.shape) for port in program.inputs] == [("image", (-1, 3, 8, 8))]
    assert [(port.name, port.value.id) for port in program.outputs] == [("out0", 2), ("out1", 3)]
    assert program.parameters == {"conv.w": Value(1, "float32", (8, 3, 3, 3))}
    (conv,) = program.ops
    assert (conv.name, conv.attributes["strides"]) == ("conv2d", [1, 2])
    assert [value.id for value in conv.inputs if value is not None] == [2, 1]
    assert conv.location == "conv2d #2 in /Stem/Conv2D/"


def test_absent_inputs_vectors_and_special_numbers(write: Any) -> None:
    vector = {"#": "0.t_vec", "D": [tensor(2), tensor(3, dtype="i64")]}
    infinite = {"N": "value", "AT": {"#": "0.a_f64", "VD": "-INF"}}
    nothing = {"N": "other", "AT": {"#": "0.a_f32", "VD": "NaN"}}
    scalar = attribute("scalar", "1.a_scalar", ["float32", 2.5])
    program = read_program(
        write(document(operation("1.split", [0], [(1, vector)], infinite, nothing, scalar), fetch(1, 0)))
    )
    (op,) = program.ops
    assert op.inputs == (None,)
    assert op.outputs[0].kind == "vector"
    assert [(item.dtype, item.shape) for item in op.outputs[0].elements] == [
        ("float32", (2,)),
        ("int64", (3,)),
    ]
    assert op.attributes["value"] == -math.inf
    assert math.isnan(op.attributes["other"])
    assert op.attributes["scalar"] == 2.5


def test_nested_regions_see_outer_values_and_name_their_place(write: Any) -> None:
    inner = region(operation("1.relu", [2], [(5, tensor(1))]), operation("2.yield", [5], []))
    other = region(operation("1.magic", [2], [(6, tensor(1))]), operation("2.yield", [6], []))
    branch = operation("1.if", [2], [(7, tensor(1))], regions=[inner, other])
    argument = {"#": -1, "TT": tensor(1)}
    body = region(operation("1.magic", [-1], [(8, tensor(1))]), operation("2.yield", [7, 8], []), args=(argument,))
    loop = operation("1.while", [7, 2], [(9, tensor(1))], regions=[body])
    program = read_program(write(document(INPUT, branch, loop, fetch(9, 0))))
    if_, while_ = program.ops
    assert [value.id for value in if_.regions[0].yields] == [5]
    assert while_.regions[0].arguments[0].id == -1
    assert [op.name for op in program.walk()] == ["if", "relu", "magic", "while", "magic"]
    (problem,) = scan(program)
    assert problem.name == "magic"
    assert problem.places == ("if #1 else > magic #4", "while #6 body > magic #7")
    assert "magic ×2" in str(problem)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{ not json", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("1" * 5000, "is not valid JSON"),
        ("[1, 2]", "is not a Paddle program"),
        ({"base_code": {"magic": "no"}, "program": {}}, "is not a Paddle program"),
        (document(version=9), "has format version 9"),
        (document({"#": "1.relu"}), "does not follow the PIR format"),
        (document(operation("1.relu", [77], [])), "77"),
    ],
)
def test_broken_files(content: Any, message: str, write: Any) -> None:
    path = write(content)
    with pytest.raises(ProgramError, match=message) as caught:
        read_program(path)
    assert str(path) in caught.value.cause
    assert caught.value.cure
    assert isinstance(caught.value, ModelError)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot be read"):
        read_program(tmp_path / "none.json")

"""Read a Paddle program (PIR, saved as `inference.json`) into plain frozen values, without Paddle.

The file is what Paddle 3.x writes: one module region with one block; every operation has a dialect number and
a name (`1.conv2d`), attributes `A`, operands `I`, results `O` and nested `regions`. Parameters come in a
short form (`p`). Value number 0 stands for an optional input that is absent; block arguments have negative
numbers, which are unique within their region only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg_export.errors import ProgramError

_DIALECTS = {"0": "builtin.", "1": "", "2": "cf.", "3": "custom_op.", "4": "dist."}
_VERSIONS = range(1, 4)
_DTYPES = {
    "t_bool": "bool",
    "t_ui8": "uint8",
    "t_i8": "int8",
    "t_i16": "int16",
    "t_i32": "int32",
    "t_i64": "int64",
    "t_f16": "float16",
    "t_bf16": "bfloat16",
    "t_f32": "float32",
    "t_f64": "float64",
}


@dataclass(frozen=True)
class Value:
    """A result of an operation, or an argument of a region.

    Attributes:
        id: number of the value in the file.
        dtype: numpy's name of the element type ("bfloat16" too); "" for a vector of tensors.
        shape: sizes, -1 where the size is known at run time only.
        kind: "tensor", "array" (a tensor array, which loops write into) or "vector" (a fixed list of
            tensors).
        elements: the tensors of a vector.

    """

    id: int
    dtype: str
    shape: tuple[int, ...]
    kind: str = "tensor"
    elements: tuple[Value, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: Paddle's name; without a prefix for the operator dialect (`conv2d`), else with it
            (`builtin.split`).
        inputs: operands; None where an optional one is absent.
        outputs: results.
        attributes: plain Python values.
        regions: nested regions: (then, else) of `if`, (body,) of `while`.
        index: position of the operation in the file, counted through nested regions.
        location: where it stands, for messages: enclosing operations and the layer that made it.

    """

    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any]
    regions: tuple[Region, ...]
    index: int
    location: str


@dataclass(frozen=True)
class Region:
    """A nested block: the arguments it takes, its operations, and the values that it yields."""

    arguments: tuple[Value, ...]
    ops: tuple[Op, ...]
    yields: tuple[Value, ...]


@dataclass(frozen=True)
class Port:
    """A named input or output of the whole program."""

    name: str
    value: Value


@dataclass(frozen=True)
class Program:
    """A whole program: its operations without inputs, outputs and parameters, which are listed apart."""

    ops: tuple[Op, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: Mapping[str, Value]
    path: Path | None = None

    def walk(self) -> Iterator[Op]:
        """Every operation, also those in nested regions, in the order of the file."""
        return _walk(self.ops)


def _walk(ops: tuple[Op, ...]) -> Iterator[Op]:
    for op in ops:
        yield op
        for region in op.regions:
            yield from _walk(region.ops)


def read_program(path: str | Path) -> Program:
    """Read an `inference.json`.

    Raises:
        ProgramError: if the file is missing, is no PIR program, or has a version that is not known here.

    """
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ProgramError(
            f"The program file {path} cannot be read ({error.strerror}).",
            "Check the folder that you export from.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ProgramError(
            f"The program file {path} is not valid JSON ({error}).", "Download or save the model again."
        ) from error
    head = document.get("base_code") if isinstance(document, dict) else None
    if not isinstance(head, dict) or head.get("magic") != "pir" or "program" not in document:
        raise ProgramError(
            f"The file {path} is not a Paddle program: it has no `base_code` with the magic word `pir`.",
            "Give the inference.json of a Paddle 3 inference model.",
        )
    if head.get("version") not in _VERSIONS:
        raise ProgramError(
            f"The program file {path} has format version {head.get('version')!r}; versions "
            f"{_VERSIONS.start} to {_VERSIONS.stop - 1} are known.",
            "Save the model with Paddle 3.0 to 3.2.",
        )
    try:
        return _Reader(path).read(document["program"])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ProgramError(
            f"The program file {path} does not follow the PIR format ({type(error).__name__}: {error}).",
            "Download or save the model again.",
        ) from error


@dataclass
class _Reader:
    path: Path
    count: int = 0
    inputs: list[tuple[int, Port]] = field(default_factory=list)
    outputs: list[tuple[int, Port]] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)

    def read(self, module: dict[str, Any]) -> Program:
        (region,) = module["regions"]
        body = self._region(region, {}, "")
        inputs, outputs = (
            tuple(port for _, port in sorted(ports, key=lambda item: item[0])) for ports in (self.inputs, self.outputs)
        )
        return Program(body.ops, inputs, outputs, self.parameters, self.path)

    def _region(self, region: dict[str, Any], outer: Mapping[int, Value], where: str) -> Region:
        (block,) = region["blocks"]
        if block.get("kwargs"):
            raise ValueError("a block with keyword arguments")
        scope = dict(outer)
        arguments = tuple(_value(int(item["#"]), item["TT"]) for item in block["args"])
        scope.update((value.id, value) for value in arguments)
        ops: list[Op] = []
        yields: tuple[Value, ...] = ()
        for item in block["ops"]:
            op = self._op(item, scope, where)
            scope.update((value.id, value) for value in op.outputs)
            if op.name == "cf.yield":
                yields = tuple(value for value in op.inputs if value is not None)
            elif op.name == "builtin.parameter":
                self.parameters[op.attributes["parameter_name"]] = op.outputs[0]
            elif op.name == "data" or op.name == "feed":
                place = op.attributes.get("col", len(self.inputs))  # translated programs feed in any order
                self.inputs.append((place, Port(op.attributes["name"], op.outputs[0])))
            elif op.name == "fetch":
                source = op.inputs[0]
                if source is None:
                    raise ValueError("a fetch without a value")
                self.outputs.append((op.attributes["col"], Port(op.attributes["name"], source)))
            else:
                ops.append(op)
        return Region(arguments, tuple(ops), yields)

    def _op(self, item: dict[str, Any], scope: Mapping[int, Value], where: str) -> Op:
        index, self.count = self.count, self.count + 1
        if item["#"] == "p":
            result = _value(item["O"]["%"], item["O"]["TT"])
            attributes: dict[str, Any] = {"parameter_name": item["A"][3]}
            return Op("builtin.parameter", (), (result,), attributes, (), index, where)
        dialect, _, name = item["#"].partition(".")
        name = _DIALECTS.get(dialect, f"{dialect}.") + name
        attributes = {entry["N"]: _attribute(entry["AT"]) for entry in item["A"]}
        location = f"{where}{name} #{index}"
        if attributes.get("struct_name"):
            location += f" in {attributes['struct_name']}"
        inputs = tuple(scope[ref["%"]] if ref["%"] else None for ref in item["I"])
        outputs = tuple(_value(result["%"], result["TT"]) for result in item["O"])
        labels = {"if": ("then", "else"), "while": ("body",)}.get(name, ())
        regions = tuple(
            self._region(region, scope, f"{where}{name} #{index} {labels[i] if i < len(labels) else i} > ")
            for i, region in enumerate(item.get("regions", ()))
        )
        return Op(name, inputs, outputs, attributes, regions, index, location)


def _value(number: int, described: dict[str, Any]) -> Value:
    kind = described["#"].partition(".")[2]
    if kind in ("t_dtensor", "t_dense_tensor_array"):
        element, shape = described["D"][0], described["D"][1]
        dtype = _DTYPES[element["#"].partition(".")[2]]
        return Value(number, dtype, tuple(int(size) for size in shape), "tensor" if kind == "t_dtensor" else "array")
    if kind == "t_vec":
        return Value(number, "", (), "vector", tuple(_value(number, item) for item in described["D"]))
    if described["#"] == "NULL":  # a result that the operator does not fill in
        return Value(number, "", (), "none")
    return Value(number, "", (), kind)


def _attribute(described: dict[str, Any]) -> Any:
    kind = described["#"].partition(".")[2]
    content = described.get("D")
    if kind == "a_array":
        return [_attribute(item) for item in content or ()]
    if kind in ("a_f32", "a_f64") and "VD" in described:
        return float(described["VD"])  # INF, -INF and NAN are saved as text, beside numbers in D
    if kind == "a_scalar":
        return content[1] if isinstance(content, list) else content
    return content

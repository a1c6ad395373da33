"""Turn a Paddle inference model into an ONNX model, without Paddle: read, lower, tidy, write.

inference.json + inference.pdiparams → Program, parameters → Graph → ONNX model (+ external data above 2 GB)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ovseg.errors import ModelError
from ovseg_export.errors import ProgramError
from ovseg_export.lower import lower_program, require_lowerings
from ovseg_export.lower.graph import onnx_type
from ovseg_export.params import read_parameters, write_external_data
from ovseg_export.program import Port, Program, read_program
from ovseg_export.tidy import fuse_convolutions, prune
from ovseg_export.translate import translate_program

OPSETS = range(17, 22)
# IR version that each opset came with, so that a model loads wherever its opset is known.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
# Protobuf ends at 2 GiB; the rest is left for the graph itself.
_INLINE_LIMIT = 1_900_000_000


@dataclass(frozen=True)
class Converted:
    """A graph, and apart from it its constants, which may be views of a mapped parameter file.

    Attributes:
        model: the ONNX model without initializers.
        constants: initializers by name.

    """

    model: ModelProto
    constants: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the constants in bytes."""
        return sum(array.nbytes for array in self.constants.values())

    def to_model(self) -> ModelProto:
        """One message with everything inside.

        Raises:
            ModelError: if the constants take more than protobuf can hold.

        """
        if self.nbytes > _INLINE_LIMIT:
            raise ModelError(
                f"The constants take {self.nbytes / 1e9:.1f} GB, more than one ONNX message holds.",
                "Save the model to a file: its constants then go to a data file beside it.",
            )
        model = ModelProto()
        model.CopyFrom(self.model)
        model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.constants.items())
        return model

    def save(self, path: str | Path) -> list[Path]:
        """Write the model; above 1.9 GB the constants go to `<name>.data` beside it.

        Returns:
            The files written, the model first.

        """
        path = Path(path)
        if self.nbytes <= _INLINE_LIMIT:
            onnx.save(self.to_model(), str(path))
            return [path]
        data = path.with_name(path.name + ".data")
        # Shape inference and constant folding read small constants, and only from the model itself.
        large = {name: array for name, array in self.constants.items() if array.nbytes >= 4096}
        places = write_external_data(data, large)
        model = ModelProto()
        model.CopyFrom(self.model)
        for name, array in self.constants.items():
            if name in places:
                model.graph.initializer.append(_external(name, array, data.name, *places[name]))
            else:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.save(model, str(path))
        return [path, data]


def _external(name: str, array: np.ndarray, location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(
        name=name, data_type=onnx_type(array.dtype.name), dims=array.shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def find_program(source: str | Path) -> tuple[Path, Path]:
    """The program (`.json` or `.pdmodel`) and the parameter file of a model folder.

    Args:
        source: the folder, or the program file itself.

    Raises:
        ProgramError: if there is no program.

    """
    source = Path(source)
    if source.is_dir():
        found = [source / f"inference{suffix}" for suffix in (".json", ".pdmodel")]
        program = next((path for path in found if path.is_file()), None)
        if program is None:
            raise ProgramError(
                f"The folder {source} has neither inference.json nor inference.pdmodel.",
                "Give the folder of a Paddle inference model.",
            )
    elif source.is_file():
        program = source
    else:
        raise ProgramError(f"There is no file or folder {source}.", "Check the path of the model.")
    return program, program.with_suffix(".pdiparams")


def load(source: str | Path) -> tuple[Program, dict[str, np.ndarray]]:
    """Read a program and map its parameters; a `.pdmodel` needs Paddle, which translates it first."""
    path, parameter_path = find_program(source)
    if path.suffix == ".pdmodel":
        with tempfile.TemporaryDirectory() as folder:
            program = read_program(translate_program(path, Path(folder) / "inference.json"))
    else:
        program = read_program(path)
    # First of all: what cannot be converted is said before gigabytes are read.
    require_lowerings(program)
    expected = {name: (value.dtype, value.shape) for name, value in program.parameters.items()}
    return program, read_parameters(parameter_path, expected)


def convert(
    source: str | Path,
    *,
    opset: int = 17,
    output_names: Sequence[str] | None = None,
    dimensions: Mapping[str, Sequence[int | str]] | None = None,
) -> Converted:
    """Convert a Paddle inference model.

    Args:
        source: folder with `inference.json` or `inference.pdmodel`, and `inference.pdiparams`; or the program
            itself.
        opset: ONNX operator set, 17 to 21.
        output_names: names of the outputs, in Paddle's order; `output_0`, … if left out. Inputs keep their
            names.
        dimensions: sizes of an input by its name, to fix or to name what Paddle leaves open.

    Returns:
        The model, with its constants apart.

    Raises:
        ProgramError, ParameterError: if a file cannot be read.
        UnsupportedOperators: if the program uses what has no lowering.
        ModelError: if an argument does not fit the program.

    """
    if opset not in OPSETS:
        raise ModelError(f"Opset {opset} is not supported.", f"Choose {OPSETS.start} to {OPSETS.stop - 1}.")
    program, parameters = load(source)
    return convert_program(program, parameters, opset=opset, output_names=output_names, dimensions=dimensions)


def convert_program(
    program: Program,
    parameters: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
    output_names: Sequence[str] | None = None,
    dimensions: Mapping[str, Sequence[int | str]] | None = None,
) -> Converted:
    """Convert a program that is read already; see `convert`."""
    names = list(output_names or (f"output_{i}" for i in range(len(program.outputs))))
    if len(names) != len(program.outputs):
        raise ModelError(
            f"{len(names)} output names were given for {len(program.outputs)} outputs.",
            "Give one name for each.",
        )
    graph = lower_program(program, parameters, opset=opset)
    nodes = list(graph.nodes)
    for port, name in zip(program.outputs, names, strict=True):
        nodes.append(helper.make_node("Identity", [graph[port.value]], [name], name=f"output_{name}"))
    constants = graph.constants
    nodes, constants = fuse_convolutions(nodes, constants)
    nodes, constants = prune(nodes, constants, names)
    inputs = [_port_info(port.name, port, (dimensions or {}).get(port.name)) for port in program.inputs]
    outputs = [_port_info(name, port, None) for name, port in zip(names, program.outputs, strict=True)]
    body = helper.make_graph(nodes, "ovseg", inputs, outputs)
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSIONS[opset],
        producer_name="ovseg",
    )
    return Converted(model, constants)


def _port_info(name: str, port: Port, sizes: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(sizes) if sizes is not None else []
    if sizes is None:
        shape = [size if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(port.value.shape)]
    elif len(shape) != port.value.rank:
        raise ModelError(f"Input {name!r} has {port.value.rank} axes, not {len(shape)}.", "Give one size for each.")
    return helper.make_tensor_value_info(name, onnx_type(port.value.dtype), shape)

"""Read `inference.pdiparams`, Paddle's combined parameter file, without Paddle and without a copy in memory.

The file is one record after another, in the sorted order of the parameter names, which it does not store. A
record: uint32 version (0), uint64 count of level-of-detail entries (0 in inference models), uint32 tensor
version (0), int32 length of a protobuf message (field 1: element type, field 2, repeated: sizes), that
message, and the raw little-endian elements.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ovseg_export.errors import ParameterError

# Element types of Paddle's framework.proto, VarType.Type.
_TYPES = {
    0: np.dtype(np.bool_),
    1: np.dtype(np.int16),
    2: np.dtype(np.int32),
    3: np.dtype(np.int64),
    4: np.dtype(np.float16),
    5: np.dtype(np.float32),
    6: np.dtype(np.float64),
    20: np.dtype(np.uint8),
    21: np.dtype(np.int8),
}


def read_parameters(path: str | Path, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Map the parameters of a program into memory.

    Args:
        path: the `.pdiparams` file.
        expected: name of each parameter of the program → (dtype, shape); the file is read in the sorted order
            of names.

    Returns:
        Name → read-only array over the mapped file: no parameter is read from disk before it is used.

    Raises:
        ParameterError: if the file is missing, is cut short or too long, or holds another type or shape than
            the program expects.

    """
    path = Path(path)
    cure = "Use the inference.pdiparams that was saved together with the program."
    if not path.is_file():
        if not expected:
            return {}
        raise ParameterError(f"The parameter file {path} is missing; the program has {len(expected)} parameters.", cure)
    if path.stat().st_size == 0:
        if not expected:
            return {}
        raise ParameterError(f"The parameter file {path} is empty.", "Download or save the model again.")
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for name in sorted(expected):
        try:
            array, offset = _read_record(mapped, offset)
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise ParameterError(
                f"The parameter file {path} cannot be read at byte {offset}, where {name!r} should stand ({error}).",
                "Download or save the model again.",
            ) from error
        dtype, shape = expected[name]
        if array.dtype.name != dtype or array.shape != shape:
            raise ParameterError(
                f"The parameter file {path} has {array.dtype.name} {list(array.shape)} where the program "
                f"expects {name!r}, {dtype} {list(shape)}.",
                cure,
            )
        arrays[name] = array
    if offset != len(mapped):
        raise ParameterError(
            f"The parameter file {path} has {len(mapped) - offset} bytes more than the program's "
            f"{len(expected)} parameters take.",
            cure,
        )
    return arrays


def _read_record(buffer: mmap.mmap, offset: int) -> tuple[np.ndarray, int]:
    version, levels = struct.unpack_from("<IQ", buffer, offset)
    if version != 0:
        raise ValueError(f"record version {version}")
    offset += 12
    for _ in range(levels):
        (size,) = struct.unpack_from("<Q", buffer, offset)
        offset += 8 + size
    tensor_version, length = struct.unpack_from("<Ii", buffer, offset)
    if tensor_version != 0 or not 0 < length < 4096:
        raise ValueError(f"tensor version {tensor_version}, description of {length} bytes")
    offset += 8
    dtype, shape = _read_description(buffer[offset : offset + length])
    offset += length
    count = math.prod(shape)
    if offset + count * dtype.itemsize > len(buffer):
        raise ValueError("the file is cut short")
    array = np.frombuffer(buffer, dtype, count, offset).reshape(shape)
    return array, offset + count * dtype.itemsize


def _read_description(message: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Decode the protobuf message `TensorDesc`: field 1 element type, field 2 sizes, packed or not."""
    kind = -1
    shape: list[int] = []
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if key == 0x08:
            kind = value
        elif key == 0x10:
            shape.append(value)
        elif key == 0x12:
            end = position + value
            while position < end:
                value, position = _read_varint(message, position)
                shape.append(value)
        else:
            raise ValueError(f"unknown field {key} in a tensor description")
    if kind not in _TYPES:
        raise ValueError(f"unknown element type {kind}")
    return _TYPES[kind], tuple(shape)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def write_external_data(
    path: Path, arrays: Mapping[str, np.ndarray], *, alignment: int = 4096
) -> dict[str, tuple[int, int]]:
    """Write arrays one after another, each at a multiple of `alignment`, so that ONNX Runtime can map them.

    Memory stays flat: at most 16 MiB of an array are in flight at a time.

    Returns:
        Name → (offset, length) in bytes.

    """
    places: dict[str, tuple[int, int]] = {}
    with path.open("wb") as stream:
        for name, array in arrays.items():
            start = -(-stream.tell() // alignment) * alignment
            stream.write(bytes(start - stream.tell()))
            for chunk in _chunks(array):
                stream.write(chunk)
            places[name] = (start, array.nbytes)
    return places


def _chunks(array: np.ndarray, size: int = 16 << 20) -> Iterator[bytes]:
    flat = array.reshape(-1)
    step = max(1, size // array.itemsize)
    for start in range(0, flat.size, step):
        yield flat[start : start + step].tobytes()

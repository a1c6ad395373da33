"""The reader of `.pdiparams` and the writer of external data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from ovseg_export.errors import ParameterError
from ovseg_export.params import read_parameters, write_external_data

KINDS = {"float32": 5, "int64": 3, "bool": 0, "float16": 4}


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def record(array: np.ndarray, *, packed: bool = False) -> bytes:
    sizes = [varint(size) for size in array.shape]
    shape = b"\x12" + varint(len(b"".join(sizes))) + b"".join(sizes) if packed else b"".join(b"\x10" + s for s in sizes)
    description = b"\x08" + varint(KINDS[array.dtype.name]) + shape
    return struct.pack("<IQIi", 0, 0, 0, len(description)) + description + array.tobytes()


ARRAYS = {
    "b_first": np.arange(300, dtype=np.float32).reshape(300, 1),
    "B_upper": np.array([1, -2], np.int64),
    "a_last": np.array([True, False]),
    "scalar": np.array(2.5, np.float16),
}


def expected(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (array.dtype.name, array.shape) for name, array in arrays.items()}


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.write_bytes(b"".join(record(arrays[name]) for name in sorted(arrays)))
    return path


def test_parameters_are_read_in_sorted_order_without_a_copy(tmp_path: Path) -> None:
    arrays = read_parameters(write(tmp_path / "x.pdiparams", ARRAYS), expected(ARRAYS))
    assert list(arrays) == ["B_upper", "a_last", "b_first", "scalar"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_packed_sizes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(record(ARRAYS["b_first"], packed=True))
    arrays = read_parameters(tmp_path / "x", expected({"w": ARRAYS["b_first"]}))
    assert arrays["w"].shape == (300, 1)


def test_a_program_without_parameters_needs_no_file(tmp_path: Path) -> None:
    assert read_parameters(tmp_path / "none.pdiparams", {}) == {}


def test_errors_name_the_file_and_the_parameter(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pdiparams", ARRAYS)
    whole = path.read_bytes()
    wanted = expected(ARRAYS)
    with pytest.raises(ParameterError, match="missing; the program has 4 parameters"):
        read_parameters(tmp_path / "y.pdiparams", wanted)
    with pytest.raises(ParameterError, match=r"'a_last', bool \[3\]"):
        read_parameters(path, {**wanted, "a_last": ("bool", (3,))})
    with pytest.raises(ParameterError, match="more than the program's 3 parameters"):
        read_parameters(path, {name: kind for name, kind in wanted.items() if name != "scalar"})
    path.write_bytes(whole[:-1])
    with pytest.raises(ParameterError, match=r"'scalar' should stand \(the file is cut short\)"):
        read_parameters(path, wanted)
    path.write_bytes(b"\x07" + whole[1:])
    with pytest.raises(ParameterError, match="record version"):
        read_parameters(path, wanted)
    path.write_bytes(b"")
    with pytest.raises(ParameterError, match="is empty"):
        read_parameters(path, wanted)


def test_external_data_is_aligned(tmp_path: Path) -> None:
    places = write_external_data(tmp_path / "data", ARRAYS, alignment=64)
    content = (tmp_path / "data").read_bytes()
    for name, (offset, length) in places.items():
        assert offset % 64 == 0
        assert content[offset : offset + length] == ARRAYS[name].tobytes()

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from ovseg.errors import SaveError
from ovseg.results.saving import atomic_write, write_json


@pytest.mark.parametrize("indent", [4, 2, 0, None])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 2), (130, 3), (0, 4), (4, 0)])
def test_write_json_writes_what_json_dump_writes(indent: int | None, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(np.int8)
    data = {"name": "caf\u00e9", "masks": [mask, mask[::-1]], "deep": {"er": [{"mask": mask}]}, "rest": [1.5]}
    plain = {
        "name": "caf\u00e9",
        "masks": [mask.tolist(), mask[::-1].tolist()],
        "deep": {"er": [{"mask": mask.tolist()}]},
        "rest": [1.5],
    }
    for ensure_ascii in (False, True):
        file = io.BytesIO()
        write_json(file, data, indent=indent, ensure_ascii=ensure_ascii)
        assert file.getvalue().decode() == json.dumps(plain, indent=indent, ensure_ascii=ensure_ascii)


def test_write_json_takes_other_arrays_and_numbers() -> None:
    data = {"boxes": np.array([[1.5, 2]]), "ids": np.array([[300, 4]]), "digits": np.array([[7]], np.int8)}
    file = io.BytesIO()
    write_json(file, {**data, "score": np.float32(0.5), "mask": np.ones((1, 2), bool)}, indent=None)
    assert json.loads(file.getvalue()) == {
        "boxes": [[1.5, 2.0]],
        "ids": [[300, 4]],
        "digits": [[7]],
        "score": 0.5,
        "mask": [[1, 1]],
    }


def test_write_json_escapes_a_file_name_that_is_not_utf8() -> None:
    data, file = {"input_path": "caf\u00e9\udcff.jpg", "masks": [np.ones((1, 2), np.int8)]}, io.BytesIO()
    write_json(file, data)
    assert b"caf\xc3\xa9\\udcff" in file.getvalue()
    assert json.loads(file.getvalue()) == data | {"masks": [[[1, 1]]]}


def test_write_json_refuses_what_json_refuses() -> None:
    with pytest.raises(TypeError, match="set is not JSON"):
        write_json(io.BytesIO(), {"a": {1}})


def test_atomic_write_makes_folders_and_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    below_a_file = atomic_write(tmp_path / "file" / "a.json")
    with pytest.raises(SaveError, match=r"file/a\.json could not be written"), below_a_file:
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="folder could not be written"), atomic_write(tmp_path / "folder"):
        pass
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder"]

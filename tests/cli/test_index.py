from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovseg import Gallery, load_index
from ovseg.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gallery = Gallery(2, index_type="Flat")
    gallery.add(np.array([[1, 0], [0, 1], [0.6, 0.8]]), ["east", "north", "north"])
    gallery.save(tmp_path / "gallery")
    return tmp_path / "gallery"


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "info", str(folder), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["items"], facts["labels"], facts["dim"], facts["metric"]) == (3, 2, 2, "IP")
    assert facts["verified"] is True
    assert main(["index", "info", str(folder)]) == 0
    assert "items            3\n" in capsys.readouterr().out


def test_search(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = tmp_path / "query.npy"
    np.save(query, np.array([1, 0]))
    search = ["index", "search", str(folder), "--vector", str(query)]
    assert main([*search, "-k", "2"]) == 0
    assert capsys.readouterr().out.split() == ["0", "1.000000", "east", "2", "0.600000", "north"]
    assert main([*search, "--vote"]) == 0
    assert capsys.readouterr().out.split() == ["2", "0.600000", "north", "1", "1.000000", "east"]
    assert main([*search, "--label", "north", "--k", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["labels"] for f in found] == [["north"]] and found[0]["ids"] == [2]
    assert main([*search, "-k", "0"]) == 2
    query.write_text("text")
    assert main(search) == 2
    assert "query.npy is not an array" in capsys.readouterr().err


def test_remove_and_compact(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "remove", str(folder), "0", "9"]) == 2
    assert "1 of 2 ids are not in the gallery: 9." in capsys.readouterr().err
    assert main(["index", "remove", str(folder)]) == 2
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b"\xef\xbb\xbf0 east\r\n\r\n2\r\n")
    assert main(["index", "remove", str(folder), "--file", str(ids)]) == 0
    assert load_index(folder).ids.tolist() == [1]
    ids.write_text("1\nnorth\n")
    assert main(["index", "remove", str(folder), "--file", str(ids)]) == 2
    assert "Line 2" in capsys.readouterr().err
    assert main(["index", "compact", str(folder)]) == 0
    assert load_index(folder, verify=True).labels == ["north"]


def test_export_and_import(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    assert main(["index", "export", str(folder), str(tmp_path / "px")]) == 0
    assert main(["index", "import", str(tmp_path / "px"), str(tmp_path / "again")]) == 0
    assert load_index(tmp_path / "again").labels == ["east", "north", "north"]
    assert main(["index", "import", str(tmp_path / "px"), str(folder)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["index", "info", str(tmp_path / "px")]) == 2
    assert "ovs index import" in capsys.readouterr().err


def test_salvage(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "manifest.json").write_text("")
    assert main(["index", "search", str(folder), "--vector", "q.npy"]) == 2
    assert f"3 items can be saved: ovs index salvage {folder} NEW_FOLDER" in capsys.readouterr().err
    assert main(["index", "salvage", str(folder), str(tmp_path / "saved")]) == 0
    assert "manifest.json is missing or damaged" in capsys.readouterr().err
    assert load_index(tmp_path / "saved", verify=True).labels == ["east", "north", "north"]

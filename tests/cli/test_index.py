from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from recognition_graphs import plain, write_detector, write_embedder

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
    assert "line 2" in capsys.readouterr().err
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


@pytest.fixture
def drinks(tmp_path: Path) -> Path:
    """Pictures, their list, and the YAML file of a pipeline with tiny models."""
    root = tmp_path / "drinks"
    root.mkdir()
    for name, colour in {"yellow": (0, 255, 255), "pink": (255, 0, 255), "rose": (255, 8, 255)}.items():
        cv2.imwrite(str(root / f"{name}.png"), plain(colour))
    (root / "gallery.txt").write_text("yellow.png yellow tea\npink.png\tpink soda\n")
    modules = {
        "Detection": {"model_dir": str(write_detector(tmp_path / "det"))},
        "Recognition": {"model_dir": str(write_embedder(tmp_path / "rec"))},
    }
    (root / "shitu.yaml").write_text(yaml.safe_dump({"pipeline_name": "PP-ShiTuV2", "SubModules": modules}))
    return root


def test_build_append_search_and_run(drinks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, pipeline = str(tmp_path / "index"), ["--pipeline", str(drinks / "shitu.yaml")]
    build = ["index", "build", index, "--images", str(drinks), "--labels", str(drinks / "gallery.txt"), *pipeline]
    assert main(build) == 0
    assert load_index(tmp_path / "index", verify=True).labels == ["yellow tea", "pink soda"]
    assert main(build) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*build, "--force", "--metric-type", "L2"]) == 0

    (drinks / "more.txt").write_text("rose.png rose soda\nnone.png nothing\n")
    append = ["index", "append", index, "-i", str(drinks), "-l", str(drinks / "more.txt"), *pipeline]
    assert main(append) == 2
    assert "none.png does not exist" in capsys.readouterr().err and len(load_index(tmp_path / "index")) == 2
    assert main([*append, "--skip-bad"]) == 0
    assert "left out:" in (err := capsys.readouterr().err) and "1 added, 3 items" in err

    assert main(["index", "duplicates", index, "--threshold", "0.01"]) == 0
    output = capsys.readouterr()
    assert output.out.split("  ")[2:] == ["1 pink soda pink.png", "|", "2 rose soda rose.png\n"]
    assert "1 pairs, 1 of them with different labels" in output.err
    assert main(["index", "duplicates", index, "--threshold", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["paths"] == ["pink.png", "rose.png"]

    scene = str(drinks / "scene.png")
    cv2.imwrite(scene, np.hstack([plain((255, 0, 255)), plain((0, 255, 255))]))
    search = ["index", "search", index, "--image", scene, "-k", "1", *pipeline]
    for box, label in (("0,0,30,20", "pink"), ("[30, 0, 60, 20]", "yellow")):
        assert main([*search, "--box", box]) == 0
        assert label in capsys.readouterr().out
    for box in ("30,0,60", "70,0,80,20", "20,0,10,5"):
        assert main([*search, "--box", box]) == 2
    assert main(["index", "search", index]) == 2
    assert "--vector and --image" in capsys.readouterr().err

    run = ["run", str(drinks / "shitu.yaml"), "--input", scene, "--json"]
    assert main(run) == 2
    assert "--index" in capsys.readouterr().err
    run += ["--index", index]
    assert main([*run, "--rec-topk", "1", "-o", str(tmp_path / "out")]) == 0
    assert [box["labels"] for box in json.loads(capsys.readouterr().out)["boxes"]] == [["pink soda"], ["yellow tea"]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene_res.json", "scene_res.png"]
    assert main([*run, "--det-threshold", "0.99", "--rec-threshold", "9", "--label", "rose soda", "--vote"]) == 0
    assert [box["labels"] for box in json.loads(capsys.readouterr().out)["boxes"]] == [["rose soda"]]
    assert main([*run, "--rec-topk", "0"]) == 2
    assert main([*run, "--prompt", "[[1,2,3,4]]"]) == 2
    assert main(["run", "instance_segmentation", "--det-model", "x", "--input", scene]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "pink.png", "--box", "0,0,inf,9"], "is no part of the picture"),
        (["--image", "pink.png", "--box", "0,0,9,inf"], "is no part of the picture"),
        (["--vector", "query.npy", "--box", "0,0,9,9"], "--box is given without --image"),
        (["--image", "."], "--image . is not one picture"),
    ],
)
def test_a_query_that_cannot_be_cut_out(
    drinks: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(drinks)
    shitu = ["--pipeline", "shitu.yaml"]
    assert main(["index", "build", "gallery", "-i", ".", "-l", "gallery.txt", *shitu, "--index-type", "Flat"]) == 0
    np.save("query.npy", load_index("gallery").embeddings()[:1])
    assert main(["index", "search", "gallery", *arguments, *shitu]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_gallery_or_pipeline(drinks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["-i", str(drinks), "-l", str(drinks / "gallery.txt"), "--pipeline", str(drinks / "shitu.yaml")]
    assert main(["index", "append", str(drinks), *lists]) == 2
    assert "is not a gallery" in capsys.readouterr().err
    assert main(["index", "build", str(drinks), *lists]) == 2
    assert "is there and is not a gallery" in capsys.readouterr().err
    assert main(["index", "append", str(tmp_path / "none"), *lists]) == 2
    assert not (tmp_path / "none").exists()


def test_a_gallery_in_milvus(drinks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("milvus_lite")
    where = f"milvus://{tmp_path}/g.db"
    lists = ["-i", str(drinks), "-l", str(drinks / "gallery.txt"), "--pipeline", str(drinks / "shitu.yaml")]
    assert main(["index", "build", where, *lists]) == 0
    assert main(["index", "append", where, *lists]) == 0
    capsys.readouterr()
    assert main(["index", "duplicates", where, "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert {tuple(pair["labels"]) for pair in pairs} == {("yellow tea",) * 2, ("pink soda",) * 2}
    assert main(["index", "remove", where, str(pairs[0]["ids"][1])]) == 0
    assert main(["index", "info", where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 3
    assert main(["index", "compact", where]) == 2
    assert "a gallery in Milvus is named" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["salvage", "import", "export"])
def test_no_folder_is_written_for_an_address_of_milvus(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main(["index", command, str(folder), "milvus://host/drinks"]) == 2
    assert "a gallery in Milvus is named" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before

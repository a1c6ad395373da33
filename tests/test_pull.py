from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from file_server import FileServer, model_archive, tar_of, write_zoo

from ovseg.errors import DownloadError, MissingExtra, ModelError
from ovseg.pull import pull_model, remove_model
from ovseg.zoo import find_model

CONTENT = random.Random(3).randbytes(2_000_000)
ARCHIVE = model_archive("tiny", CONTENT)

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def zoo_file(tmp_path: Path, file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo whose one model is a ready archive on the server."""
    file_server.files["v1/tiny.tar"] = ARCHIVE
    path = tmp_path / "zoo.yaml"
    write_zoo(path, {"url": file_server.url("v1/tiny.tar"), "format": "onnx"})
    monkeypatch.setenv("OVSEG_ZOO", str(path))
    return path


def leftovers(home: Path) -> list[str]:
    """Names in the cache that should not be there after a call."""
    return [str(path) for path in home.rglob("*") if ".part" in path.name or ".tmp" in path.name]


def test_a_ready_model_is_pulled_once(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    folder = pull_model("tiny")
    assert folder.path == home / "models" / "tiny"
    assert folder.files["model"].read_bytes() == CONTENT
    assert find_model("tiny").labels == ("cat", "dog")
    assert leftovers(home) == []
    pull_model("tiny")
    assert len(file_server.log) == 1


def test_the_next_archive_is_tried_where_the_first_is_gone(zoo_file: Path, file_server: FileServer) -> None:
    urls = [file_server.url("v2/tiny.tar"), file_server.url("v1/tiny.tar")]
    write_zoo(zoo_file, *({"url": url, "format": "onnx"} for url in urls))
    said: list[str] = []
    assert pull_model("tiny", notify=said.append).name == "tiny"
    assert any("v2/tiny.tar is not there" in message for message in said)
    assert [path for path, _ in file_server.log] == ["/v2/tiny.tar", "/v1/tiny.tar"]


def test_a_published_checksum_is_held(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    right = hashlib.sha256(ARCHIVE).hexdigest()
    source = {"url": file_server.url("v1/tiny.tar"), "format": "onnx"}
    write_zoo(zoo_file, source | {"sha256": "0" * 64})
    with pytest.raises(DownloadError) as error:
        pull_model("tiny")
    assert "0" * 64 in error.value.cause and right in error.value.cause
    assert not (home / "models" / "tiny").exists()
    write_zoo(zoo_file, source | {"sha256": right})
    assert pull_model("tiny").name == "tiny"


def test_the_first_download_is_what_later_ones_are_compared_with(zoo_file: Path, file_server: FileServer) -> None:
    pull_model("tiny")
    remove_model("tiny")
    file_server.files["v1/tiny.tar"] = model_archive("tiny", b"something else")
    with pytest.raises(DownloadError) as error:
        pull_model("tiny")
    assert hashlib.sha256(ARCHIVE).hexdigest() in error.value.cause
    assert "checksums.json" in error.value.cure


def test_an_archive_in_the_cache_needs_no_network_and_is_checked(
    zoo_file: Path, file_server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pull_model("tiny").path
    (archive,) = (home / "archives" / "tiny").iterdir()
    monkeypatch.setenv("OVSEG_OFFLINE", "1")
    folder.rename(home / "elsewhere")
    pull_model("tiny")
    (home / "models" / "tiny").rename(home / "elsewhere2")
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DownloadError, match="was expected") as error:
        pull_model("tiny")
    assert "ovs models rm tiny" in error.value.cure


def test_archives_of_one_name_are_told_apart_by_address(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    pull_model("tiny").path.rename(home / "elsewhere")
    file_server.files["v2/tiny.tar"] = model_archive("tiny", b"newer")
    write_zoo(zoo_file, {"url": file_server.url("v2/tiny.tar"), "format": "onnx"})
    assert pull_model("tiny").files["model"].read_bytes() == b"newer"


def test_offline_without_the_model(zoo_file: Path, file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match="OVSEG_OFFLINE"):
        pull_model("tiny")
    assert file_server.log == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model_archive("other"), r"holds other \(solov2\), not tiny"),
        (model_archive("tiny", labels=3), "key 'labels'"),
        (tar_of({"tiny/model.onnx": b"onnx"}), r"no model\.yaml"),
        (tar_of({"tiny/model.yaml": b"x", "../../../evil": b"evil"}), "outside of the folder"),
    ],
    ids=["another model", "a wrong description", "no description", "a member that leaves"],
)
def test_a_wrong_archive_leaves_no_model(
    content: bytes, message: str, zoo_file: Path, file_server: FileServer, home: Path, tmp_path: Path
) -> None:
    file_server.files["v1/tiny.tar"] = content
    with pytest.raises((DownloadError, ModelError), match=message):
        pull_model("tiny")
    assert list((home / "models").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_page_in_place_of_the_archive_is_not_kept(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    file_server.files["v1/tiny.tar"] = b"<html>Log in to this network</html>"
    with pytest.raises(DownloadError, match="neither a tar nor a zip"):
        pull_model("tiny")
    assert [path for path in (home / "archives").rglob("*") if path.is_file()] == []
    file_server.files["v1/tiny.tar"] = ARCHIVE
    assert pull_model("tiny").name == "tiny"


def test_an_address_that_is_none(zoo_file: Path) -> None:
    write_zoo(zoo_file, {"url": "http://[::1/tiny.tar", "format": "onnx"})
    with pytest.raises(DownloadError, match="is no address"):
        pull_model("tiny")


def test_a_paddle_archive_without_the_exporter_is_kept(
    zoo_file: Path, file_server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ovseg_export", None)  # as if it were not installed
    write_zoo(zoo_file, {"url": file_server.url("v1/tiny.tar"), "format": "paddle"})
    with pytest.raises(MissingExtra) as error:
        pull_model("tiny")
    (archive,) = (home / "archives" / "tiny").iterdir()
    assert archive.read_bytes() == ARCHIVE
    assert str(archive) in error.value.cause and 'ovseg[export]"' in error.value.cure
    assert list((home / "models").iterdir()) == []


EXPORTER = """
import hashlib, yaml
def export_model(source_dir, out_dir, *, name, origin, progress):
    content = (source_dir / "inference.pdiparams").read_bytes()
    (out_dir / "model.onnx").write_bytes(content)
    facts = {"format": 1, "name": name, "family": "solov2", "task": "instance_segmentation", "preprocess": {},
             "files": {"model": {"path": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()}}}
    (out_dir / "model.yaml").write_text(yaml.safe_dump(facts))
"""


def test_a_paddle_archive_is_exported(
    zoo_file: Path, file_server: FileServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ovseg_export.py").write_text(EXPORTER)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "ovseg_export", raising=False)
    file_server.files["v1/tiny.tar"] = tar_of({"tiny_infer/inference.pdiparams": b"weights"})
    write_zoo(zoo_file, {"url": file_server.url("v1/tiny.tar"), "format": "paddle"})
    try:
        assert pull_model("tiny").files["model"].read_bytes() == b"weights"
    finally:
        sys.modules.pop("ovseg_export", None)
    assert leftovers(home) == []


PULL = [
    sys.executable,
    "-uc",
    "from ovseg.pull import pull_model; print(pull_model('tiny', notify=print).path)",
]


def test_two_processes_download_once(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    file_server.chunk_delay = 1.0  # until the second one waits, however long it takes to start
    first = subprocess.Popen(PULL, stdout=subprocess.PIPE, text=True)
    while not file_server.log:
        time.sleep(0.01)
    second = subprocess.Popen(PULL, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert "waiting for another process" in second.stdout.readline()
    file_server.chunk_delay = 0.0
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == [str(home / "models" / "tiny")] * 2
    assert len(file_server.log) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_leaves_a_download_that_goes_on(zoo_file: Path, file_server: FileServer, home: Path) -> None:
    file_server.chunk_delay = 0.05
    process = subprocess.Popen(PULL, stdout=subprocess.DEVNULL)
    parts: list[Path] = []
    while not parts or parts[0].stat().st_size < 500_000:
        assert process.poll() is None, "the download ended before it could be killed"
        time.sleep(0.01)
        parts = list(home.rglob("*.part"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(home.rglob("*.tar"))
    file_server.chunk_delay = 0.0
    have = parts[0].stat().st_size
    assert pull_model("tiny").files["model"].read_bytes() == CONTENT
    assert file_server.log[-1] == ("/v1/tiny.tar", f"bytes={have}-")
    assert leftovers(home) == []


def test_what_a_killed_unpacking_left_is_cleared(zoo_file: Path, home: Path) -> None:
    stale = home / "models" / ".tiny.tmp-abc"
    other = home / "models" / ".tinyer.tmp-abc"
    for folder in (stale, other):
        folder.mkdir(parents=True)
        (folder / "half.onnx").write_bytes(b"h")
    pull_model("tiny")
    assert not stale.exists() and other.exists()


def test_remove_takes_model_and_archive(zoo_file: Path, home: Path) -> None:
    pull_model("tiny")
    assert set(remove_model("tiny")) == {home / "models" / "tiny", home / "archives" / "tiny"}
    with pytest.raises(ModelError, match="not in the cache"):
        remove_model("tiny")
    with pytest.raises(ModelError, match="no model named"):
        remove_model("../archives")


def test_a_folder_in_the_way_is_not_overwritten(zoo_file: Path, home: Path) -> None:
    mine = home / "models" / "tiny" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ModelError, match="in the way"):
        pull_model("tiny")
    assert mine.read_text() == "mine"

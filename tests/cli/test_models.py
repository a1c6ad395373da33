from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from file_server import FileServer, model_archive, write_zoo

from ovseg.cli import main


@pytest.fixture
def zoo_file(tmp_path: Path, home: Path, file_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    file_server.files["tiny.tar"] = model_archive("tiny")
    path = tmp_path / "zoo.yaml"
    write_zoo(path, {"url": file_server.url("tiny.tar"), "format": "onnx"}, size_mb=1.5)
    monkeypatch.setenv("OVSEG_ZOO", str(path))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["models", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_model_goes_through_its_life(
    zoo_file: Path, home: Path, file_server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(home / "models" / "tiny")
    status, out, err = run(capsys, "path", "tiny")
    assert (status, out) == (2, "") and "ovs models pull tiny" in err
    status, out, err = run(capsys, "pull", "tiny")
    assert (status, out) == (0, folder + "\n")
    assert f"downloading {file_server.url('tiny.tar')}" in err
    assert run(capsys, "path", "tiny")[:2] == (0, folder + "\n")
    status, out, err = run(capsys, "pull", "tiny")
    assert (status, out) == (0, folder + "\n") and "already there" in err
    assert len(file_server.log) == 1
    assert run(capsys, "rm", "tiny", "--yes")[0] == 0
    assert not Path(folder).exists()
    assert run(capsys, "rm", "tiny")[0] == 2


def test_list_says_what_is_here(zoo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert [re.split(r"\s{2,}", line)[-1] for line in out.splitlines()] == ["STATE", "-"]
    run(capsys, "pull", "tiny")
    row = run(capsys, "list")[1].splitlines()[1]
    assert re.split(r"\s{2,}", row) == ["tiny", "instance_segmentation", "1.5 MB", "-", "pulled"]
    (fact,) = json.loads(run(capsys, "list", "--json")[1])
    assert (fact["name"], fact["state"]) == ("tiny", "pulled")


def test_info_is_the_same_in_yaml_and_json(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    status, out, _ = run(capsys, "info", "Mask-RT-DETR-L")
    facts = yaml.safe_load(out)
    assert status == 0
    assert facts["metric"] == {"name": "Mask AP", "value": 45.7, "dataset": "COCO2017 val"}
    assert facts["licence"] == "Apache-2.0" and facts["path"] is None
    assert json.loads(run(capsys, "info", "Mask-RT-DETR-L", "--json")[1]) == facts


def test_errors_have_a_cause_a_cure_and_a_status(
    zoo_file: Path, file_server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "info", "tinny")
    assert (status, out) == (2, "")
    assert "did you mean 'tiny'?" in err and "ovs models list" in err
    file_server.files.clear()
    status, out, err = run(capsys, "pull", "tiny")
    assert (status, out) == (1, "") and "404" in err
    zoo_file.write_text("format: 1\nmodels: {a: {licens: MIT}}\n")
    status, _, err = run(capsys, "list")
    assert status == 2 and "models.a: unknown key 'licens'" in err


@pytest.mark.parametrize("command", [[], ["list"], ["info"], ["pull"], ["rm"], ["path"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *command, "--help")
    assert status == 0 and "ovs models " + "".join(command) in out.partition("Example:")[2]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ovseg.cli import main; main(['models', '--help']);"
        "print([m for m in ('requests', 'onnxruntime', 'cv2', 'numpy', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_bar_is_drawn_on_a_terminal_only(zoo_file: Path, file_server: FileServer) -> None:
    pty = pytest.importorskip("pty")
    import os

    file_server.files["tiny.tar"] = model_archive("tiny", bytes(3_000_000))
    file_server.chunk_delay = 0.01
    outer, inner = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ovseg", "models", "pull", "tiny"], stderr=inner, stdout=subprocess.PIPE
    )
    os.close(inner)
    drawn = b""
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:  # Linux says EIO when the other side closes
            break
        if not piece:
            break
        drawn += piece
    assert done.communicate(timeout=30)[0].decode().strip().endswith("models/tiny")
    os.close(outer)
    assert b"MB" in drawn and b"tiny" in drawn and b"\x1b[" in drawn

"""What `ovs doctor` says, against the ONNX Runtime that is installed here."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from ovseg import doctor
from ovseg.cli import main
from ovseg.device import resolve_device
from ovseg.errors import ConfigError
from ovseg.pipelines import workloads
from ovseg.runtime import import_onnxruntime
from ovseg.session import PROBE, Session
from ovseg.zoo import find_model, load_zoo


def test_the_cpu_is_tried_for_real() -> None:
    check = doctor.device_check("cpu")
    assert check.state == "ok" and "works" in check.text


def test_the_tiny_model_computes_what_its_comment_says() -> None:
    x = np.array([[0.5, -1, 2], [3, 1, 0]], np.float32)
    weight = np.array([[1, -1], [2, 0.5], [-3, 4]], np.float32)
    got = Session(PROBE, "cpu").run({"x": x})["y"]
    np.testing.assert_allclose(got, np.maximum(x @ weight, 0), rtol=1e-6)


def test_a_device_that_is_not_there_fails_with_its_cure() -> None:
    compiled = import_onnxruntime().get_available_providers()
    kind = next(kind for name, (kind, _) in doctor.known_providers().items() if name not in compiled)
    check = doctor.device_check(kind)
    assert check.state == "failure" and "not in this ONNX Runtime" in check.text and "pip install" in check.cure


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers() or Path("/dev/nvidiactl").exists(),
    reason="needs a GPU build without a GPU",
)
def test_auto_says_why_it_is_not_what_it_might_be() -> None:
    check = doctor.device_check("auto")
    assert check.state == "warning" and check.text.startswith("CUDAExecutionProvider: compiled in, not loadable")
    assert "; cpu works" in check.text and check.cure


def test_auto_that_ends_on_the_cpu_is_not_said_to_be_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = dataclasses.replace(resolve_device("gpu"), named=False), resolve_device("cpu")
    load = workloads.load_workload
    monkeypatch.setattr(workloads, "load_workload", lambda folder, device, options: load(folder, cpu, options))
    monkeypatch.setattr(doctor, "resolve_device", lambda device: gpu if device == "auto" else cpu)
    checks = doctor.model_check("ShiTu-tiny-rec", None, "auto")
    assert [check.state for check in checks] == ["ok"] * len(checks)
    assert checks[-1].text.endswith(" on cpu") and not any("gpu" in check.text for check in checks)


def test_a_process_that_dies_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\necho the driver said no >&2\nkill -SEGV $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(killer))
    check = doctor.device_check("cpu")
    assert check.state == "failure" and "status -11" in check.text and "the driver said no" in check.text


def test_what_is_broken_is_a_fault_where_it_is_the_cpu_or_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ort = doctor.import_onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    broken = {"gpu"}

    def tried(name: str, provider: str, device: str) -> doctor.Check:
        return doctor.Check("devices", name, "failure" if name in broken else "ok", provider)

    monkeypatch.setattr(doctor, "_tried", tried)
    assert main(["doctor"]) == 0
    assert "  !! gpu" in capsys.readouterr().out
    assert main(["doctor", "--device", "gpu"]) == 1
    assert "  XX gpu" in capsys.readouterr().out
    broken.add("cpu")
    assert main(["doctor"]) == 1
    assert "  XX cpu" in capsys.readouterr().out


def test_an_unknown_device_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        doctor.device_check("abacus")
    assert main(["doctor", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for home, state in ((tmp_path / "new" / "cache", "ok"), (tmp_path / "file", "warning")):
        monkeypatch.setenv("OVSEG_HOME", str(home))
        (check,) = (check for check in doctor.examine() if check.topic == "cache")
        assert (check.state, bool(check.cure)) == (state, state == "warning")


@pytest.mark.parametrize("home", ["x" * 300, "."])
def test_a_cache_that_cannot_be_read_is_told(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path / home))
    (tmp_path / "models").mkdir()
    looked = Path.stat

    def look(path: Path, **options: bool) -> object:  # as for one who is not root
        if path.parent.parent == tmp_path / "models":
            raise PermissionError(errno.EACCES, "Permission denied")
        return looked(path, **options)

    monkeypatch.setattr(Path, "stat", look)
    checks = [check for check in doctor.examine() if check.topic in ("cache", "models")]
    bundled = [name for name, spec in load_zoo().items() if spec.bundled]
    assert [check.name for check in checks[1:]] == [*bundled, "others"]
    assert checks[-1].state == "failure" and "cannot be read" in checks[-1].text and "OVSEG_HOME" in checks[-1].cure
    assert main(["models", "list"]) == 2 and "cannot be read" in capsys.readouterr().err


def test_all_of_the_cache_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    for part in ("models", "archives", "engines", "tuned", "bench"):
        (tmp_path / part / "of").mkdir(parents=True)
        (tmp_path / part / "of" / "file").write_bytes(bytes(100_000))
    (check,) = (check for check in doctor.examine() if check.topic == "cache")
    assert check.text.startswith("models 0.1 MB, archives 0.1 MB, engines 0.1 MB, tuned 0.1 MB, bench 0.1 MB; ")


def test_memory_that_runs_out_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill() -> None:
        raise MemoryError("Unable to allocate 27.9 GiB for an array")

    monkeypatch.setattr(doctor, "examine", fill)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().err
    assert "memory of this machine ran out: Unable to allocate 27.9 GiB" in told and "fault" not in told


def test_a_damaged_model_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    assert all(check.state == "ok" for check in doctor.examine() if check.topic == "models")
    folder = tmp_path / "models" / "SAM-H_box"
    shutil.copytree(find_model("SAM-tiny").path, folder)
    path = folder / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = {check.name: check for check in doctor.examine() if check.topic == "models"}
    assert found["SAM-H_box"].state == "failure" and "decoder.onnx" in found["SAM-H_box"].text
    assert found["SAM-tiny"].state == "ok"


def test_nodes_are_counted_by_provider() -> None:
    checks = {check.name: check for check in doctor.model_check("SAM-tiny", None, "cpu")}
    assert {"encoder", "decoder", "SAM-tiny"} <= set(checks)
    assert "multimask" not in checks  # loaded, and not run
    count, rest = checks["encoder"].text.split(" ", 1)
    assert int(count) > 50 and rest == "nodes on CPUExecutionProvider"


@pytest.mark.parametrize("name", ["ShiTu-tiny-det", "ShiTu-tiny-rec"])
def test_a_model_of_image_recognition_is_run_as_well(name: str) -> None:
    checks = {check.name: check for check in doctor.model_check(name, None, "cpu")}
    assert set(checks) == {"model", name}
    count, rest = checks["model"].text.split(" ", 1)
    # Of this model alone: it has no more nodes once they are fused.
    nodes = len(onnx.load(str(find_model(name).files["model"])).graph.node)
    assert 20 < int(count) <= nodes and rest == "nodes on CPUExecutionProvider"


def test_a_node_of_two_runs_counts_once(tmp_path: Path) -> None:
    session = Session(PROBE, "cpu", profile=tmp_path)
    for _ in range(2):
        session.run({"x": np.ones((2, 3), np.float32)})
    del session
    counts = doctor.node_counts(tmp_path)
    assert counts == {"model": Counter({"CPUExecutionProvider": counts["model"].total()})}
    assert 1 <= counts["model"].total() <= 2


def test_the_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {fact["topic"] for fact in facts} == {"versions", "devices", "cache", "models"}
    assert any(fact["name"] == "cpu" and fact["state"] == "ok" for fact in facts)

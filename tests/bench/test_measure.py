"""The suite on the models that ship, for real and for a moment."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ovseg.bench import forms, measure
from ovseg.bench.environments import interpreter, parse_peers
from ovseg.bench.forms import NoArchive
from ovseg.bench.side import Side, SideFailure
from ovseg.bench.subjects import TASKS, choose, shipped
from ovseg.errors import ConfigError, DeviceUnavailable, MissingExtra, ModelError, OvsError
from ovseg.runtime import import_onnxruntime
from ovseg.samples import samples
from ovseg.zoo import bundled_dir, load_zoo


def test_every_model_that_ships_is_a_subject() -> None:
    subjects = choose(())
    measured = {folder.name for subject in subjects if not subject.is_pipeline for folder in subject.folders.values()}
    assert measured == {name for name, spec in load_zoo().items() if spec.bundled}
    assert {subject.name for subject in subjects if subject.is_pipeline} == {name for name in TASKS if shipped(name)}


def test_a_model_of_ones_own_is_measured_instead(tmp_path: Path) -> None:
    folder, image = tmp_path / "mine", tmp_path / "picture.png"
    shutil.copytree(shipped("instance_segmentation")[0].path, folder)
    cv2.imwrite(str(image), np.full((120, 90, 3), 200, np.uint8))
    found = choose((), [folder])
    assert [subject.pipeline for subject in found] == ["instance_segmentation"] * 2
    assert {subject.folders["model"].path for subject in found} == {folder}
    assert found[0].request([1], image)["image"] == str(image)
    with pytest.raises(NoArchive, match="--archive"):
        forms.archive(found[0].folders["model"])


def test_a_detector_of_ones_own_comes_with_the_embedder_that_ships(tmp_path: Path) -> None:
    detector, embedder = (next(m for m in shipped("PP-ShiTuV2") if m.family == f) for f in ("picodet", "shitu_rec"))
    shutil.copytree(detector.path, tmp_path / "mine")
    pipeline, alone = choose((), [tmp_path / "mine"])
    assert {role: folder.path for role, folder in pipeline.folders.items()} == {
        "detection": tmp_path / "mine",
        "recognition": embedder.path,
    }
    assert alone.folders["model"].path == tmp_path / "mine"


def test_a_run_compares_ours_with_the_bare_session(tmp_path: Path) -> None:
    plan = measure.Plan(
        pipelines=["open_vocabulary_segmentation"], rounds=7, seconds=0.05, starts=1, threads=1, batches=(1, 2)
    )
    said: list[str] = []
    found = measure.run(plan, said.append)
    name = shipped("open_vocabulary_segmentation")[0].name
    subjects = ["open_vocabulary_segmentation", f"{name} encoder", f"{name} decoder"]
    assert [row["subject"] for row in found["rows"] if row["batch"] == 1] == subjects
    assert {row["subject"] for row in found["rows"] if row["batch"] == 2} == {subjects[0], subjects[2]}
    assert said == [f"{subject} on cpu" for subject in subjects] and not found["notes"]
    for row in found["rows"]:
        ours, bare = (row["sides"][side]["cpu"]["median"] for side in ("ovseg", "session"))
        # Ours does what the bare session does, and more: a session that was not recorded would show here.
        assert 0.5 < row["stages"]["session"]["cpu"] / bare < 2
        assert 0.8 < ours / bare < 4
        assert row["ratios"]["session"]["cpu"] == pytest.approx(ours / bare, rel=0.5)
        assert sum(stage["cpu"] for stage in row["stages"].values()) == pytest.approx(ours, rel=0.5)
        assert all(stage["cpu"] >= 0 for stage in row["stages"].values())
    whole = found["rows"][0]["stages"]
    assert whole["read"]["cpu"] > 0.001  # a photograph takes milliseconds
    for start in found["starts"]:
        parts = [start[part]["wall"] for part in ("imported", "loaded", "first")]
        assert 0 < sum(parts) < start["cold"]["wall"]
        assert 30 < start["memory"]["resident"] <= start["memory"]["peak"] < 4000


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"pipelines": ["open_vocabulary_segmentatoin"]}, "did you mean 'open_vocabulary_segmentation'"),
        ({"devices": ["cupu"]}, "cupu"),
        ({"devices": []}, "No device"),
        ({"devices": ["cpu", "auto"]}, "auto may be one or another"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"seconds": math.inf}, "seconds is inf"),
        ({"image": samples()[0].path.parent}, "Give one image"),
        ({"against": ["tensorflow"]}, "tensorflow"),
        ({"environments": ["paddlex=/usr/bin/python3"]}, "--against"),
        ({"against": ["paddlex"], "environments": ["/usr/bin/python3"]}, "/usr/bin/python3"),
        ({"pipelines": ["PP-ShiTuV2"], "models": [bundled_dir("SAM-tiny")]}, "SAM-tiny is no model of PP-ShiTuV2"),
        ({"models": [bundled_dir("SAM-tiny")], "archives": [Path("a"), Path("b")]}, "2 archives of 1 models"),
        ({"models": [bundled_dir("SAM-tiny")], "archives": [Path(__file__).parent]}, "no inference.yml"),
        ({"devices": ["gpu"], "against": ["torch"]}, "run on the CPU, and the devices are gpu"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"batches": []}, "batches"),
        ({"batches": [0]}, "batches"),
        ({"clock": "sundial"}, "sundial"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        measure.check(measure.Plan(**wrong))  # type: ignore[arg-type]


def test_an_archive_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inference.yml").touch()
    given = {"models": [bundled_dir("SAM-tiny")], "archives": [tmp_path]}
    for against in ([], ["torch"]):
        with pytest.raises(ConfigError, match="nothing that reads them"):
            measure.check(measure.Plan(**given, against=against))  # type: ignore[arg-type]
    measure.check(measure.Plan(**given, against=["torch", "paddle"]))  # type: ignore[arg-type]


def test_an_environment_that_lacks_a_package_is_told() -> None:
    (peer,) = parse_peers(["paddlex"], [f"paddlex={sys.executable}"]).values()
    with pytest.raises(MissingExtra, match=r"lacks paddlex.*paddlex\[cv\]==3.7.2"):
        interpreter("paddlex", peer, print)


@pytest.mark.skipif(len(import_onnxruntime().get_available_providers()) > 2, reason="needs a CPU build")
def test_a_device_that_does_not_work_is_told_before_anything_is_measured() -> None:
    said: list[str] = []
    with pytest.raises(DeviceUnavailable, match="CANNExecutionProvider"):
        measure.run(measure.Plan(devices=["cpu", "cann"]), said.append)
    assert not said


@pytest.mark.skipif(sys.platform == "win32", reason="a script of the shell")
@pytest.mark.parametrize("says", ["", "hello"])
def test_a_program_that_is_no_interpreter_is_told(says: str, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match="does not run as a Python interpreter"):
        interpreter("paddlex", program, print)


def test_an_interpreter_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        interpreter("paddlex", tmp_path / "nowhere", print)


def test_an_error_of_a_side_is_raised_here(tmp_path: Path) -> None:
    subject = {"runs": "sam encoder", "image": "", "folders": {"model": str(tmp_path)}}
    request = {"subject": subject, "device": "cpu", "threads": 1}
    with pytest.raises(ModelError, match=r"^The model folder .* has no model.yaml"):
        Side("ours", Path(sys.executable), "ovseg_side", request, tmp_path)


def test_a_side_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho first >&2\necho out of everything >&2\nexit 3\n")
    dying.chmod(0o755)
    with pytest.raises(SideFailure, match="Something ended with the status 3: out of everything"):
        Side("Something", dying, "no_side", {"device": "cpu", "threads": 1}, tmp_path)


def test_a_side_that_ends_between_two_turns_is_told(tmp_path: Path) -> None:
    (subject,) = (subject for subject in choose(["instance_segmentation"]) if not subject.is_pipeline)
    request = {"subject": subject.request([1]), "device": "cpu", "threads": 1}
    with (
        pytest.raises(SideFailure, match="ovseg ended with the status -9"),
        Side("ovseg", Path(sys.executable), "ovseg_side", request, tmp_path) as side,
    ):
        side._process.kill()
        side._process.wait()
        side.turn(1, 0, "wall")


def compared_with(alternative: Path, orders: str, batches: list[int]) -> dict[str, Any]:
    """Measure beside an alternative that is ready at once and then does what a shell script says."""
    wall = '{"wall": 1, "cpu": 1}'
    ready = f'{{"event": "ready", "imported": {wall}, "loaded": {wall}, "first": {wall}, "cpu": 1, "late": 0, '
    ready += '"memory": {}, "found": null, "settings": {}}'
    alternative.write_text(f"#!/bin/sh\n[ $1 = -c ] && echo lacks && exit 0\necho '{ready}'\n{orders}\n")
    alternative.chmod(0o755)
    plan = measure.Plan(
        pipelines=["instance_segmentation"],
        against=["openvino"],
        environments=[f"openvino={alternative}"],
        rounds=2,
        seconds=0,
        starts=2,
        threads=1,
        batches=batches,
    )
    return measure.run(plan, print)


def test_an_alternative_that_ends_while_it_is_measured_is_a_note(tmp_path: Path) -> None:
    found = compared_with(tmp_path / "python", "read order\nexit 3", [1, 2])
    assert found["notes"] == [
        f"{name}, OpenVINO: OpenVINO ended with the status 3: it says nothing"
        for name in ("instance_segmentation", shipped("instance_segmentation")[0].name)
    ]
    assert [set(row["sides"]) for row in found["rows"]] == [{"ovseg", "session"}] * len(found["rows"])


def test_an_alternative_that_fails_with_a_large_batch_keeps_the_turns_of_a_small_one(tmp_path: Path) -> None:
    turn = '{"event": "turn", "wall": 1, "cpu": 1, "memory": {}, "stages": {}}'
    answer = f"case $order in *'\"batch\": 2'*) exit 3 ;; *) echo '{turn}' ;; esac"
    rows = compared_with(tmp_path / "python", f"while read order; do {answer}; done", [2, 1])["rows"]
    with_it = {"ovseg", "session", "openvino"}
    assert [(row["batch"], set(row["sides"])) for row in rows[:2]] == [(2, {"ovseg", "session"}), (1, with_it)]


def test_turns_are_divided_among_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, int]] = []

    class Watched(Side):
        def turn(self, *arguments: Any) -> dict[str, Any]:
            turns.append((self.title, self._process.pid))
            return super().turn(*arguments)

    monkeypatch.setattr(measure, "Side", Watched)
    plan = measure.Plan(pipelines=["PP-ShiTuV2"], rounds=3, seconds=0, starts=2, threads=1, batches=[1])
    (row, *_) = measure.run(plan, print)["rows"]
    assert set(row["sides"]) == {"ovseg", "session"}
    first = turns[:6]  # of the pipeline; its models come after it
    assert [title for title, _ in first] == ["ovseg", "ONNX Runtime"] * 3
    ours = [pid for title, pid in first if title == "ovseg"]
    assert ours[0] == ours[1] != ours[2]


def test_batches_without_one() -> None:
    plan = measure.Plan(
        pipelines=["open_vocabulary_segmentation"], rounds=1, seconds=0, starts=1, threads=1, batches=[2, 2]
    )
    found = measure.run(plan, print)
    assert [row["batch"] for row in found["rows"]] == [2, 1, 2]  # the encoder takes one image at a time
    assert len(found["starts"]) == 6


def test_a_device_that_is_not_there_is_no_result() -> None:
    plan = measure.Plan(pipelines=["PP-ShiTuV2"], devices=["dml"], rounds=1, starts=1)
    with pytest.raises(OvsError, match="DmlExecutionProvider"):
        measure.run(plan, print)


def test_quartiles_are_those_of_numpy() -> None:
    values = [5.0, 1.0, 2.0, 8.0, 4.0, 4.5]
    found = measure.spread(values)
    assert list(found.values()) == pytest.approx(np.percentile(values, [50, 25, 75]))
    assert measure.spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_a_session_that_is_run_by_binding_is_recorded() -> None:
    program = (
        "import sys, numpy as np, onnxruntime as ort; sys.path.insert(0, sys.argv[1]); import ovseg_side\n"
        "from ovseg.session import PROBE\n"
        "watch = ovseg_side.Watch(); watch.install(); watch.runs = []\n"
        "session, x = ort.InferenceSession(PROBE), np.arange(6, dtype=np.float32).reshape(2, 3)\n"
        "binding = session.io_binding(); binding.bind_cpu_input('x', x); binding.bind_output('y', 'cpu')\n"
        "session.run_with_iobinding(binding)\n"
        "binding = session.io_binding(); binding.bind_output('y', 'cpu')\n"
        "binding.bind_ortvalue_input('x', ort.OrtValue.ortvalue_from_numpy(x))\n"
        "session.run_with_iobinding(binding)\n"
        "session.run(['y'], {'x': x})\n"
        "assert [names for _, names, _ in watch.runs] == [['y']] * 3\n"
        "assert all((feeds['x'] == x).all() for _, _, feeds in watch.runs)\n"
    )
    workers = Path(measure.__file__).with_name("workers")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program, str(workers)], check=True, env=environment)

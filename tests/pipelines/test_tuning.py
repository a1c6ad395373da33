from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from ovseg import create_pipeline
from ovseg.cache import tuned_dir
from ovseg.device import resolve_device
from ovseg.errors import ConfigError, DeviceUnavailable, ModelError
from ovseg.pipelines import tuning
from ovseg.pipelines.hpi import HpiConfig, read_hpi_config
from ovseg.pipelines.tuning import Setting, Trial, candidates, remembered, tune, tuned
from ovseg.pipelines.workloads import LEAST_IOU, Workload, load_workload, same_detections
from ovseg.runtime import usable_cpus
from ovseg.zoo import bundled_dir, open_model_folder

CPU = resolve_device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_SECONDS", 0.2)
    monkeypatch.setattr(tuning, "_LEAST_ROUNDS", 3)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(bundled_dir("ShiTu-tiny-rec"), tmp_path / "rec")
    return open_model_folder(tmp_path / "rec")


def sleeper(seconds: float) -> Workload:
    return Workload(lambda i: time.sleep(seconds), lambda a, b: 1.0, 1.0, 1)


def test_a_clear_difference_is_found():
    slower = tuning.measure(sleeper(0.002), sleeper(0.01))
    assert slower.verdict == "slower" and slower.ratio > 2 and slower.seconds >= 0.01
    assert tuning.measure(sleeper(0.01), sleeper(0.002)).verdict == "faster"


@pytest.mark.parametrize(
    ("ratio", "upper", "verdict"),
    [
        (0.96, 0.99, "faster"),
        (0.9, 1.1, "as fast"),
        (0.98, 0.99, "as fast"),
        (1.02, 1.1, "as fast"),
        (1.1, 2, "slower"),
    ],
)
def test_only_what_is_clearly_faster_is(ratio, upper, verdict):
    assert tuning.Comparison(ratio, upper, 1.0).verdict == verdict


def test_tune_tries_and_remembers(folder):
    told: list[Trial] = []
    found = tune(folder, CPU, on_trial=told.append)
    assert list(found.trials) == told
    assert told[0].setting == Setting("cpu") and told[0].verdict == "default"
    assert {trial.setting.threads for trial in told[1:]} >= {1, usable_cpus()}
    assert all(trial.agreement > 0.9999 and trial.seconds > 0 for trial in told)
    assert found.setting == Setting("cpu") or found.ratio < tuning.CLEARLY
    assert remembered(folder, CPU, HpiConfig()) == found
    assert remembered(folder, resolve_device("auto"), HpiConfig()) is None
    assert remembered(folder, CPU, HpiConfig(threads=1)) is None


def test_the_answer_is_of_one_model_and_one_machine(folder, monkeypatch):
    found = tune(folder, CPU)
    facts = {**folder.facts, "files": {"model": {**folder.facts["files"]["model"], "sha256": "0" * 64}}}
    assert remembered(dataclasses.replace(folder, facts=facts), CPU, HpiConfig()) is None
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 1000)
    assert remembered(folder, CPU, HpiConfig()) is None
    monkeypatch.undo()
    assert found.facts["machine"]


def test_threads_that_the_process_may_not_have_are_not_tried(folder, monkeypatch):
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 4)
    monkeypatch.setenv("OVSEG_THREADS", "3")
    assert {setting.threads for setting in candidates(folder, CPU, HpiConfig())} == {1, 2, 3}
    of_three = tuning._path(tuning._facts(folder, CPU, HpiConfig()))
    monkeypatch.setenv("OVSEG_THREADS", "1")
    assert {setting.threads for setting in candidates(folder, CPU, HpiConfig())} == {1}
    assert tuning._path(tuning._facts(folder, CPU, HpiConfig())) != of_three


def test_a_damaged_answer_is_measured_again(folder, caplog):
    found = tune(folder, CPU)
    (path,) = tuned_dir().glob("*.json")
    path.write_text(path.read_text()[:100])
    assert remembered(folder, CPU, HpiConfig()) is None
    assert "is tuned again" in caplog.text
    again = tuned(folder, CPU, HpiConfig())
    assert [trial.setting for trial in again.trials] == [trial.setting for trial in found.trials]


@pytest.mark.parametrize(
    "wrong",
    [
        {"setting": {"device": "abacus"}},
        {"setting": {"device": "cpu", "threads": "two"}},
        {"setting": {"device": "cpu", "threads": 0}},
        {"ratio": "fast"},
        {"setting": {"device": "cpu", "provider_options": []}},
        {"setting": {"device": "cpu", "precision": "fp17"}},
        {"trials": [{"setting": {"device": "cpu"}, "seconds": "fast"}]},
        {"trials": [{"setting": {"device": "cpu"}, "verdict": 5}]},
        {"trials": []},
        {"setting": {"device": "cpu", "threads": 100_000}},
        {"setting": {"device": "gpu"}},
        {"ratio": math.nan},
        {"ratio": -1.0},
    ],
)
def test_an_answer_without_meaning_is_measured_again(folder, caplog, wrong):
    tune(folder, CPU)
    (path,) = tuned_dir().glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert remembered(folder, CPU, HpiConfig()) is None
    assert "is tuned again" in caplog.text


def test_an_answer_that_is_nested_without_end_is_measured_again(folder, caplog):
    tune(folder, CPU)
    (path,) = tuned_dir().glob("*.json")
    path.write_text("[" * 200_000)
    assert remembered(folder, CPU, HpiConfig()) is None
    assert "is tuned again" in caplog.text


def test_it_is_tuned_once_and_said(folder, caplog):
    first = tuned(folder, CPU, HpiConfig())
    assert "is tuned for this machine" in caplog.text and f"runs with: {first.setting}" in caplog.text
    caplog.clear()
    assert tuned(folder, CPU, HpiConfig()) == first
    assert caplog.text == ""


def test_a_cache_that_cannot_be_written_costs_no_answer(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path / "file"))
    assert tune(folder, CPU).trials
    assert "cannot be kept" in caplog.text and "OVSEG_HOME" in caplog.text


def test_a_setting_that_cannot_be_used_is_left_out(folder, monkeypatch):
    broken = Setting("cpu", precision="int8")
    with pytest.raises(ModelError, match=r"is not there in int8: there is no folder .*-int8\. Make") as caught:
        broken.apply(folder, {})
    assert "ovs export --precision int8" in caught.value.cure
    monkeypatch.setattr(tuning, "candidates", lambda *arguments: [broken])
    found = tune(folder, CPU)
    assert found.setting == Setting("cpu")
    assert found.trials[1].verdict.startswith("cannot be used: ") and found.trials[1].ratio is None


def test_a_device_that_is_not_here_is_tried_once_and_again_when_it_may_be(folder, monkeypatch):
    monkeypatch.setattr(tuning, "candidates", lambda *arguments: [Setting("npu"), Setting("npu", 1), Setting("cpu", 1)])
    found = tune(folder, CPU)
    assert [str(trial.setting) for trial in found.trials] == ["cpu", "npu", "cpu, 1 thread"]
    assert found.trials[1].verdict.startswith("unavailable: CANNExecutionProvider")
    assert remembered(folder, CPU, HpiConfig()) == found
    monkeypatch.setattr(tuning, "Session", lambda model, device: None)  # as if its package had been installed
    assert remembered(folder, CPU, HpiConfig()) is None


def test_other_results_are_not_taken(folder, tmp_path):
    # A folder of another precision whose model is another one: here it sees negatives.
    other = tmp_path / "rec-int8"
    shutil.copytree(folder.path, other)
    model = onnx.load(str(other / "model.onnx"))
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == "pixels_factor")
    factor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(factor), factor.name))
    onnx.save(model, str(other / "model.onnx"))
    found = tune(folder, CPU)
    int8 = [trial for trial in found.trials if trial.setting.precision == "int8"]
    assert int8 and all(trial.verdict == "other results" and trial.agreement < 0.999 for trial in int8)
    assert found.setting.precision == "fp32"


def test_a_named_device_is_kept(folder):
    assert {setting.device for setting in candidates(folder, CPU, HpiConfig())} == {"cpu"}
    kinds = {setting.device for setting in candidates(folder, resolve_device("gpu:1"), HpiConfig())}
    assert kinds == {"gpu:1"}
    assert Setting("cpu", 2) in candidates(folder, resolve_device("auto"), HpiConfig()) or usable_cpus() < 2
    only = candidates(folder, CPU, HpiConfig(threads=3))
    assert only == [] or {setting.threads for setting in only} == {3}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"backend": "paddle"}, "'paddle'"),
        ({"speed": 1}, "'speed'"),
        ({"backend_config": {"cpu_num_threads": 0}}, "cpu_num_threads"),
        ({"backend_config": {"precision": "fp8"}}, "'fp8'"),
        ({"backend_config": {"batch": 1}}, "'batch'"),
        ({"auto_config": "yes"}, "'yes'"),
        ("fast", "mapping"),
        ([], "mapping"),
    ],
)
def test_wrong_hpi_config(config, words):
    with pytest.raises(ConfigError, match=words):
        read_hpi_config(config)


@pytest.mark.parametrize(
    ("device", "backend"),
    [("openvino", "onnxruntime"), ("tensorrt", "onnxruntime"), ("openvino", "tensorrt"), ("gpu", "openvino")],
)
def test_a_backend_that_contradicts_the_device(device, backend):
    with pytest.raises(ConfigError, match=f"The device is {device} and the backend of hpi_config {backend}"):
        HpiConfig(backend).device(resolve_device(device))
    for own in ("cpu", "gpu:1", "npu"):
        assert HpiConfig("onnxruntime").device(resolve_device(own)) == resolve_device(own)


def test_hpi_config_of_paddlex():
    read = read_hpi_config(
        {
            "auto_config": False,
            "backend": "openvino",
            "backend_config": {"cpu_num_threads": 4},
            "auto_paddle2onnx": True,
        }
    )
    assert read == HpiConfig("openvino", 4, None, False)
    assert read.device(resolve_device("cpu")).kind == "openvino"
    with pytest.raises(ConfigError, match="gpu and the backend of hpi_config openvino"):
        read.device(resolve_device("gpu"))
    assert HpiConfig("tensorrt").device(resolve_device("gpu:2")).providers[0].options["device_id"] == "2"
    assert read_hpi_config(None) == HpiConfig()


def test_use_hpip_runs_with_what_was_found(monkeypatch):
    pipeline = create_pipeline("PP-ShiTuV2", device="cpu", use_hpip=True)
    plain = create_pipeline("PP-ShiTuV2", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    np.testing.assert_allclose(pipeline.embed([pixels]), plain.embed([pixels]), atol=1e-5)
    assert {json.loads(path.read_text())["model"] for path in tuned_dir().glob("*.json")} == {
        "ShiTu-tiny-det",
        "ShiTu-tiny-rec",
    }


def test_use_hpip_without_tries():
    config = {"auto_config": False, "backend_config": {"cpu_num_threads": 1}}
    pipeline = create_pipeline("PP-ShiTuV2", device="cpu", use_hpip=True, hpi_config=config)
    detector, _ = pipeline._load(pipeline.device)
    assert detector._session._session.get_session_options().intra_op_num_threads == 1
    assert not tuned_dir().exists()


@pytest.mark.parametrize("wrong", ["False", "yes", 1])
def test_use_hpip_is_true_or_false(wrong):
    with pytest.raises(ConfigError, match="use_hpip is"):
        create_pipeline("PP-ShiTuV2", device="cpu", use_hpip=wrong)
    with pytest.raises(ConfigError, match="use_hpip is"):
        create_pipeline(config={"pipeline_name": "PP-ShiTuV2", "use_hpip": wrong}, device="cpu")


def test_use_hpip_contradicts_settings_of_your_own():
    with pytest.raises(ConfigError, match="use_hpip chooses threads"):
        create_pipeline("PP-ShiTuV2", device="cpu", use_hpip=True, threads=1)
    with pytest.raises(DeviceUnavailable):
        create_pipeline("PP-ShiTuV2", device="npu", use_hpip=True)


def detections(boxes, scores):
    return SimpleNamespace(boxes=np.float32(boxes), scores=np.float32(scores))


def test_agreement_of_detections():
    a = detections([[0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.7])
    assert same_detections(a, a) == 1
    assert same_detections(a, detections(a.boxes[::-1], a.scores[::-1])) == 1
    assert same_detections(a, detections(a.boxes[:1], a.scores[:1])) == 0
    assert same_detections(detections(a.boxes[:1], a.scores[:1]), a) == 0
    assert same_detections(a, detections(a.boxes, [0.9, 0.6])) == 0
    shifted = same_detections(a, detections(a.boxes + np.float32([0, 0, 1, 0]), a.scores))
    assert shifted == pytest.approx(10 / 11) and shifted < LEAST_IOU
    # What is hardly above the threshold may be hardly below it elsewhere.
    near = detections([[0, 0, 10, 10]], [0.51])
    assert same_detections(near, detections([[0, 0, 10, 10]], [0.49])) == 1


@pytest.mark.parametrize("name", ["SAM-tiny", "ShiTu-tiny-det", "ShiTu-tiny-rec"])
def test_every_bundled_model_agrees_with_itself(name):
    workload = load_workload(open_model_folder(bundled_dir(name)), CPU, {"threads": 1})
    result = workload.run(0)
    assert workload.count >= 2
    assert workload.agree(result, workload.run(0)) >= workload.least

from __future__ import annotations

import json
import logging

import pytest

from ovseg.cli import main
from ovseg.cli.tune import _print
from ovseg.pipelines import tuning
from ovseg.samples import sample_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_SECONDS", 0.2)
    monkeypatch.setattr(tuning, "_LEAST_ROUNDS", 3)


def test_tune_shows_a_table_and_remembers(capsys):
    assert main(["tune", "ShiTu-tiny-rec", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "ShiTu-tiny-rec" in shown.out and "chosen" in shown.out and "1.0000" in shown.out
    assert "cpu: default" in shown.err
    assert main(["tune", "ShiTu-tiny-rec", "--device", "cpu", "--json"]) == 0
    again = capsys.readouterr()
    found = json.loads(again.out)
    assert found["trials"][0]["setting"]["device"] == "cpu" and found["trials"][0]["verdict"] == "default"
    assert again.err == ""


def test_milliseconds_of_the_table_are_those_of_its_ratios(capsys):
    slow, fast = tuning.Setting("cpu"), tuning.Setting("cpu", 1)
    trials = (
        tuning.Trial(slow, 0.010, 1.0, 1.0, "default"),
        tuning.Trial(fast, 0.012, 0.5, 1.0, "faster"),  # timed while the machine was slower
        tuning.Trial(tuning.Setting("cpu", 2), verdict="cannot be used: There is no memory left"),
    )
    _print(tuning.Tuned("any", fast, 0.5, trials, {}))
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if "cpu" in line]
    assert "10.0" in rows[0] and "1.00" in rows[0]
    assert "5.0" in rows[1] and "0.50" in rows[1] and "chosen" in rows[1]
    assert "0." not in rows[2] and "cannot be used" in rows[2]
    assert shown.endswith("cpu, 2 threads: There is no memory left\n")


@pytest.mark.parametrize(
    "arguments", [["no-such-model"], [], ["SAM-tiny", "--device", "tpu"], ["SAM-tiny", "--device", "npu"]]
)
def test_bad_input_of_tune(arguments, capsys):
    assert main(["tune", *arguments]) == 2
    assert capsys.readouterr().err.startswith("ovs: ")


def test_run_uses_what_was_tuned(capsys, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "candidates", lambda *arguments: [])  # to measure SAM-tiny takes long
    run = ["run", "open_vocabulary_segmentation", "-i", str(sample_path("coffee")), "--device", "cpu", "--quiet"]
    with caplog.at_level(logging.WARNING, "ovseg"):
        assert main([*run, "--use_hpip", "--prompt", "[[173, 18, 409, 309]]"]) == 0
    assert "SAM-tiny is tuned for this machine, once" in caplog.text
    assert len(list((tmp_path / "tuned").glob("*.json"))) == 1

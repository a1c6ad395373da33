from __future__ import annotations

import json
import logging

import pytest

from ovseg.cli import main
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

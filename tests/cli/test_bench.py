from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg.bench import measure
from ovseg.cli import main
from ovseg.errors import ConfigError


def test_bench_writes_page_figures_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    arguments = ["bench", "PP-ShiTuV2", "--rounds", "2", "--seconds", "0", "--starts", "1", "--batches", "1"]
    assert main([*arguments, "--threads", "1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    page = (out / "RESULTS.md").read_text("utf-8")
    command = f"ovs bench PP-ShiTuV2 --threads 1 --rounds 2 --seconds 0.0 --starts 1 --batches 1 --out {out}"
    assert f"`{command}`" in page and command in captured.out
    assert "![Milliseconds of each side](results.png)" in page and "PP-ShiTuV2 on cpu" in captured.err
    figures = json.loads((out / "results.json").read_text("utf-8"))
    assert [row["subject"] for row in figures["rows"]] == ["PP-ShiTuV2", "ShiTu-tiny-det", "ShiTu-tiny-rec"]
    assert sorted(path.name for path in out.iterdir()) == ["RESULTS.md", "results.json", "results.png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["open_vocabulary"], "open_vocabulary"),
        (["--providers", "cpu,warp"], "warp"),
        (["--against", "caffe"], "caffe"),
        (["--batches", "1,many"], "1,many"),
        (["--against", "paddlex", "--env", "paddlex=/nowhere/python"], "/nowhere/python"),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and not captured.out


def test_lists_may_have_spaces_and_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[measure.Plan] = []

    def check(plan: measure.Plan) -> None:
        plans.append(plan)
        raise ConfigError("Enough.")

    monkeypatch.setattr(measure, "check", check)
    assert main(["bench", "--providers", "CPU, cuda", "--against", "torch, openvino, torch", "--batches", "1, 4"]) == 2
    assert [(plan.devices, plan.against, plan.batches) for plan in plans] == [
        (["cpu", "cuda"], ["torch", "openvino"], [1, 4])
    ]


def test_results_that_cannot_be_written_are_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", "PP-ShiTuV2", "--out", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err and "PP-ShiTuV2 on cpu" not in captured.err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "Example: ovs bench open_vocabulary_segmentation --against paddlex" in capsys.readouterr().out

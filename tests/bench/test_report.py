"""Tables and pictures of figures that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest

from ovseg.bench import machine, plots, report


def clocks(milliseconds: float) -> dict[str, dict[str, float]]:
    one = {"median": milliseconds / 1e3, "low": 0.9 * milliseconds / 1e3, "high": 1.2 * milliseconds / 1e3}
    return {"wall": one, "cpu": one}


def row(subject: str, bare: float, ours: float, paddlex: float | None = None, **more: Any) -> dict[str, Any]:
    others = {"session": bare} | ({} if paddlex is None else {"paddlex": paddlex})
    share = {"read": 0.1, "preprocess": 0.2, "session": 0.6, "postprocess": 0.1}
    facts = {
        "subject": subject,
        "pipeline": False,
        "models": ["A"],
        "device": "cpu",
        "batch": 1,
        "sides": {"ovseg": clocks(ours)} | {name: clocks(value) for name, value in others.items()},
        "ratios": {name: {"wall": ours / value, "cpu": ours / value} for name, value in others.items()},
        "stages": {stage: {"wall": part * ours / 1e3, "cpu": part * ours / 1e3} for stage, part in share.items()},
        "same": {} if paddlex is None else {"paddlex": True},
    }
    return facts | more


@pytest.fixture
def found() -> dict[str, Any]:
    rows = [
        row("PP-ShiTuV2", 8.0, 12.0, 24.0, pipeline=True, models=["D", "R"]),
        row("encoder", 60.0, 63.0),
        row("decoder", 2.0, 3.0),
        row("slow", 4.0, 5.0, 6.25, same={"paddlex": False}),
        row("eight", 4.0, 8.0, batch=8, sides={"ovseg": clocks(8.0), "session": clocks(4.0)}),
    ]
    starts = [
        {"subject": "encoder", "pipeline": False, "models": ["A"], "device": "cpu", "side": "ovseg"}
        | {part: {"wall": 0.5, "cpu": 0.4} for part in ("cold", "imported", "loaded", "first")}
        | {"memory": {"resident": 100.4, "peak": 120.0}, "device_memory": 64.0}
    ]
    plan = {"rounds": 7, "threads": 1, "clock": "wall", "batches": [1, 8], "command": "ovs bench --threads 1"}
    return {"machine": {"processor": "P"}, "plan": plan, "rows": rows, "starts": starts, "notes": ["x, PaddleX: y"]}


def test_the_page_has_every_figure(found: dict[str, Any]) -> None:
    page = report.markdown(found, plots=["results.png"])
    lines = page.splitlines()
    assert "| PP-ShiTuV2 (D + R) | cpu | 1 | 12.0 [10.8, 14.4] | 8.00 [7.20, 9.60] | **1.50** |" in page
    assert any(line.startswith("| slow |") and "**0.80** (other results)" in line for line in lines)
    assert any(line.startswith("| eight | cpu | 8 |") and line.endswith("| 1000.0 |") for line in lines)
    assert "| decoder | cpu | 0.30 | 0.60 | 1.80 | 0.30 | 40 % |" in page
    assert "| encoder | cpu | ovseg | 0.50 | 0.50 | 0.50 | 0.50 | 100 (and 64 on the device) | 120 |" in page
    assert "![Milliseconds of each side](results.png)" in page and "`ovs bench --threads 1`" in page
    assert "- x, PaddleX: y" in lines and "- processor: P" in lines


def test_every_table_is_as_wide_as_its_head(found: dict[str, Any]) -> None:
    tables = [block for block in report.markdown(found).split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_goals_are_met_or_say_what_misses_them(found: dict[str, Any]) -> None:
    long, short, paddlex = report.goals(found)
    assert long.endswith("at most 1.1: met (1 of 1)")
    assert short.endswith("at most 1.35: missed by decoder 1.50 (1 of 2)")
    assert paddlex.endswith("at most 0.6: missed by slow 0.80 (1 of 2)")


def test_what_is_not_measured_is_no_goal_that_is_met(found: dict[str, Any]) -> None:
    found["rows"] = found["rows"][2:3]
    long, _, paddlex = report.goals(found)
    assert long.endswith("not measured (0 of 0)") and paddlex.endswith("not measured (0 of 0)")


def test_the_picture_shows_every_side(found: dict[str, Any], tmp_path: Path) -> None:
    plots.draw(found, tmp_path / "all.png")
    picture = cv2.imread(str(tmp_path / "all.png"))
    for name in ("#1f6feb", "#8b949e", "#d1242f"):  # ours, the session, PaddleX
        colour = [int(name[place : place + 2], 16) for place in (5, 3, 1)]
        assert (picture == colour).all(axis=2).sum() > 300
    assert (tmp_path / "all.png").stat().st_size < 300_000


def test_the_picture_shows_what_takes_one_image_at_a_time(found: dict[str, Any], tmp_path: Path) -> None:
    found["plan"]["batches"] = [8]
    found["rows"] = [row for row in found["rows"] if row["batch"] == 1]
    plots.draw(found, tmp_path / "one.png")
    assert cv2.imread(str(tmp_path / "one.png")) is not None


def test_a_gpu_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_query", lambda what: ["[N/A]"])
    assert machine.device_memory() is None

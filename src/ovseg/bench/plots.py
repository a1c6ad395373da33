"""A picture of what was measured, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingExtra
from .measure import OURS
from .report import STAGES, TITLES

_COLOURS = {"ovseg": "#1f6feb", "session": "#8b949e", "paddlex": "#d1242f", "paddle": "#e5862d", "torch": "#ee4c2c"}
_COLOURS |= {"openvino": "#6f42c1"}
_STAGE_COLOURS = ("#9ecae1", "#4292c6", "#8b949e", "#08519c")


def require_matplotlib() -> None:
    """Raise MissingExtra unless plots can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "Plots need matplotlib, which is not installed.", 'Run `pip install "ovseg[bench]"`.'
        ) from error


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw each subject with its smallest batch: milliseconds of every side, and shares of our stages.

    Args:
        found: what `measure.run` returns.
        path: of the picture, PNG or SVG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    clock = found["plan"]["clock"]
    least: dict[tuple[str, str], int] = {}  # 1 of what takes one image at a time, whatever the plan says
    for row in found["rows"]:
        of = row["subject"], row["device"]
        least[of] = min(row["batch"], least.get(of, row["batch"]))
    rows = [row for row in found["rows"] if row["batch"] == least[row["subject"], row["device"]]][::-1]
    labels = [row["subject"] + ("" if row["device"] == "cpu" else f" ({row['device']})") for row in rows]
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(rows)), layout="constrained")
    times, shares = figure.subplots(1, 2, width_ratios=[3, 2])
    names = [name for name in TITLES if any(name in row["sides"] for row in rows)]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        there = [(at, row["sides"][name][clock]) for at, row in enumerate(rows) if name in row["sides"]]
        at = [y + 0.4 - (place + 0.5) * height for y, _ in there]
        values = [1000 * side["median"] for _, side in there]
        errors = [
            [1000 * (side["median"] - side["low"]) for _, side in there],
            [1000 * (side["high"] - side["median"]) for _, side in there],
        ]
        times.barh(at, values, height, xerr=errors, label=TITLES[name], color=_COLOURS[name], error_kw={"lw": 0.8})
        for y, value in zip(at, values, strict=True):
            times.annotate(f"{value:.3g}", (value, y), xytext=(6, 0), textcoords="offset points", va="center", size=7)
    times.set_yticks(range(len(rows)), labels)
    times.set_xscale("log")
    times.margins(x=0.12)
    times.set_xlabel(f"milliseconds ({'wall' if clock == 'wall' else 'processor'} time), logarithmic")
    times.legend(loc="lower right", fontsize=8)
    left = [0.0] * len(rows)
    for stage, colour in zip(STAGES, _STAGE_COLOURS, strict=True):
        totals = [sum(row["stages"][one][clock] for one in STAGES) for row in rows]
        widths = [100 * row["stages"][stage][clock] / total for row, total in zip(rows, totals, strict=True)]
        shares.barh(range(len(rows)), widths, 0.6, left=left, label=stage, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    shares.set_yticks([])
    shares.set_xlabel(f"share of {TITLES[OURS]}'s time, %")
    shares.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(STAGES), fontsize=8)
    figure.savefig(path, dpi=110)

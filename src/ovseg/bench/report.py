"""Tables of what was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .environments import PEERS
from .measure import BARE, OURS

TITLES = {OURS: "ovseg", BARE: "bare session"} | {name: peer.title for name, peer in PEERS.items()}
STAGES = ("read", "preprocess", "session", "postprocess")
# Limits of our time over the bare session's, for models whose session takes at least and at most so many milliseconds.
LONG, SHORT = (50.0, 1.10), (10.0, 1.35)
PADDLEX_LIMIT = 0.6

Found = Mapping[str, Any]


def markdown(found: Found, *, plots: Sequence[str] = ()) -> str:
    """Return the page of a run: machine, tables, goals, notes.

    Args:
        found: what `measure.run` returns.
        plots: file names of pictures to show.
    """
    plan = found["plan"]
    parts = ["# Results", "", *[f"- {key}: {value}" for key, value in found["machine"].items()], *_method(plan), ""]
    parts += [f"![Milliseconds of each side]({name})\n" for name in plots]
    parts += ["## Time of a call", "", *_times(found), ""]
    parts += ["## Where our time goes", "", *_stages(found), ""]
    parts += ["## Start and memory", "", *_starts(found), ""]
    parts += ["## Goals", "", "Of batch 1, on the CPU.", "", *goals(found), ""]
    if found["notes"]:
        parts += ["## Not measured", "", *[f"- {note}" for note in found["notes"]], ""]
    return "\n".join(parts)


def _method(plan: Mapping[str, Any]) -> list[str]:
    clock = "wall time" if plan["clock"] == "wall" else "processor time of the side's process"
    threads = {0: "as many threads as CPUs", 1: "1 thread"}.get(plan["threads"], f"{plan['threads']} threads")
    return [
        f"- method: {plan['rounds']} turns of each side, one side after the other; {threads}; {clock}",
        f"- drawn by `{plan.get('command', 'ovs bench')}`",
    ]


def _times(found: Found) -> list[str]:
    """Rows of a table: milliseconds of a call with the quartiles, and our time over that of each other side."""
    clock = found["plan"]["clock"]
    names = [name for name in TITLES if any(name in row["sides"] for row in found["rows"])]
    head = ["", "device", "batch"]
    for name in names:
        head += [f"{TITLES[name]}, ms"] if name == OURS else [f"{TITLES[name]}, ms", "ours over it"]
    lines = table_head([*head, "ours, a second"])
    for row in found["rows"]:
        cells = [_name(row), row["device"], str(row["batch"])]
        for name in names:
            side = row["sides"].get(name)
            cells.append(_milliseconds(side[clock]) if side else "")
            if name != OURS:
                differs = "" if row["same"].get(name, True) else " (other results)"
                cells.append(f"**{row['ratios'][name][clock]:.2f}**{differs}" if side else "")
        cells.append(f"{row['batch'] / row['sides'][OURS][clock]['median']:.1f}")
        lines.append(table_row(cells))
    return [
        *lines,
        "",
        "Pipelines read a file and return results; models get pixels and return what the pipeline takes of them. A "
        "call handles as many images as the batch says, a decoder as many prompts. Bare session: ONNX Runtime alone, "
        "on what our sessions are given. Medians, with the quartiles of the turns in brackets; ratios are medians over "
        "the rounds.",
    ]


def _stages(found: Found) -> list[str]:
    clock = found["plan"]["clock"]
    lines = table_head(["one image or prompt, ms", "device", *STAGES, "what is not session"])
    for row in found["rows"]:
        if row["batch"] != 1:
            continue
        seconds = {stage: row["stages"][stage][clock] for stage in STAGES}
        share = 1 - seconds["session"] / sum(seconds.values())
        cells = [_name(row), row["device"], *[f"{1000 * seconds[stage]:.2f}" for stage in STAGES]]
        lines.append(table_row([*cells, f"{100 * share:.0f} %"]))
    return [
        *lines,
        "",
        "What comes before the last run of a session counts as preprocessing, also between two sessions.",
    ]


def _starts(found: Found) -> list[str]:
    clock = found["plan"]["clock"]
    lines = table_head(
        ["", "device", "side", "cold start, s", "import", "load", "first call", "resident, MB", "peak, MB"]
    )
    for start in found["starts"]:
        seconds = [f"{start[part][clock]:.2f}" for part in ("cold", "imported", "loaded", "first")]
        memory = [f"{start['memory'][kind]:.0f}" if kind in start["memory"] else "" for kind in ("resident", "peak")]
        if "device_memory" in start:
            memory[0] += f" (and {start['device_memory']:.0f} on the device)"
        cells = [_name(start), start["device"], TITLES[start["side"]], *seconds, *memory]
        lines.append(table_row(cells))
    return [*lines, "", "Cold start: from no process to the first result. Memory after all turns."]


def goals(found: Found) -> list[str]:
    """Return a line for each goal: met, or what misses it."""
    clock = found["plan"]["clock"]
    lines = []
    for what, limit, pairs in _compared(found, clock):
        missed = [f"{name} {ratio:.2f}" for name, ratio in pairs if ratio > limit]
        verdict = "not measured" if not pairs else f"missed by {', '.join(missed)}" if missed else "met"
        lines.append(f"- {what}, at most {limit}: {verdict} ({len(pairs) - len(missed)} of {len(pairs)})")
    return lines


def _compared(found: Found, clock: str) -> Iterator[tuple[str, float, list[tuple[str, float]]]]:
    """Goals with their limits, and the names and ratios that they are about, of batch 1 on the CPU."""
    rows = [row for row in found["rows"] if row["batch"] == 1 and row["device"] == "cpu"]
    bare = [
        (_name(row), row["ratios"][BARE][clock], 1000 * row["sides"][BARE][clock]["median"])
        for row in rows
        if not row["pipeline"]
    ]
    yield (
        f"ours over the bare session, models of more than {LONG[0]:.0f} ms",
        LONG[1],
        [(name, ratio) for name, ratio, milliseconds in bare if milliseconds > LONG[0]],
    )
    yield (
        f"ours over the bare session, models of less than {SHORT[0]:.0f} ms",
        SHORT[1],
        [(name, ratio) for name, ratio, milliseconds in bare if milliseconds < SHORT[0]],
    )
    yield (
        "ours over PaddleX",
        PADDLEX_LIMIT,
        [(_name(row), row["ratios"]["paddlex"][clock]) for row in rows if "paddlex" in row["ratios"]],
    )


def _name(row: Mapping[str, Any]) -> str:
    models = " + ".join(row["models"])
    return f"{row['subject']} ({models})" if row["pipeline"] else str(row["subject"])


def _milliseconds(times: Mapping[str, float]) -> str:
    median, low, high = (1000 * times[key] for key in ("median", "low", "high"))
    digits = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_head(names: Sequence[str]) -> list[str]:
    """Return the two lines that begin a Markdown table.

    >>> table_head(["a", "b"])
    ['| a | b |', '|---|---|']
    """
    return [table_row(names), "|" + "---|" * len(names)]


def table_row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"

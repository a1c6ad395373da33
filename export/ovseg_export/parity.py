"""Prove an export: Paddle Inference and ONNX Runtime side by side on the same inputs.

Paddle is the measure as it executes the program literally. Its two faster ways, with the program optimised
and with oneDNN as well, run too: how far Paddle is from itself, and which of its ways is the one to compare
times with, belong into the report. The limits are those of the family, whatever that distance is.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.session import Session
from ovseg_export import compare
from ovseg_export.compare import Figures, Outputs
from ovseg_export.errors import PaddleFailure, ParityError
from ovseg_export.families import Family
from ovseg_export.feeds import Case
from ovseg_export.paddle_host import Host, paddle_version

LARGE = 2_000_000_000
"""Bytes of parameters above which Paddle runs one way only, and leaves before ONNX Runtime comes."""
_ROUNDS = 3
_NOTHING = "Paddle detects nothing in any of the pictures"
# Name of a way, and the options of `Host.load`.
_LITERAL = {"optimise": False, "onednn": False}
_FASTER = {"optimised": {"optimise": True, "onednn": False}, "onednn": {"optimise": True, "onednn": True}}

_COMPARE: Mapping[str, Callable[[Outputs, Outputs], Figures]] = {
    "instances": compare.compare_instances,
    "embedding": compare.compare_embeddings,
    "mask_logits": compare.compare_logits,
}
# These are good when they are high; all others when they are low.
_AT_LEAST = ("cosine", "mask_iou")
# Sums, not differences.
_COUNTS = ("instances", "detections", "matched", "at_cut")


@dataclass(frozen=True)
class Graphs:
    """The ONNX graphs of one model, loaded when first asked for: one, or encoder and decoder."""

    paths: tuple[Path, ...]

    @cached_property
    def sessions(self) -> tuple[Session, ...]:
        """The loaded graphs, in the order in which they run."""
        return tuple(Session(path, "cpu", threads=available_threads()) for path in self.paths)

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
        """Return the outputs of the last graph by name, and the seconds taken."""
        start = time.perf_counter()
        values: dict[str, np.ndarray] = dict(feeds)
        made: dict[str, np.ndarray] = {}
        for session in self.sessions:
            made = session.run({item.name: values[item.name] for item in session.inputs})
            values |= made
        return made, time.perf_counter() - start


def prove(
    family: Family,
    program: Path,
    parameters: Path,
    input_names: Mapping[str, str],
    graphs: Graphs,
    cases: Sequence[Case],
    scratch: Path,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Compare and time; return the report, with `passed` and, in words, `failures`.

    Args:
        family: tells how outputs are judged, and the limits.
        program: Paddle's program as published, `.json` or `.pdmodel`.
        parameters: its parameters.
        input_names: Paddle's input names to the documented ones.
        graphs: the ONNX graphs.
        cases: inputs by documented name; those with more than one image last. Where Paddle fails on these,
            the report says so under `batch`.
        scratch: folder for what is exchanged with Paddle.
        say: told in words what happens.

    Raises:
        PaddleFailure: Paddle's literal way fails on a single image.

    """
    threads = available_threads()
    large = parameters.stat().st_size > LARGE
    say(f"comparing with Paddle on {len(cases)} inputs")
    batches: dict[str, Any] = {"proven": 0}
    others: dict[str, Any] = {}
    with Host(scratch, threads, hurry=large) as paddle:
        paddle.load(program, parameters, **_LITERAL)
        made = []
        for case in cases:
            try:
                made.append(paddle.run({theirs: case.feeds[ours] for theirs, ours in input_names.items()}))
            except PaddleFailure as failure:
                if case.batch == 1:
                    raise
                # The published graph itself takes one image only, whatever its input says.
                batches["reason"] = failure.cause
                # What the failed run wrote into tensor arrays stays in the predictor: take a new one.
                paddle.load(program, parameters, **_LITERAL)
                break
        cases = cases[: len(made)]
        if not large:
            runs = _run_graphs(family, graphs, cases, made)
            judged = _judge_all(family, cases, runs)
            timed = _case_to_time(cases, judged)
            times = {"literal": _time_both(paddle, graphs, input_names, timed)}
            for way, options in _FASTER.items():
                say(f"comparing with Paddle, {way}")
                try:
                    paddle.load(program, parameters, **options)
                    others[way] = _run_other(family, paddle, input_names, cases, runs)
                    times[way] = _time_both(paddle, graphs, input_names, timed)
                except PaddleFailure as failure:
                    others[way] = {"failed": failure.cause}
                    if not paddle.alive:
                        break
    if large:
        # Only now: the memory holds one of the two.
        say("running the ONNX model")
        runs = _run_graphs(family, graphs, cases, made)
        judged = _judge_all(family, cases, runs)
        seconds = [run.paddle_seconds for run in runs], [run.onnx_seconds for run in runs]
        times = {"literal": _times(*seconds)}
    failures = [f"{item['case']}: {failure}" for item in judged for failure in _failures(family.tolerances, item)]
    if _found_nothing(judged):
        failures.append(_NOTHING)
    else:
        failures += _sameness(cases, runs)
        batches["proven"] = max(item["batch"] for item in judged if item["figures"].get("detections", 1))
    best = min(times.values(), key=lambda way: way["paddle_seconds"])
    return {
        "format": 1,
        "family": family.name,
        "passed": not failures,
        "failures": failures,
        "tolerances": dict(family.tolerances),
        "worst": _worst(judged),
        "outputs": _outputs(judged),
        "batch": batches,
        "cases": judged,
        "paddle_against_itself": others,
        "timing": {
            **times,
            "ratio": best["ratio"],
            "threads": threads,
            "order": "one after the other" if large else "in turns",
        },
        "versions": versions(),
    }


def require_parity(report: Mapping[str, Any], name: str) -> None:
    """Raise ParityError, with the first differences, unless the report says that the models agree."""
    if not report["passed"]:
        failures = report["failures"]
        if found_nothing(report):
            raise ParityError(
                f"The export of {name} is not proven: {_NOTHING}.",
                "Give pictures of what the model detects with --images.",
            )
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise ParityError(
            f"The ONNX model of {name} differs from Paddle's: {'; '.join(failures[:3])}{more}.",
            "Report it with the name of the model; --allow-mismatch keeps it under another name.",
        )


def found_nothing(report: Mapping[str, Any]) -> bool:
    """Whether the only failure is that Paddle detects nothing, so that nothing is proven."""
    return bool(report["failures"] == [_NOTHING])


def available_threads() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """What took part."""
    import cv2
    import onnx
    import onnxruntime

    import ovseg

    return {
        "ovseg": ovseg.__version__,
        "paddle": paddle_version() or "none",
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


@dataclass(frozen=True)
class _Run:
    expected: Outputs
    found: Outputs
    paddle_seconds: float
    onnx_seconds: float


def _run_graphs(
    family: Family, graphs: Graphs, cases: Sequence[Case], made: Sequence[tuple[list[np.ndarray], float]]
) -> list[_Run]:
    """Run the ONNX graphs on what Paddle ran on."""
    runs = []
    for case, (outputs, paddle_seconds) in zip(cases, made, strict=True):
        found, onnx_seconds = graphs.run(case.feeds)
        runs.append(_Run(_named(family, outputs), found, paddle_seconds, onnx_seconds))
    return runs


def _named(family: Family, outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    if len(outputs) != len(family.outputs):
        raise PaddleFailure(
            f"Paddle gave {len(outputs)} outputs, not {', '.join(family.outputs)}.", "Report the model."
        )
    return dict(zip(family.outputs, outputs, strict=True))


def _judge_all(family: Family, cases: Sequence[Case], runs: Sequence[_Run]) -> list[dict[str, Any]]:
    return [_judge(family, case, run.expected, run.found) for case, run in zip(cases, runs, strict=True)]


def _judge(family: Family, case: Case, expected: Outputs, found: Outputs) -> dict[str, Any]:
    """Figures of one case; where shapes differ, the array figures are left out and the shapes stated."""
    outputs: dict[str, Any] = {}
    for name, array in expected.items():
        other = found[name]
        outputs[name] = {"shape": list(array.shape), "dtype": str(other.dtype)}
        if array.shape != other.shape:
            outputs[name]["onnx_shape"] = list(other.shape)
        elif family.compared != "instances" or name == "counts":
            # Rows of instances may change places between equal scores: those are compared after matching.
            outputs[name] |= compare.differences(array, other)
        if array.dtype.kind != other.dtype.kind:
            outputs[name]["paddle_dtype"] = str(array.dtype)
    judged: dict[str, Any] = {"case": case.label, "batch": case.batch, "outputs": outputs}
    comparable = all("onnx_shape" not in item for item in outputs.values()) or family.compared == "instances"
    judged["figures"] = _COMPARE[family.compared](expected, found) if comparable else {}
    return judged


def _failures(limits: Mapping[str, float], judged: Mapping[str, Any]) -> list[str]:
    figures = judged["figures"]
    if not figures:
        shapes = {name: (item["shape"], item.get("onnx_shape")) for name, item in judged["outputs"].items()}
        return [f"shapes of Paddle and ONNX {shapes}"]
    failures = []
    for name, limit in limits.items():
        if name not in figures:
            continue
        value, high = figures[name], name in _AT_LEAST
        # Written so that NaN fails.
        if not (value >= limit if high else value <= limit):
            failures.append(f"{name} is {value:.6g}, limit {limit:g}")
    return failures


def _sameness(cases: Sequence[Case], runs: Sequence[_Run]) -> list[str]:
    """Pictures that all have one answer prove nothing: a graph that ignores its image would pass."""
    made = [run.expected for case, run in zip(cases, runs, strict=True) if case.batch == 1]
    if len(made) > 1 and all(_equal(made[0], other) for other in made[1:]):
        return [f"Paddle gives the same for all {len(made)} pictures: nothing is proven"]
    return []


def _equal(a: Outputs, b: Outputs) -> bool:
    return all(a[name].shape == b[name].shape and np.array_equal(a[name], b[name]) for name in a)


def _found_nothing(judged: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a detector was compared, and Paddle detects nothing in any picture."""
    counts = [item["figures"]["detections"] for item in judged if "detections" in item["figures"]]
    return bool(counts) and not any(counts)


def _case_to_time(cases: Sequence[Case], judged: Sequence[Mapping[str, Any]]) -> Case:
    """The single picture with the most detections, the first where there are none to count."""
    single = [index for index, case in enumerate(cases) if case.batch == 1]
    return cases[max(single, key=lambda index: judged[index]["figures"].get("detections", 0))]


def _time_both(paddle: Host, graphs: Graphs, input_names: Mapping[str, str], case: Case) -> dict[str, float]:
    """Median seconds of both on one case, in turns."""
    feeds = {theirs: case.feeds[ours] for theirs, ours in input_names.items()}
    theirs, ours = [], []
    for _ in range(_ROUNDS):
        theirs.append(paddle.run(feeds)[1])
        ours.append(graphs.run(case.feeds)[1])
    return _times(theirs, ours)


def _times(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    a, b = statistics.median(theirs), statistics.median(ours)
    return {"paddle_seconds": round(a, 5), "onnx_seconds": round(b, 5), "ratio": round(b / a, 3)}


def _run_other(
    family: Family,
    paddle: Host,
    input_names: Mapping[str, str],
    cases: Sequence[Case],
    runs: Sequence[_Run],
) -> dict[str, Any]:
    """Compare the way of Paddle that is loaded with its literal one, on single pictures."""
    judged = []
    for case, run in zip(cases, runs, strict=True):
        if case.batch > 1:
            continue
        made, _ = paddle.run({theirs: case.feeds[ours] for theirs, ours in input_names.items()})
        judged.append(_judge(family, case, run.expected, _named(family, made)))
    return {"worst": _worst(judged)}


def _worst(judged: Sequence[Mapping[str, Any]]) -> Figures:
    """The worst of each figure over the cases; counts are summed."""
    worst: Figures = {}
    for item in judged:
        for name, value in item["figures"].items():
            if name in _COUNTS:
                worst[name] = worst.get(name, 0) + value
            elif name.startswith(_AT_LEAST):
                worst[name] = min(worst.get(name, value), value)
            else:
                worst[name] = max(worst.get(name, value), value)
    return worst


def _outputs(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per output the largest difference and the mean of the means, over the cases of equal shapes."""
    collected: dict[str, list[Mapping[str, Any]]] = {}
    for item in judged:
        for name, figures in item["outputs"].items():
            if "max" in figures:
                collected.setdefault(name, []).append(figures)
    return {
        name: {
            "max": max(item["max"] for item in items),
            "mean": statistics.fmean(item["mean"] for item in items),
        }
        for name, items in collected.items()
    }

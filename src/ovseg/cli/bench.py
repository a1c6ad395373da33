"""`ovs bench`: what each pipeline and model costs, beside the bare session and the alternatives."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ConfigError, SaveError
from .options import AS_JSON

if TYPE_CHECKING:
    from ..bench.measure import Plan

PIPELINES = typer.Argument(None, metavar="[PIPELINE]...", help="Names of pipelines; all of them, if none is given.")
MODEL = typer.Option(None, "--model", metavar="DIR", help="Model folder to measure instead of those that ship.")
ARCHIVE = typer.Option(None, "--archive", metavar="DIR", help="Paddle archive of the same weights as the --model.")
IMAGE = typer.Option(None, "--image", metavar="FILE", help="Image to measure on, instead of a sample.")
PROVIDERS = typer.Option("cpu", "--providers", help="Devices, such as cpu,cuda,tensorrt.")
AGAINST = typer.Option("", "--against", help="Alternatives, on the CPU: paddlex, paddle, torch, openvino.")
ENVIRONMENT = typer.Option(None, "--env", metavar="NAME=PYTHON", help="Interpreter that has an alternative already.")
THREADS = typer.Option(0, "--threads", help="Threads of each side; 0 for as many as there are CPUs.")
ROUNDS = typer.Option(7, "--rounds", help="Turns of each side.")
SECONDS = typer.Option(0.2, "--seconds", help="Length of a turn; a shorter call is repeated in it.")
STARTS = typer.Option(3, "--starts", help="Times each side is started, with its share of the turns.")
BATCHES = typer.Option("1,8", "--batches", help="Images or prompts of a call.")
CLOCK = typer.Option("wall", "--clock", help="wall, or cpu: processor time, where other work is on the machine.")
OUT = typer.Option(None, "--out", "-o", metavar="DIR", help="Folder for RESULTS.md, results.json and results.png.")


_DEFAULTS = {
    "providers": PROVIDERS.default,
    "against": AGAINST.default,
    "threads": THREADS.default,
    "rounds": ROUNDS.default,
    "seconds": SECONDS.default,
    "starts": STARTS.default,
    "batches": BATCHES.default,
    "clock": CLOCK.default,
}


def register(app: typer.Typer) -> None:
    """Add `ovs bench` to `app`."""
    example = "ovs bench open_vocabulary_segmentation --against paddlex,openvino --threads 1 --out results"
    app.command("bench", epilog=f"Example: {example}")(bench)


def bench(
    pipelines: list[str] = PIPELINES,
    model: list[Path] = MODEL,
    archive: list[Path] = ARCHIVE,
    image: Path = IMAGE,
    providers: str = PROVIDERS,
    against: str = AGAINST,
    environment: list[str] = ENVIRONMENT,
    threads: int = THREADS,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    starts: int = STARTS,
    batches: str = BATCHES,
    clock: str = CLOCK,
    out: Path = OUT,
    as_json: bool = AS_JSON,
) -> None:
    """Time every pipeline and every model that ships, or yours, beside the bare session and the alternatives.

    All sides run in turns, each in a process of its own: time of a call and its stages, throughput, cold start, loading
    and memory. Alternatives get an environment of their own in the cache, or the interpreter that --env names; PaddleX
    and Paddle run the same weights, which takes the export extra. Plots take the bench extra.
    """
    from ..bench import measure, plots, report

    plan = measure.Plan(
        pipelines=pipelines or [],
        models=model or [],
        archives=archive or [],
        image=image,
        devices=_listed(providers.lower()),
        against=_listed(against),
        environments=environment or [],
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        starts=starts,
        batches=_numbers(batches),
        clock=clock,
    )
    measure.check(plan)
    if out is not None:
        plots.require_matplotlib()
        _try_folder(out)
    found = measure.run(plan, lambda text: print(text, file=sys.stderr, flush=True))
    found["plan"]["command"] = _command(plan, out)
    if out is not None:
        _write(found, out)
    print(json.dumps(found, indent=1) if as_json else report.markdown(found))


def _listed(text: str) -> list[str]:
    """The names in a text, each once."""
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _listed(text)]
    except ValueError as error:
        raise ConfigError(f"--batches {text!r} is no list of numbers.", "Write it as 1,8.") from error


def _command(plan: Plan, out: Path | None) -> str:
    """The command that measures the same again; interpreters are left out, which are elsewhere on another machine."""
    words = ["ovs", "bench", *plan.pipelines]
    for name, paths in (("model", plan.models), ("archive", plan.archives)):
        for path in paths:
            words += [f"--{name}", str(path)]
    given = {
        "image": plan.image,
        "providers": ",".join(plan.devices),
        "against": ",".join(plan.against),
        "threads": plan.threads,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "starts": plan.starts,
        "batches": ",".join(map(str, plan.batches)),
        "clock": plan.clock,
        "out": out,
    }
    for name, value in given.items():
        if value is not None and value != _DEFAULTS.get(name):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _try_folder(folder: Path) -> None:
    """Make the folder and write into it, before an hour is spent on what cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> SaveError:
    return SaveError(f"The results cannot be written to {folder}: {error.strerror}.", "Choose another --out.")


def _write(found: dict[str, Any], folder: Path) -> None:
    """Write page, figures and picture."""
    from ..bench import plots, report

    text = json.dumps(found, indent=1) + "\n"
    page = report.markdown(found, plots=["results.png"])
    try:
        parts = {name: folder / f".part-{name}" for name in ("results.json", "results.png", "RESULTS.md")}
        parts["results.json"].write_text(text, encoding="utf-8")
        plots.draw(found, parts["results.png"])
        parts["RESULTS.md"].write_text(page, encoding="utf-8")
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as error:
        raise _cannot_write(folder, error) from error

"""`ovs tune`: the fastest correct setting for a model on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from .options import AS_JSON, MODEL_DIR

if TYPE_CHECKING:
    from ..pipelines.tuning import Trial, Tuned

NAME = typer.Argument(None, help="Model name, as in `ovs models list`.", metavar="[MODEL]")
DEVICE = typer.Option(None, "--device", help="Keep to this device; else all that are here are tried.")
AGAIN = typer.Option(False, "--again", help="Measure, also where the answer is remembered.")


def register(app: typer.Typer) -> None:
    """Add `ovs tune` to `app`."""
    app.command("tune", epilog="Example: ovs tune SAM-tiny")(tune)


def tune(
    name: str = NAME, model_dir: str = MODEL_DIR, device: str = DEVICE, again: bool = AGAIN, as_json: bool = AS_JSON
) -> None:
    """Find the fastest setting whose results are the default's: devices, threads, precisions.

    The answer is kept in the cache, for this model, machine and ONNX Runtime; --use-hpip of `ovs run` and
    use_hpip=True take it from there. A precision is tried where `ovs export --precision` has put its folder beside
    the model's.
    """
    from ..device import resolve_device
    from ..pipelines import tuning
    from ..pipelines.hpi import HpiConfig
    from ..zoo import find_model

    folder, resolved = find_model(name, model_dir), resolve_device(device)
    found = None if again else tuning.remembered(folder, resolved, HpiConfig())
    if found is None:
        found = tuning.tune(folder, resolved, on_trial=None if as_json else _say)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _print(found)


def _say(trial: Trial) -> None:
    print(f"{trial.setting}: {trial.verdict}", file=sys.stderr, flush=True)


def _print(found: Tuned) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=found.model, title_justify="left")
    table.add_column("setting")
    for column in ("ms", "of default", "agreement"):
        table.add_column(column, justify="right")
    table.add_column("")
    # Each was timed in turns with the default, one after the other: of other moments only ratios can be compared.
    default = found.trials[0].seconds
    for trial in found.trials:
        table.add_row(
            str(trial.setting),
            "" if default is None or trial.ratio is None else f"{1000 * default * trial.ratio:.1f}",
            "" if trial.ratio is None else f"{trial.ratio:.2f}",
            "" if trial.agreement is None else f"{trial.agreement:.4f}",
            trial.verdict.partition(": ")[0] + (" ← chosen" if trial.setting == found.setting else ""),
        )
    console = Console()
    console.print(table)
    for trial in found.trials:
        _, _, reason = trial.verdict.partition(": ")
        if reason:  # a sentence, which has no place in the table
            console.print(f"{trial.setting}: {reason}", markup=False, highlight=False, soft_wrap=True)

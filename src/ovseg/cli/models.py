"""`ovs models`: the model zoo and what is on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..download import Progress
    from ..zoo import ModelFolder, ModelSpec

NAME = typer.Argument(help="Model name, as in `ovs models list`.", metavar="NAME")
NAME_TO_GIVE = typer.Argument(help="What to call the model.", metavar="NAME")
ENCODER = typer.Option(..., "--encoder", help="ONNX file of the image encoder.")
DECODER = typer.Option(..., "--decoder", help="ONNX file of the prompt and mask decoder.")
AS_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add `ovs models` to `app`."""
    models = typer.Typer(
        help="List, download and remove models.",
        epilog="Example: ovs models pull Mask-RT-DETR-L",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    models.command("list", epilog="Example: ovs models list --json")(list_models)
    models.command("info", epilog="Example: ovs models info SAM-H_box")(info)
    models.command("pull", epilog="Example: ovs models pull Mask-RT-DETR-L")(pull)
    models.command("rm", epilog="Example: ovs models rm Mask-RT-DETR-L --yes")(remove)
    models.command("path", epilog="Example: ls $(ovs models path SAM-tiny)")(path)
    models.command("add", epilog="Example: ovs models add my-sam --encoder encoder.onnx --decoder decoder.onnx")(add)
    app.add_typer(models, name="models")


def list_models(as_json: bool = AS_JSON) -> None:
    """List the models of the zoo and say which are on this machine."""
    from ..zoo import added_models, load_zoo

    facts = [_facts(spec) for spec in load_zoo().values()]
    facts += [_added_facts(folder) for folder in added_models()]
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    rows = [("NAME", "TASK", "SIZE", "METRIC", "STATE")]
    for fact in facts:
        size = f"{fact['size_mb']:g} MB" if fact["size_mb"] else "-"
        metric = f"{fact['metric']['name']} {fact['metric']['value']}" if fact["metric"] else "-"
        rows.append((fact["name"], fact["task"], size, metric, fact["state"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def info(name: str = NAME, as_json: bool = AS_JSON) -> None:
    """Show what is known of a model: source, size, licence, figures, labels, and where it is."""
    from ..zoo import added_models, model_spec

    added = next((folder for folder in added_models() if folder.name == name), None)
    facts = _facts(model_spec(name)) if added is None else _added_facts(added)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    import yaml

    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    print(text, end="")


def pull(name: str = NAME) -> None:
    """Download a model into the cache and make it ready; print its folder.

    Official Paddle archives are exported to ONNX here, which needs the export extra. OVSEG_HOME chooses the
    cache folder, OVSEG_OFFLINE=1 forbids the network, OVSEG_ZOO gives another table of models.
    """
    from ..pull import pull_model
    from ..zoo import installed_dir

    if installed_dir(name) is not None:
        _say(f"{name} is already there")
    with _progress_bar(name) as progress:
        folder = pull_model(name, progress=progress, notify=_say)
    print(folder.path)


def remove(name: str = NAME, yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask.")) -> None:
    """Remove a model and its archive from the cache."""
    from ..pull import remove_model

    if not yes and sys.stdin is not None and sys.stdin.isatty():
        typer.confirm(f"Remove {name} from the cache?", abort=True, err=True)
    for folder in remove_model(name):
        print(folder)


def path(name: str = NAME) -> None:
    """Print the folder of a model that is on this machine."""
    from ..zoo import find_model

    print(find_model(name).path)


def add(
    name: str = NAME_TO_GIVE,
    encoder: str = ENCODER,
    decoder: str = DECODER,
    licence: str = typer.Option(None, "--licence", help="Licence of the weights, to be noted."),
) -> None:
    """Make a model of anybody's SAM, two ONNX files, and print its folder; from then on --model NAME finds it.

    The files are those that the original repository and common exporters write. The cache gets a copy of them.
    """
    from ..pipelines.onnx_pair import add_model

    print(add_model(name, encoder, decoder, licence=licence).path)


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """Return the entry as JSON takes it, with where the model is."""
    import dataclasses

    from ..zoo import bundled_dir, installed_dir

    # Through JSON, which makes lists of the tuples.
    facts: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    folder = installed_dir(spec.name)
    facts["state"] = "-" if folder is None else "bundled" if folder == bundled_dir(spec.name) else "pulled"
    facts["path"] = None if folder is None else str(folder)
    return facts


def _added_facts(folder: ModelFolder) -> dict[str, Any]:
    """Return what is known of a model that the user added, with the keys of `_facts`."""
    size = sum(path.stat().st_size for path in folder.files.values())
    return {
        "name": folder.name,
        "task": folder.task,
        "family": folder.family,
        "licence": folder.facts.get("licence"),
        "size_mb": round(size / 1e6, 1),
        "metric": None,
        "state": "added",
        "path": str(folder.path),
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _progress_bar(name: str) -> Iterator[Progress | None]:
    """Give a callback that draws a bar on standard error, or None where that is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task: Any = None

        def show(received: int, total: int | None) -> None:
            nonlocal task
            if task is None:
                task = bars.add_task(name, total=total)
            bars.update(task, completed=received, total=total)

        yield show

"""`ovs run`: a pipeline over images."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ConfigError, OvsError, PromptError, SaveError
from .options import DEVICE, MODEL, MODEL_DIR

if TYPE_CHECKING:
    from ..pipelines.base import Pipeline
    from ..results.base import Result

NAME = typer.Argument(None, metavar="[PIPELINE]", help="Name of a pipeline, or path of its YAML file.")
PIPELINE = typer.Option(None, "--pipeline", help="The same, as PaddleX has it.")
INPUT = typer.Option(..., "--input", "-i", help="Image, PDF, folder, URL, or - for standard input. May be repeated.")
PROMPT_TYPE = typer.Option(None, "--prompt-type", help="box (the default) or point.")
PROMPT = typer.Option(None, "--prompt", help='Such as "[[112.9, 118.4, 513.8, 382.1]]".')
SAVE_PATH = typer.Option(None, "--save-path", "-o", help="Folder for pictures and JSON.")
THRESHOLD = typer.Option(
    None, "--threshold", help="Least score, such as 0.5, or one for each class: '{\"person\": 0.5}'."
)
BATCH_SIZE = typer.Option(None, "--batch-size", help="Images that go through the model at once.")
MASK_FORMAT = typer.Option(None, "--mask-format", help="Masks in JSON: rle (the default) or list.")
INDEX = typer.Option(None, "--index", help="Folder of a gallery, or milvus://...")
DET_THRESHOLD = typer.Option(None, "--det-threshold", help="Least score of a detection, such as 0.5.")
REC_THRESHOLD = typer.Option(None, "--rec-threshold", help="Least similarity (IP), or largest distance (L2).")
REC_TOPK = typer.Option(None, "--rec-topk", help="Items of each object, at most.")
HAMMING_RADIUS = typer.Option(None, "--hamming-radius", help="Largest distance in bits.")
LABEL = typer.Option(None, "--label", help="Look only at items of this label; may be repeated.")
VOTE = typer.Option(None, "--vote", help="Give each label once, those of the most items first.")
DET_MODEL = typer.Option(None, "--det-model", help="Name of the detector, where there are two models.")
DET_MODEL_DIR = typer.Option(None, "--det-model-dir", help="Model folder of the detector.")
QUIET = typer.Option(False, "--quiet", "-q", help="Do not print the results.")
AS_JSON = typer.Option(False, "--json", help="Print each result as one line of JSON, and nothing else.")

# Of options that are not given, where the pipeline has them: nested lists of masks are megabytes.
DEFAULTS = {"mask_format": "rle"}


def register(app: typer.Typer) -> None:
    """Add `ovs run` to `app`."""
    example = 'ovs run open_vocabulary_segmentation --input cat.jpg --prompt "[[30, 20, 410, 300]]" -o output'
    app.command("run", epilog=f"Example: {example}")(run)


def run(
    name: str = NAME,
    pipeline: str = PIPELINE,
    input: list[str] = INPUT,
    prompt_type: str = PROMPT_TYPE,
    prompt: str = PROMPT,
    threshold: str = THRESHOLD,
    batch_size: int = BATCH_SIZE,
    index: str = INDEX,
    det_threshold: float = DET_THRESHOLD,
    rec_threshold: float = REC_THRESHOLD,
    rec_topk: int = REC_TOPK,
    hamming_radius: float = HAMMING_RADIUS,
    label: list[str] = LABEL,
    vote: bool = VOTE,
    save_path: str = SAVE_PATH,
    device: str = DEVICE,
    mask_format: str = MASK_FORMAT,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
    det_model: str = DET_MODEL,
    det_model_dir: str = DET_MODEL_DIR,
    quiet: bool = QUIET,
    as_json: bool = AS_JSON,
) -> int:
    """Run a pipeline over images, print the results and save them.

    Prompts are for open_vocabulary_segmentation, --threshold for instance_segmentation, and --index with the options
    after it for PP-ShiTuV2.

    The exit status is 2 if an input was bad and 1 if something failed; the other inputs are done all the
    same.
    """
    from ..images import count_images
    from ..pipelines import create_pipeline
    from ..stages.detection import THRESHOLD_FORM
    from ..stages.prompts import BOX_FORM, POINT_FORM

    # What the library logs as a warning, such as a device that was not there, goes where errors go.
    logging.basicConfig(format="ovs: %(message)s")
    if pipeline is not None and name is not None and pipeline != name:
        raise ConfigError(f"Two pipelines are named: {name!r} and {pipeline!r}.", "Name the pipeline once.")
    named = pipeline if name is None else name
    if named is None:
        raise ConfigError("No pipeline was named.", "Name it first: ovs run open_vocabulary_segmentation --input ...")
    given = {
        "prompt": _literal("--prompt", prompt, PromptError, f"{BOX_FORM} {POINT_FORM}"),
        "prompt_type": prompt_type,
        "threshold": _literal("--threshold", threshold, ConfigError, THRESHOLD_FORM),
        "batch_size": batch_size,
        "mask_format": mask_format,
        "index": index,
        "det_threshold": det_threshold,
        "rec_threshold": rec_threshold,
        "rec_topk": rec_topk,
        "hamming_radius": hamming_radius,
        "label": label or None,
        "vote": vote,
    }
    detector: dict[str, Any] = {
        k: v for k, v in {"det_model": det_model, "det_model_dir": det_model_dir}.items() if v is not None
    }
    failures = _Failures()
    made = create_pipeline(named, device=device, model=model, model_dir=model_dir, **detector)
    results = made.predict(input, **_options(made, given), on_error=failures.add)
    prints = as_json or not quiet
    # Results that are printed to the same terminal are progress enough.
    with _progress(count_images(input), shown=not (prints and sys.stdout.isatty())) as advance:
        for result in _saved(results, save_path, failures):
            if as_json:
                print(json.dumps(result.json["res"], ensure_ascii=False), flush=True)
            elif prints:
                result.print()
            advance()
    return failures.exit_code


class _Failures:
    """Tells the user of each input that failed, and keeps the exit status: 1 outweighs 2."""

    exit_code = 0

    def add(self, error: OvsError) -> None:
        print(f"ovs: {error.cause}\n     {error.cure}".rstrip(), file=sys.stderr)
        self.exit_code = min(self.exit_code or error.exit_code, error.exit_code)


def _saved(results: Iterable[Result], save_path: str | None, failures: _Failures) -> Iterator[Result]:
    """Save each result and pass it on, saved or not: one that cannot be saved does not stop the others."""
    for result in results:
        if save_path is not None:
            try:
                result.save_all(save_path)
            except SaveError as error:
                failures.add(error)
        yield result


@contextmanager
def _progress(total: int | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if it is a terminal and there may be more than one item."""
    if total == 1 or not shown or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _options(made: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave and the defaults of the command line, for `made.predict`.

    Raises:
        ConfigError: if the pipeline has no such option.
    """
    import inspect

    known = inspect.signature(made.predict).parameters
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in known:
            raise ConfigError(f"--{name.replace('_', '-')} is not an option of {made.name}.", "Leave it out.")
    return {name: value for name, value in DEFAULTS.items() if name in known} | options


def _literal(option: str, text: str | None, error_class: type[OvsError], form: str) -> Any:
    """Parse the value of an option.

    Raises:
        OvsError: of the class given, if it is neither JSON nor a Python literal.
    """
    import ast

    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise error_class(f"{option} {shown!r} cannot be read.", form) from error

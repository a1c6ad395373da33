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
    from ..results.base import Result

NAME = typer.Argument(None, metavar="[PIPELINE]", help="Name of a pipeline, or path of its YAML file.")
PIPELINE = typer.Option(None, "--pipeline", help="The same, as PaddleX has it.")
INPUT = typer.Option(
    ..., "--input", "-i", help="Image, PDF, folder, URL, or - for standard input. May be repeated."
)
PROMPT_TYPE = typer.Option(None, "--prompt-type", help="box (the default) or point.")
PROMPT = typer.Option(None, "--prompt", help='Such as "[[112.9, 118.4, 513.8, 382.1]]".')
SAVE_PATH = typer.Option(None, "--save-path", "-o", help="Folder for pictures and JSON.")
MASK_FORMAT = typer.Option("rle", "--mask-format", help="Masks in JSON: rle or list.")
QUIET = typer.Option(False, "--quiet", "-q", help="Do not print the results.")
AS_JSON = typer.Option(False, "--json", help="Print each result as one line of JSON, and nothing else.")


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
    save_path: str = SAVE_PATH,
    device: str = DEVICE,
    mask_format: str = MASK_FORMAT,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
    quiet: bool = QUIET,
    as_json: bool = AS_JSON,
) -> int:
    """Run a pipeline over images, print the results and save them.

    The exit status is 2 if an input was bad and 1 if something failed; the other inputs are done all the
    same.
    """
    from ..images import count_images
    from ..pipelines import create_pipeline

    # What the library logs as a warning, such as a device that was not there, goes where errors go.
    logging.basicConfig(format="ovs: %(message)s")
    if pipeline is not None and name is not None and pipeline != name:
        raise ConfigError(f"Two pipelines are named: {name!r} and {pipeline!r}.", "Name the pipeline once.")
    named = pipeline if name is None else name
    if named is None:
        raise ConfigError(
            "No pipeline was named.", "Name it first: ovs run open_vocabulary_segmentation --input ..."
        )
    failures = _Failures()
    results = create_pipeline(named, device=device, model=model, model_dir=model_dir).predict(
        input,
        prompt=_literal(prompt),
        prompt_type=prompt_type,
        mask_format=mask_format,
        on_error=failures.add,
    )
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


def _literal(prompt: str | None) -> Any:
    """Parse --prompt.

    Raises:
        PromptError: if it is neither JSON nor a Python literal.
    """
    import ast

    from ..stages.prompts import BOX_FORM, POINT_FORM

    if prompt is None:
        return None
    try:
        return json.loads(prompt)
    except ValueError:
        try:
            return ast.literal_eval(prompt)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
            raise PromptError(f"--prompt {shown!r} cannot be read.", f"{BOX_FORM} {POINT_FORM}") from error

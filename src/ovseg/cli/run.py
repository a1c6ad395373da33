"""`ovs run`: a pipeline over images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import OvsError
    from ..results.base import Result


def register(app: Any) -> None:
    """Add the sub-command to `app`."""
    import typer

    @app.command()
    def run(
        name: str = typer.Argument(None, metavar="PIPELINE", help="Name of a pipeline, or path of its YAML file."),
        pipeline: str = typer.Option(None, "--pipeline", metavar="PIPELINE", help="Another way to name it."),
        input: list[str] = typer.Option(
            ..., "--input", "-i", help="Image, PDF, folder, URL, or - for standard input. May be repeated."
        ),
        prompt_type: str = typer.Option(None, "--prompt-type", help="box (the default) or point."),
        prompt: str = typer.Option(None, "--prompt", help='Such as "[[112.9, 118.4, 513.8, 382.1]]".'),
        save_path: str = typer.Option(None, "--save-path", "-o", help="Folder for pictures and JSON."),
        device: str = typer.Option(None, "--device", help="cpu, gpu:0, ... The best there is, if not given."),
        mask_format: str = typer.Option("rle", "--mask-format", help="Masks in JSON: rle or list."),
        model: str = typer.Option(None, "--model", help="Name of the model."),
        model_dir: str = typer.Option(None, "--model-dir", help="Folder of the model."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Do not print the results."),
        json: bool = typer.Option(False, "--json", help="Print each result as one line of JSON, and nothing else."),
    ) -> int:
        """Run a pipeline over images, print the results and save them."""
        import logging

        from ..errors import ConfigError
        from ..pipelines import create_pipeline

        # What the library logs as a warning, such as a device that was not there, goes where errors go.
        logging.basicConfig(format="ovs: %(message)s")
        named = name if pipeline is None else pipeline
        if named is None:
            raise ConfigError("No pipeline was named.", "For example: ovs run open_vocabulary_segmentation ...")
        options = {key: value for key, value in {"model": model, "model_dir": model_dir}.items() if value is not None}
        made = create_pipeline(named, device=device, **options)
        failures = _Failures()
        results = made.predict(
            input[0] if len(input) == 1 else list(input),
            prompt=_literal(prompt),
            prompt_type=prompt_type,
            mask_format=mask_format,
            on_error=failures.add,
        )
        _deliver(results, failures, save_path=save_path, quiet=quiet, as_json=json)
        return failures.exit_code


class _Failures:
    """Tells the user of each input that failed, and keeps the exit status: 1 outweighs 2."""

    exit_code = 0

    def add(self, error: OvsError) -> None:
        import sys

        print(f"ovs: {error.cause}\n     {error.cure}".rstrip(), file=sys.stderr)
        self.exit_code = error.exit_code if self.exit_code == 0 else min(self.exit_code, error.exit_code)


def _deliver(
    results: Iterable[Result], failures: _Failures, *, save_path: str | None, quiet: bool, as_json: bool
) -> None:
    """Print and save results as they come."""
    import json
    import sys

    from ..errors import SaveError

    prints = as_json or not quiet
    with _progress(shown=not (prints and sys.stdout.isatty())) as advance:
        for result in results:
            if as_json:
                print(json.dumps(result.json["res"], ensure_ascii=False), flush=True)
            elif prints:
                result.print()
            if save_path is not None:
                try:
                    result.save_all(save_path)
                except SaveError as error:
                    failures.add(error)
            advance()


@contextmanager
def _progress(*, shown: bool) -> Iterator[Any]:
    """Show a bar on standard error, if it is a terminal, from the second item on.

    Where results are printed to the same terminal they are progress enough.
    """
    import sys

    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        "Images",
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
    task = bar.add_task("", total=None)

    def advance() -> None:
        bar.advance(task)
        if bar.tasks[0].completed > 1:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _literal(prompt: str | None) -> Any:
    """Parse --prompt.

    Raises:
        PromptError: if it is neither JSON nor a Python literal.
    """
    import ast
    import json

    from ..errors import PromptError
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

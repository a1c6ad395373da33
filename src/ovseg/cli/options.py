"""Options that several sub-commands share."""

from __future__ import annotations

import json
from typing import Any

import typer

from ..errors import OvsError

DEVICE = typer.Option(None, "--device", help="cpu, gpu, gpu:1, npu:0, ... The best there is, if not given.")
USE_HPIP = typer.Option(False, "--use-hpip", help="Run each model as `ovs tune` finds it fastest on this machine.")
MODEL = typer.Option(None, "--model", help="Name of the model; `ovs models list` shows them.")
MODEL_DIR = typer.Option(None, "--model-dir", help="Model folder, instead of a name.")
THRESHOLD = typer.Option(
    None, "--threshold", help="Least score, such as 0.5, or one for each class: '{\"person\": 0.5}'."
)
BATCH_SIZE = typer.Option(None, "--batch-size", help="Images that go through the model at once.")
AS_JSON = typer.Option(False, "--json", help="Print JSON, and nothing else.")


def literal(option: str, text: str | None, error_class: type[OvsError], form: str) -> Any:
    """Parse the value of an option.

    Raises:
        OvsError: of the class given, if it is neither JSON nor a Python literal.
    """
    import ast

    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise error_class(f"{option} {shown!r} cannot be read.", form) from error

"""Turn an `inference.pdmodel` (the format before Paddle 3.0) into an `inference.json`, by Paddle itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ovseg_export.errors import PaddleFailure, ProgramError
from ovseg_export.paddle_host import Host, require_paddle


def translate_program(source: str | Path, target: str | Path) -> Path:
    """Write the program of a `.pdmodel` as PIR JSON; the parameter file is the same in both formats.

    Args:
        source: the `.pdmodel` file.
        target: the `.json` file to write; it appears whole or not at all.

    Raises:
        MissingExtra: Paddle is not installed, or of a version that cannot host.
        UnsupportedOperators: it has operators that Paddle does not know; all are named.
        ProgramError: there is no such file, or Paddle cannot translate it.
        OSError: the disk is full.

    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise ProgramError(f"There is no program file {source}.", "Check the path of the model.")
    require_paddle()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / target.name
        try:
            with Host(Path(scratch)) as paddle:
                paddle.translate(source, partial)
        except PaddleFailure as failure:
            raise ProgramError(failure.cause, "Export the model again with Paddle 3, as inference.json.") from failure
        partial.replace(target)
    return target

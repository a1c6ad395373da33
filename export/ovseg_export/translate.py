"""Turn an `inference.pdmodel` (the format before Paddle 3.0) into an `inference.json`, by Paddle itself.

Paddle runs in a process of its own: its translator ends the process on some errors, and its flags are global.
The parameter file is the same in both formats.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from ovseg.errors import MissingExtra
from ovseg_export.errors import ProgramError

_TRANSLATE = """
import sys
import paddle
with paddle.pir_utils.OldIrGuard():
    with open(sys.argv[1], "rb") as stream:
        program = paddle.static.Program.parse_from_string(stream.read())
    with paddle.pir_utils.IrGuard():
        translated = paddle.pir.translate_to_pir(program.desc)
        # overwrite, compact, with the attributes that the saved form of a training program has
        paddle.base.core.serialize_pir_program(translated, sys.argv[2], True, False, True)
"""


def translate_program(source: str | Path, target: str | Path, *, timeout: float = 600.0) -> Path:
    """Write the program of a `.pdmodel` as PIR JSON.

    Args:
        source: the `.pdmodel` file.
        target: the `.json` file to write; it appears whole or not at all.
        timeout: seconds before the translation is given up.

    Raises:
        MissingExtra: if Paddle is not installed.
        ProgramError: if Paddle cannot translate the program; the last line that it printed is part of the
            message.

    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise ProgramError(f"There is no program file {source}.", "Check the path of the model.")
    if importlib.util.find_spec("paddle") is None:
        raise MissingExtra(
            f"{source.name} is in the format before Paddle 3.0, which takes Paddle to read: it is missing.",
            "Install it: pip install 'ovseg[export]'.",
        )
    partial = target.with_name(target.name + ".part")
    command = [sys.executable, "-c", _TRANSLATE, str(source), str(partial)]
    environment = {**os.environ, "GLOG_minloglevel": "2"}
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        partial.unlink(missing_ok=True)
        raise ProgramError(
            f"Paddle took more than {timeout:.0f} s to translate {source}.", "Try again."
        ) from error
    if run.returncode != 0 or not partial.is_file():
        partial.unlink(missing_ok=True)
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message"
        )
        raise ProgramError(
            f"Paddle cannot translate {source} (exit {run.returncode}: {reason}).",
            "Export the model again with Paddle 3, as inference.json.",
        )
    partial.replace(target)
    return target

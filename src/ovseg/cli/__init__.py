"""The command `ovs`: one file per sub-command, each a few lines over the library."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ..errors import OvsError
from ..runtime import debugging
from . import reporting

# Sub-commands, each a module of this package with a `register(app)` function.
COMMANDS = ("run", "serve", "eval", "demo", "models", "export", "config", "index", "bench", "tune", "doctor")

# What an output that cannot be written says: nobody reads it any more, or there is no room for it.
_NOT_WRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def with_dashes(argv: list[str]) -> list[str]:
    """Spell long options with dashes, so that PaddleX's `--save_path` works as `--save-path`."""
    end = argv.index("--") if "--" in argv else len(argv)
    spelled = []
    for argument in argv[:end]:
        name, equals, value = argument.partition("=")
        spelled.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return spelled + argv[end:]


def build_app() -> Any:
    """Return the Typer application with every sub-command registered."""
    import typer

    app = typer.Typer(
        name="ovs",
        help="PaddleX's vision pipelines on ONNX Runtime.",
        epilog="Exit status: 0 if all went well, 2 for bad input, 1 for a failure, 130 after Ctrl-C.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    ) -> None:
        pass  # `main` has taken it, wherever it stood

    for command in COMMANDS:
        importlib.import_module(f".{command}", __name__).register(app)
    return app


def _usage_error() -> Any:
    # Typer brings a click of its own, or uses the one installed, by version: take the class from Typer.
    import typer

    return typer.BadParameter.__base__


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _clean_end() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what is unfinished is removed."""
    if threading.current_thread() is not threading.main_thread():  # signals come to that one
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape what a stream cannot encode, such as a file name that is not UTF-8, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (0 success, 1 failure, 2 bad input, 130 Ctrl-C, 143 SIGTERM)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for as long as the process lives
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # also while modules are imported
        print("ovs: interrupted", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    import typer

    codecs.register_error("ovseg.json", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ovseg.json")
    arguments = with_dashes(argv)
    reporting.tracebacks = "--debug" in arguments or debugging()
    # `--debug` is understood anywhere on the line.
    arguments = [a for a in arguments if a != "--debug"]
    try:
        with _clean_end():
            status = build_app()(args=arguments, standalone_mode=False)
        if status == 130:  # what newer versions of Typer make of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        return int(status or 0)
    except OvsError as error:
        reporting.tell(error)
        return error.exit_code
    except _usage_error() as error:
        error.show()
        return 2
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _Terminated:
        print("ovs: terminated", file=sys.stderr)
        return 143
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _NOT_WRITTEN:
            # What could not be written would be tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno != errno.EPIPE:
                print(f"ovs: The output could not be written: {error.strerror}.", file=sys.stderr)
                print("     Make room, or send it elsewhere.", file=sys.stderr)
            return 1
        if reporting.tracebacks:
            raise
        if isinstance(error, MemoryError):
            print(f"ovs: The memory of this machine ran out{f': {error}' if str(error) else ''}.", file=sys.stderr)
            print("     Use smaller images or fewer at once, or end what else uses it.", file=sys.stderr)
            return 1
        print(f"ovs: {type(error).__name__}: {error}", file=sys.stderr)
        print("     This is a fault in ovseg: run again with --debug and report it.", file=sys.stderr)
        return 1

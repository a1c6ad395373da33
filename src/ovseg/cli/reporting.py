"""What the user is told while a sub-command works: a bar, and the inputs that failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import OvsError

tracebacks = False  # whether an error is told with its traceback: --debug


def tell(error: OvsError) -> None:
    """Tell the user of an error: cause and cure."""
    if tracebacks:
        traceback.print_exception(error)
    print(f"ovs: {error.cause}\n     {error.cure}".rstrip(), file=sys.stderr)


class Failures:
    """Tells the user of each input that failed, and keeps the exit status: 1 outweighs 2."""

    exit_code = 0

    def add(self, error: OvsError) -> None:
        tell(error)
        self.exit_code = min(self.exit_code or error.exit_code, error.exit_code)


@contextmanager
def progress(total: int | None, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if it is a terminal and there may be more than one item."""
    if total == 1 or not shown or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)

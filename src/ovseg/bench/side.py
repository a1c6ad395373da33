"""The other end of `workers/serve.py`: a side of the comparison, as a process that is asked in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import errors
from ..errors import OvsError
from .machine import device_memory

_SERVE = Path(__file__).parent / "workers" / "serve.py"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PADDLE_PDX_CPU_NUM_THREADS")


class SideFailure(OvsError):  # noqa: N818
    """A side that cannot be loaded or ends by itself."""

    exit_code = 1


class Side:
    """A side that is loaded and has run once. Use it in a `with` block, which ends its process.

    Args:
        title: how messages call it.
        python: its interpreter.
        module: its module in `workers`.
        request: what it is asked to run.
        scratch: folder for its files.

    Attributes:
        start: seconds from nothing to the first result (`cold`, by clock; of which `imported`, `loaded`, `first`), and
            MB (`memory`, and `device_memory` where there is a device).
        found: a number that other sides should find as well, or None.
        settings: what the other sides must use as well.

    Raises:
        OvsError: of the class that ended the process, or SideFailure.
    """

    def __init__(self, title: str, python: Path, module: str, request: Mapping[str, Any], scratch: Path) -> None:
        self.title = title
        self._errors = scratch / f"{module}.log"
        place = scratch / f"{module}.json"
        place.write_text(json.dumps(request), encoding="utf-8")
        environment = os.environ | dict.fromkeys(_THREADS, str(request["threads"]))
        environment |= {"PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True", "GLOG_minloglevel": "2"}
        environment.pop("PYTHONPATH", None)  # an environment of its own is its own
        if python == Path(sys.executable):
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        before = None if request["device"] == "cpu" else device_memory()
        started = time.perf_counter()
        with self._errors.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(_SERVE), module, str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.start: dict[str, Any] = {key: ready[key] for key in ("imported", "loaded", "first", "memory")}
        self.start["cold"] = {"wall": time.perf_counter() - started - ready["late"], "cpu": ready["cpu"]}
        after = None if before is None else device_memory()
        if before is not None and after is not None:
            self.start["device_memory"] = after - before
        self.found: float | None = ready["found"]
        self.settings: dict[str, Any] = ready["settings"]

    def turn(self, batch: int, seconds: float, clock: str) -> dict[str, Any]:
        """Let it run for some seconds by a clock; return the median seconds of a call, by clock, and more."""
        return self._ask({"batch": batch, "seconds": seconds, "clock": clock})

    def record(self, batch: int, folder: Path) -> list[dict[str, Any]]:
        """Let our side write what its sessions are given."""
        runs: list[dict[str, Any]] = self._ask({"batch": batch, "record": str(folder)})["runs"]
        return runs

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if answer["event"] == "error":
            if kind := getattr(errors, answer["kind"], None):  # one of ours says enough
                raise kind(answer["cause"], answer["cure"])
            raise SideFailure(f"{self.title}: {answer['cause']}", answer["cure"])
        return answer

    def _ended(self) -> SideFailure:
        status = self._process.wait()
        last = (self._errors.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        return SideFailure(f"{self.title} ended with the status {status}: {last}", "Run it with less, or leave it out.")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # an order that was not read before it ended
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""One side of a comparison as a process: load, run once, then a turn for each line of standard input.

python serve.py SIDE REQUEST: SIDE is a module beside this file, REQUEST a JSON file. Answers are lines of JSON.
Needs nothing but the standard library, since it runs in the interpreters of the alternatives.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Clocks = tuple[float, float]
CLOCKS = ("wall", "cpu")


def now() -> Clocks:
    """Seconds: on the wall, and of processor time of all threads."""
    return time.perf_counter(), time.process_time()


def since(start: Clocks) -> dict[str, float]:
    """Seconds since `start`, by clock."""
    return {clock: after - before for clock, before, after in zip(CLOCKS, start, now(), strict=True)}


def memory() -> dict[str, float]:
    """Resident memory now and at most, in MB; empty where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return {}
    found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM"))}
    return {"resident": int(found["VmRSS"]) / 1024, "peak": int(found["VmHWM"]) / 1024}


def turn(side: Any, batch: int, seconds: float, clock: str) -> dict[str, Any]:
    """Run for some seconds by a clock; return the median seconds of a call, by clock, and those of its stages.

    A call that is not counted comes first, so that the caches hold this side's data. A call that is longer than
    the turn is counted once.
    """
    start = now()
    side.call(batch)
    if since(start)[clock] < seconds:
        start = now()
    taken: list[dict[str, float]] = []
    while not taken or since(start)[clock] < seconds:
        begin = now()
        side.call(batch)
        taken.append(since(begin))
    found: dict[str, Any] = {name: statistics.median(one[name] for one in taken) for name in CLOCKS}
    if hasattr(side, "stages"):  # in calls of their own, since to watch takes time too
        stages = [side.stages(batch) for _ in taken[:5]]
        found["stages"] = {
            stage: {name: statistics.median(one[stage][name] for one in stages) for name in CLOCKS}
            for stage in stages[0]
        }
    return found | {"calls": len(taken), "memory": memory()}


def serve(side_name: str, request: dict[str, Any], answer: Callable[..., None]) -> None:
    """Load a side and answer orders until standard input ends."""
    start = now()
    module = importlib.import_module(side_name)
    imported, start = since(start), now()
    side = module.load(request)
    loaded, start = since(start), now()
    results = side.call(1)
    first, ended = since(start), now()
    number = getattr(side, "number", None)  # a session alone has none
    facts = {
        "memory": memory(),
        "found": None if number is None else number(results),
        "settings": getattr(side, "settings", {}),
    }
    late = since(ended)["wall"]
    answer(event="ready", imported=imported, loaded=loaded, first=first, cpu=ended[1], late=late, **facts)
    for line in sys.stdin:
        order = json.loads(line)
        if "record" in order:
            answer(event="recorded", runs=side.record(order["batch"], order["record"]))
        else:
            answer(event="turn", **turn(side, order["batch"], order["seconds"], order["clock"]))


def main() -> None:
    # What libraries print goes to standard error: the answers have the real standard output for themselves.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=out, flush=True)

    try:
        serve(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), answer)
    except Exception as error:
        cause = getattr(error, "cause", f"{type(error).__name__}: {error}")
        answer(event="error", kind=type(error).__name__, cause=cause, cure=getattr(error, "cure", ""))
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Two workers on one machine, as threads of a process and as processes, over one worker: throughput, in turns.

Each worker encodes with SAM-tiny, or runs another bundled model. One worker has the machine to itself in its turn, on
a session that takes the default threads; two share it in theirs: threads of a process on its session, processes with
half of the cores each (`OVSEG_THREADS`), and processes that do not know of each other. Less than 1 would mean that they
are in each other's way: more threads than cores, which wait for each other spinning. On a machine that does other work
as well, two workers get more of it than one: there the runs for each second of CPU time say more.

The turns of a round come in an order drawn anew. A single ratio is off by a tenth where other machines share the
processor, so there are many rounds; what is printed behind the median is its standard error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ovseg.runtime import usable_cpus
from ovseg.session import Session
from ovseg.zoo import bundled_dir

LIMIT = 0.95
MODELS = {"SAM-tiny": "encoder.onnx", "ShiTu-tiny-det": "model.onnx", "ShiTu-tiny-rec": "model.onnx"}


def work(session: Session, feeds: dict[str, np.ndarray], end: float) -> int:
    """Run until a moment; return how many runs there were."""
    runs = 0
    while time.perf_counter() < end:
        session.run(feeds)
        runs += 1
    return runs


def serve(connection: Connection, path: str, threads: str) -> None:
    """In a process of its own: run for as long and on as many threads as asked, and answer with runs a second."""
    os.environ["OVSEG_THREADS"] = threads
    session = Session(path, "cpu")
    random = np.random.default_rng(0)
    feeds = {}
    for info in session.inputs:
        shape = [size if isinstance(size, int) else 1 for size in info.shape]
        takes_bytes = info.dtype == np.uint8
        feeds[info.name] = random.integers(0, 256, shape, np.uint8) if takes_bytes else random.random(shape, np.float32)
    session.run(feeds)
    connection.send(None)
    while (asked := connection.recv()) is not None:
        workers, seconds = asked
        runs = [0] * workers
        started, used = time.perf_counter(), time.process_time()

        def count(number: int, runs: list[int] = runs, end: float = started + seconds) -> None:
            runs[number] = work(session, feeds, end)

        callers = [threading.Thread(target=count, args=(number,)) for number in range(workers)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        connection.send((sum(runs), time.perf_counter() - started, time.process_time() - used))


def throughput(processes: list[Any], workers: int, seconds: float) -> tuple[float, float]:
    """Let processes run at the same time; return the runs a second of all, and for each second of CPU time."""
    for connection in processes:
        connection.send((workers, seconds))
    found = [connection.recv() for connection in processes]
    runs = sum(count for count, _, _ in found)
    return sum(count / wall for count, wall, _ in found), runs / sum(cpu for _, _, cpu in found)


def main() -> None:
    """Print the ratios of each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds is at least 2: one ratio has no spread")
    context = multiprocessing.get_context("spawn")
    half = str(max(1, usable_cpus() // 2))
    for name, file in MODELS.items():
        processes, children = [], []
        for threads in ("", "", half, half):
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(theirs, str(bundled_dir(name) / file), threads))
            child.start()
            ours.recv()
            processes.append(ours)
            children.append(child)
        turns = {
            "one worker": (processes[:1], 1),
            "two threads": (processes[:1], 2),
            "two processes, half of the cores each": (processes[2:], 1),
            "two processes, unaware of each other": (processes[:2], 1),
        }
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in turns}
        for _ in range(arguments.rounds):
            for kind in random.sample(list(turns), len(turns)):
                found[kind].append(throughput(*turns[kind], arguments.seconds))
        for connection, child in zip(processes, children, strict=True):
            connection.send(None)
            child.join()
        one = found.pop("one worker")
        for kind, two in found.items():
            wall, cpu = ([both[at] / alone[at] for both, alone in zip(two, one, strict=True)] for at in (0, 1))
            ratio = statistics.median(wall)
            error = 1.25 * statistics.stdev(wall) / len(wall) ** 0.5  # of the median of normally spread values
            verdict = "ok" if ratio >= LIMIT else "TOO LOW"
            print(
                f"{name}: {kind} over one worker {ratio:.2f} ± {error:.2f} (at least {LIMIT}): {verdict}; "
                f"{statistics.median(cpu):.2f} by CPU time",
                flush=True,
            )


if __name__ == "__main__":
    main()

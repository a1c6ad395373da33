"""Kill a process that changes a gallery, at random moments, and check what is left each time.

    python benchmarks/index_crash.py [--kills 200]

Every time the folder must open at the last committed version, or at the one that was being committed, with
each vector that this version should have, once, unchanged, and no other. Prints the kills and how they fell.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from ovseg.index import Gallery, engine, load_index

DIM = 64
SEED = 7
PATIENCE = 120  # seconds that a working process may live


def vector(item: int) -> np.ndarray:
    """Return the embedding of an id, always the same."""
    return np.random.default_rng((SEED, item)).standard_normal(DIM).astype(np.float32)


def change(version: int, ids: list[int], next_id: int) -> tuple[list[int], list[int]]:
    """Return the ids to remove and to add on the way from a version to the next, always the same."""
    dice = random.Random(version)
    removed = dice.sample(ids, min(len(ids) // 2, dice.randrange(6)))
    return removed, list(range(next_id, next_id + dice.randrange(1, 9)))


def state(version: int) -> list[int]:
    """Return the ids of a version."""
    ids: list[int] = []
    next_id = 0
    for before in range(1, version):
        removed, added = change(before, ids, next_id)
        ids = sorted(set(ids) - set(removed)) + added
        next_id = added[-1] + 1
    return ids


def say(line: str) -> None:
    """Write a line whole or not at all; `print` may write it in pieces, with a kill between two."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def work(folder: Path) -> None:
    """Change and save until killed; say each version once it is committed."""
    # A graph is made long before it is worth it, so that its file is among what a kill may catch.
    engine.GRAPH_LEAST = 20
    with load_index(folder, write=True) as gallery:
        say(f"open {os.getpid()}")
        while True:
            removed, added = change(gallery.version, gallery.ids.tolist(), gallery.next_id)
            gallery.remove(removed)
            gallery.add(np.stack([vector(i) for i in added]), [str(i) for i in added])
            gallery.save()
            say(str(gallery.version))


def serve(folder: Path) -> None:
    """Start a working process for each line of the input, and say when it is dead, and with what exit code."""
    for _ in sys.stdin:
        child = os.fork()  # far faster than a new interpreter
        if not child:
            # One that hangs says where, and ends.
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            try:
                work(folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        say(f"dead {os.waitstatus_to_exitcode(status)}")


class Worker:
    """A process that works until it is killed."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.lines = server.stdout
        server.stdin.write("go\n")
        server.stdin.flush()
        self.pid = int(self.line().split()[1])

    def line(self) -> str:
        """Return what it says next.

        Raises:
            RuntimeError: it has ended, and nobody killed it.
        """
        line = self.lines.readline()
        if line.startswith("dead") or not line:
            raise _ended()
        return line.strip()

    def kill(self) -> list[str]:
        """Kill it; return what it had said that was not yet read.

        Raises:
            RuntimeError: it had ended before.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        said = []
        while not (line := self.lines.readline()).startswith("dead"):
            if not line:
                raise RuntimeError("The process that waits for the working one has ended.")
            said.append(line.strip())
        if line != f"dead {-signal.SIGKILL}\n":
            raise _ended()
        return said


def _ended() -> RuntimeError:
    return RuntimeError("The working process has ended by itself; its last words are above.")


def check(folder: Path, acknowledged: int) -> int:
    """Check the folder after a kill; return its version.

    Raises:
        AssertionError: it is not as the last commit, or the one after it, left it.
    """
    gallery = load_index(folder, verify=True)
    assert acknowledged <= gallery.version <= acknowledged + 1, (acknowledged, gallery.version)
    expected = state(gallery.version)
    assert gallery.ids.tolist() == expected
    assert gallery.labels == [str(i) for i in expected]
    if expected:
        assert np.array_equal(gallery.embeddings(), np.stack([vector(i) for i in expected]))
        last = gallery.search(vector(expected[-1]), 3)[0]
        assert last.ids[0] == expected[-1] and set(last.ids) <= set(expected)
    return gallery.version


def run(folder: Path, kills: int, index_type: str = "HNSW32", seed: int = 0, flush: bool = True) -> list[int]:
    """Kill a working process `kills` times; return the version found after each.

    Without `flush` it does not wait for the disk; what a process has written outlives it in any case.
    """
    dice = random.Random(seed)
    Gallery(DIM, metric="L2", index_type=index_type).save(folder)
    version = 1
    versions = []
    pace = 0.02  # seconds of a commit
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder), *([] if flush else ["--no-flush"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:
        for _ in range(kills):
            worker = Worker(server)
            # A random moment, by the pace of this machine: of the first commit, or of one of the next three.
            started = time.perf_counter()
            said = [worker.line() for _ in range(dice.randrange(4))]
            pace = (time.perf_counter() - started) / len(said) if said else pace
            time.sleep(dice.uniform(0, 1.5 * pace))
            said += worker.kill()
            version = check(folder, int(said[-1]) if said else version)
            versions.append(version)
    return versions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--no-flush", action="store_true", help="do not wait for the disk")
    parser.add_argument("--serve", type=Path, help="for the script itself")
    arguments = parser.parse_args()
    if arguments.no_flush:
        os.fsync = lambda _: None
    if arguments.serve:
        serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        versions = run(Path(folder) / "gallery", arguments.kills, flush=not arguments.no_flush)
    print(f"{len(versions)} kills, {versions[-1]} versions, {len(state(versions[-1]))} items: nothing lost")


if __name__ == "__main__":
    main()

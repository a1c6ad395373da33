"""Seconds to import the package and to show the help, less nothing: the whole process, median of 7."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 7


def median_seconds(*arguments: str) -> float:
    """Median wall time of a command of this interpreter."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print both figures, and that of an interpreter that does nothing."""
    print(f"python -c pass: {median_seconds('-c', 'pass'):.3f} s")
    print(f"python -c 'import ovseg': {median_seconds('-c', 'import ovseg'):.3f} s")
    print(f"ovs --help: {median_seconds('-m', 'ovseg', '--help'):.3f} s")


if __name__ == "__main__":
    main()

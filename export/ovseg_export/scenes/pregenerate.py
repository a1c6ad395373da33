"""Write scenes to a folder, so that training reads pictures instead of making them.

    python -m ovseg_export.scenes.pregenerate --split train --count 6000 --size 512 --seed 1 --workers 1 --out
    DIR

Per scene `NNNNNN.jpg` (picture), `NNNNNN.png` (instance ids, 8 bit) and one line of `index.jsonl`. Scene i is
a function of (seed, i), the store and the options only; a scene whose two files are there is not made again.
A line of the index appears only after its files, each complete: a reader may follow the folder while it
grows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .compose import MIXES, Scene, compose
from .library import Library


@dataclass(frozen=True)
class Job:
    """What a folder of scenes is made of; kept beside it, so that one folder never mixes two of them."""

    assets: str
    split: str
    size: int
    seed: int
    mix: str


def scene(job: Job, library: Library, index: int) -> Scene:
    """Scene `index` of a job."""
    return compose(np.random.default_rng([job.seed, index]), library, job.size, MIXES[job.mix])


def library_of(job: Job) -> Library:
    """The library of a job; `classes` has no photographs of its own and takes those of `train`."""
    splits = ("train", "classes") if job.split == "classes" else job.split
    return Library(job.assets, splits, lambda record: record.split == job.split)


def write(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees it whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def save(made: Scene, out: Path, index: int) -> dict[str, Any]:
    """Write one scene's two files and return its line of the index."""
    stem = f"{index:06d}"
    write(out / f"{stem}.png", cv2.imencode(".png", made.ids, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes())
    write(out / f"{stem}.jpg", cv2.imencode(".jpg", made.image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return {
        "index": index,
        "image": f"{stem}.jpg",
        "ids": f"{stem}.png",
        "instances": [asdict(i) for i in made.instances],
    }


_worker: dict[str, Any] = {}


def _start(job: Job, out: Path) -> None:
    cv2.setNumThreads(1)
    _worker.update(job=job, out=out, library=library_of(job))


def _make(index: int) -> dict[str, Any]:
    return save(scene(_worker["job"], _worker["library"], index), _worker["out"], index)


def _done(out: Path) -> dict[int, str]:
    """Lines of the index whose files are there; a last line cut short by a kill does not count."""
    lines: dict[int, str] = {}
    index = out / "index.jsonl"
    if index.exists():
        for line in index.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if (out / entry["image"]).exists() and (out / entry["ids"]).exists():
                lines[entry["index"]] = line
    return lines


def generate(job: Job, out: Path, count: int, workers: int = 1, start: int = 0) -> int:
    """Make scenes `start` to `start + count - 1` that are missing in `out`; returns how many were made.

    Raises:
        ValueError: if `out` holds scenes of another job.

    """
    out.mkdir(parents=True, exist_ok=True)
    head = out / "job.json"
    if head.exists() and json.loads(head.read_text("utf-8")) != asdict(job):
        raise ValueError(f"{out} holds scenes of another job ({head}): choose another folder")
    write(head, json.dumps(asdict(job)).encode())
    done = _done(out)
    write(out / "index.jsonl", "".join(f"{done[i]}\n" for i in sorted(done)).encode())
    todo = [i for i in range(start, start + count) if i not in done]
    began = time.monotonic()
    with (out / "index.jsonl").open("a", encoding="utf-8") as file:
        for number, line in enumerate(_lines(job, out, todo, workers), start=1):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            if number % 500 == 0 or number == len(todo):
                spent = 1000 * (time.monotonic() - began) / number
                print(f"{out}: {number}/{len(todo)}, {spent:.0f} ms each", file=sys.stderr, flush=True)
    return len(todo)


def _lines(job: Job, out: Path, todo: list[int], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        _start(job, out)
        yield from map(_make, todo)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(workers, _start, (job, out)) as pool:
        yield from pool.imap(_make, todo, chunksize=8)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ovseg_export.scenes.pregenerate", description="Write scenes to a folder."
    )
    parser.add_argument("--assets", type=Path, default=Path("export/work/assets"), help="the prepared store")
    parser.add_argument("--split", choices=["train", "classes", "val"], required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--start", type=int, default=0, help="number of the first scene")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mix", choices=sorted(MIXES), default="ordinary")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    job = Job(str(options.assets), options.split, options.size, options.seed, options.mix)
    try:
        generate(job, options.out, options.count, options.workers, options.start)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

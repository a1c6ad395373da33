"""End-to-end time of PP-ShiTuV2's predict over PaddleX's: same weights, same pictures, same threads, in turn (A B A B).

    python benchmarks/shitu_against_paddlex.py --paddlex PYTHON [--objects 4] [--threads 1] [--models DIR]

PaddleX 3.7.2 runs in an interpreter of its own, as it comes (oneDNN, batch_size 1), and answers one round at a time.
With `--threads 0` each has the threads that it takes by itself: PaddleX ten, whatever the machine, and ovseg the cores.
The models are the larger ones of the builders, with the official input sizes; the pictures are the photographs in
tests/data, as files; the detection threshold leaves about `--objects` objects a picture. Printed are the medians over
the rounds, of wall-clock time and of CPU time; the latter counts where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2

from ovseg import Gallery, create_pipeline

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "export"), str(ROOT / "tests/parity")]

PADDLEX = ROOT / "tests/parity/run_paddlex_shitu.py"


def make_models(folder: Path) -> None:
    """Build and export both models, where they are not there."""
    from ovseg_export import export_model
    from ovseg_export.builders import picodet, shitu_rec

    if not (folder / "px_det").is_dir():
        picodet.build(folder / "px_det", size="large", image_size=640)
        shitu_rec.build(folder / "px_rec", size="base", image_size=224)
    for name in ("det", "rec"):
        if not (folder / name).is_dir():
            export_model(folder / f"px_{name}", folder / name)


def threshold(pipeline: Any, pictures: list[str], objects: float) -> float:
    """Return the detection threshold that leaves `objects` objects a picture on average."""
    results = pipeline.predict(pictures, index=Gallery(pipeline.dim), det_threshold=0.0)
    scores = sorted((box["det_score"] for result in results for box in result["boxes"]), reverse=True)
    place = min(round(objects * len(pictures)), len(scores) - 1)
    return float(scores[place - 1] + scores[place]) / 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--paddlex", required=True, help="Python with paddlex==3.7.2 and paddlepaddle")
    parser.add_argument("--objects", type=float, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each; 0 for what each takes by itself")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", type=Path, help="where px_det, px_rec, det and rec are, or are to be made")
    arguments = parser.parse_args()
    if arguments.threads:
        cv2.setNumThreads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.models or Path(name)
        make_models(folder)
        pictures = [str(path) for path in sorted((ROOT / "tests/data/photos").glob("*.jpg"))]
        labels = [f"item {number}" for number in range(len(pictures))]
        pipeline: Any = create_pipeline(
            "PP-ShiTuV2",
            device="cpu",
            threads=arguments.threads or None,
            det_model_dir=folder / "det",
            model_dir=folder / "rec",
        )
        index = pipeline.build_index(pictures, labels, index_type="Flat")
        options = {"det_threshold": threshold(pipeline, pictures, arguments.objects), "rec_threshold": 0.0}
        request = Path(name) / "request.json"
        models = {"detection": str(folder / "px_det"), "recognition": str(folder / "px_rec")}
        gallery = {"gallery": pictures, "labels": labels, "queries": pictures, "options": options, "serve": True}
        request.write_text(json.dumps(models | gallery))
        variables = ("PADDLE_PDX_CPU_NUM_THREADS", "OMP_NUM_THREADS")
        environment = {key: value for key, value in os.environ.items() if key not in variables}
        if arguments.threads:
            environment |= dict.fromkeys(variables, str(arguments.threads))
        theirs = subprocess.Popen(
            [arguments.paddlex, str(PADDLEX), str(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert theirs.stdin is not None and theirs.stdout is not None
        while theirs.stdout.readline().strip() != "ready":
            pass

        def paddlex() -> tuple[float, float, int]:
            theirs.stdin.write("go\n")
            theirs.stdin.flush()
            wall, cpu, found = theirs.stdout.readline().split()
            return float(wall), float(cpu), int(found)

        def ovseg() -> tuple[float, float, int]:
            started = time.perf_counter(), time.process_time()
            found = sum(len(result["boxes"]) for result in pipeline.predict(pictures, index=index, **options))
            return time.perf_counter() - started[0], time.process_time() - started[1], found

        assert paddlex()[2] == ovseg()[2], "not the same objects"  # and both are warm now
        rounds = [(paddlex(), ovseg()) for _ in range(arguments.rounds)]
        found = rounds[0][1][2]
        theirs.stdin.close()
        theirs.wait()
    print(f"{len(pictures)} pictures, {found} objects, {arguments.threads or 'as they come:'} threads")
    for number, clock in enumerate(("wall", "CPU")):
        a, b = (statistics.median(one[side][number] for one in rounds) / len(pictures) for side in (0, 1))
        ratio = statistics.median(ours[number] / other[number] for other, ours in rounds)
        print(f"{clock}: PaddleX {a * 1e3:.1f} ms a picture, ovseg {b * 1e3:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

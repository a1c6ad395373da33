"""SAM-tiny in fp16 and int8 against fp32: speed of the image encoder, and agreement of the masks.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/precision.py
    python benchmarks/precision.py --model-dir my_sam --threads 4

The masks are those of the pipeline, in the pixels of the picture, for the box of every object in the held-out
composites under tests/data. int8 is calibrated on the photographs under tests/data. fp16 is computed on the CPU
by rounding to float16, as `precision.simulate_fp16` says: its speed is a matter for a GPU. Needs the export extra.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "export"))

import onnx  # noqa: E402
import yaml  # noqa: E402
from ovseg_export.feeds import cases  # noqa: E402
from ovseg_export.precision import convert_precision, simulate_fp16  # noqa: E402
from ovseg_export.sam_tiny.ship import prompts_of  # noqa: E402

from ovseg import create_pipeline  # noqa: E402
from ovseg.download import file_sha256  # noqa: E402
from ovseg.images import read_images  # noqa: E402
from ovseg.model_folder import ModelFolder, open_model_folder  # noqa: E402
from ovseg.session import Session  # noqa: E402
from ovseg.zoo import find_model  # noqa: E402

DATA = ROOT / "tests" / "data"
GOALS = "goals: int8 encoder 1.5 times as fast, mean IoU 0.97; fp16 mean IoU 0.999"
Feeds = dict[str, np.ndarray]


def images(folder: ModelFolder) -> list[Feeds]:
    """The photographs as the encoder takes them."""
    chosen = [(str(image.path), image.pixels) for image in read_images(str(DATA / "photos"))]
    size = folder.facts["preprocess"]["size"]
    shapes = {"image": [1, 3, size, size]}
    return [dict(case.feeds) for case in cases(folder.facts["preprocess"], shapes, chosen, batched=False)]


def write_variant(folder: ModelFolder, precision: str, feeds: list[Feeds], target: Path) -> None:
    """A copy of the model folder with its encoder, for fp16 its decoder too, in another precision."""
    shutil.copytree(folder.path, target)
    models = {role: onnx.load(str(folder.files[role])) for role in ("encoder", "decoder")}
    converted, report = convert_precision(models, precision, feeds)
    print(f"{precision}: {report.method}, bytes before and after {report.size}")
    facts = yaml.safe_load((target / "model.yaml").read_text(encoding="utf-8"))
    for role, model in converted.items():
        path = target / facts["files"][role]["path"]
        onnx.save(simulate_fp16(model) if precision == "fp16" else model, str(path))
        facts["files"][role] |= {"sha256": file_sha256(path), "size": path.stat().st_size}
    (target / "model.yaml").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")


def scenes() -> Iterator[tuple[np.ndarray, list[list[float]]]]:
    """Each held-out composite, BGR, with the boxes of its objects."""
    for path in sorted((DATA / "composites").glob("*/*.png")):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        boxes = []
        for i in np.unique(ids[ids > 0]):
            x, y, width, height = cv2.boundingRect((ids == i).astype(np.uint8))
            boxes.append([float(x), float(y), float(x + width), float(y + height)])
        if boxes:
            yield cv2.imread(str(path.with_suffix(".jpg"))), boxes


def mask_ious(reference: Path, other: Path, limit: int | None) -> list[float]:
    """IoU of the masks of two model folders, for every box in the composites."""
    pipelines = [
        create_pipeline("open_vocabulary_segmentation", model_dir=folder, device="cpu") for folder in (reference, other)
    ]
    found = []
    for pixels, boxes in list(scenes())[:limit]:
        masks = []
        for pipeline in pipelines:
            with pipeline.open(pixels) as image:
                masks.append(np.asarray(image.segment(boxes=boxes)["masks"]) > 0)
        for one, two in zip(*masks, strict=True):
            union = (one | two).sum()
            found.append(float((one & two).sum() / union) if union else 1.0)
    return found


def time_encoders(folders: list[Path], feed: Feeds, threads: int, rounds: int) -> list[float]:
    """Median seconds of each encoder, in turns."""
    sessions = [Session(folder / "encoder.onnx", "cpu", threads=threads) for folder in folders]
    times: list[list[float]] = [[] for _ in folders]
    for turn in range(rounds + 1):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feed)
            if turn:  # the first turn warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Print what fp16 and int8 cost and gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, help="model folder of the family sam; SAM-tiny if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=int, help="composites to compare on; all if left out")
    arguments = parser.parse_args()
    folder = open_model_folder(arguments.model_dir) if arguments.model_dir else find_model("SAM-tiny")
    pictures = images(folder)
    feeds = [image | prompts_of(np.random.default_rng(i), 4) for i, image in enumerate(pictures)]
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp16", "int8"):
            target = Path(scratch) / precision
            write_variant(folder, precision, feeds, target)
            ious = mask_ious(folder.path, target, arguments.limit)
            print(f"{precision}: mean IoU {np.mean(ious):.5f}, least {min(ious):.3f}, {len(ious)} masks", flush=True)
        pair = [folder.path, Path(scratch) / "int8"]
        fp32, int8 = time_encoders(pair, pictures[0], arguments.threads, arguments.rounds)
    print(f"encoder: fp32 {fp32 * 1e3:.1f} ms, int8 {int8 * 1e3:.1f} ms: {fp32 / int8:.2f} times as fast")
    print(GOALS)


if __name__ == "__main__":
    main()

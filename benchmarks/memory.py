"""Resident memory while images go through `predict` one after the other, as results that nobody keeps."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import psutil

from ovseg import create_pipeline

WARM_UP = 100


def folder_of(count: int, folder: Path) -> None:
    """Images of 50 sizes, none equal to another."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = 200 + 8 * (i % 50), 640 - 6 * (i % 50)
        small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), cv2.resize(small, (width, height)))


def main() -> None:
    """Print resident memory after the first 100 images and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    count = parser.parse_args().images
    process = psutil.Process()
    pipeline = create_pipeline("open_vocabulary_segmentation", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder_of(count, Path(scratch))
        start = peak = 0.0
        for done, _ in enumerate(pipeline.predict(scratch, prompt=[[20, 20, 180, 180]], prompt_type="box"), 1):
            if done == WARM_UP:
                start = process.memory_info().rss / 1e6
            elif done % 50 == 0:
                peak = max(peak, process.memory_info().rss / 1e6)
        end = process.memory_info().rss / 1e6
    print(f"{done} images: {start:.0f} MB after {WARM_UP}, at most {peak:.0f} MB, {end:.0f} MB at the end;", end=" ")
    print(f"growth {end - start:+.1f} MB")


if __name__ == "__main__":
    main()

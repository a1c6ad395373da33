"""Two thousand images through `ovs run instance_segmentation` in batches of 8, one of them corrupt.

Prints resident memory after the first 200 images and at the end, and whether order, report and exit status are right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import psutil

from ovseg.zoo import bundled_dir

WARM_UP = 200
GROWTH_MB = 50


def folder_of(count: int, folder: Path) -> list[Path]:
    """Write images of five sizes; the one in the middle is no image."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        paths.append(folder / f"{i:05d}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(small, (320 + 32 * (i % 5), 240)))
    paths[count // 2].write_bytes(b"no image")
    return paths


def main() -> int:
    """Print the figures; return 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", default=str(bundled_dir("MaskSeg-tiny")), help="Model folder.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", default="8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = folder_of(options.images, Path(scratch))
        command = [sys.executable, "-m", "ovseg", "run", "instance_segmentation", "--input", scratch, "--json"]
        command += ["--batch-size", options.batch_size, "--model-dir", options.model_dir, "--device", "cpu"]
        names: list[str] = []
        start = peak = 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            watched = psutil.Process(process.pid)
            for line in process.stdout:
                names.append(json.loads(line)["input_path"])
                resident = watched.memory_info().rss / 1e6
                start = resident if len(names) == WARM_UP else start
                peak = max(peak, resident)
            errors = process.stderr.read()
    good = [str(path) for i, path in enumerate(paths) if i != options.images // 2]
    right = {
        "order kept": names == good,
        "bad image named": errors.count("ovs: ") == 1 and paths[options.images // 2].name in errors,
        "exit status 2": process.returncode == 2,
        f"growth at most {GROWTH_MB} MB": peak - start <= GROWTH_MB,
    }
    print(
        f"{len(names)} of {options.images} images: {start:.0f} MB after {WARM_UP}, at most {peak:.0f} MB later;",
        end=" ",
    )
    print(", ".join(f"{what}: {'yes' if true else 'NO'}" for what, true in right.items()))
    return 0 if all(right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

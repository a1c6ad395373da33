"""100 box prompts on one image against one: the image is encoded once, prompts are decoded in batches."""

from __future__ import annotations

import statistics
import time

import numpy as np

from ovseg import create_pipeline
from ovseg.samples import samples

ROUNDS = 11


def boxes(count: int, height: int, width: int) -> list[list[float]]:
    """Boxes of many sizes all over an image."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.6, (count, 2)) * (width, height)
    size = rng.uniform(0.1, 0.4, (count, 2)) * (width, height)
    return np.hstack([corner, corner + size]).tolist()


def main() -> None:
    """Print the ratio for each sample image."""
    # No embedding is kept, so that each call pays for reading, encoding and decoding.
    pipeline = create_pipeline("open_vocabulary_segmentation", device="cpu", embedding_cache=0)
    for sample in samples():
        with pipeline.open(sample.path) as image:
            height, width = image.segment(boxes=[[0, 0, 50, 50]]).pixels.shape[:2]
        prompts = boxes(100, height, width)
        times: dict[int, list[float]] = {1: [], 100: []}
        for _ in range(ROUNDS):
            for count in times:
                start = time.perf_counter()
                for _ in pipeline.predict(str(sample.path), prompt=prompts[:count], prompt_type="box"):
                    pass
                times[count].append(time.perf_counter() - start)
        one, hundred = (statistics.median(times[count]) * 1e3 for count in times)
        size = f"{width}x{height}"
        print(f"{sample.name} {size}: 1 prompt {one:.1f} ms, 100 prompts {hundred:.1f} ms, ratio {hundred / one:.2f}")


if __name__ == "__main__":
    main()

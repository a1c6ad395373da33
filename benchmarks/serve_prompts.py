"""First and further prompts on an image, by way of a running service: `ovs serve --pipeline ... --port 8080`."""

from __future__ import annotations

import argparse
import base64
import statistics
import time

import cv2
import numpy as np
import requests

from ovseg.samples import samples


def main() -> None:
    """Print the median times of the first prompt on an image and of further ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=10)
    arguments = parser.parse_args()
    session = requests.Session()
    first, further = [], []
    rng = np.random.default_rng()
    source = cv2.imread(str(samples()[0].path))
    for _ in range(arguments.images):
        # A pixel makes it another image.
        source[tuple(rng.integers(0, 300, 2))] = rng.integers(0, 255, 3)
        image = base64.b64encode(cv2.imencode(".png", source)[1].tobytes()).decode()
        for number in range(arguments.prompts):
            x, y = (float(value) for value in rng.uniform(20, 200, 2))
            body = {"image": image, "prompt": [[x, y, x + 150, y + 150]], "prompt_type": "box", "visualize": False}
            started = time.perf_counter()
            session.post(arguments.url + "/open-vocabulary-segmentation", json=body, timeout=600).raise_for_status()
            (further if number else first).append(1000 * (time.perf_counter() - started))
    one, more = statistics.median(first), statistics.median(further)
    print(f"first {one:.0f} ms, further {more:.0f} ms, {one / more:.1f} times")


if __name__ == "__main__":
    main()

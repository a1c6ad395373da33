"""Throughput of two running services with the same weights, ours and PaddleX's, in turns, on the same requests.

paddlex --serve --pipeline paddlex.yaml --port 8081
ovs serve --pipeline ours.yaml --port 8080
python benchmarks/serve_against_paddlex.py PP-ShiTuV2 --ours http://127.0.0.1:8080 --paddlex http://127.0.0.1:8081
"""

from __future__ import annotations

import argparse
import base64
import statistics
import threading
import time
from itertools import count
from typing import Any

import cv2
import numpy as np
import requests

from ovseg.samples import samples

ROUTES = {"instance_segmentation": "/instance-segmentation", "PP-ShiTuV2": "/shitu-infer"}


def pictures(number: int) -> list[str]:
    """Return different pictures, cut from the samples, as JPEG in Base64."""
    rng = np.random.default_rng(0)
    sources = [cv2.imread(str(sample.path)) for sample in samples()]
    made = []
    for i in range(number):
        source = sources[i % len(sources)]
        height, width = source.shape[:2]
        y, x = int(rng.integers(0, height // 3)), int(rng.integers(0, width // 3))
        part = source[y : y + 2 * height // 3, x : x + 2 * width // 3]
        made.append(base64.b64encode(cv2.imencode(".jpg", part)[1].tobytes()).decode())
    return made


def build(url: str, images: list[str]) -> str:
    """Make an index of pictures in a service; return its key."""
    key = ""
    for start in range(0, len(images), 100):
        pairs = [{"image": image, "label": str(i % 50)} for i, image in enumerate(images[start : start + 100])]
        body: dict[str, Any] = {"imageLabelPairs": pairs}
        path = "/shitu-index-add" if key else "/shitu-index-build"
        response = requests.post(url + path, json=body | ({"indexKey": key} if key else {}), timeout=600)
        response.raise_for_status()
        key = key or response.json()["result"]["indexKey"]
    return key


def throughput(url: str, path: str, bodies: list[dict[str, Any]], clients: int, seconds: float) -> float:
    """Return requests a second."""
    numbers = count()
    done = []
    ends = time.perf_counter() + seconds

    def client() -> None:
        session = requests.Session()
        while time.perf_counter() < ends:
            response = session.post(url + path, json=bodies[next(numbers) % len(bodies)], timeout=600)
            response.raise_for_status()
            done.append(time.perf_counter())

    started = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) / (max(done) - started)


def main() -> None:
    """Print the median throughput of each service, and how many times faster ours is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=ROUTES)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--paddlex", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=1000, help="pictures of the index")
    parser.add_argument("--visualize", action="store_true")
    arguments = parser.parse_args()
    urls = {"ours": arguments.ours, "PaddleX": arguments.paddlex}
    queries = pictures(24)
    bodies: dict[str, list[dict[str, Any]]] = {}
    for name, url in urls.items():
        more: dict[str, Any] = {"visualize": arguments.visualize}
        if arguments.pipeline == "PP-ShiTuV2":
            more["indexKey"] = build(url, pictures(arguments.items))
        bodies[name] = [{"image": image} | more for image in queries]
        throughput(url, ROUTES[arguments.pipeline], bodies[name], 2, 2)
    found: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(arguments.rounds):
        for name, url in urls.items():
            route = ROUTES[arguments.pipeline]
            found[name].append(throughput(url, route, bodies[name], arguments.clients, arguments.seconds))
            print(f"{name}: {found[name][-1]:.2f} requests a second", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(
        f"| {arguments.pipeline} | {arguments.clients} | {medians['ours']:.2f} | {medians['PaddleX']:.2f} | "
        f"{medians['ours'] / medians['PaddleX']:.2f} |"
    )


if __name__ == "__main__":
    main()

"""A service under load: clients that send mixed requests, what they are answered, how long it takes, and memory.

Each pipeline has a service and a run of its own. No answer but 200 and 503 is right.
"""

from __future__ import annotations

import argparse
import base64
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import cv2
import numpy as np
import psutil
import requests

from ovseg.samples import samples

ROUTES = {
    "open_vocabulary_segmentation": "/open-vocabulary-segmentation",
    "instance_segmentation": "/instance-segmentation",
    "PP-ShiTuV2": "/shitu-infer",
}


class Load:
    """Requests of one pipeline, and what became of them."""

    def __init__(self, url: str, name: str, key: str | None) -> None:
        self.url, self.name, self.key = url, name, key
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._lock = threading.Lock()
        self._images = [_encoded(sample.path.read_bytes(), scale) for sample in samples() for scale in (1.0, 0.7, 0.4)]

    def send(self, rng: random.Random, session: requests.Session) -> None:
        """Send one request and write down its answer; wait as long as a 503 says."""
        path, body = self._request(rng)
        started = time.perf_counter()
        try:
            response = session.post(self.url + path, json=body, timeout=120)
            status = str(response.status_code)
        except requests.RequestException as error:
            status = type(error).__name__
        seconds = time.perf_counter() - started
        with self._lock:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(seconds)
        if status == "503":
            time.sleep(min(5, int(response.headers["retry-after"])))

    def _request(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        image, width, height = rng.choice(self._images)
        body: dict[str, Any] = {"image": image, "visualize": rng.random() < 0.3}
        if self.name == "open_vocabulary_segmentation":
            kind = rng.choice(["box", "point"])
            count = rng.choice([1, 1, 1, 4, 16])
            body |= {"prompt_type": kind, "prompt": [_prompt(rng, kind, width, height) for _ in range(count)]}
        elif self.name == "instance_segmentation":
            body |= {"threshold": rng.choice([0.3, 0.5, 0.7])}
        elif rng.random() < 0.05:
            pair = {"image": image, "label": str(rng.random())}
            return "/shitu-index-build", {"imageLabelPairs": [pair]}
        else:
            body |= {"indexKey": self.key, "topk": rng.choice([1, 5])}
        return ROUTES[self.name], body


def _encoded(data: bytes, scale: float) -> tuple[str, int, int]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
    return base64.b64encode(encoded).decode(), pixels.shape[1], pixels.shape[0]


def _prompt(rng: random.Random, kind: str, width: int, height: int) -> list[float]:
    x, y = rng.uniform(0, 0.6 * width), rng.uniform(0, 0.6 * height)
    return [x, y] if kind == "point" else [x, y, x + 0.35 * width, y + 0.35 * height]


def measure(config: str, clients: int, seconds: float, options: list[str]) -> None:
    """Run the load on a service of one pipeline and print a row."""
    command = [sys.executable, "-m", "ovseg", "serve", "--pipeline", config, "--port", "0", "--quiet", *options]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    url = service.stdout.readline().strip()
    if not re.match("http://", url):
        raise SystemExit("The service did not start.")
    try:
        name = requests.get(url + "/info", timeout=30).json()["pipelines"][0]["name"]
        load = Load(url, name, _index(url) if name == "PP-ShiTuV2" else None)
        process = psutil.Process(service.pid)
        started = time.monotonic()
        ends = started + seconds

        def client(number: int) -> None:
            rng, session = random.Random(number), requests.Session()
            while time.monotonic() < ends:
                load.send(rng, session)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        # Minute one, or the first third of a short run.
        time.sleep(min(60, seconds / 3))
        early = process.memory_info().rss / 1e6
        peak = early
        while time.monotonic() < ends:
            time.sleep(0.5)
            peak = max(peak, process.memory_info().rss / 1e6)
        late = process.memory_info().rss / 1e6
        for thread in threads:
            thread.join()
        took = time.monotonic() - started
        after = process.memory_info().rss / 1e6
    finally:
        service.terminate()
        service.wait(120)
    p50, p99 = np.percentile(load.seconds, [50, 99]) if load.seconds else (float("nan"),) * 2
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(load.statuses.items()))
    print(
        f"| {name} | {clients} | {took:.0f} | {counts} | {len(load.seconds) / took:.1f} | {p50:.2f} | {p99:.2f} | "
        f"{early:.0f} | {late:.0f} ({100 * (late / early - 1):+.1f} %) | {peak:.0f} | {after:.0f} |",
        flush=True,
    )


def _index(url: str) -> str:
    pairs = [
        {"image": base64.b64encode(sample.path.read_bytes()).decode(), "label": sample.name} for sample in samples()
    ]
    response = requests.post(url + "/shitu-index-build", json={"imageLabelPairs": pairs}, timeout=120)
    return str(response.json()["result"]["indexKey"])


def main() -> None:
    """Print a row of Markdown for each pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipelines", nargs="+", help="names or YAML files")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    arguments, options = parser.parse_known_args()
    print(
        "| pipeline | clients | s | answers | a second | median, s | p99, s | MB after minute one | at the end | "
        "at most | when all is done |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for config in arguments.pipelines:
        measure(config, arguments.clients, arguments.seconds, options)


if __name__ == "__main__":
    main()

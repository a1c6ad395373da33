"""A service in a process of its own, on a real socket, with small models whose answers have a meaning."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import requests
import yaml
from recognition_graphs import write_detector, write_embedder

WAIT = 120.0


def as_base64(pixels: np.ndarray, suffix: str = ".png") -> str:
    return base64.b64encode(cv2.imencode(suffix, pixels)[1].tobytes()).decode("ascii")


@dataclass
class Service:
    """`ovs serve` in a process.

    Attributes:
        process: of the service.
        url: that it printed.
        log: lines of its standard error, as far as they have been read.
        reader: reads them until the process has ended.
    """

    process: subprocess.Popen[str]
    url: str
    log: list[str] = field(default_factory=list)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        assert self.process.stderr is not None
        # Line by line, so that each can be seen at once.
        self.reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True)
        self.reader.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=WAIT)

    def result(self, path: str, **body: Any) -> Any:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()["result"]

    def logged(self, text: str) -> list[str]:
        """Return the lines of the log that hold a text, once there are any: an answer may be faster than its line."""
        end = time.monotonic() + WAIT
        while not (lines := [line for line in self.log if text in line]):
            assert time.monotonic() < end, self.log
            time.sleep(0.01)
        return lines

    def ended(self) -> int:
        """Wait for the process and the last line of its log; return its exit status."""
        status = self.process.wait(WAIT)
        self.reader.join(WAIT)
        return status

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


Start = Callable[..., Service]


@pytest.fixture(scope="session")
def configs(
    tmp_path_factory: pytest.TempPathFactory, sam_folders: dict[str, Path], instance_folders: dict[str, Path]
) -> dict[str, Path]:
    """YAML files of the three pipelines, with small models."""
    folder = tmp_path_factory.mktemp("configs")
    recognition = {
        "Detection": {"model_dir": str(write_detector(folder / "det"))},
        "Recognition": {"model_dir": str(write_embedder(folder / "rec"))},
    }
    sam = {"model_dir": str(sam_folders["general"])}
    modules = {
        "open_vocabulary_segmentation": {"BoxPromptSegmentation": sam, "PointPromptSegmentation": sam},
        "instance_segmentation": {"InstanceSegmentation": {"model_dir": str(instance_folders["batch"])}},
        "PP-ShiTuV2": recognition,
    }
    files = {}
    for name, sub_modules in modules.items():
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"pipeline_name": name, "SubModules": sub_modules}))
    return files


@pytest.fixture(scope="session")
def start(configs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a service with options of `ovs serve`; all three pipelines unless some are named."""
    running: list[Service] = []

    def start_service(
        *options: str,
        pipelines: tuple[str, ...] | None = None,
        home: Path | None = None,
        code: str = "from ovseg.cli import main; import sys; sys.exit(main(sys.argv[1:]))",
    ) -> Service:
        named = [str(configs[name]) for name in (configs if pipelines is None else pipelines)]
        command = [sys.executable, "-c", code, "serve", "--port", "0", "--device", "cpu", "--threads", "1", *options]
        for name in named:
            command += ["--pipeline", name]
        environment = os.environ | {"OVSEG_HOME": str(home or tmp_path_factory.mktemp("home"))}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        service = Service(process, "")
        running.append(service)
        service.url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.url), service.log
        return service

    yield start_service
    for service in running:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait(WAIT)
        assert service.process.stdout is not None
        service.process.stdout.close()


@pytest.fixture(scope="session")
def service(start: Start) -> Service:
    """A service of all three pipelines, shared by the tests that leave it as it was."""
    return start("--max-batch", "4")


@pytest.fixture(scope="session")
def photo() -> str:
    """A picture with some structure, 160x120, as Base64."""
    rng = np.random.default_rng(0)
    return as_base64(cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120)))

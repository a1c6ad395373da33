"""The Python clients of PaddleX's user guides, as they stand there, against a real socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from service_process import Service

CLIENTS = Path(__file__).parent / "guide_clients"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the clients read."""
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(140, 255, (40, 60, 3), dtype=np.uint8), (640, 420))
    names = ["demo", "open_vocabulary_segmentation", *(f"demo{i}" for i in range(5))]
    for i, name in enumerate(names):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), np.roll(picture, 40 * i, axis=1))
    return tmp_path


def run(name: str, folder: Path, service: Service, *mistakes: tuple[str, str]) -> str:
    code = (CLIENTS / f"{name}.txt").read_text("utf-8")
    for address in ("http://localhost:8080", "http://0.0.0.0:8080"):
        code = code.replace(address, service.url)
    for wrong, right in mistakes:
        assert wrong in code
        code = code.replace(wrong, right)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cv2.imread(str(folder / "out.jpg")) is not None
    return done.stdout


def test_open_vocabulary_segmentation(folder: Path, service: Service) -> None:
    printed = run("open_vocabulary_segmentation", folder, service)
    assert "'mask_infos': [{'label': 'box_prompt', 'prompt': [112.9, 118.4, 513.8, 382.1]" in printed


def test_instance_segmentation(folder: Path, service: Service) -> None:
    assert "'categoryName': 'traffic light'" in run("instance_segmentation", folder, service)


def test_image_recognition(folder: Path, service: Service) -> None:
    # The guide lacks a bracket in one line, so that Python would not read its client.
    printed = run("general_image_recognition", folder, service, ('.json()["result"\n', '.json()["result"]\n'))
    counts = [line for line in printed.splitlines() if line.startswith("Number of images indexed")]
    assert counts == [f"Number of images indexed: {count}" for count in (3, 4, 3)]
    assert "recResults" in printed

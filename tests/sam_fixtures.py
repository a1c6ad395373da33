"""Fixtures for what needs a model: small graphs in model folders, and an image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from instance_graphs import KINDS
from instance_graphs import write_folder as write_instance_folder
from sam_graphs import DECODERS, write_folder


@pytest.fixture(scope="session")
def sam_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders with every kind of decoder."""
    base = tmp_path_factory.mktemp("models")
    return {kind: write_folder(base / kind, kind) for kind in DECODERS}


@pytest.fixture(scope="session")
def instance_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders of instance segmentation: in batches, one by one, and without boxes."""
    base = tmp_path_factory.mktemp("instance_models")
    return {kind: write_instance_folder(base / kind, kind) for kind in KINDS}


@pytest.fixture
def pixels() -> np.ndarray:
    """A grey image with a little noise, 120x160."""
    return np.random.default_rng(0).integers(110, 130, (120, 160, 3), dtype=np.uint8)


@pytest.fixture
def image_file(tmp_path: Path, pixels: np.ndarray) -> Path:
    """The same image as a file, alone in its folder."""
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), pixels)
    return path

"""Videos: whole under their names, or not there."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from ovseg import SaveError
from ovseg.results.base import Result
from ovseg.results.video import VideoOutput


class Picture(Result):
    """A frame of noise, which no codec makes small."""

    def __init__(self, number: int) -> None:
        dice = np.random.default_rng(number)
        super().__init__({"input_path": "a.mp4"}, dice.integers(0, 256, (96, 96, 3), dtype=np.uint8))

    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        return {}

    def _print_data(self) -> dict[str, Any]:
        return {}

    def draw(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("fps", [0.5, 24000 / 1001, 25.0, 240.0])
def test_all_frames_are_in_it(tmp_path: Path, suffix: str, count: int, fps: float) -> None:
    path = tmp_path / f"out{suffix}"
    with VideoOutput(path, fps) as video:
        for number in range(count):
            video.add(Picture(number))
    read, frames = cv2.VideoCapture(str(path)), 0
    while read.read()[0]:
        frames += 1
    assert frames == count and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv"])
def test_a_full_disk_leaves_no_part_of_a_video(tmp_path: Path, suffix: str) -> None:
    with (
        files_of_at_most(30_000),
        pytest.raises(SaveError, match=rf"out{suffix} could not be written"),
        VideoOutput(tmp_path / f"out{suffix}") as video,
    ):
        for number in range(20):
            video.add(Picture(number))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "out.avi").mkdir()
    with (
        pytest.raises(SaveError, match=r"out\.avi could not be written: Is a directory"),
        VideoOutput(tmp_path / "out.avi") as video,
    ):
        video.add(Picture(0))
    assert [path.name for path in tmp_path.iterdir()] == ["out.avi"]

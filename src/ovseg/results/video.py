"""Results drawn on frames, as a video."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError, SaveError
from .base import Result

# What OpenCV writes everywhere without further libraries, by the end of the file's name.
_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".mkv": "mp4v"}

_CURE = "Check that the folder can be written to and that the disk has room."


class VideoOutput:
    """Draws results on their frames and writes these as a video; a context manager.

    >>> with VideoOutput("out.mp4", fps=25) as video:  # doctest: +SKIP
    ...     for result in pipeline.predict("street.mp4", prompt=boxes):
    ...         video.add(result)

    Args:
        path: file that ends in .mp4, .avi, .mov or .mkv. It takes its place when all frames are in it.
        fps: frames a second.

    Raises:
        ConfigError: another ending, or frames a second that are not above 0.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = 25.0) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in _CODECS:
            raise ConfigError(f"{self.path} is not a video that can be written.", f"Use {', '.join(_CODECS)}.")
        if not fps > 0:
            raise ConfigError(f"fps is {fps!r}.", "Give a number above 0.")
        self._fps = fps
        self._beside = self.path.with_name(f".{uuid.uuid4().hex}.part{self.path.suffix}")
        self._writer: Any = None
        self._size = (0, 0)
        self._frames = 0

    def add(self, result: Result) -> None:
        """Write the next frame.

        Raises:
            SaveError: the file cannot be written, or the frame has another size than the first.
        """
        frame = cv2.cvtColor(np.asarray(result.draw().convert("RGB")), cv2.COLOR_RGB2BGR)
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self._open(size)
        if size != self._size:
            raise SaveError(
                f"{result.input_name} has {size[0]}x{size[1]} pixels, the video {self._size[0]}x{self._size[1]}.",
                "Give frames of one size.",
            )
        self._writer.write(frame)
        self._frames += 1

    def _open(self, size: tuple[int, int]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._beside.open("xb"):
                pass
        except OSError as error:
            raise SaveError(f"{self.path} could not be written: {error.strerror or error}.", _CURE) from error
        codec = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
        self._writer, self._size = cv2.VideoWriter(str(self._beside), codec, self._fps, size), size
        if not self._writer.isOpened():
            self._writer = None
            raise SaveError(f"OpenCV cannot write {self.path}.", "Use a path that ends in .avi, or save images.")

    def close(self, *, keep: bool = True) -> None:
        """Finish the file; with `keep` it takes its place. Where there was no frame there is no file.

        Raises:
            SaveError: the file cannot be written, such as to a full disk; nothing of it is left behind.
        """
        try:
            if self._writer is not None:
                self._writer.release()
                self._writer = None
                if keep:
                    if not self._is_whole():
                        raise SaveError(f"{self.path} could not be written.", _CURE)
                    self._beside.replace(self.path)
        except OSError as error:
            raise SaveError(f"{self.path} could not be written: {error.strerror or error}.", _CURE) from error
        finally:
            self._beside.unlink(missing_ok=True)

    def _is_whole(self) -> bool:
        """Whether all frames are in the file: OpenCV does not tell of what it could not write."""
        written, found = cv2.VideoCapture(str(self._beside)), 0
        # The head of a file that was cut short may have the number of them all.
        while found < self._frames and written.grab():
            found += 1
        written.release()
        return found == self._frames

    def __enter__(self) -> VideoOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(keep=kind is None)

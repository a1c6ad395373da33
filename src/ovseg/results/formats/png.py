"""Masks as PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..base import Result
from ..saving import atomic_write
from .base import Writer, image_size, objects_of


class PngBinary(Writer):
    """`NAME_0.png`, `NAME_1.png`, ...: 255 where the object is, 0 elsewhere."""

    def add(self, result: Result) -> None:
        """Write the masks of one image."""
        stem = self.stem(result)
        for i, item in enumerate(objects_of(result)):
            _write(self.folder / f"{stem}_{i}.png", item.mask.astype(np.uint8) * 255)


class PngIndex(Writer):
    """`NAME_index.png`: 0 for the background, 1 for the first object, ...; the last one is on top.

    The file has 8 bits, and 16 where there are more than 255 objects.
    """

    def add(self, result: Result) -> None:
        """Write the picture of one image."""
        index = np.zeros(image_size(result), dtype=np.uint16)
        count = 0
        for count, item in enumerate(objects_of(result), start=1):
            index[item.mask > 0] = count
        if count <= 255:
            index = index.astype(np.uint8)
        _write(self.folder / f"{self.stem(result)}_index.png", index)


class PngCutOut(Writer):
    """`NAME_0_cutout.png`, ...: each object cut to its box, transparent outside."""

    def add(self, result: Result) -> None:
        """Write the cut-outs of one image."""
        stem = self.stem(result)
        for i, item in enumerate(objects_of(result)):
            x1, y1, x2, y2 = (int(side) for side in item.box)
            part = result.pixels[y1:y2, x1:x2]
            alpha = item.mask[y1:y2, x1:x2].astype(np.uint8) * 255
            _write(self.folder / f"{stem}_{i}_cutout.png", np.dstack([part, alpha]))


def _write(path: Path, pixels: np.ndarray) -> None:
    encoded = cv2.imencode(".png", pixels)[1]
    with atomic_write(path) as file:
        file.write(encoded.tobytes())

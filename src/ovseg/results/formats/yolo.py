"""YOLO's segmentation labels: one text file for each image, and `data.yaml` with the names of the classes."""

from __future__ import annotations

import logging
import os

import cv2
import numpy as np
import yaml

from ...stages.polygons import join_outlines, mask_contours
from ..base import Result
from ..saving import atomic_write
from .base import Classes, Writer, image_size, objects_of

logger = logging.getLogger("ovseg")


class YoloSegmentation(Writer):
    """`class x1 y1 x2 y2 ...` on one line for each object, as parts of width and height.

    The format has one polygon for each object: holes and further parts are joined to it by bridges of no width,
    which tools that draw with OpenCV draw one pixel wide. Where that costs an object more than a hundredth of its
    IoU, a warning says so. Objects of fewer than three corners are single pixels or lines; their corners are repeated.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._classes = Classes()

    def add(self, result: Result) -> None:
        """Write the file of one image."""
        height, width = image_size(result)
        lines = []
        for number, item in enumerate(objects_of(result)):
            # Nothing of the outline, bridges included, is outside of the mask's box.
            x1, y1, x2, y2 = (int(side) for side in item.box)
            mask = item.mask[y1:y2, x1:x2]
            outlines = [outline for ring, holes in mask_contours(mask) for outline in (ring, *holes)]
            corners = join_outlines(outlines, mask)
            if (iou := _drawn_iou(corners, mask)) < 0.99:
                logger.warning(
                    "%s: object %d is in parts far from each other, and YOLO's one polygon for them has an IoU of %.3f "
                    "with the mask. Formats like coco keep it whole.",
                    result.input_name,
                    number,
                    iou,
                )
            corners = (corners if len(corners) >= 3 else np.resize(corners, (3, 2))) + (x1, y1)
            # Some tools round down and some to nearest: a quarter more gives both the pixel back.
            shares = (corners + 0.25) / (width, height)
            lines.append(f"{self._classes.number(item.label)} " + " ".join(f"{v:.7g}" for v in shares.reshape(-1)))
        with atomic_write(self.folder / "labels" / f"{self.stem(result)}.txt") as file:
            file.write("".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        """Write the names of the classes."""
        names = self._classes.names
        with atomic_write(self.folder / "data.yaml") as file:
            data = {"train": "images", "val": "images", "nc": len(names), "names": names}
            file.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def _drawn_iou(corners: np.ndarray, mask: np.ndarray) -> float:
    """IoU of a mask with its polygon as OpenCV draws it."""
    drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [corners.astype(np.int32)], 1) > 0
    return np.count_nonzero(drawn & (mask > 0)) / np.count_nonzero(drawn | (mask > 0))

"""labelme's JSON: one file for each image."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...stages.polygons import mask_contours
from ..base import Result
from ..saving import atomic_write, write_json
from .base import Annotation, Writer, image_size, objects_of


class Labelme(Writer):
    """Polygons, which can be edited; a mask with holes, or of a line's width, is a shape of the type `mask`.

    The parts of one object share a `group_id`. Where the input is no file, the picture is in the JSON.
    """

    def add(self, result: Result) -> None:
        """Write the file of one image."""
        height, width = image_size(result)
        stem = self.stem(result)
        shapes = [shape for i, item in enumerate(objects_of(result)) for shape in _shapes(item, i)]
        path = str(result.get("input_path") or "")
        is_file = bool(path) and result.get("page_index") is result.get("frame_index") is None and Path(path).is_file()
        data: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(path, self.folder) if is_file else f"{stem}.png",
            "imageData": None if is_file else _png_base64(result.pixels),
            "imageHeight": height,
            "imageWidth": width,
        }
        with atomic_write(self.folder / f"{stem}.json") as file:
            write_json(file, data, indent=2)


def _shapes(item: Annotation, number: int) -> list[dict[str, Any]]:
    parts = mask_contours(item.mask)
    common: dict[str, Any] = {
        "label": item.label,
        "group_id": number if len(parts) > 1 else None,
        "description": "" if item.score is None else f"score {item.score:.4f}",
        "flags": {},
    }
    if any(holes or len(contour) < 3 for contour, holes in parts):
        x1, y1, x2, y2 = (int(side) for side in item.box)
        cut = item.mask[y1:y2, x1:x2].astype(np.uint8) * 255
        corners = [[float(x1), float(y1)], [float(x2 - 1), float(y2 - 1)]]
        return [{**common, "group_id": None, "points": corners, "shape_type": "mask", "mask": _png_base64(cut)}]
    return [
        {**common, "points": contour.astype(float).tolist(), "shape_type": "polygon", "mask": None}
        for contour, _ in parts
    ]


def _png_base64(pixels: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode("ascii")

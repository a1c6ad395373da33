"""COCO's annotations of instances: one `annotations.json` for all images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...stages.masks import encode_rle
from ...stages.polygons import join_outlines, mask_rings
from ..base import Result
from ..saving import atomic_write, write_json
from .base import Classes, Writer, image_size, objects_of


class CocoRle(Writer):
    """COCO with run lengths: exact. `category_id` counts from 1; `file_name` is the name of the input."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._classes = Classes()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Keep the objects of a result, as run lengths or polygons."""
        height, width = image_size(result)
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": result.input_name, "width": width, "height": height})
        for item in objects_of(result):
            # Run lengths only are certain to be whole: `iscrowd` 0 with them is what pycocotools and most tools read.
            found = {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": self._classes.number(item.label) + 1,
                "segmentation": self._segmentation(item.mask),
                "area": int(np.count_nonzero(item.mask)),
                "bbox": item.box_xywh,
                "iscrowd": 0,
            }
            self._annotations.append(found if item.score is None else found | {"score": item.score})

    def close(self) -> None:
        """Write the file."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self._classes.names, start=1)]
        data = {"images": self._images, "annotations": self._annotations, "categories": categories}
        with atomic_write(self.folder / "annotations.json") as file:
            write_json(file, data, indent=None)

    def _segmentation(self, mask: np.ndarray) -> Any:
        return encode_rle([mask])[0]


class CocoPolygons(CocoRle):
    """COCO with polygons along the edges of the pixels; a hole is joined to its outline by a bridge of no width."""

    def _segmentation(self, mask: np.ndarray) -> Any:
        return [join_outlines([ring, *holes]).astype(float).reshape(-1).tolist() for ring, holes in mask_rings(mask)]

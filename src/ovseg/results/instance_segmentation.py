"""Result of the pipeline instance_segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

from ..stages.detection import rounded_boxes
from ..stages.masks import encode_rle, mask_polygons
from .base import Result
from .drawing import draw_instances
from .open_vocabulary_segmentation import check_mask_format


class InstanceSegmentationResult(Result):
    """Objects of one image.

    It has the keys `input_path`, `page_index`, `boxes` (for each object its `cls_id`, `label`, `score` and
    `coordinate`, [xmin, ymin, xmax, ymax] in pixels of the image) and `masks` (for each object an HxW int8
    array of 0 and 1, in the size of the image). Both lists are empty where nothing was found.

    Args:
        data: these keys.
        pixels: HxWx3 uint8 BGR.
        mask_format: how JSON holds the masks: "list" (nested lists, as PaddleX: each cropped to its rounded
            box) or "rle" (COCO run lengths of the whole image, `{"size": [H, W], "counts": str}`).
        crop_in_json: False for SOLOv2, whose masks PaddleX does not crop.
    """

    def __init__(
        self,
        data: dict[str, Any],
        pixels: np.ndarray,
        mask_format: str = "list",
        *,
        crop_in_json: bool = True,
    ) -> None:
        super().__init__(data, pixels)
        self.mask_format = check_mask_format(mask_format)
        self.crop_in_json = crop_in_json

    def crop(self) -> list[np.ndarray]:
        """Return each mask cropped to its rounded box, as PaddleX has it: views, nothing is copied."""
        boxes = rounded_boxes(np.array([box["coordinate"] for box in self["boxes"]]))
        return [mask[y1:y2, x1:x2] for mask, (x1, y1, x2, y2) in zip(self["masks"], boxes.tolist(), strict=True)]

    def rle(self) -> list[dict[str, Any]]:
        """Return each mask as COCO's run lengths of the whole image, `{"size": [H, W], "counts": str}`."""
        return encode_rle(self["masks"])

    def polygons(self) -> list[list[list[float]]]:
        """Return the outlines of each mask as COCO's polygons, [x1, y1, x2, y2, ...], without holes."""
        return [mask_polygons(mask) for mask in self["masks"]]

    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        mask_format = self.mask_format if mask_format is None else check_mask_format(mask_format)
        if mask_format == "rle":
            return {**self, "masks": self.rle()}
        return {**self, "masks": self.crop()} if self.crop_in_json else dict(self)

    def _print_data(self) -> dict[str, Any]:
        return {**self, "masks": "..."}

    def draw(self) -> PIL.Image.Image:
        """Return the image with the objects drawn on it."""
        return draw_instances(self.pixels, self["masks"], self["boxes"])

"""Result of the pipeline open_vocabulary_segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

from ..errors import ConfigError
from ..stages.masks import encode_rle
from .base import Result
from .drawing import draw_prompted_masks

MASK_FORMATS = ("list", "rle")


def check_mask_format(mask_format: str) -> str:
    """Return `mask_format` if it is "list" or "rle".

    Raises:
        ConfigError: if it is something else.
    """
    if mask_format not in MASK_FORMATS:
        raise ConfigError(f"The mask format {mask_format!r} is not known.", 'Use "list" or "rle".')
    return mask_format


class OpenVocabularySegmentationResult(Result):
    """Masks of one image, one for each prompt.

    It has the keys `input_path`, `page_index`, `prompts` ({"box_prompt": [...]} or {"point_prompt": [...]}),
    `masks` (a list of HxW int8 arrays of 0 and 1, in the size of the image) and `mask_infos` (for each mask
    its `label`, "box_prompt" or "point_prompt", and its `prompt`).

    Args:
        data: these keys.
        pixels: HxWx3 uint8 BGR.
        mask_format: how JSON holds the masks: "list" (nested lists, as PaddleX) or "rle" (COCO run lengths,
            `{"size": [H, W], "counts": str}`, a thousandth of the size).
        scores: for each mask the IoU that the model expects it to have with the true one; None where the model
            does not tell. It is not among the keys, which are PaddleX's.
    """

    def __init__(
        self,
        data: dict[str, Any],
        pixels: np.ndarray,
        mask_format: str = "list",
        *,
        scores: list[float] | None = None,
    ) -> None:
        super().__init__(data, pixels)
        self.scores = scores
        self.mask_format = check_mask_format(mask_format)

    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        mask_format = self.mask_format if mask_format is None else check_mask_format(mask_format)
        return {**self, "masks": encode_rle(self["masks"]) if mask_format == "rle" else self["masks"]}

    def _print_data(self) -> dict[str, Any]:
        return {**self, "masks": "..."}

    def draw(self) -> PIL.Image.Image:
        """Return the image with masks and prompts drawn on it."""
        return draw_prompted_masks(self.pixels, self["masks"], self["mask_infos"])

"""Result of the pipeline PP-ShiTuV2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from ..index import Matches
from .base import Result
from .drawing import draw_recognised


class ImageRecognitionResult(Result):
    """Objects of one image, recognised by the items of an index that are nearest to them.

    It has the keys `input_path`, `page_index` and `boxes`: for each object its `labels` and `rec_scores` (of the
    nearest items, nearest first; both `[None]` where even the nearest is too far), `det_score`, and `coordinate`,
    [xmin, ymin, xmax, ymax] in pixels of the image. Where nothing was detected, the whole image is the one object,
    with the `det_score` 0.

    Args:
        data: these keys.
        pixels: HxWx3 uint8 BGR.
        matches: for each object the items that were found, with their ids and metadata; `matches[i].vote()` counts
            the labels.

    Attributes:
        matches: as given.
    """

    def __init__(self, data: dict[str, Any], pixels: np.ndarray, matches: Sequence[Matches]) -> None:
        super().__init__(data, pixels)
        self.matches = list(matches)

    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        return dict(self)

    def _print_data(self) -> dict[str, Any]:
        return dict(self)

    def draw(self) -> PIL.Image.Image:
        """Return the image with the objects' boxes and nearest labels drawn on it."""
        return draw_recognised(self.pixels, self["boxes"], [m.ids[0] if m.ids else None for m in self.matches])

"""Segmentation prompted by a picture: which regions of an image look like an example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from ..stages.embedding import crop
from ..stages.masks import decode_rle
from .embedder import Embedder
from .everything import Region

# What lies around an object tells of it as well; and a box that is cut close has lost its edges.
_MARGIN = 0.05
_GREY = 128
BACKGROUNDS = ("keep", "grey")

SETTINGS = {"points_per_side": 16, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.4, "box_nms_thresh": 0.8}
"""Everything mode's settings here, if not given: few masks are dropped, as what is not like the example goes last."""


def rank_like(
    embedder: Embedder, pixels: np.ndarray, regions: Sequence[Region], example: np.ndarray, *, background: str = "keep"
) -> list[tuple[Region, float]]:
    """Return regions with their cosine similarity to an example, the most similar first.

    Args:
        embedder: a feature model, such as ShiTu's.
        pixels: HxWx3 uint8 BGR, the image of the regions.
        regions: what everything mode found.
        example: hxwx3 uint8 BGR.
        background: what a region shows around its mask: "keep" (the image) or "grey".

    Raises:
        ConfigError: `background` is something else.
    """
    if background not in BACKGROUNDS:
        raise ConfigError(f"The background {background!r} is not known.", f"Use {' or '.join(BACKGROUNDS)}.")
    if not regions:
        return []
    views = [_view(pixels, region, background) for region in regions]
    embeddings = embedder.embed([example, *views])
    similarities = embeddings[1:] @ embeddings[0]
    order = np.argsort(-similarities, kind="stable")
    return [(regions[i], float(similarities[i])) for i in order]


def _view(pixels: np.ndarray, region: Region, background: str) -> np.ndarray:
    x1, y1, x2, y2 = region.box
    margin_x, margin_y = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    box = [x1 - margin_x, y1 - margin_y, x2 + 1 + margin_x, y2 + 1 + margin_y]
    if background == "keep":
        return crop(pixels, box)
    mask = decode_rle([region.rle])[0]
    outside = crop(mask[..., None], box)[..., 0] == 0
    view = crop(pixels, box).copy()
    view[outside] = _GREY
    return view

"""Segmentation prompted by a picture: which regions of an image look like an example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..stages.embedding import crop
from ..stages.masks import decode_rle
from .embedder import Embedder
from .everything import Region

# What lies around an object tells of it as well; and a box that is cut close has lost its edges.
_MARGIN = 0.1
_GREY = 128
# Of two regions that look alike, the one that the model believes in is more often a whole object.
_TRUST = 0.2

SETTINGS = {"points_per_side": 16, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.4, "box_nms_thresh": 0.8}
"""Everything mode's settings here, if not given: few masks are dropped, as what is not like the example goes last."""


def rank_like(
    embedder: Embedder, pixels: np.ndarray, regions: Sequence[Region], example: np.ndarray, mask: np.ndarray
) -> list[tuple[Region, float]]:
    """Return regions with their similarity to an example, what is most like it first.

    Each is seen twice, with what lies around it and without; the similarity is the mean of both cosines. In the order
    the predicted IoU counts a little too.

    Args:
        embedder: a feature model, such as ShiTu's.
        pixels: HxWx3 uint8 BGR, the image of the regions.
        regions: what everything mode found.
        example: hxwx3 uint8 BGR.
        mask: hxw of 0 and 1, the object in the example.
    """
    if not regions:
        return []
    seen = _views(example, mask)
    for region in regions:
        seen += _views(pixels, decode_rle([region.rle])[0])
    embeddings = embedder.embed(seen).reshape(len(regions) + 1, 2, -1)
    similarities = (embeddings[1:] * embeddings[0]).sum(2).mean(1)
    trust = np.array([region.predicted_iou or 0.0 for region in regions])
    order = np.argsort(-(similarities + _TRUST * trust), kind="stable")
    return [(regions[i], float(similarities[i])) for i in order]


def _views(pixels: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """What is in a mask's box, with its surroundings and on grey."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    margin_x, margin_y = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    box = [x1 - margin_x, y1 - margin_y, x2 + margin_x, y2 + margin_y]
    kept = crop(pixels, box)
    grey = kept.copy()
    grey[crop(np.ascontiguousarray(mask)[..., None], box)[..., 0] == 0] = _GREY
    return [kept, grey]

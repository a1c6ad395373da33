"""Segmenting everything: grids of points, crops, and what tells good masks from bad and from each other.

After Kirillov et al., "Segment Anything" (2023), appendix B: automatic mask generation.
"""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np


def point_grid(points_per_side: int) -> np.ndarray:
    """Return a grid of points over the unit square.

    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]

    Returns:
        N²x2 float64 (x, y), the cell centres row by row.
    """
    side = (np.arange(points_per_side) + 0.5) / points_per_side
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def crop_boxes(height: int, width: int, layers: int, overlap: float) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return the whole image and the crops of each layer: 2x2 of them in the first, 4x4 in the second, ...

    Args:
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        layers: number of layers of crops; 0 gives the whole image alone.
        overlap: what neighbours of the first layer share, as a part of the short side; half of that in the
            second layer, and so on.

    Returns:
        (layer, (x1, y1, x2, y2)) each; layer 0 is the whole image.
    """
    found = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(height, width) * (2 / count))
        crop_width, crop_height = (math.ceil((shared * (count - 1) + side) / count) for side in (width, height))
        for column, row in itertools.product(range(count), repeat=2):
            x, y = (crop_width - shared) * column, (crop_height - shared) * row
            # An image of fewer pixels than crops has none for the last ones.
            if x < width and y < height:
                found.append((layer, (x, y, min(x + crop_width, width), min(y + crop_height, height))))
    return found


def stability_score(logits: np.ndarray, offset: float) -> float:
    """Return how little a mask changes with its threshold: IoU of the masks at `offset` and at `-offset`.

    Args:
        logits: HxW float32.
        offset: logits above and below 0.

    Returns:
        0 to 1; 0 where the larger mask is empty.
    """
    inner = np.count_nonzero(logits > offset)
    outer = np.count_nonzero(logits > -offset)
    return float(inner / outer) if outer else 0.0


def near_crop_edge(box: tuple[int, int, int, int], crop: tuple[int, int, int, int], height: int, width: int) -> bool:
    """Whether a mask probably goes on outside of its crop: it comes near an edge that is not the image's.

    Args:
        box: (x1, y1, x2, y2) of the mask, in pixels of the crop, the last ones inside it.
        crop: (x1, y1, x2, y2) of the crop, in pixels of the image.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """
    near = 20
    x, y = crop[:2]
    corners = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
    return any(
        abs(side - edge) <= near < abs(side - end)
        for side, edge, end in zip(corners, crop, (0, 0, width, height), strict=True)
    )


def suppress_overlaps(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression: keep a box unless one with a higher score overlaps it.

    Args:
        boxes: Nx4 (x1, y1, x2, y2).
        scores: N; of equal ones the first wins.
        threshold: IoU above which the lower one goes.

    Returns:
        The numbers of those that stay, from the highest score down.
    """
    boxes = boxes.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        corner1, corner2 = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = np.clip(corner2 - corner1, 0, None).prod(axis=1)
        # Both may be without area; then they do not overlap.
        union = np.maximum(areas[first] + areas[rest] - shared, np.finfo(np.float32).tiny)
        order = rest[shared / union <= threshold]
    return np.asarray(kept, dtype=np.int64)


def fill_and_drop_small(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask and drop its parts that have fewer than `min_area` pixels.

    Where all parts are smaller the largest stays.

    Args:
        mask: HxW uint8 or int8 of 0 and 1.
        min_area: pixels.

    Returns:
        The mask, HxW uint8, and whether it changed.
    """
    mask = np.ascontiguousarray(mask).view(np.uint8)
    changed = False
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask ^ 1, connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False
    if small.any():
        mask, changed = mask | small[regions].astype(np.uint8), True
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False
    if small.any():
        keep = ~small
        keep[0] = False
        if not keep.any():
            keep[1 + int(stats[1:count, cv2.CC_STAT_AREA].argmax())] = True
        mask, changed = keep[regions].astype(np.uint8), True
    return mask, changed

"""Outlines of masks as polygons, and polygons as masks.

Formats draw polygons in two ways. A *ring* runs along the edges of the pixels, and a pixel belongs to it if its
centre is inside: so COCO and GIS tools read polygons, and a ring gives the mask back to the pixel. A *contour* runs
through the centres of the outermost pixels, which belong to it: so OpenCV and Pillow draw polygons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np


def mask_rings(mask: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Return the outlines of a mask along the edges of its pixels.

    Args:
        mask: HxW array of 0 and 1 (bool or 8-bit).

    Returns:
        For each part (pixels that touch at a side) its outer ring and the rings of its holes, each Kx2 int64
        (x, y), the corners of pixels, closed without repeating the first. Outer rings run clockwise as one sees
        them, holes the other way round.
    """
    filled = np.pad(np.ascontiguousarray(mask).view(np.uint8), 1)
    rings = _trace(filled)
    outer = [ring for ring in rings if _area(ring) > 0]
    holes = [ring for ring in rings if _area(ring) < 0]
    if not holes:
        return [(ring, []) for ring in outer]
    _, parts = cv2.connectedComponents(filled, connectivity=4)
    owners: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
    for ring in outer:
        owners[_part_beside(ring, parts)] = (ring, [])
    for ring in holes:
        owners[_part_beside(ring, parts)][1].append(ring)
    return list(owners.values())


def _trace(filled: np.ndarray) -> list[np.ndarray]:
    """Walk along the edges of a padded mask with the mask on the right; return the corners of each walk."""
    diff_rows = np.diff(filled.astype(np.int8), axis=0)  # between rows: 1 is the top of a pixel, -1 the bottom
    diff_columns = np.diff(filled.astype(np.int8), axis=1)
    after: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    # A pixel at (row y, column x) of the padded mask covers x-1..x and y-1..y of the mask's own corners.
    for y, x in np.argwhere(diff_rows == 1).tolist():
        after[(x - 1, y)].append((x, y))
    for y, x in np.argwhere(diff_rows == -1).tolist():
        after[(x, y)].append((x - 1, y))
    for y, x in np.argwhere(diff_columns == 1).tolist():
        after[(x, y)].append((x, y - 1))
    for y, x in np.argwhere(diff_columns == -1).tolist():
        after[(x, y - 1)].append((x, y))
    rings = []
    while after:
        start = next(iter(after))
        here, heading, corners = start, (0, 0), []
        while True:
            ways = after[here]
            # Where two pixels touch at a corner, turning right keeps to the same pixel.
            way = min(ways, key=lambda to: _turn(heading, (to[0] - here[0], to[1] - here[1])))
            ways.remove(way)
            if not ways:
                del after[here]
            step = (way[0] - here[0], way[1] - here[1])
            if step != heading:
                corners.append(here)
            here, heading = way, step
            if here == start:
                break
        first = (corners[1][0] - corners[0][0], corners[1][1] - corners[0][1])
        if first[0] * heading[1] == first[1] * heading[0]:
            # The walk began in the middle of a side.
            corners = corners[1:]
        rings.append(np.array(corners, dtype=np.int64))
    return rings


def _turn(heading: tuple[int, int], step: tuple[int, int]) -> int:
    """0 for a turn to the right (y points down), 1 straight on, 2 to the left."""
    cross = heading[0] * step[1] - heading[1] * step[0]
    return 1 - cross


def _area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _part_beside(ring: np.ndarray, parts: np.ndarray) -> int:
    """Number of the part that lies to the right of a ring's first side."""
    (x1, y1), (x2, y2) = ring[0].tolist(), ring[1].tolist()
    if y1 == y2:
        column, row = (min(x1, x2), y1 if x2 > x1 else y1 - 1)
    else:
        column, row = (x1 - 1 if y2 > y1 else x1, min(y1, y2))
    return int(parts[row + 1, column + 1])


def mask_contours(mask: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Return the outlines of a mask through the centres of its outermost pixels.

    Args:
        mask: HxW array of 0 and 1 (bool or 8-bit).

    Returns:
        For each part (pixels that touch at a side or corner) its outer contour and those of its holes, each
        Kx2 int64 (x, y); K is 1 for a single pixel.
    """
    found, tree = cv2.findContours(np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
    contours = [contour.reshape(-1, 2).astype(np.int64) for contour in found]
    parents = [] if tree is None else tree[0][:, 3].tolist()
    for i, (contour, parent) in enumerate(zip(contours, parents, strict=True)):
        if parent < 0:
            parts[i] = (contour, [])
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0:
            parts[parent][1].append(contour)
    return list(parts.values())


def join_outlines(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """Join outlines to one by bridges of no width, where they are nearest: for formats with one polygon each.

    Args:
        outlines: Kx2 each: parts and holes.

    Returns:
        Kx2, one closed outline.
    """
    joined = outlines[0]
    rest = list(outlines[1:])
    while rest:
        # The nearest of the others first, so that bridges are short.
        pairs = [_nearest(joined, other) for other in rest]
        index = int(np.argmin([distance for distance, _, _ in pairs]))
        _, i, j = pairs[index]
        other = rest.pop(index)
        detour = np.concatenate([joined[: i + 1], other[j:], other[: j + 1], joined[i:]])
        joined = detour
    return joined


def _nearest(one: np.ndarray, other: np.ndarray) -> tuple[float, int, int]:
    """Distance and numbers of the two corners that are nearest to each other."""
    best = (np.inf, 0, 0)
    # In slices, as outlines may have thousands of corners.
    for start in range(0, len(one), 256):
        gaps = one[start : start + 256, None, :] - other[None, :, :]
        distances = (gaps * gaps).sum(axis=2)
        flat = int(distances.argmin())
        i, j = divmod(flat, len(other))
        if distances[i, j] < best[0]:
            best = (float(distances[i, j]), start + i, j)
    return best

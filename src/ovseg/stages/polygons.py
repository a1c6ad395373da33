"""Outlines of masks as polygons, and polygons as masks.

Formats draw polygons in two ways. A *ring* runs along the edges of the pixels, and a pixel belongs to it if its
centre is inside: so COCO and GIS tools read polygons, and a ring gives the mask back to the pixel. A *contour* runs
through the centres of the outermost pixels, which belong to it: so OpenCV and Pillow draw polygons.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np


def mask_rings(mask: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Return the outlines of a mask along the edges of its pixels.

    Args:
        mask: HxW array of 0 and 1 (bool or 8-bit).

    Returns:
        For each part (pixels that touch at a side) its outer ring and the rings of its holes, each Kx2 int64
        (x, y), the corners of pixels, closed without repeating the first. Outer rings run clockwise as one sees
        them, holes the other way round. No ring comes by a corner twice; two may meet at one.
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
        here, heading = next(iter(after)), (0, 0)
        walk: dict[tuple[int, int], None] = {here: None}
        while True:
            ways = after[here]
            # Where two pixels touch at a corner, turning right keeps to the same pixel.
            way = min(ways, key=lambda to: _turn(heading, (to[0] - here[0], to[1] - here[1])))
            ways.remove(way)
            if not ways:
                del after[here]
            here, heading = way, (way[0] - here[0], way[1] - here[1])
            if here in walk:
                # A walk that comes by a corner again has closed a ring there, and may go on.
                ring = [here]
                while (last := walk.popitem()[0]) != here:
                    ring.append(last)
                rings.append(_corners(np.array(ring[::-1], dtype=np.int64)))
                if not walk:
                    break
            walk[here] = None
    return rings


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out the points of a ring between two steps in one direction."""
    steps = np.roll(ring, -1, axis=0) - ring
    found: np.ndarray = ring[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    return found


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


def join_outlines(outlines: Sequence[np.ndarray], mask: np.ndarray | None = None) -> np.ndarray:
    """Join outlines to one by bridges of no width, for formats with one polygon each.

    Together the bridges are about as short as any that connect all: a minimum spanning tree of neighbours.

    Args:
        outlines: Kx2 integers each, parts and holes. Sides are level, upright or diagonal, as those of
            `mask_rings` and `mask_contours`.
        mask: HxW array of 0 and 1 that the outlines are the contours of, for tools that draw a bridge one pixel
            wide: parts that have fewer pixels than their bridge would add are left out then.

    Returns:
        Kx2 int64, one closed outline.
    """
    if len(outlines) == 1:
        return outlines[0]
    paths = [_every_point(outline) for outline in outlines]
    owners = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
    points = np.concatenate(paths)
    bridges = _shortest_bridges(points, owners)
    first = 0
    if mask is not None:
        first, bridges = _worthwhile_bridges(bridges, points, owners, mask)
    return _without_needless(points[_walk(bridges, owners, first)])


def _every_point(outline: np.ndarray) -> np.ndarray:
    """All points with whole coordinates along an outline, from corner to corner."""
    steps = np.roll(outline, -1, axis=0) - outline
    counts = np.maximum(np.abs(steps).max(axis=1), 1)
    sides = np.repeat(np.arange(len(outline)), counts)
    along = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    points: np.ndarray = outline[sides] + np.sign(steps)[sides] * along[:, None]
    return points


def _shortest_bridges(points: np.ndarray, owners: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of numbers of points that connect all outlines with the least length of bridges.

    Neighbours in the plane are found where the areas meet of what is nearest to an outline.

    Args:
        points: Nx2 integers, those of all outlines.
        owners: N, the number of the outline of each.
    """
    x, y = (points - points.min(axis=0)).T
    at = np.full((y.max() + 1, x.max() + 1), -1, dtype=np.int32)
    at[y, x] = np.arange(len(points))
    _, labels = cv2.distanceTransformWithLabels(
        (at < 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    seeds = np.empty(labels.max() + 1, dtype=np.int32)
    seeds[labels[at >= 0]] = at[at >= 0]
    nearest = seeds[labels]
    areas = owners.astype(np.int32)[nearest]
    # Where outlines share a point, only the last of them is in `at`.
    pairs = [np.stack([np.arange(len(points)), at[y, x]])]
    for here, beside in (((slice(None), slice(-1)), (slice(None), slice(1, None))), (slice(-1), slice(1, None))):
        meet = areas[here] != areas[beside]
        pairs.append(np.stack([nearest[here][meet], nearest[beside][meet]]))
    first, second = np.concatenate(pairs, axis=1)
    lengths = np.abs(points[first] - points[second]).max(axis=1)
    group = list(range(owners[-1] + 1))
    bridges = []
    for i in np.argsort(lengths, kind="stable").tolist():
        one, other = _group_of(group, int(owners[first[i]])), _group_of(group, int(owners[second[i]]))
        if one != other:
            group[one] = other
            bridges.append((int(first[i]), int(second[i])))
            if len(bridges) == len(group) - 1:
                break
    return bridges


def _group_of(group: list[int], item: int) -> int:
    while group[item] != item:
        group[item] = group[group[item]]
        item = group[item]
    return item


def _worthwhile_bridges(
    bridges: Sequence[tuple[int, int]], points: np.ndarray, owners: np.ndarray, mask: np.ndarray
) -> tuple[int, list[tuple[int, int]]]:
    """Choose the outline to start from, and the bridges that bring more pixels of the mask than they add to it."""
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
    )
    # The outline of a hole lies on the part around it, whose pixels count for the outer one, which comes first.
    starts = points[np.searchsorted(owners, np.arange(owners[-1] + 1))]
    outlined, firsts = np.unique(_at(parts, starts), return_index=True)
    pixels = np.zeros(owners[-1] + 1, dtype=np.int64)
    pixels[firsts] = statistics[outlined, cv2.CC_STAT_AREA]
    across: dict[int, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
    for bridge in bridges:
        one, other = (int(owners[point]) for point in bridge)
        across[one].append((other, bridge))
        across[other].append((one, bridge))
    root = int(np.argmax(pixels))
    order = [(root, -1, (0, 0))]  # outline, that from which it is reached, over which bridge
    for outline, parent, _ in order:
        order += [(other, outline, bridge) for other, bridge in across[outline] if other != parent]
    kept = []
    for outline, parent, bridge in order[:0:-1]:
        start, end = points[list(bridge)]
        between = np.rint(np.linspace(start, end, np.abs(end - start).max() + 1)).astype(np.int64)
        gain = pixels[outline] - (_at(mask, between) == 0).sum()
        if gain >= 0:
            pixels[parent] += gain
            kept.append(bridge)
    return root, kept


def _at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    found: np.ndarray = image[points[:, 1], points[:, 0]]
    return found


def _walk(bridges: Sequence[tuple[int, int]], owners: np.ndarray, first: int) -> list[int]:
    """Return the numbers of points on the way around all outlines, over each bridge there and back."""
    across: dict[int, list[int]] = defaultdict(list)
    for one, other in bridges:
        across[one].append(other)
        across[other].append(one)
    starts = np.searchsorted(owners, np.arange(owners[-1] + 2)).tolist()

    def around(entry: int) -> Iterator[int]:
        start, end = starts[owners[entry]], starts[owners[entry] + 1]
        return itertools.chain(range(entry, end), range(start, entry + 1))

    way: list[int] = []
    been = {first}
    todo = [around(starts[first])]
    while todo:
        for point in todo[-1]:
            way.append(point)
            found = [other for other in across.get(point, ()) if int(owners[other]) not in been]
            if found:
                been.add(int(owners[found[0]]))
                # The point comes again after each visit, as there may be more to visit from here.
                todo += [iter([point]), around(found[0])]
                break
        else:
            todo.pop()
    return way


def _without_needless(points: np.ndarray) -> np.ndarray:
    """Leave out points that are repeated, and those between two steps of one pixel that go on straight."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    needless = (before == after).all(axis=1) & (np.abs(before).max(axis=1) == 1)
    kept: np.ndarray = points[~needless]
    return kept

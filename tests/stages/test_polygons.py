from __future__ import annotations

import numpy as np

from ovseg.stages.polygons import join_outlines, mask_contours, mask_rings


def area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_ring_runs_along_the_edges_of_pixels() -> None:
    mask = np.zeros((6, 8), np.int8)
    mask[1:3, 2:7] = 1
    ((ring, holes),) = mask_rings(mask)
    assert not holes and sorted(ring.tolist()) == [[2, 1], [2, 3], [7, 1], [7, 3]] and area(ring) == 10


def test_holes_belong_to_the_part_around_them() -> None:
    mask = np.zeros((20, 40), np.int8)
    mask[1:19, 1:19], mask[5:9, 5:9] = 1, 0
    mask[1:19, 21:39], mask[4:6, 24:26], mask[10:14, 30:33] = 1, 0, 0
    parts = mask_rings(mask)
    assert [len(holes) for _, holes in sorted(parts, key=lambda part: part[0][:, 0].min())] == [1, 2]
    assert sum(area(ring) + sum(area(hole) for hole in holes) for ring, holes in parts) == mask.sum()
    assert all(area(hole) < 0 < area(ring) for ring, holes in parts for hole in holes)


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    mask = np.eye(3, dtype=np.int8)
    parts = mask_rings(mask)
    assert len(parts) == 3 and all(area(ring) == 1 and len(ring) == 4 for ring, _ in parts)
    # A hole that touches another at a corner is one with it, since the mask between them is not.
    inverse = np.pad(1 - mask, 1, constant_values=1)
    ((ring, holes),) = mask_rings(inverse)
    assert area(ring) == 25 and sum(area(hole) for hole in holes) == -3


def test_an_empty_mask_has_no_outline() -> None:
    assert mask_rings(np.zeros((4, 5), bool)) == [] == mask_contours(np.zeros((4, 5), bool))


def test_contours_run_through_the_centres() -> None:
    mask = np.zeros((6, 8), np.int8)
    mask[1:4, 2:7] = 1
    ((contour, holes),) = mask_contours(mask)
    assert not holes and sorted(contour.tolist()) == [[2, 1], [2, 3], [6, 1], [6, 3]]


def test_joining_keeps_the_area_and_every_corner() -> None:
    mask = np.zeros((30, 60), np.int8)
    mask[2:12, 2:12], mask[5:7, 5:7] = 1, 0
    mask[20:28, 40:58] = 1
    outlines = [outline for ring, holes in mask_rings(mask) for outline in (ring, *holes)]
    joined = join_outlines(outlines)
    assert area(joined) == mask.sum()
    corners = {tuple(corner) for outline in outlines for corner in outline.tolist()}
    assert {tuple(corner) for corner in joined.tolist()} == corners

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

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
    inverse = np.pad(1 - mask, 1, constant_values=1)
    for turned in (inverse, inverse[::-1]):
        ((ring, holes),) = mask_rings(turned)
        assert area(ring) == 25 and [area(hole) for hole in holes] == [-1, -1, -1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_no_ring_comes_by_a_corner_twice(share: float) -> None:
    mask = (np.random.default_rng(1).random((60, 70)) < share).astype(np.uint8)
    parts = mask_rings(mask)
    assert len(parts) == cv2.connectedComponents(mask, connectivity=4)[0] - 1
    for outer, holes in parts:
        assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in (outer, *holes))
        assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)
    assert sum(area(ring) for outer, holes in parts for ring in (outer, *holes)) == mask.sum()


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
    assert {tuple(corner) for corner in joined.tolist()} >= corners


def contours(mask: np.ndarray) -> list[np.ndarray]:
    return [outline for contour, holes in mask_contours(mask) for outline in (contour, *holes)]


def drawn(outline: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What OpenCV draws of a polygon: bridges are one pixel wide."""
    return cv2.fillPoly(np.zeros(mask.shape, np.uint8), [outline.astype(np.int32)], 1)


def test_a_bridge_is_where_sides_are_nearest_and_not_where_corners_are() -> None:
    mask = np.zeros((20, 100), np.int8)
    mask[2:8, 1:99] = 1
    mask[10:16, 40:60] = 1
    assert np.count_nonzero(drawn(join_outlines(contours(mask)), mask) != mask) == 2


@pytest.mark.parametrize("seed", range(4))
def test_bridges_between_parts_are_hardly_longer_than_the_shortest(seed: int) -> None:
    rough = np.random.default_rng(seed).normal(size=(80, 110)).astype(np.float32)
    mask = (cv2.GaussianBlur(rough, (0, 0), 3) > 0.03).view(np.int8)
    count, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    pixels = [np.argwhere(parts == i) for i in range(1, count)]
    gaps = np.array([[np.abs(a[:, None] - b).max(axis=2).min() - 1 for b in pixels] for a in pixels])
    least, reached = 0, gaps[0].astype(float)
    # Prim: of all parts that are not joined the nearest, and so on.
    reached[0] = np.inf
    joined = {0}
    while len(joined) < len(pixels):
        nearest = int(reached.argmin())
        least += int(reached[nearest])
        joined.add(nearest)
        reached = np.minimum(reached, gaps[nearest])
        reached[list(joined)] = np.inf
    found = drawn(join_outlines(contours(mask)), mask)
    assert count > 5 and (found >= mask).all() and np.count_nonzero(found > mask) <= least + 2


def nested() -> np.ndarray:
    """Three rings inside each other's holes with a square in the middle; beside them one hole with two parts in it."""
    mask = np.zeros((57, 90), np.int8)
    for inset in range(0, 28, 4):
        mask[inset : 57 - inset, inset : 57 - inset] = (inset // 4 + 1) % 2
    mask[5:50, 60:88], mask[10:45, 64:84] = 1, 0
    mask[14:20, 68:72], mask[30:40, 75:80] = 1, 1
    return mask


@pytest.mark.parametrize("outlines_of", [mask_rings, mask_contours])
def test_what_lies_in_a_hole_is_a_part_of_its_own(outlines_of: Callable[..., Any]) -> None:
    parts = sorted(outlines_of(nested()), key=lambda part: part[0][:, 0].min())
    assert [len(holes) for _, holes in parts] == [1, 1, 1, 0, 1, 0, 0]


def test_parts_in_holes_are_joined_across_the_hole_that_they_lie_in() -> None:
    mask = nested()
    found = drawn(join_outlines(contours(mask)), mask)
    assert (found >= mask).all()
    extra = found > mask
    # From ring to ring to square, to what is beside them, and from there to each part in its hole.
    assert [np.count_nonzero(extra[:, :57]), np.count_nonzero(extra[:, 57:60])] == [3 * 4, 3]
    assert np.count_nonzero(extra[:, 60:]) == 2 * 4


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_tree_grows_over_parts_far_apart_whatever_their_order(order: tuple[int, ...]) -> None:
    mask = np.zeros((40, 300), np.int8)
    mask[20, 2] = mask[7, 150] = mask[30, 290] = 1
    outlines = [contours(mask)[i] for i in order]
    assert all(len(outline) == 1 for outline in outlines)
    found = drawn(join_outlines(outlines), mask)
    assert (found >= mask).all() and np.count_nonzero(found) == 290 - 2 + 1


def test_outlines_that_share_points_are_joined_there() -> None:
    mask = np.zeros((12, 14), np.int8)
    cv2.rectangle(mask.view(np.uint8), (1, 1), (12, 10), 1)
    mask[:, 6] = mask[5, 1:12] = 1
    outlines = contours(mask)
    shared = [{tuple(point) for point in outline.tolist()} for outline in outlines]
    assert len(outlines) == 5 and all(any(one & other for other in shared if other is not one) for one in shared)
    assert np.array_equal(drawn(join_outlines(outlines), mask), mask)


def test_thousands_of_holes_are_joined_without_a_trace() -> None:
    mask = np.ones((400, 400), np.int8)
    mask[1:-1:4, 1:-1:4] = 0
    assert len(contours(mask)) > 9000
    assert np.array_equal(drawn(join_outlines(contours(mask)), mask), mask)


def test_a_hole_all_of_whose_points_are_those_of_others_is_joined() -> None:
    mask = np.ones((41, 41), np.int8)
    mask[1::2, 1::2] = 0
    joined = join_outlines(contours(mask))
    assert np.array_equal(drawn(joined, mask), mask)
    assert (joined != np.roll(joined, 1, axis=0)).any(axis=1).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_holes_of_rings_are_joined_without_a_trace(share: float) -> None:
    mask = (np.random.default_rng(0).random((40, 50)) < share).astype(np.uint8)
    polygons = [join_outlines([ring, *holes]).reshape(-1).astype(float).tolist() for ring, holes in mask_rings(mask)]
    assert np.array_equal(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 50))), mask)


def test_a_part_with_fewer_pixels_than_its_bridge_is_left_out() -> None:
    mask = np.zeros((40, 200), np.int8)
    mask[5:35, 5:50] = 1
    near, far, chain = (
        (slice(10, 13), slice(55, 58)),
        (slice(20, 26), slice(190, 196)),
        (slice(20, 26), slice(120, 126)),
    )
    mask[near] = mask[far] = 1
    found = drawn(join_outlines(contours(mask), mask), mask)
    assert (found[near] == 1).all() and not found[far].any() and np.count_nonzero(found != mask) == 5 + 36
    # With a stop on the way that no bridge alone would be worth, both are.
    mask[chain], mask[16:30, 186:199] = 1, 1
    found = drawn(join_outlines(contours(mask), mask), mask)
    assert (found >= mask).all()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_leaving_parts_out_never_costs_more_than_their_bridges(share: float) -> None:
    for seed in range(5):
        mask = (np.random.default_rng(seed).random((60, 70)) < share).astype(np.int8)
        mask[20:40, 20:40] = 1
        with_all, chosen = (drawn(join_outlines(contours(mask), given), mask) for given in (None, mask))
        assert np.count_nonzero(chosen != mask) <= np.count_nonzero(with_all != mask)


def test_holes_are_kept_where_parts_are_chosen() -> None:
    mask = np.ones((41, 41), np.int8)
    mask[1::2, 1::2] = 0
    assert np.array_equal(drawn(join_outlines(contours(mask), mask), mask), mask)
    assert np.array_equal(drawn(join_outlines(contours(ring := np.pad(mask, 30)), ring), ring), ring)

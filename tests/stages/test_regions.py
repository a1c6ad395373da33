from __future__ import annotations

import numpy as np
import pytest

from ovseg.stages.regions import (
    crop_boxes,
    fill_and_drop_small,
    near_crop_edge,
    point_grid,
    stability_score,
    suppress_overlaps,
)


def test_a_grid_has_its_points_in_the_middle_of_cells() -> None:
    grid = point_grid(4)
    assert grid.shape == (16, 2) and grid[0].tolist() == [0.125, 0.125] and grid[1].tolist() == [0.375, 0.125]
    assert grid.mean(axis=0).tolist() == [0.5, 0.5]


def test_crops_overlap_and_cover_the_image() -> None:
    crops = crop_boxes(120, 200, 2, 0.25)
    assert crops[0] == (0, (0, 0, 200, 120)) and [layer for layer, _ in crops].count(1) == 4
    assert [layer for layer, _ in crops].count(2) == 16
    for layer in (1, 2):
        covered = np.zeros((120, 200), int)
        for at, (x1, y1, x2, y2) in crops:
            if at == layer:
                assert 0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 120
                covered[y1:y2, x1:x2] += 1
        assert covered.min() == 1 and covered.max() == 4
    # The first layer shares a quarter of the short side.
    assert crops[1][1][2] - crops[3][1][0] == 30


def test_an_image_of_few_pixels_has_no_crops_without_pixels() -> None:
    for height, width in ((1, 1), (1, 700), (2, 3), (5, 1)):
        for _, (x1, y1, x2, y2) in crop_boxes(height, width, 3, 512 / 1500):
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = np.full((10, 10), -5, np.float32)
    logits[:4, :5], logits[4:6, :5] = 5, 0.5
    score = stability_score(logits, 1.0)
    assert type(score) is float and score == pytest.approx(20 / 30)
    assert stability_score(np.full((4, 4), -5, np.float32), 1.0) == 0.0


def test_the_higher_score_suppresses_what_overlaps() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10], [5, 5, 5, 5]])
    scores = np.array([0.5, 0.9, 0.7, 0.5, 0.1])
    assert suppress_overlaps(boxes, scores, 0.7).tolist() == [1, 2, 4]
    # IoU of the first two is 9/11; what equals the threshold stays, and of equal scores the first.
    assert suppress_overlaps(boxes, scores, 0.9).tolist() == [1, 2, 0, 4]
    assert suppress_overlaps(boxes, scores, 1.0).tolist() == [1, 2, 0, 3, 4]
    assert suppress_overlaps(np.zeros((0, 4)), np.zeros(0), 0.7).tolist() == []


@pytest.mark.parametrize(
    ("box", "near"),
    [
        ((0, 30, 40, 60), True),  # at the crop's left edge, inside the image
        ((50, 30, 99, 60), False),  # the crop's right edge is the image's
        ((50, 30, 60, 60), False),
        ((21, 21, 60, 60), False),
        ((20, 30, 60, 60), True),
    ],
)
def test_what_touches_the_edge_of_a_crop(box: tuple[int, int, int, int], near: bool) -> None:
    assert near_crop_edge(box, (100, 0, 200, 120), 120, 200) is near


def test_small_holes_and_parts_go() -> None:
    mask = np.zeros((20, 30), np.int8)
    mask[2:12, 2:12] = 1
    mask[5:7, 5:7] = 0  # a hole of 4
    mask[15, 20:23] = 1  # a part of 3
    tidy, changed = fill_and_drop_small(mask, 4)
    assert changed and tidy.sum() == 100 - 4, "a hole of 4 pixels is not smaller than 4"
    tidy, changed = fill_and_drop_small(mask, 5)
    assert changed and tidy.sum() == 100 and tidy[5, 5] == 1 and tidy[15, 20] == 0
    same, changed = fill_and_drop_small(mask, 2)
    assert not changed and np.array_equal(same, mask)
    # Where all parts are small the largest stays.
    few = np.zeros((20, 30), np.int8)
    few[0, 0:2], few[5, 5:10] = 1, 1
    tidy, changed = fill_and_drop_small(few, 50)
    assert changed and tidy.sum() == 5 and tidy[5, 5] == 1

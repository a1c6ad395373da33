from __future__ import annotations

import json

import numpy as np
import pytest

from ovseg.stages.masks import (
    binary_masks,
    decode_rle,
    encode_rle,
    mask_boxes,
    mask_polygons,
    paste_into_boxes,
    resize_masks,
    upsample_masks,
    upsampled_logits,
)


def resize_bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres, written out: the reference."""
    for axis, size in ((0, height), (1, width)):
        length = values.shape[axis]
        centre = np.maximum((np.arange(size) + 0.5) * length / size - 0.5, 0)
        low = np.minimum(centre.astype(int), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = np.expand_dims(centre - low, 1 - axis)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (100, 37), (5, 64), (200, 300), (1, 9)])
@pytest.mark.parametrize("size", [64, 56])
def test_upsample_masks_is_two_resizes_with_a_crop_between(height: int, width: int, size: int) -> None:
    logits = np.random.default_rng(height).standard_normal((3, 16, 16)).astype(np.float32)
    masks = upsample_masks(logits, size, height, width)
    assert masks.dtype == np.int8 and masks.shape == (3, height, width)
    scale = size / max(height, width)
    cropped = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    for low, mask in zip(logits, masks, strict=True):
        framed = resize_bilinear(low.astype(float), size, size)[: cropped[0], : cropped[1]]
        full = resize_bilinear(framed, height, width)
        certain = np.abs(full) > 1e-4
        assert certain.mean() > 0.99
        assert np.array_equal(mask[certain], (full > 0)[certain])


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (37, 100), (1, 9), (900, 13)])
@pytest.mark.parametrize(("size", "threshold"), [(512, 0.0), (512, 0.7), (448, 0.0)])
def test_what_is_left_out_has_no_pixel_of_the_mask(height: int, width: int, size: int, threshold: float) -> None:
    low = np.full((12, 128, 128), -3.0, np.float32)
    rng = np.random.default_rng(height)
    for logits in low[1:]:
        row, column = rng.integers(0, 120, 2)
        logits[row : row + rng.integers(1, 40), column : column + rng.integers(1, 40)] = rng.uniform(0.1, 90)
    low[-1, -1, -1] = 5.0
    whole = [logits.copy() > threshold for logits in upsampled_logits(low, size, height, width)]
    parts = [logits.shape for logits in upsampled_logits(low, size, height, width, above=threshold)]
    masks = upsample_masks(low, size, height, width, threshold=threshold, out=np.ones((12, height, width), bool))
    assert np.array_equal(masks, whole) and any(mask.any() for mask in whole)
    assert min(rows * columns for rows, columns in parts) < 0.5 * height * width or min(height, width) < 20


def test_upsample_masks_writes_to_out() -> None:
    out = np.zeros((5, 8, 8), bool)
    upsample_masks(np.ones((2, 4, 4), np.float32), 16, 8, 8, out=out[1:3])
    assert out.sum(axis=(1, 2)).tolist() == [0, 64, 64, 0, 0]


def test_a_pixel_of_logit_zero_is_outside() -> None:
    assert not upsample_masks(np.zeros((1, 4, 4), np.float32), 16, 8, 8).any()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool])
def test_rle_survives_json(dtype: type) -> None:
    masks = (np.random.default_rng(0).random((3, 13, 7)) > 0.6).astype(dtype)
    masks[1] = 0
    masks[2] = 1
    encoded = json.loads(json.dumps(encode_rle(masks)))
    assert [rle["size"] for rle in encoded] == [[13, 7]] * 3
    decoded = decode_rle(encoded)
    assert all(mask.dtype == np.int8 for mask in decoded)
    assert np.array_equal(np.stack(decoded), masks.astype(np.int8))


def test_binary_masks_choose_and_fit_the_image() -> None:
    masks = np.zeros((3, 4, 6), np.float32)
    masks[0, 1, 2] = masks[2, 3, 5] = 1
    chosen = binary_masks(masks, np.array([2, 0]), 4, 6)
    assert chosen.dtype == np.int8
    assert [np.argwhere(mask).tolist() for mask in chosen] == [[[3, 5]], [[1, 2]]]
    smaller = binary_masks(masks, np.array([2, 0]), 3, 5)
    assert smaller.shape == (2, 3, 5) and np.argwhere(smaller).tolist() == [[1, 1, 2]]
    larger = binary_masks(masks, np.array([2]), 5, 8)
    assert larger.shape == (1, 5, 8) and np.argwhere(larger).tolist() == [[0, 3, 5]]
    assert binary_masks(masks, np.array([], int), 4, 6).shape == (0, 4, 6)


def test_boxes_of_masks() -> None:
    masks = np.zeros((2, 8, 9), np.int8)
    masks[0, 2:5, 3:8] = 1
    assert mask_boxes(list(masks)).tolist() == [[3, 2, 8, 5], [0, 0, 0, 0]]


def test_polygons_of_a_mask() -> None:
    mask = np.zeros((20, 30), np.int8)
    mask[2:6, 3:9] = 1
    mask[10:18, 20:28] = 1
    mask[12:14, 22:24] = 0  # a hole
    mask[0, 0] = 1  # a pixel has no area
    polygons = mask_polygons(mask)
    assert sorted(polygons) == [
        [3.0, 2.0, 3.0, 5.0, 8.0, 5.0, 8.0, 2.0],
        [20.0, 10.0, 20.0, 17.0, 27.0, 17.0, 27.0, 10.0],
    ]
    assert mask_polygons(np.zeros((5, 5), np.int8)) == []


@pytest.mark.parametrize("size", [(48, 64), (7, 100), (1, 5), (200, 1)])
def test_resized_masks_are_bilinear(size: tuple[int, int]) -> None:
    low_res = np.random.default_rng(3).standard_normal((4, 8, 9)).astype(np.float32)
    # A side of one pixel reads the first cell, as in Paddle.
    read = low_res[[2, 0], : 1 if size[0] == 1 else None, : 1 if size[1] == 1 else None]
    expected = np.stack([resize_bilinear(low.astype(float), *size) for low in read])
    for threshold in (0.0, 0.3):
        found = resize_masks(low_res, np.array([2, 0]), size, *size, threshold=threshold)
        assert found.dtype == np.int8
        sure = np.abs(expected - threshold) > 1e-5
        assert sure.mean() > 0.99
        assert np.array_equal(found[sure], (expected > threshold)[sure])


def test_resized_masks_of_a_size_that_is_off_are_cut_or_filled() -> None:
    low_res = np.ones((1, 3, 3), np.float32)
    found = resize_masks(low_res, np.array([0]), np.array([6, 4]), 5, 7, threshold=0.0)
    assert found.shape == (1, 5, 7) and found[0, :, :4].all() and not found[0, :, 4:].any()


def test_masks_in_boxes_fade_out_over_half_a_cell() -> None:
    # Probability 0.8 everywhere, cells of 5 pixels: 0.6 of it is left in the first pixel, 0.8 in the next.
    boxes = np.float32([[10, 20, 30, 40], [-7, -5, 13, 15]])
    found = paste_into_boxes(np.full((2, 4, 4), 0.8, np.float32), boxes, 50, 60, threshold=0.5)
    expected = np.zeros((2, 50, 60), np.int8)
    expected[0, 21:39, 11:29] = 1
    expected[1, :14, :12] = 1
    assert np.array_equal(found, expected)


def test_masks_in_boxes_of_no_size_and_outside() -> None:
    boxes = np.float32([[5, 5, 5, 9], [-20, -20, -10, -10], [100, 100, 120, 120], [0, 0, 4, 4]])
    found = paste_into_boxes(np.ones((4, 2, 2), np.float32), boxes, 8, 8, threshold=0.5)
    assert [int(mask.sum()) for mask in found] == [0, 0, 0, 16]

from __future__ import annotations

import numpy as np
import pytest

from ovseg.stages.resize import long_side_shape, normalise_and_pad, resize_long_side


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (480, 640, 1024, (768, 1024)),
        (640, 480, 1024, (1024, 768)),
        (333, 1000, 1024, (341, 1024)),
        (1500, 2001, 512, (384, 512)),
        (512, 512, 512, (512, 512)),
        (1, 5000, 512, (1, 512)),
    ],
)
def test_long_side_shape(height: int, width: int, size: int, expected: tuple[int, int]) -> None:
    assert long_side_shape(height, width, size) == expected


def test_resize_averages_when_it_shrinks() -> None:
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    shrunk = resize_long_side(stripes, 8)
    assert shrunk.shape == (1, 8, 3)
    assert np.ptp(shrunk.astype(int)) <= 30 and abs(int(shrunk.mean()) - 100) <= 2


def test_resize_takes_a_view_with_strides() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(resize_long_side(pixels[::2, ::2], 16), resize_long_side(pixels[::2, ::2].copy(), 16))


def test_normalise_and_pad_orders_the_channels_as_rgb() -> None:
    bgr = np.empty((2, 3, 3), np.uint8)
    bgr[...] = (10, 20, 30)
    padded = normalise_and_pad(bgr, 4, (1, 2, 3), (1, 2, 4))
    assert padded.shape == (1, 3, 4, 4) and padded.dtype == np.float32
    assert padded[0, :, 0, 0].tolist() == [29, 9, 1.75]
    assert not padded[0, :, 2:].any() and not padded[0, :, :, 3:].any()

"""Synthetic test pictures: shapes on gradients, the same for the same seed, so no test needs a download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TEST_SIZES: tuple[tuple[int, int], ...] = ((240, 320), (333, 200), (128, 400), (256, 256))
"""(height, width) of the pictures that comparisons run on: wide, tall, a strip, and square."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def synthetic_image(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a picture with edges, corners and smooth parts.

    Args:
        height: Rows of the picture.
        width: Columns of the picture.
        seed: Pictures of one size differ by it.

    Returns:
        uint8 array [height, width, 3], BGR.
    """
    rng = np.random.default_rng((seed, height, width))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    slope = rng.uniform(-1, 1, (2, 3))
    canvas = 0.5 + 0.4 * (x[..., None] - 0.5) * slope[0] + 0.4 * (y[..., None] - 0.5) * slope[1]
    canvas += 0.08 * np.sin(2 * np.pi * rng.uniform(3, 12) * x + rng.uniform(0, 6))[..., None]
    for kind in rng.permutation(np.arange(9) % 3):
        centre_y, centre_x = rng.uniform(0.1, 0.9, 2)
        half_y, half_x = rng.uniform(0.05, 0.3, 2)
        v, u = (y - centre_y) / half_y, (x - centre_x) / half_x
        if kind == 0:
            inside = np.maximum(abs(u), abs(v)) < 1
        elif kind == 1:
            inside = u**2 + v**2 < 1
        else:
            inside = (v < 1) & (2 * abs(u) < v + 1)
        canvas[inside] = rng.uniform(0, 1, 3) + 0.15 * u[inside][:, None]
    canvas += rng.normal(0, 0.02, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def network_input(
    images: Sequence[NDArray[np.uint8]],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> NDArray[np.float32]:
    """Turn BGR pictures of one size into a normalised batch.

    Args:
        images: uint8 arrays [H, W, 3], BGR, all of one size.
        mean: Mean of each RGB channel, for values in 0..1.
        std: Standard deviation of each RGB channel, for values in 0..1.

    Returns:
        float32 array [N, 3, H, W], RGB.
    """
    rgb = np.stack(images)[..., ::-1].astype(np.float32) / 255.0
    normalised = (rgb - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def calibration_batch(
    height: int, width: int, *, count: int = 12, seed: int = 1000, imagenet: bool = True
) -> NDArray[np.float32]:
    """Return `count` different normalised pictures, float32 [count, 3, height, width].

    With fewer than about twelve, BatchNorm statistics of a random network do not hold on other pictures.
    """
    images = [synthetic_image(height, width, seed=seed + i) for i in range(count)]
    return network_input(images) if imagenet else network_input(images, mean=(0.0,) * 3, std=(1.0,) * 3)

"""Resizing and normalising an image for a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image


def long_side_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return (height, width) of an image resized so that its long side is `size` pixels.

    The short side is rounded half up, as in SAM, and is at least 1 pixel.

    >>> long_side_shape(480, 640, 1024)
    (768, 1024)
    """
    scale = size * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_long_side(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize an image so that its long side is `size` pixels.

    Pillow's bilinear filter (which averages when it shrinks) gives PaddleX's numbers; OpenCV's does not.

    Args:
        pixels: HxWx3 uint8, any channel order.
        size: pixels of the long side.

    Returns:
        hxwx3 uint8, in the same channel order.
    """
    height, width = long_side_shape(pixels.shape[0], pixels.shape[1], size)
    if (height, width) == pixels.shape[:2]:
        return pixels
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))


def normalise_and_pad(pixels: np.ndarray, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return `(rgb - mean) / std`, padded with zeros at the right and bottom to `size`x`size`.

    Args:
        pixels: hxwx3 uint8 BGR, neither side longer than `size`.
        size: side of the square, in pixels.
        mean: mean of R, G and B, in 0..255.
        std: standard deviation of R, G and B, in 0..255.

    Returns:
        1x3xSxS float32, channels R, G, B.
    """
    height, width = pixels.shape[:2]
    padded = np.zeros((1, 3, size, size), dtype=np.float32)
    planes = padded[0, :, :height, :width]
    np.copyto(planes, pixels.transpose(2, 0, 1)[::-1])
    planes -= np.array(mean, dtype=np.float32).reshape(3, 1, 1)
    planes /= np.array(std, dtype=np.float32).reshape(3, 1, 1)
    return padded

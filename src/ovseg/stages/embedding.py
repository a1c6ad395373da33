"""What image recognition needs between its two networks and the index: crops, and embeddings ready to compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def crop(pixels: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Return the part of an image inside a box: a view, at least 1 pixel high and wide.

    Corners are cut to whole pixels downwards, as PaddleX does.

    Args:
        pixels: HxWx3.
        box: x1, y1, x2, y2 in pixels; what lies outside of the image is cut off.

    >>> crop(np.zeros((10, 20, 3), np.uint8), [2.9, 3.2, 7.9, 99]).shape
    (7, 5, 3)
    """
    height, width = pixels.shape[:2]
    x1, y1 = (min(max(int(value), 0), limit - 1) for value, limit in zip(box[:2], (width, height), strict=True))
    x2, y2 = (max(int(value), start + 1) for value, start in zip(box[2:], (x1, y1), strict=True))
    return pixels[y1:y2, x1:x2]


_LEAST = np.float32(1e-20)  # length of an embedding


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings [N, D] float32 with unit length.

    >>> normalise(np.array([[3, 4]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    lengths = np.sqrt(np.add.reduce(embeddings * embeddings, axis=1, keepdims=True))
    # A network that gives zeros has nothing to say of the image: its embedding stays zero, near to nothing.
    unit: np.ndarray = embeddings / np.maximum(lengths, _LEAST)
    return unit


def binarise(embeddings: np.ndarray) -> np.ndarray:
    """Return the signs of embeddings [N, D] as bits, [N, D / 8] uint8, for the hamming metric.

    >>> binarise(np.array([[1.0, -1, 0, 1, 1, 1, 1, 1]], np.float32)).tolist()
    [[159]]
    """
    return np.packbits(embeddings > 0, axis=1)

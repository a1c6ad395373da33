"""Photographs with masks drawn by hand: the ground truth of the tests on real images.

The polygons in `data/photos/masks.json` were drawn by eye on enlarged views, without a segmentation
program. Coordinates are continuous: pixel (column i, row j) is the square from (i, j) to (i + 1, j + 1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).parent / "data" / "photos"


@dataclass(frozen=True)
class PhotoObject:
    """One object of a photograph.

    `polygons` and `holes` are rings of (x, y), each an Nx2 float array; `box` is [x0, y0, x1, y1], tight
    around the polygons; `point` is an (x, y) inside the object; `mask` is HxW bool.
    """

    name: str
    polygons: tuple[np.ndarray, ...]
    holes: tuple[np.ndarray, ...]
    box: tuple[float, float, float, float]
    point: tuple[float, float]
    mask: np.ndarray


@dataclass(frozen=True)
class Photo:
    """A photograph: `pixels` is HxWx3 uint8, BGR."""

    path: Path
    pixels: np.ndarray
    source: str
    author: str
    licence: str
    objects: tuple[PhotoObject, ...]


def rasterize_ring(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill a ring of vertices by the even-odd rule.

    cv2.fillPoly paints the outline too, which would grow each object by half a pixel.

    Args:
        ring: Nx2 vertices (x, y), closed from the last to the first.
        height: rows of the mask.
        width: columns of the mask.

    Returns:
        HxW bool, True where the centre of the pixel is inside.
    """
    mask = np.zeros((height, width), bool)
    for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = ((xa, ya), (xb, yb)) if ya <= yb else ((xb, yb), (xa, ya))
        for row in range(max(0, int(np.ceil(y0 - 0.5))), min(height, int(np.ceil(y1 - 0.5)))):
            crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            mask[row, max(0, int(np.ceil(crossing - 0.5))) :] ^= True
    return mask


def _rings(flat: list[list[float]]) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(ring, float).reshape(-1, 2) for ring in flat)


def load_photos() -> tuple[Photo, ...]:
    """Read all photographs and rasterise their masks."""
    photos = []
    for entry in json.loads((FOLDER / "masks.json").read_text(encoding="utf-8"))["images"]:
        path = FOLDER / entry["file"]
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is None:
            raise FileNotFoundError(path)
        height, width = pixels.shape[:2]
        objects = []
        for item in entry["objects"]:
            polygons, holes = _rings(item["polygons"]), _rings(item["holes"])
            mask = np.zeros((height, width), bool)
            for ring in polygons:
                mask |= rasterize_ring(ring, height, width)
            for ring in holes:
                mask &= ~rasterize_ring(ring, height, width)
            box, point = tuple(item["box"]), tuple(item["point"])
            objects.append(PhotoObject(item["name"], polygons, holes, box, point, mask))
        credit = (entry["source"], entry["author"], entry["licence"])
        photos.append(Photo(path, pixels, *credit, tuple(objects)))
    return tuple(photos)

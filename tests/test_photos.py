"""The hand-made masks are consistent: a wrong polygon would make every figure measured with them wrong."""

from __future__ import annotations

import numpy as np
import pytest
from photos import FOLDER, Photo, PhotoObject, load_photos, rasterize_ring

PHOTOS = load_photos()
OBJECTS = [pytest.param(photo, item, id=f"{photo.path.stem}-{item.name}") for photo in PHOTOS for item in photo.objects]


def test_every_photo_is_listed_and_credited() -> None:
    assert {photo.path.name for photo in PHOTOS} == {path.name for path in FOLDER.glob("*.jpg")}
    assert len(PHOTOS) >= 6
    assert len(OBJECTS) >= 8
    for photo in PHOTOS:
        assert photo.source and photo.author and photo.licence
        assert max(photo.pixels.shape) <= 640


@pytest.mark.parametrize(("photo", "item"), OBJECTS)
def test_rings_are_inside_the_image(photo: Photo, item: PhotoObject) -> None:
    height, width = photo.pixels.shape[:2]
    for ring in (*item.polygons, *item.holes):
        assert len(ring) >= 3
        assert (ring >= 0).all() and (ring <= (width, height)).all()


@pytest.mark.parametrize(("photo", "item"), OBJECTS)
def test_box_is_tight_around_the_polygons_and_the_mask(photo: Photo, item: PhotoObject) -> None:
    vertices = np.concatenate(item.polygons)
    assert item.box == (*vertices.min(axis=0), *vertices.max(axis=0))
    rows, columns = np.nonzero(item.mask)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_allclose(edges, item.box, atol=1.5)


@pytest.mark.parametrize(("photo", "item"), OBJECTS)
def test_point_is_well_inside_the_mask(photo: Photo, item: PhotoObject) -> None:
    x, y = (int(value) for value in item.point)
    assert item.mask[y - 4 : y + 5, x - 4 : x + 5].all()


def ring_crosses_itself(ring: np.ndarray) -> bool:
    """Whether two sides of a ring that are not neighbours cross (orientation test of the four end points)."""
    start, end = ring, np.roll(ring, -1, axis=0)

    def side_of(point: np.ndarray) -> np.ndarray:
        direction = (end - start)[:, None]
        offset = point[None] - start[:, None]
        return np.sign(direction[..., 0] * offset[..., 1] - direction[..., 1] * offset[..., 0])

    parts = side_of(start) * side_of(end) < 0
    return bool((parts & parts.T).any())


@pytest.mark.parametrize(("photo", "item"), OBJECTS)
def test_rings_do_not_cross_themselves(photo: Photo, item: PhotoObject) -> None:
    for ring in (*item.polygons, *item.holes):
        assert not ring_crosses_itself(ring)


def test_ring_crosses_itself_sees_a_bow_tie() -> None:
    assert ring_crosses_itself(np.array([[0.0, 0.0], [2.0, 2.0], [2.0, 0.0], [0.0, 2.0]]))


@pytest.mark.parametrize(("photo", "item"), OBJECTS)
def test_holes_lie_inside_the_polygons(photo: Photo, item: PhotoObject) -> None:
    size = photo.pixels.shape[:2]
    filled = np.logical_or.reduce([rasterize_ring(ring, *size) for ring in item.polygons])
    for ring in item.holes:
        hole = rasterize_ring(ring, *size)
        assert hole.any() and not (hole & ~filled).any()


def test_rasterize_ring_counts_pixel_centres() -> None:
    mask = rasterize_ring(np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]]), 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)

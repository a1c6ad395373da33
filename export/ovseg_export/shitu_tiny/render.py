"""Views of objects, fast: what the embedding network is trained on.

A view is drawn at the network's size in one warp, and follows what `protocol.query` does: turned, in perspective, in
other light, partly hidden, on a photograph, cut at a box that is off by a little. An identity may be recoloured,
mirrored or turned by right angles for all of its views, which makes more identities of few pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ovseg_export.scenes.library import Library

from .protocol import trainable

SIDE = 96  # of a cached object, pixels
HULL = 24  # points kept of an object's outline


@dataclass(frozen=True)
class Identity:
    """An object with what all of its views share: a colour matrix and a symmetry of the square."""

    index: int
    colours: np.ndarray | None  # [3, 3]
    symmetry: np.ndarray  # [2, 2]


class Objects:
    """Every object that may be trained on, decoded once to `SIDE` pixels, and small photographs."""

    def __init__(self, assets: Path, kept: Path, scenes: Path | None = None) -> None:
        library = Library(assets, "train", trainable(assets), cache=1)
        self.pixels = kept_objects(library, kept)
        self._outlines: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.sets = np.array([record.set for record in library.objects])
        self.photos = []
        for i in range(len(library.photos)):
            photo = library.photo_pixels(i)
            scale = 640 / max(photo.shape[:2])
            self.photos.append(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        for path in sorted(scenes.rglob("*.jpg"))[:400] if scenes else ():
            scene = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)
            if scene is not None:
                self.photos.append(scene)
        rng = np.random.default_rng(0)
        self.noise = rng.normal(0, 1, (64, 160, 160, 3)).astype(np.float32)
        real = len(library.photos)
        share = 0.75 if len(self.photos) > real else 1.0
        chance = np.full(len(self.photos), (1 - share) / max(1, len(self.photos) - real))
        chance[:real] = share / real
        self.photo_steps = np.cumsum(chance)

    def identity(self, rng: np.random.Generator, index: int) -> Identity:
        """An object as it is, or as something new."""
        colours, symmetry = None, np.eye(2)
        if rng.random() < 0.5:
            colours = hue_matrix(rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1))
        if rng.random() < 0.4:
            symmetry = np.eye(2)[rng.permutation(2)] * rng.choice([-1, 1], (1, 2))
        return Identity(index, colours, symmetry)

    def outline(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [K, 2] of an object's hull from the centre of its picture, and half of its width and height."""
        if index not in self._outlines:
            solid = (self.pixels[index, ..., 3] >= 128).astype(np.uint8)
            contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            hull = cv2.convexHull(np.concatenate(contours))[:, 0] + 0.5 - SIDE / 2
            hull = hull[np.linspace(0, len(hull) - 1, min(HULL, len(hull))).astype(int)]
            self._outlines[index] = hull, np.abs(hull).max(0)
        return self._outlines[index]

    # -------------------------------------------------------------- views

    def query(self, rng: np.random.Generator, identity: Identity, size: int) -> np.ndarray:
        """A new view, [size, size, 3] uint8 BGR."""
        warp, low, high = self._pose(rng, identity)
        extent = high - low
        edge = rng.uniform(-0.06, 0.1, 4)
        low, high = low - extent * edge[:2], high + extent * edge[2:]
        warped = cv2.warpPerspective(
            self.pixels[identity.index], fit(low, high, size) @ warp, (size, size), flags=cv2.INTER_LINEAR
        ).astype(np.float32)
        colour, alpha = recolour(warped[..., :3], identity.colours), warped[..., 3:] / 255
        canvas = self._background(rng, size)
        canvas = canvas * (1 - alpha) + colour
        if rng.random() < 0.5:
            canvas = self._hide(rng, canvas, alpha[..., 0], size)
        return self._camera(rng, canvas)

    def clean(self, rng: np.random.Generator, identity: Identity, size: int) -> np.ndarray:
        """The picture of a gallery, [size, size, 3] uint8 BGR."""
        hull = self.outline(identity.index)[0] @ identity.symmetry.T
        low, high = hull.min(0), hull.max(0)
        margin = (high - low).max() * rng.uniform(0.0, 0.1)
        matrix = np.eye(3)
        matrix[:2, :2] = identity.symmetry
        matrix[:2, 2] = -identity.symmetry @ [SIDE / 2, SIDE / 2]
        warped = cv2.warpPerspective(
            self.pixels[identity.index], fit(low - margin, high + margin, size) @ matrix, (size, size)
        ).astype(np.float32)
        colour, alpha = recolour(warped[..., :3], identity.colours), warped[..., 3:] / 255
        plain = 255.0 if rng.random() < 0.7 else rng.uniform(0, 255, 3)
        canvas = np.clip(plain * (1 - alpha) + colour, 0, 255).astype(np.uint8)
        return self._camera(rng, canvas.astype(np.float32)) if rng.random() < 0.2 else canvas

    def _pose(self, rng: np.random.Generator, identity: Identity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A matrix from an object's pixels, and the box of its outline after it."""
        hull, half = self.outline(identity.index)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        stretch, angle = np.exp(rng.normal(0, 0.06)), np.deg2rad(rng.uniform(-22, 22))
        flat = corners @ identity.symmetry.T * [stretch, 1 / stretch] + rng.uniform(-0.075, 0.075, (4, 2)) * SIDE
        cos, sin = np.cos(angle), np.sin(angle)
        target = flat @ np.array([[cos, sin], [-sin, cos]])
        warp = cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
        hull = np.column_stack([hull, np.ones(len(hull))]) @ warp.T
        hull = hull[:, :2] / hull[:, 2:]
        centre = np.array([[1, 0, -SIDE / 2], [0, 1, -SIDE / 2], [0, 0, 1]])
        return warp @ centre, hull.min(0), hull.max(0)

    def _background(self, rng: np.random.Generator, size: int) -> np.ndarray:
        if rng.random() < 0.1:
            return np.broadcast_to(rng.uniform(0, 255, 3).astype(np.float32), (size, size, 3))
        photo = self.photos[min(int(np.searchsorted(self.photo_steps, rng.random())), len(self.photos) - 1)]
        side = int(np.exp(rng.uniform(np.log(40), np.log(min(300, *photo.shape[:2])))))
        y, x = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
        window = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_LINEAR)
        window = window[:, ::-1] if rng.random() < 0.5 else window
        window = window.astype(np.float32)
        if rng.random() < 0.5:  # few photographs, so their colours vary
            window = recolour(window, hue_matrix(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)))
        return window * rng.uniform(0.5, 1.3)

    def _hide(self, rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray, size: int) -> np.ndarray:
        """Another object in front, if a place is found that hides at most a quarter."""
        source = self.pixels[int(rng.integers(len(self.pixels)))]
        area = float(alpha.sum()) + 1e-6
        for _ in range(3):
            scale, angle = rng.uniform(0.25, 0.9) * size / SIDE, rng.uniform(-0.4, 0.4)
            cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
            at = rng.uniform(0, size, 2)
            middle = np.array([[cos, -sin], [sin, cos]]) @ [SIDE / 2, SIDE / 2]
            matrix = np.array([[cos, -sin, at[0] - middle[0]], [sin, cos, at[1] - middle[1]]])
            cover = cv2.warpAffine(source, matrix, (size, size))
            share = float((cover[..., 3] * alpha).sum()) / 255 / area
            if 0.02 <= share <= 0.27:
                return canvas * (1 - cover[..., 3:].astype(np.float32) / 255) + cover[..., :3]
        return canvas

    def _camera(self, rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
        size = len(canvas)
        gain = np.exp(rng.normal(0, 0.17)) * np.exp(rng.normal(0, 0.06, 3))
        matrix = hue_matrix(rng.normal(0, 0.05), rng.uniform(0.65, 1.3)) * gain[:, None]
        canvas = recolour(canvas, matrix)
        if rng.random() < 0.4:
            canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.1) * size / 96)
        if rng.random() < 0.4:
            y, x = rng.integers(0, 160 - size + 1, 2)
            canvas = canvas + rng.uniform(1, 9) * self.noise[int(rng.integers(64)), y : y + size, x : x + size]
        canvas = np.clip(canvas + rng.uniform(-22, 22), 0, 255)
        if rng.random() < 0.6:
            canvas = 255 * (canvas * np.float32(1 / 255)) ** np.float32(np.exp(rng.normal(0, 0.25)))
        return canvas.astype(np.uint8)


def kept_objects(library: Library, kept: Path, side: int = SIDE) -> np.ndarray:
    """Every object of a library, premultiplied and centred, [N, side, side, 4] uint8; decoded once, to the file `kept`.

    Raises:
        ValueError: the file is of another library.
    """
    if not kept.exists():
        np.savez(kept, pixels=np.stack([shrunk(library.object_pixels(record), side) for record in library.objects]))
    pixels: np.ndarray = np.load(kept)["pixels"]
    if pixels.shape[:2] != (len(library.objects), side):
        raise ValueError(f"{kept} is of another store: remove it")
    return pixels


def shrunk(bgra: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An object, premultiplied, in the middle of a picture of `side` pixels."""
    alpha = cv2.cvtColor(bgra[..., 3], cv2.COLOR_GRAY2BGR)
    premultiplied = np.dstack([cv2.multiply(bgra[..., :3], alpha, scale=1 / 255), bgra[..., 3]])
    scale = (side - 2) / max(bgra.shape[:2])
    size = max(2, round(bgra.shape[1] * scale)), max(2, round(bgra.shape[0] * scale))
    small = cv2.resize(premultiplied, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    bottom, right = side - size[1] - top, side - size[0] - left
    return cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(0,) * 4)


def hue_matrix(angle: float, saturation: float) -> np.ndarray:
    """A turn of colours about the grey axis, and their distance from it."""
    cos, sin = np.cos(angle) * saturation, np.sin(angle) * saturation / np.sqrt(3)
    skew = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return np.asarray(np.full((3, 3), (1 - cos) / 3) + cos * np.eye(3) + sin * skew)


def recolour(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    return pixels if matrix is None else cv2.transform(pixels, matrix)


def fit(low: np.ndarray, high: np.ndarray, size: int) -> np.ndarray:
    """The matrix that takes a box to a square of `size` pixels."""
    x, y = size / (high - low)
    return np.array([[x, 0, -x * low[0]], [0, y, -y * low[1]], [0, 0, 1]])

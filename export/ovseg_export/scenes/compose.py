"""Composites of objects with alpha over backgrounds, with the instance map of what stays visible.

Everything random comes from one `numpy.random.Generator`, so a scene is a function of its seed and its
library.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .library import Library

MIN_VISIBLE_PIXELS_512 = 100  # at 512 px; scales with the area of the picture
PLACES = 8  # tried for an object before it is left out


@dataclass(frozen=True)
class Mix:
    """What a scene is made of.

    `objects`, `cutouts` and `shapes` weigh the kinds against each other; `sides` are the shortest and longest
    object, in pixels of a 512 px picture; `filling` is the share of scenes with an object as large as the
    picture. At least `min_visible` of each object stays visible.
    """

    objects: float = 0.55
    cutouts: float = 0.33
    shapes: float = 0.12
    photo_background: float = 0.8
    max_instances: int = 8
    sides: tuple[float, float] = (45, 400)
    filling: float = 0.18
    min_visible: float = 0.25


# `ordinary` is near to what people photograph, `crowded` a heap of things, much of them hidden.
MIXES = {
    "crowded": Mix(),
    "ordinary": Mix(objects=0.7, cutouts=0.18, max_instances=6, sides=(60, 320), filling=0.08, min_visible=0.6),
    "shapes": Mix(objects=0.0, cutouts=0.8, shapes=0.2, photo_background=1.0),
}


@dataclass(frozen=True)
class Instance:
    """One visible object.

    `box` is amodal: [xmin, ymin, xmax, ymax] of the whole object in pixels of the picture, so it may reach
    outside. `visible` is the visible share of the whole object's area. `key` and `set` are those of the
    library; shapes and cut-outs have the sets `shape` and `cutout`.
    """

    id: int
    key: str
    set: str
    name: str
    visible: float
    pixels: int
    box: tuple[int, int, int, int]


@dataclass
class Scene:
    """A picture (HxWx3 uint8 BGR), its instance map (HxW uint8, 0 is background) and its instances by id."""

    image: np.ndarray
    ids: np.ndarray
    instances: list[Instance] = field(default_factory=list)


def compose(rng: np.random.Generator, library: Library, size: int = 512, mix: Mix | None = None) -> Scene:
    """Make one scene of `size` x `size` pixels.

    Args:
        rng: the only source of randomness.
        library: objects and backgrounds of one split.
        size: side of the picture in pixels.
        mix: what the scene is made of.

    Returns:
        The scene; ids run from 1 without gaps, every id has at least 100 pixels (at 512 px) and
        `mix.min_visible` of its object in sight.

    """
    mix = mix or Mix()
    canvas = _background(rng, library, size, mix)
    ids = np.zeros((size, size), np.uint8)
    pasted: list[tuple[str, str, str, int, tuple[int, int, int, int]]] = []
    weights = np.array([mix.objects if library.objects else 0.0, mix.cutouts if library.photos else 0.0, mix.shapes])
    if rng.random() < 0.3:  # a scene of one kind only
        weights = weights * (np.arange(3) == rng.choice(3, p=weights / weights.sum()))
    weights = weights / weights.sum()
    count = int(rng.integers(min(2, mix.max_instances), mix.max_instances + 1))
    # Large things first, so that small ones are not wholly hidden more often than they would be in a
    # photograph.
    sides = _sides(rng, count, size, mix)
    for side in sides:
        kind = int(rng.choice(3, p=weights))
        if kind == 0:
            record = library.objects[int(rng.integers(len(library.objects)))]
            rgba = _jitter(rng, library.object_pixels(record))
            if max(rgba.shape[:2]) > 1.6 * side:  # shrink by area before warping, or thin parts alias
                scale = 1.6 * side / max(rgba.shape[:2])
                rgba = _shrink(rgba, scale)
            label = (record.key, record.set, record.name)
        elif kind == 1:
            rgba = cutout(rng, library, side)
            label = ("", "cutout", "")
        else:
            rgba = shape(rng, side)
            label = ("", "shape", "")
        placed = _place(rng, rgba, side, size)
        if placed is None:
            continue
        colour, alpha = placed
        whole = alpha >= 128
        area = int(whole.sum())
        if area < 16:
            continue
        bx, by, bw, bh = cv2.boundingRect(whole.astype(np.uint8))
        for _ in range(PLACES):
            x, y = _position(rng, alpha.shape, size)
            top, left = max(0, -y), max(0, -x)
            bottom, right = min(alpha.shape[0], size - y), min(alpha.shape[1], size - x)
            window = np.s_[y + top : y + bottom, x + left : x + right]
            part = np.s_[top:bottom, left:right]
            if _leaves_enough(ids, window, whole[part], [entry[3] for entry in pasted], area, mix.min_visible):
                break
        else:
            continue
        if rng.random() < 0.35:
            _shadow(rng, canvas, alpha, x, y)
        _blend(canvas[window], colour[part], alpha[part])
        pasted.append((*label, area, (x + bx, y + by, x + bx + bw, y + by + bh)))
        ids[window][whole[part]] = len(pasted)
    instances, ids = _visible(ids, pasted, size, mix.min_visible)
    return Scene(_camera(rng, canvas), ids, instances)


def _leaves_enough(
    ids: np.ndarray,
    window: tuple[slice, slice],
    new: np.ndarray,
    areas: list[int],
    area: int,
    share: float,
) -> bool:
    """Whether a new object, `new` in `window` of the picture, and those under it keep `share` in sight."""
    if new.sum() < share * area:
        return False
    hidden = np.bincount(ids[window][new], minlength=len(areas) + 1)[1:]
    if not hidden.any():
        return True
    visible = np.bincount(ids.ravel(), minlength=len(areas) + 1)[1:]
    # What was hidden too far before is dropped in the end: it does not matter what happens to it.
    spoiled = (hidden > 0) & (visible >= share * np.array(areas)) & (visible - hidden < share * np.array(areas))
    return not spoiled.any()


def _sides(rng: np.random.Generator, count: int, size: int, mix: Mix) -> np.ndarray:
    """Long sides of the objects in pixels, largest first; now and then one fills the picture."""
    sides = np.exp(rng.uniform(*np.log(mix.sides), count)) * size / 512
    if rng.random() < mix.filling:
        sides[0] = size * rng.uniform(0.8, 1.3)
    if rng.random() < 0.7:
        sides = np.sort(sides)[::-1]
    return sides


def _visible(
    ids: np.ndarray,
    pasted: list[tuple[str, str, str, int, tuple[int, int, int, int]]],
    size: int,
    min_visible: float,
) -> tuple[list[Instance], np.ndarray]:
    """Drop what is hardly visible and renumber the rest from 1."""
    least = MIN_VISIBLE_PIXELS_512 * (size / 512) ** 2
    counts = np.bincount(ids.ravel(), minlength=len(pasted) + 1)
    table = np.zeros(256, np.uint8)
    instances: list[Instance] = []
    for old, (key, set_name, name, area, box) in enumerate(pasted, start=1):
        pixels = int(counts[old])
        if pixels < least or pixels / area < min_visible:
            continue
        table[old] = len(instances) + 1
        instances.append(Instance(len(instances) + 1, key, set_name, name, round(pixels / area, 4), pixels, box))
    return instances, table[ids]


# ------------------------------------------------------------------ placing


def _place(rng: np.random.Generator, rgba: np.ndarray, side: float, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Warp an RGBA (BGRA order) picture to its size and angle: premultiplied colour, and alpha.

    None if it would be too small or too large.
    """
    height, width = rgba.shape[:2]
    scale = side / max(height, width)
    angle = np.deg2rad(rng.uniform(-180, 180) if rng.random() < 0.25 else rng.normal(0, 15))
    stretch = np.exp(rng.normal(0, 0.12))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    flat = (corners - [width / 2, height / 2]) * [scale * stretch, scale / stretch]
    if rng.random() < 0.5:
        flat[:, 0] = -flat[:, 0]
    if rng.random() < 0.4:
        flat = flat + rng.uniform(-0.12, 0.12, (4, 2)) * side
    cos, sin = np.cos(angle), np.sin(angle)
    turned = flat @ np.array([[cos, sin], [-sin, cos]])
    low, high = turned.min(0), turned.max(0)
    out_w, out_h = np.ceil(high - low).astype(int) + 4
    if out_w < 4 or out_h < 4 or out_w > 3 * size or out_h > 3 * size:
        return None
    target = (turned - low + 2).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, target)
    flat = premultiplied(rgba)
    warped = cv2.warpPerspective(flat, matrix, (int(out_w), int(out_h)), flags=cv2.INTER_LINEAR)
    if rng.random() < 0.35:  # feather: mask and colour soften together
        warped = cv2.GaussianBlur(warped, (0, 0), float(rng.uniform(0.4, 1.4)) * size / 512)
    return warped[..., :3], np.ascontiguousarray(warped[..., 3])


def _position(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Top-left corner of an object. Its centre lies in the picture; large things may be cut by the edge."""
    out_h, out_w = shape
    margin = 0.05
    x = int(rng.uniform(margin, 1 - margin) * size - out_w / 2)
    y = int(rng.uniform(margin, 1 - margin) * size - out_h / 2)
    if rng.random() < 0.7:  # most stay wholly inside where they fit
        x = int(np.clip(x, 0, max(0, size - out_w)))
        y = int(np.clip(y, 0, max(0, size - out_h)))
    return x, y


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3]
    colour = cv2.multiply(rgba[..., :3], cv2.merge([alpha, alpha, alpha]), scale=1 / 255)
    return cv2.merge([*cv2.split(colour), alpha])


def _blend(canvas: np.ndarray, premultiplied: np.ndarray, alpha: np.ndarray) -> None:
    rest = cv2.bitwise_not(alpha)
    under = cv2.multiply(canvas, cv2.merge([rest, rest, rest]), scale=1 / 255)
    cv2.add(under, premultiplied, dst=under)
    canvas[...] = under


def _shrink(rgba: np.ndarray, scale: float) -> np.ndarray:
    width, height = max(2, round(rgba.shape[1] * scale)), max(2, round(rgba.shape[0] * scale))
    return cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA)


def _shadow(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray, x: int, y: int) -> None:
    """Darken the canvas under a shifted, blurred copy of the alpha.

    Worked out at a quarter of the resolution.
    """
    height, width = alpha.shape
    size = canvas.shape[0]
    reach = max(4, int(0.12 * max(height, width)))
    small = cv2.resize(alpha, (max(2, width // 4), max(2, height // 4)), interpolation=cv2.INTER_AREA)
    pad = reach // 4 + 1
    small = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    small = cv2.GaussianBlur(small, (0, 0), max(0.5, reach / 4 * float(rng.uniform(0.1, 0.5))))
    full = cv2.resize(small, (width + 8 * pad, height + 8 * pad), interpolation=cv2.INTER_LINEAR)
    x = x - 4 * pad + int(rng.uniform(-0.7, 0.7) * reach)
    y = y - 4 * pad + int(rng.uniform(-0.2, 1.0) * reach)
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(full.shape[0], size - y), min(full.shape[1], size - x)
    if top >= bottom or left >= right:
        return
    strength = float(rng.uniform(0.2, 0.65))
    keep = cv2.convertScaleAbs(full[top:bottom, left:right], alpha=-strength, beta=0)  # |-s*a| = s*a
    keep = cv2.bitwise_not(keep)
    window = canvas[y + top : y + bottom, x + left : x + right]
    window[...] = cv2.multiply(window, cv2.merge([keep, keep, keep]), scale=1 / 255)


# ------------------------------------------------------------------ colours and textures


def _jitter(rng: np.random.Generator, rgba: np.ndarray) -> np.ndarray:
    """Change hue, saturation, contrast and brightness of the colour channels; alpha stays."""
    colour = np.ascontiguousarray(rgba[..., :3])
    if rng.random() < 0.4:
        hsv = cv2.cvtColor(colour, cv2.COLOR_BGR2HSV)
        hue = np.arange(256)
        hue = (hue + int(rng.integers(-25, 26) if rng.random() < 0.7 else rng.integers(0, 180))) % 180
        saturation = np.clip(np.arange(256) * rng.uniform(0.3, 1.3), 0, 255)
        table = np.stack([hue, saturation, np.arange(256)], -1).astype(np.uint8)[None]
        colour = cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        colour = cv2.LUT(colour, _tone(rng, 0.25, 30, 0.08))
    return np.dstack([colour, rgba[..., 3]])


def _tone(rng: np.random.Generator, contrast: float, brightness: float, tint: float) -> np.ndarray:
    """A look-up table for the three channels: contrast around 128, brightness, and a little colour cast."""
    level = np.arange(256, dtype=np.float32)[:, None]
    gain = np.exp(rng.normal(0, contrast)) * np.exp(rng.normal(0, tint, 3))
    return np.clip((level - 128) * gain + 128 + rng.uniform(-brightness, brightness), 0, 255).astype(np.uint8)[None]


def _background(rng: np.random.Generator, library: Library, size: int, mix: Mix) -> np.ndarray:
    if library.photos and rng.random() < mix.photo_background:
        canvas = photo_crop(rng, library, size, size, zoom=(0.35, 1.0))
        if rng.random() < 0.25:
            canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.8, 5)) * size / 512)
        if rng.random() < 0.5:
            canvas = cv2.LUT(canvas, _tone(rng, 0.25, 35, 0.06))
        return canvas
    return _procedural(rng, size, size)


def photo_crop(
    rng: np.random.Generator, library: Library, height: int, width: int, zoom: tuple[float, float]
) -> np.ndarray:
    """A random window of a random photograph, resized to height x width (uint8 BGR), at times flipped."""
    photo = library.draw_photo(rng)
    share = float(rng.uniform(*zoom))
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * share
    # The floor keeps enlargement within reason, the minimum keeps the window inside the photograph.
    scale = min(max(scale, 0.5), photo.shape[0] / height, photo.shape[1] / width)
    crop_h, crop_w = max(2, int(height * scale)), max(2, int(width * scale))
    y = int(rng.integers(photo.shape[0] - crop_h + 1))
    x = int(rng.integers(photo.shape[1] - crop_w + 1))
    crop = photo[y : y + crop_h, x : x + crop_w]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    crop = cv2.resize(crop, (width, height), interpolation=method)
    return cv2.flip(crop, 1) if rng.random() < 0.5 else crop


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, 3).astype(np.float32)


def _procedural(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Plain colour, gradient, stripes, checks or cloudy noise: HxWx3 uint8 BGR."""
    kind = int(rng.integers(5))
    first, second = _colour(rng), _colour(rng)
    if kind == 0:
        blend = np.full((height, width), 0.0, np.float32)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        xs = np.arange(width, dtype=np.float32)[None] * np.float32(np.cos(angle))
        ys = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
        if kind == 1:
            ramp = xs + ys
            blend = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)
        elif kind == 2:
            period = rng.uniform(4, 60)
            blend = 0.5 + 0.5 * np.sin((xs + ys) * np.float32(2 * np.pi / period))
            if rng.random() < 0.5:
                blend = (blend > 0.5).astype(np.float32)
        elif kind == 3:
            period = int(rng.integers(6, 64))
            xs, ys = np.arange(width)[None] // period, np.arange(height)[:, None] // period
            blend = ((xs + ys) % 2).astype(np.float32)
        else:
            blend = _clouds(rng, height, width)
    picture = first + (second - first) * blend[..., None]
    if rng.random() < 0.3:
        picture += (_clouds(rng, height, width)[..., None] - 0.5) * float(rng.uniform(10, 80))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sum of a few octaves of smooth noise: HxW float32 in 0..1."""
    total = np.zeros((height, width), np.float32)
    cells, weight = int(rng.integers(2, 6)), 1.0
    for _ in range(int(rng.integers(2, 6))):
        grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.55
    return (total - total.min()) / (np.ptp(total) + 1e-6)


# ------------------------------------------------------------------ shapes


def _mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The alpha (HxW uint8, smooth edge) of one random shape that fills its rectangle."""
    kind = int(rng.choice(6, p=[0.4, 0.17, 0.17, 0.12, 0.08, 0.06]))
    mask = np.zeros((height, width), np.uint8)
    turn = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    centre, half = np.array([width / 2, height / 2]), np.array([width / 2 - 1, height / 2 - 1])
    if kind == 0:  # Fourier blob
        radius = np.ones_like(turn)
        for order in range(1, int(rng.integers(3, 9))):
            radius += rng.normal(0, 0.45 / order) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
        radius = np.clip(radius, 0.15, None)
        points = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None]
    elif kind == 1:  # superellipse: from a diamond through an ellipse to a rectangle
        power = float(np.exp(rng.uniform(np.log(0.3), np.log(2.0))))
        cos, sin = np.cos(turn), np.sin(turn)
        points = np.stack([np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power], 1)
    elif kind == 2:  # polygon, often not convex
        corners = int(rng.integers(3, 10))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.35, 1, (corners, 1))
    elif kind == 3:  # plain rectangle
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    elif kind == 4:  # ring
        axes = (max(1, int(half[0])), max(1, int(half[1])))
        cv2.ellipse(mask, (width // 2, height // 2), axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
        inner = float(rng.uniform(0.3, 0.75))
        axes = (max(1, int(half[0] * inner)), max(1, int(half[1] * inner)))
        cv2.ellipse(mask, (width // 2, height // 2), axes, 0, 0, 360, 0, -1, cv2.LINE_AA)
        return mask
    else:  # thick bent stroke: something long
        steps = np.linspace(0, 1, 40)
        bend = rng.normal(0, 0.5, 4)
        curve = sum(bend[i] * np.sin((i + 1) * np.pi * steps + rng.uniform(0, np.pi)) for i in range(4))
        thick = max(3, int(min(height, width) * rng.uniform(0.1, 0.3)))
        points = np.stack([2 * steps - 1, curve / (np.abs(curve).max() + 1e-6)], 1)
        line = (points * (half - thick / 2 - 1) + centre) * 16
        cv2.polylines(mask, [line.astype(np.int32)], False, 255, thick, cv2.LINE_AA, 4)
        return mask
    points = points - (points.max(0) + points.min(0)) / 2
    points = points / (np.abs(points).max(0) + 1e-6)
    cv2.fillPoly(mask, [((points * half + centre) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask


def _extent(rng: np.random.Generator, side: float) -> tuple[int, int]:
    """Height and width of a shape whose long side is about `side`.

    Drawn at 320 px at most and enlarged by the warp.
    """
    side = min(side, 320.0)
    aspect = float(np.exp(rng.normal(0, 0.4)))
    return max(16, int(side * min(1.0, aspect))), max(16, int(side * min(1.0, 1 / aspect)))


def cutout(rng: np.random.Generator, library: Library, side: float) -> np.ndarray:
    """A shape filled with part of a photograph (BGRA uint8), shaded so that its edge is not the only cue."""
    height, width = _extent(rng, side)
    alpha = _mask(rng, height, width)
    colour = photo_crop(rng, library, height, width, zoom=(0.12, 0.7))
    if rng.random() < 0.25:  # an object of two materials
        inner = cv2.resize(_mask(rng, height, width), (max(4, width // 2), max(4, height // 2)))
        patch = np.zeros_like(alpha)
        y = int(rng.integers(height - inner.shape[0] + 1))
        x = int(rng.integers(width - inner.shape[1] + 1))
        patch[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        if rng.random() < 0.5:
            other = photo_crop(rng, library, height, width, zoom=(0.12, 0.7))
        else:
            other = _procedural(rng, height, width)
        _blend(colour, premultiplied(np.dstack([other, patch]))[..., :3], patch)
    if rng.random() < 0.7:
        colour = cv2.LUT(colour, _tone(rng, 0.3, 50, 0.12))
    return np.dstack([_shade(rng, colour, alpha), alpha])


def shape(rng: np.random.Generator, side: float) -> np.ndarray:
    """A shape filled with a procedural texture (BGRA uint8)."""
    height, width = _extent(rng, side)
    alpha = _mask(rng, height, width)
    return np.dstack([_shade(rng, _procedural(rng, height, width), alpha), alpha])


def _shade(rng: np.random.Generator, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Light from one side and, at times, a darker or lighter rim, as on a round body."""
    height, width = alpha.shape
    light = np.ones((height, width), np.float32)
    if rng.random() < 0.7:
        angle, depth = rng.uniform(0, 2 * np.pi), float(rng.uniform(0.1, 0.45))
        xs = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
        ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
        light += depth * (xs + ys)
    if rng.random() < 0.4:
        small = cv2.resize(alpha, (max(4, width // 4), max(4, height // 4)), interpolation=cv2.INTER_AREA)
        small = cv2.copyMakeBorder(small, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=0)
        small = cv2.GaussianBlur(small, (0, 0), max(1.0, min(height, width) / 24))
        body = cv2.resize(small[4:-4, 4:-4], (width, height), interpolation=cv2.INTER_LINEAR)
        light *= 1 + float(rng.uniform(-0.5, 0.3)) * (1 - body.astype(np.float32) / 255)
    return np.clip(colour * light[..., None], 0, 255).astype(np.uint8)


# ------------------------------------------------------------------ camera


def _camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """What a lens, a sensor and a file format do to a picture."""
    size = canvas.shape[0]
    if rng.random() < 0.5:
        level = np.arange(256, dtype=np.float32) / 255
        gamma = np.exp(rng.normal(0, 0.3))
        cast = np.exp(rng.normal(0, 0.05, 3)) * np.exp(rng.normal(0, 0.15))
        table = np.clip(level[:, None] ** gamma * cast * 255, 0, 255).astype(np.uint8)[None]
        canvas = cv2.LUT(canvas, table)
    if rng.random() < 0.05:
        grey = cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)
        canvas = cv2.merge([grey, grey, grey])
    if rng.random() < 0.25:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.6)) * size / 512)
    if rng.random() < 0.4:
        noise = np.empty(canvas.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31 - 1)))
        cv2.randn(noise, 0, float(rng.uniform(2, 14)))
        canvas = cv2.add(canvas, noise, dtype=cv2.CV_8U)
    if rng.random() < 0.35:
        quality = int(rng.integers(35, 90))
        jpeg = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        canvas = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return canvas

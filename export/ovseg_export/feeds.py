"""Inputs of every family, made from pictures as its `preprocess` says, for the comparison with Paddle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg.errors import ModelError
from ovseg.images import read_images
from ovseg.samples import samples
from ovseg_export.builders.images import TEST_SIZES, synthetic_image

AT_LEAST, AT_LEAST_LARGE = 4, 2
"""Pictures of a comparison, and of one with a model that takes a minute for each; synthetic ones fill up."""
_PHOTOGRAPH_SIDE = 320

_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos4": cv2.INTER_LANCZOS4,
}
# Prompts as shares of the picture: one box, two, three; a point.
_BOXES = (((0.1, 0.1, 0.6, 0.7),), ((0.3, 0.2, 0.9, 0.8), (0.0, 0.0, 1.0, 1.0)), ((0.5, 0.5, 0.55, 0.6),) * 3)
_POINTS = ((0.5, 0.5), (0.2, 0.7), (0.9, 0.1), (0.35, 0.4))


@dataclass(frozen=True)
class Case:
    """One comparison: its inputs by documented name, and what the pictures are, for the report."""

    label: str
    feeds: Mapping[str, np.ndarray]
    batch: int


def pictures(
    images: str | Path | Sequence[str | Path] | None,
    *,
    photographs: bool = False,
    at_least: int = AT_LEAST,
    most: int | None = None,
) -> list[tuple[str, np.ndarray]]:
    """Pictures to compare on: label and BGR uint8 [H, W, 3].

    Args:
        images: pictures, or folders of them. Where they are fewer than `at_least`, synthetic ones fill up.
        photographs: the sample photographs come before the synthetic ones: a detector may find nothing in
            synthetic pictures.
        at_least: pictures to return.
        most: so many of `images` at most.

    Raises:
        ImageError: one of `images` is not there or no picture.

    """
    given: list[tuple[str, np.ndarray]] = []
    if images is not None:
        sources = [images] if isinstance(images, str | Path) else list(images)
        found = read_images([str(source) for source in sources])
        given = [(str(image.path), image.pixels) for image in islice(found, most)]
    missing = max(0, at_least - len(given))
    if missing and photographs:
        given += [(f"sample {sample.name}", _photograph(sample.path)) for sample in samples()]
    for index, (height, width) in enumerate(TEST_SIZES[:missing]):
        given.append((f"synthetic {height}x{width}", synthetic_image(height, width, seed=index + 1)))
    return given


def _photograph(path: Path) -> np.ndarray:
    """A photograph, reduced: Paddle pastes a hundred masks of a large picture in gigabytes of memory."""
    pixels = next(iter(read_images(str(path)))).pixels
    scale = _PHOTOGRAPH_SIDE / max(pixels.shape[:2])
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def cases(
    preprocess: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int | str]],
    chosen: Sequence[tuple[str, np.ndarray]],
    *,
    batched: bool,
) -> Iterator[Case]:
    """Yield a case for each picture, and of two pictures each where the graph takes batches.

    Args:
        preprocess: as in `model.yaml`.
        shapes: sizes of the model's inputs by documented name; texts are open axes.
        chosen: pictures from `pictures`.
        batched: whether the graph takes several images at once.

    """
    for index, (label, pixels) in enumerate(chosen):
        height, width = pixels.shape[:2]
        yield Case(f"{label} ({height}x{width})", _feeds(preprocess, shapes, [pixels], index), 1)
    if batched:
        # The first and the last picture: a photograph and a synthetic one, if there are both.
        for label, pixels in (chosen[0], chosen[-1]):
            height, width = pixels.shape[:2]
            # Both of one size: models that keep the ratio stack equal sizes only.
            pair = [pixels, np.ascontiguousarray(pixels[::-1, ::-1])]
            yield Case(
                f"{label} and the same turned by 180° ({height}x{width})",
                _feeds(preprocess, shapes, pair, 0),
                2,
            )


def check_sizes(made: Sequence[Case], shapes: Mapping[str, Sequence[int | str]], where: str) -> None:
    """Raise ModelError unless the preprocessing makes images of the size that the program takes.

    Args:
        made: from `cases`.
        shapes: as for `cases`.
        where: path of `inference.yml`, for the message.

    """
    taken = list(shapes["image"][1:])
    for case in made:
        sizes = list(case.feeds["image"].shape[1:])
        if any(isinstance(size, int) and size != own for size, own in zip(taken, sizes, strict=True)):
            raise ModelError(
                f"{where}: its preprocessing makes images of {_times(sizes)}, and the program takes {_times(taken)}.",
                "Use the inference.yml that was saved together with the program.",
            )


def _times(sizes: Sequence[int | str]) -> str:
    return " x ".join(str(size) for size in sizes)


def _feeds(
    preprocess: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int | str]],
    pixels: Sequence[np.ndarray],
    index: int,
) -> dict[str, np.ndarray]:
    prepared = [_prepare(preprocess, item) for item in pixels]
    made: dict[str, np.ndarray] = {"image": np.stack([image for image, _ in prepared])}
    resized = np.float32([size for _, size in prepared])
    original = np.float32([item.shape[:2] for item in pixels])
    height, width = resized[0]
    made["im_shape"] = resized
    made["scale_factor"] = (resized / original).astype(np.float32)
    boxes = np.float32(_BOXES[index % len(_BOXES)]) * np.float32([width, height, width, height])
    made["boxes"] = boxes if isinstance(shapes.get("boxes", [""])[0], str) else boxes[:1]
    made["points"] = (np.float32(_POINTS[index % len(_POINTS)]) * np.float32([width, height])).reshape(1, 1, 2)
    return {name: made[name] for name in shapes}


def _prepare(preprocess: Mapping[str, Any], pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Return float32 [3, H, W] and the height and width before padding."""
    mean, std = np.float32(preprocess["mean"]), np.float32(preprocess["std"])
    height, width = pixels.shape[:2]
    sam = preprocess["type"] == "SAMProcessor"
    if sam:
        scale = preprocess["size"] / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    elif preprocess.get("keep_ratio"):
        short, long = sorted(preprocess["size"])
        scale = min(short / min(height, width), long / max(height, width))
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        rows, columns = preprocess["size"]
    resized = cv2.resize(pixels, (columns, rows), interpolation=_INTERPOLATIONS[preprocess.get("interp", "linear")])
    image = (resized[..., ::-1].astype(np.float32) - mean) / std
    if sam:
        down, right = preprocess["size"] - rows, preprocess["size"] - columns
    else:
        stride = preprocess.get("pad_stride", 1)
        down, right = -rows % stride, -columns % stride
    padded = np.pad(image, ((0, down), (0, right), (0, 0)))
    return np.ascontiguousarray(padded.transpose(2, 0, 1)), (rows, columns)

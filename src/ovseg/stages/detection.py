"""What detectors and instance segmenters need: the image as they take it, and which detections to keep."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..errors import ConfigError, ModelError

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos4": cv2.INTER_LANCZOS4,
}
THRESHOLD_FORM = 'Give a number from 0 to 1, or one for each class, such as {"person": 0.5, "dog": 0.3}.'


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a detector's input, as `preprocess` of `model.yaml` says.

    Attributes:
        size: height and width to resize to; with `keep_ratio` the short and the long side at most.
        keep_ratio: whether the image keeps its aspect.
        interpolation: OpenCV's number of the interpolation.
        mean: of R, G and B, in 0..255.
        std: of R, G and B, in 0..255.
        stride: the input is padded at the right and bottom to a multiple of it.
        normalise_first: whether the floats are resized rather than the bytes.
    """

    size: tuple[int, int]
    keep_ratio: bool
    interpolation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride: int = 1
    normalise_first: bool = False

    @functools.cached_property
    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """What pixels are multiplied with and what is added to the product, 3x1x1 float32 each."""
        std = np.array(self.std).reshape(3, 1, 1)
        return (1 / std).astype(np.float32), (-np.array(self.mean).reshape(3, 1, 1) / std).astype(np.float32)

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a resized image after padding."""
        height, width = shape
        return height + -height % self.stride, width + -width % self.stride


class Prepared(NamedTuple):
    """A detector's input for N images.

    Attributes:
        image: Nx3xhxw float32, R, G, B, normalised and padded.
        shapes: (height, width) of each resized image, before padding.
        sizes: (height, width) of each original image.
    """

    image: np.ndarray
    shapes: list[tuple[int, int]]
    sizes: list[tuple[int, int]]

    @property
    def im_shape(self) -> np.ndarray:
        """`shapes` as an input of a graph, Nx2 float32."""
        return np.array(self.shapes, dtype=np.float32)

    @property
    def scale_factor(self) -> np.ndarray:
        """`shapes` over `sizes`, Nx2 float32."""
        scale: np.ndarray = np.array(self.shapes) / np.array(self.sizes)
        return scale.astype(np.float32)


def read_preprocessing(facts: Mapping[str, Any], where: str) -> Preprocessing:
    """Check `preprocess` of `model.yaml`.

    Args:
        facts: the mapping.
        where: how messages name it.

    Raises:
        ModelError: naming the key that is missing or wrong.
    """
    interpolation = facts.get("interp", "linear")
    if str(interpolation) not in INTERPOLATIONS:
        raise ModelError(f"{where} has the interp {interpolation!r}.", f"Use one of {', '.join(INTERPOLATIONS)}.")
    height, width = _numbers(facts, "size", 2, where)
    stride = facts.get("pad_stride", 1)
    if (
        min(height, width) < 1
        or not (height.is_integer() and width.is_integer())
        or isinstance(stride, bool)
        or not isinstance(stride, int)
        or stride < 1
    ):
        raise ModelError(
            f"{where} has the size {facts['size']!r} and the pad_stride {stride!r}.",
            "Give whole numbers above 0.",
        )
    for key in ("keep_ratio", "normalize_first"):
        if not isinstance(facts.get(key, False), bool):
            raise ModelError(f"{where} has the {key} {facts[key]!r}.", "Give true or false.")
    std = _numbers(facts, "std", 3, where)
    if 0 in std:
        raise ModelError(f"{where} has the std {facts['std']!r}.", "Give three numbers above 0.")
    return Preprocessing(
        size=(int(height), int(width)),
        keep_ratio=facts.get("keep_ratio", False),
        interpolation=INTERPOLATIONS[interpolation],
        mean=_numbers(facts, "mean", 3, where),
        std=std,
        stride=stride,
        normalise_first=facts.get("normalize_first", False),
    )


def check_shape(
    preprocessing: Preprocessing, shape: Sequence[int | str | None], where: str, *, takes_bytes: bool = False
) -> None:
    """Refuse a preprocessing that makes other images than a network takes, before each image is blamed for it.

    Args:
        preprocessing: of the network.
        shape: what the network takes, [N, 3, H, W], with the names of free axes; [N, H, W, 3] of bytes.
        where: how messages name the preprocessing.
        takes_bytes: whether the network normalises images itself.

    Raises:
        ModelError: the sizes differ, or the network takes bytes and the images are padded or normalised.
    """
    made = preprocessing.padded(preprocessing.size)
    taken = shape[1:3] if takes_bytes else shape[2:4]
    fits = all(side == size for side, size in zip(made, taken, strict=False) if isinstance(size, int))
    if takes_bytes:
        fits = fits and made == preprocessing.size and not preprocessing.normalise_first
    if not (fits or preprocessing.keep_ratio):
        extra = ", normalize_first" if preprocessing.normalise_first else ""
        raise ModelError(
            f"{where} has the size {list(preprocessing.size)}, pad_stride {preprocessing.stride}{extra}, and the "
            f"network takes [{', '.join(map(str, shape))}].",
            "Export the model again, or take its folder as it was.",
        )


def _numbers(facts: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    values = facts.get(key)
    if (
        not isinstance(values, list | tuple)
        or len(values) != count
        or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
        or not all(math.isfinite(value) for value in values)
    ):
        raise ModelError(f"{where} has the {key} {values!r}.", f"Give {count} numbers.")
    return tuple(float(value) for value in values)


def resized_shape(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (height, width) of an image after resizing, before padding; each is at least 1.

    Keeping the ratio, the image is as large as it can be with its short side within the smaller number of
    `size` and its long side within the larger one; halves are rounded to even, as PaddleX does.
    """
    if not preprocessing.keep_ratio:
        return preprocessing.size
    short, long = sorted(preprocessing.size)
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def prepare(pixels: Sequence[np.ndarray], preprocessing: Preprocessing) -> Prepared:
    """Resize, normalise and pad images.

    Args:
        pixels: HxWx3 uint8 BGR, one or more; not changed. Of one size, if their ratio is kept.
        preprocessing: how.
    """
    sizes = [(image.shape[0], image.shape[1]) for image in pixels]
    shape = resized_shape(*sizes[0], preprocessing)
    return Prepared(network_input(pixels, shape, preprocessing), [shape] * len(sizes), sizes)


def network_input(pixels: Sequence[np.ndarray], shape: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """Resize images to one shape, normalise and pad them, each straight into its place in the batch.

    Args:
        pixels: N of HxWx3 uint8 BGR; not changed.
        shape: height and width to resize to.
        preprocessing: how.

    Returns:
        Nx3xhxw float32, R, G, B.
    """
    rows, columns = shape
    whole = preprocessing.padded(shape)
    batch = (np.empty if whole == shape else np.zeros)((len(pixels), 3, *whole), dtype=np.float32)
    factor, offset = preprocessing.line
    for image, planes in zip(pixels, batch[..., :rows, :columns], strict=True):
        # Resizing is linear in the pixels, so floats may be resized before the normalisation or after it; only
        # resized bytes would be rounded. The resized image is the smaller one in general.
        source = image.astype(np.float32) if preprocessing.normalise_first else image
        if image.shape[:2] != shape:
            source = cv2.resize(source, (columns, rows), interpolation=preprocessing.interpolation)
        # A product and a sum, in PaddleX's order, so that the last bit is the same as well.
        np.multiply(source.transpose(2, 0, 1)[::-1], factor, out=planes)
        planes += offset
    return batch


def resize_all(pixels: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Resize images to the one size of a network that normalises them itself.

    Args:
        pixels: N of HxWx3 uint8 BGR; not changed.
        preprocessing: how.

    Returns:
        Nxhxwx3 uint8, B, G, R.
    """
    rows, columns = preprocessing.size
    batch = np.empty((len(pixels), rows, columns, 3), np.uint8)
    for image, place in zip(pixels, batch, strict=True):
        cv2.resize(image, (columns, rows), dst=place, interpolation=preprocessing.interpolation)
    return batch


def parse_threshold(
    threshold: float | Mapping[Any, float], labels: Sequence[str], others: float | np.ndarray
) -> np.ndarray:
    """Return the least score of each class.

    Args:
        threshold: one number for all classes, or a mapping of label or class number to number; a number may be
            a text, as in JSON, where no label is.
        labels: class names by number.
        others: for classes that the mapping leaves out: one number, or one for each label.

    Returns:
        float32, one for each label.

    Raises:
        ConfigError: a number outside of 0..1, or a class that is not known.
    """
    if not isinstance(threshold, Mapping):
        return np.full(len(labels), _share(threshold, "The threshold"), dtype=np.float32)
    thresholds = np.array(np.broadcast_to(others, len(labels)), dtype=np.float32)
    for name, value in threshold.items():
        numbers = [i for i, label in enumerate(labels) if label == name]
        number = _class_number(name)
        if not numbers and number is not None and 0 <= number < len(labels):
            numbers = [number]
        if not numbers:
            shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
            raise ConfigError(
                f"The threshold names the class {name!r}, which the model does not know.",
                f"Its {len(labels)} classes are {shown}.",
            )
        thresholds[numbers] = _share(value, f"The threshold of {name!r}")
    return thresholds


def _class_number(name: Any) -> int | None:
    """Return the class number that a key of a threshold is; keys of JSON are texts."""
    if isinstance(name, str):
        return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None
    return int(name) if isinstance(name, int | np.integer) and not isinstance(name, bool) else None


def _share(value: Any, what: str) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ConfigError(f"{what} is {value!r}.", THRESHOLD_FORM)
    return float(value)


def class_thresholds(classes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the threshold of each detection: that of its class, or the least of all if it is beyond them.

    Args:
        classes: N class numbers (int).
        thresholds: one for each class, from `parse_threshold`.

    Returns:
        N numbers of the type of `thresholds`.
    """
    known = (classes >= 0) & (classes < len(thresholds))
    return np.where(known, thresholds[np.where(known, classes, 0)], thresholds.min())


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip boxes Nx4 (x1, y1, x2, y2) to an image of `height`x`width` pixels."""
    clipped: np.ndarray = np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))
    return clipped


def rounded_boxes(boxes: np.ndarray) -> np.ndarray:
    """Round boxes Nx4 to whole pixels (int64), halves to even, as PaddleX rounds to crop its masks.

    >>> rounded_boxes(np.array([[0.5, 1.5, 2.4, 2.6]])).tolist()
    [[0, 2, 2, 3]]
    """
    return np.rint(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)).astype(np.int64)

"""Prompts of promptable segmentation: checking what the user gave and scaling it to the network's frame."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import PromptError
from .resize import long_side_shape

PROMPT_TYPES = ("box", "point")
BOX_FORM = "Boxes are [[x1, y1, x2, y2], ...] in pixels, such as [[112.9, 118.4, 513.8, 382.1]]."
POINT_FORM = "Points are [[x, y], ...] in pixels, such as [[313.0, 250.5]]."
_FORMS = {"box": BOX_FORM, "point": POINT_FORM}

# SAM's point labels. The two corners of a box are points of their own kind.
NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT, PADDING = 0, 1, 2, 3, -1

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxtuple = 6


@dataclass(frozen=True)
class Prompts:
    """Checked prompts of one kind: one mask is made for each.

    Attributes:
        kind: "box" or "point".
        given: the prompts as the user gave them, as lists of numbers.
        coords: boxes: Nx4 float64 (x1, y1, x2, y2); points: NxPx2 float64 (x, y). Pixels of the image.
        labels: points: NxP int64, 1 inside the object, 0 outside it, -1 padding; boxes: None.
    """

    kind: str
    given: list[Any]
    coords: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.given)


def parse_prompts(prompt: Any, prompt_type: str | None) -> Prompts:
    """Check the prompts of `predict`.

    Args:
        prompt: list of boxes [x1, y1, x2, y2] or of points [x, y], or an array Nx4 or Nx2.
        prompt_type: "box" or "point"; None is "box".

    Raises:
        PromptError: if they have not that form.
    """
    prompt_type = "box" if prompt_type is None else prompt_type
    if prompt_type == "box":
        return parse_boxes(prompt)
    if prompt_type == "point":
        return parse_points(prompt)
    raise PromptError(f"The prompt type {_short.repr(prompt_type)} is not known.", 'Use "box" or "point".')


def parse_boxes(boxes: Any) -> Prompts:
    """Check box prompts: a list of [x1, y1, x2, y2], or an array Nx4.

    Raises:
        PromptError: if they have not that form, are not finite, or if x2 <= x1 or y2 <= y1.
    """
    given = _rows(boxes, "box", 4)
    for i, (x1, y1, x2, y2) in enumerate(given):
        if x2 <= x1 or y2 <= y1:
            raise PromptError(
                f"Prompt {i}, {given[i]}, is not a box: x2 must be greater than x1, and y2 than y1.", BOX_FORM
            )
    return Prompts("box", given, np.asarray(given, dtype=np.float64))


def parse_points(points: Any, labels: Any = None) -> Prompts:
    """Check point prompts.

    Args:
        points: without labels a list of [x, y], each the prompt of its own mask. With labels a list of [x, y]
            that together describe one object. A list of such lists describes one object each, with or without
            labels.
        labels: for each point 1 (inside the object) or 0 (outside it), nested as `points`.

    Raises:
        PromptError: if they have not that form, are not finite, or if the labels do not match the points.
    """
    raw = _as_list(points, "point")
    grouped = bool(raw) and all(_is_list(group) and len(group) > 0 and _is_list(group[0]) for group in raw)
    if labels is None and not grouped:
        given = _rows(raw, "point", 2)
        return Prompts("point", given, np.asarray(given, dtype=np.float64)[:, None], np.ones((len(given), 1), np.int64))

    groups = [_rows(group, "point", 2) for group in (raw if grouped else [raw])]
    if labels is None:
        group_labels = [[POSITIVE] * len(group) for group in groups]
    else:
        group_labels = _label_groups(labels if grouped else [labels], groups)
    longest = max(len(group) for group in groups)
    coords = np.zeros((len(groups), longest, 2), dtype=np.float64)
    padded_labels = np.full((len(groups), longest), PADDING, dtype=np.int64)
    for i, (group, group_label) in enumerate(zip(groups, group_labels, strict=True)):
        coords[i, : len(group)] = group
        padded_labels[i, : len(group)] = group_label
    return Prompts("point", groups, coords, padded_labels)


def check_inside(prompts: Prompts, height: int, width: int, name: str | None = None) -> None:
    """Refuse a prompt that lies wholly outside an image of `height`x`width` pixels.

    Raises:
        PromptError: naming the prompt and the image, which `name` calls by its name.
    """
    if prompts.kind == "box":
        x1, y1, x2, y2 = prompts.coords.T
        outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    else:
        x, y = np.moveaxis(prompts.coords, -1, 0)
        outside = ((x < 0) | (y < 0) | (x > width) | (y > height)).any(axis=1)
    if outside.any():
        i = int(np.argmax(outside))
        where = f"{name or 'the image'} ({width}x{height} pixels)"
        raise PromptError(
            f"Prompt {i}, {_short.repr(prompts.given[i])}, is outside {where}.",
            "Coordinates are pixels of the original image, with (0, 0) at its top left corner.",
        )


def scale_coords(coords: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Scale coordinates from the image to the network's frame.

    Args:
        coords: ...x2 or ...x4 float64: x, y alternating, in pixels of the image.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        size: long side of the resized image, in pixels.

    Returns:
        float32 of the same shape, in pixels of the resized image.
    """
    new_height, new_width = long_side_shape(height, width, size)
    pairs: np.ndarray = coords.reshape(-1, 2) * np.array([new_width / width, new_height / height])
    return pairs.reshape(coords.shape).astype(np.float32)


def corner_points(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes Nx4 as points Nx2x2 and SAM's labels Nx2 of the two corners."""
    labels = np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], dtype=np.float32), (len(boxes), 1))
    return boxes.reshape(-1, 2, 2), labels


def with_padding_point(coords: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Append SAM's padding point to points NxPx2 and labels NxP.

    SAM was trained with it: wherever no box is given, a point (0, 0) of label -1 takes the place of its
    second corner.
    """
    return np.pad(coords, ((0, 0), (0, 1), (0, 0))), np.pad(labels, ((0, 0), (0, 1)), constant_values=PADDING)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _as_list(prompt: Any, kind: str) -> list[Any]:
    if prompt is None:
        raise PromptError("No prompt was given.", _FORMS[kind])
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist()
    if not _is_list(prompt):
        raise PromptError(f"The prompt {_short.repr(prompt)} is not a list.", _FORMS[kind])
    rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in prompt]
    if not rows:
        raise PromptError("The prompt is an empty list.", _FORMS[kind])
    return rows


def _rows(prompt: Any, kind: str, length: int) -> list[list[float]]:
    rows = _as_list(prompt, kind)
    if isinstance(rows[0], numbers.Real):
        raise PromptError(f"The prompt {_short.repr(rows)} is a flat list of numbers: wrong nesting.", _FORMS[kind])
    return [_row(i, row, kind, length) for i, row in enumerate(rows)]


def _row(i: int, row: Any, kind: str, length: int) -> list[float]:
    where = f"Prompt {i}, {_short.repr(row)},"
    if not _is_list(row):
        raise PromptError(f"{where} is not a list of numbers.", _FORMS[kind])
    if row and _is_list(row[0]):
        raise PromptError(f"{where} is nested too deeply.", _FORMS[kind])
    if len(row) != length:
        other = {
            ("box", 2): 'For points use prompt_type="point".',
            ("point", 4): 'For boxes use prompt_type="box".',
        }
        cure = f"{_FORMS[kind]} {other.get((kind, len(row)), '')}".strip()
        raise PromptError(f"{where} has {len(row)} numbers, and a {kind} has {length}.", cure)
    numbers_only: list[float] = []
    for value in row:
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise PromptError(f"{where} holds {_short.repr(value)}, which is not a number.", _FORMS[kind])
        if not math.isfinite(value):
            raise PromptError(f"{where} holds {float(value)}, which is not finite.", _FORMS[kind])
        numbers_only.append(value.item() if isinstance(value, np.generic) else cast(float, value))
    return numbers_only


def _label_groups(labels: Any, groups: Sequence[Sequence[Any]]) -> list[list[int]]:
    form = "Give each point the label 1 (inside the object) or 0 (outside it), nested as the points are."
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not _is_list(labels) or len(labels) != len(groups):
        raise PromptError(f"The labels {_short.repr(labels)} do not match the points.", form)
    checked = []
    for i, (group, points) in enumerate(zip(labels, groups, strict=True)):
        values = group.tolist() if isinstance(group, np.ndarray) else group
        if not _is_list(values) or len(values) != len(points):
            raise PromptError(
                f"The labels {_short.repr(group)} do not match the {len(points)} points of prompt {i}.", form
            )
        for value in values:
            if isinstance(value, bool) or value not in (NEGATIVE, POSITIVE):
                raise PromptError(f"The label {_short.repr(value)} is not known.", form)
        if POSITIVE not in values:
            raise PromptError(f"The labels {_short.repr(values)} of prompt {i} have no point inside the object.", form)
        checked.append([int(value) for value in values])
    return checked

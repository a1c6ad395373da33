"""Prompts of promptable segmentation: checking what the user gave and scaling it to the network's frame."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
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

# Pixels beyond which a box would not be finite as the float32 that a network takes.
_FAR = 1e30
_MOST_BITS = 10_000  # of an integer that Python still writes in digits


class _Short(reprlib.Repr):
    """Short representations, also of integers of more digits than Python writes."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < _MOST_BITS else "a huge number"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlist = _short.maxtuple = 6


@dataclass(frozen=True, eq=False)
class Prompt:
    """All that is said of one object: points, a box, a mask, or several of these. It gets one mask.

    >>> Prompt(points=[[20, 30], [60, 70]], labels=[1, 0], box=[10, 10, 50, 90])
    Prompt(points=[[20, 30], [60, 70]], labels=[1, 0], box=[10, 10, 50, 90])

    Attributes:
        points: [[x, y], ...] in pixels of the image; an empty list if there are none.
        labels: for each point 1 (inside the object) or 0 (outside it). 1 for all if not given.
        box: [x1, y1, x2, y2] in pixels of the image, or None.
        mask: a rough or earlier mask of the object, or None: HxW of 0 and 1 (bool or integers) in the size of
            the image, or LxL float logits, as a result has them in `logits`.

    Raises:
        PromptError: if nothing is given, or something has not that form.
    """

    points: list[list[float]] = field(default_factory=list)
    labels: list[int] | None = None
    box: list[float] | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        given = _plain(self.points)
        points = [] if given is None or given == [] else _rows(given, "point", 2)
        if self.labels is None:
            labels = [POSITIVE] * len(points)
        else:
            labels = _label_groups(
                [self.labels], [points], negative_only=self.box is not None or self.mask is not None
            )[0]
        box = None if self.box is None else parse_boxes([self.box]).items[0].box
        mask = None if self.mask is None else _check_mask(self.mask)
        if not points and box is None and mask is None:
            raise PromptError("A prompt says nothing.", "Give Prompt points, a box or a mask.")
        for name, value in (("points", points), ("labels", labels), ("box", box), ("mask", mask)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        parts = []
        if self.points:
            parts += [f"points={self.points}", f"labels={self.labels}"]
        if self.box is not None:
            parts.append(f"box={self.box}")
        if self.mask is not None:
            parts.append(f"mask=<{'x'.join(map(str, self.mask.shape))} {self.mask.dtype}>")
        return f"Prompt({', '.join(parts)})"

    def as_json(self) -> dict[str, Any]:
        """The prompt as plain lists; of a mask only that there was one."""
        found: dict[str, Any] = {}
        if self.points:
            found |= {"points": self.points, "point_labels": self.labels}
        if self.box is not None:
            found["box"] = self.box
        if self.mask is not None:
            found["mask"] = True
        return found


@dataclass(frozen=True, eq=False)
class Prompts:
    """Checked prompts of one call: one mask is made for each.

    Attributes:
        kind: "box", "point" or, where at least one is more than a box or points, "mixed".
        given: the prompts as results name them: lists of numbers; of "mixed" ones dicts.
        items: the prompts.
    """

    kind: str
    given: list[Any]
    items: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shows_labels(self) -> bool:
        """Whether labels say something: several points describe one object."""
        return self.kind == "point" and any(len(item.points) > 1 for item in self.items)


def parse_prompts(prompt: Any, prompt_type: str | None) -> Prompts:
    """Check the prompts of `predict`.

    Args:
        prompt: list of boxes [x1, y1, x2, y2] or of points [x, y], or an array Nx4 or Nx2; or a list of
            `Prompt` (or one of them, or dicts of its parts), with which `prompt_type` is left out.
        prompt_type: "box" or "point"; None is "box".

    Raises:
        PromptError: if they have not that form.
    """
    if isinstance(prompt, Prompt | dict) or (
        _is_list(prompt) and any(isinstance(item, Prompt | dict) for item in prompt)
    ):
        if prompt_type is not None:
            raise PromptError(
                f"The prompt type {_short.repr(prompt_type)} was given with prompts that say themselves what they are.",
                "Leave prompt_type out.",
            )
        return gather_prompts(prompt)
    prompt_type = "box" if prompt_type is None else prompt_type
    if prompt_type == "box":
        return parse_boxes(prompt)
    if prompt_type == "point":
        return parse_points(prompt)
    if prompt_type == "text":
        raise PromptError(
            "There are no text prompts: no model that reads text is in the zoo.",
            'Use prompt_type="box" or "point", a list of Prompt, everything mode, or an example picture.',
        )
    raise PromptError(f"The prompt type {_short.repr(prompt_type)} is not known.", 'Use "box" or "point".')


def gather_prompts(items: Any) -> Prompts:
    """Check a list of `Prompt`, or of dicts of its parts; or one of them.

    Raises:
        PromptError: if it is empty or holds something else.
    """
    if isinstance(items, Prompt | dict):
        items = [items]
    if not _is_list(items):
        raise PromptError(f"The prompt {_short.repr(items)} is not a list.", "Give a Prompt, or a list of them.")
    if len(items) == 0:
        raise PromptError("The prompt is an empty list.", "Give at least one Prompt.")
    items = [_from_dict(item) if isinstance(item, dict) else item for item in items]
    for i, item in enumerate(items):
        if not isinstance(item, Prompt):
            raise PromptError(
                f"Prompt {i}, {_short.repr(item)}, is not a Prompt.", "Do not mix Prompt and plain lists."
            )
    if all(item.mask is None and not item.points for item in items):
        return Prompts("box", [item.box for item in items], tuple(items))
    if all(item.mask is None and item.box is None for item in items):
        return Prompts("point", [item.points for item in items], tuple(items))
    return Prompts("mixed", [item.as_json() for item in items], tuple(items))


def combine_prompts(boxes: Any = None, points: Any = None, labels: Any = None, masks: Any = None) -> Prompts:
    """Check prompts that are given side by side: the i-th box, points and mask describe the i-th object.

    Args:
        boxes: as `parse_boxes` takes them, or None.
        points: as `parse_points` takes them, or None. Beside boxes or masks: a list of points for each
            object (None or [] where it has none); where there is one object, also a flat list.
        labels: as `parse_points` takes them.
        masks: a list of masks as `Prompt` takes them (None where an object has none), or one array LxL or
            HxW, or NxLxL or NxHxW; or None.

    Raises:
        PromptError: if one has not that form, or they are of different length.
    """
    if labels is not None and points is None:
        raise PromptError("Labels were given without points.", "Only points have labels.")
    if masks is None and (boxes is None) != (points is None):
        return parse_boxes(boxes) if boxes is not None else parse_points(points, labels)
    if boxes is None and points is None and masks is None:
        raise PromptError("No prompt was given.", "Give boxes=[[x1, y1, x2, y2], ...], points=[[x, y], ...] or both.")
    parts: dict[str, list[Any]] = {}
    if boxes is not None:
        parts["box"] = [item.box for item in parse_boxes(boxes).items]
    if masks is not None:
        parts["mask"] = _mask_list(masks)
    if points is not None:
        raw = _plain(points)
        nested = _is_list(raw) and all(group is None or _nested(group) for group in raw)
        if not nested and len(next(iter(parts.values()))) == 1:
            raw, labels = [raw], None if labels is None else [labels]
        elif not nested:
            raise PromptError(
                "The points do not say which object they belong to.", "Give a list of points for each object."
            )
        parts["points"] = [[] if group is None else group for group in raw]
        if labels is not None:
            rows = _plain(labels)
            parts["labels"] = rows if _is_list(rows) else [rows]
    lengths = {name: len(values) for name, values in parts.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise PromptError(f"The prompts are of different length: {counts}.", "Give each object its own, None for none.")
    count = next(iter(lengths.values()))
    return gather_prompts([Prompt(**{name: values[i] for name, values in parts.items()}) for i in range(count)])


def parse_boxes(boxes: Any) -> Prompts:
    """Check box prompts: a list of [x1, y1, x2, y2], or an array Nx4.

    Raises:
        PromptError: if they have not that form, are not finite or beyond any image, or if x2 <= x1 or y2 <= y1.
    """
    given = _rows(boxes, "box", 4)
    for i, (x1, y1, x2, y2) in enumerate(given):
        if x2 <= x1 or y2 <= y1:
            raise PromptError(
                f"Prompt {i}, {given[i]}, is not a box: x2 must be greater than x1, and y2 than y1.", BOX_FORM
            )
    return Prompts("box", given, tuple(_checked(box=box) for box in given))


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
    grouped = bool(raw) and all(_nested(group) and len(group) > 0 for group in raw)
    if labels is None and not grouped:
        given = _rows(raw, "point", 2)
        return Prompts("point", given, tuple(_checked([point], [POSITIVE]) for point in given))

    groups = [_rows(group, "point", 2) for group in (raw if grouped else [raw])]
    if labels is None:
        group_labels = [[POSITIVE] * len(group) for group in groups]
    else:
        group_labels = _label_groups(labels if grouped else [labels], groups)
    items = tuple(_checked(group, marks) for group, marks in zip(groups, group_labels, strict=True))
    return Prompts("point", groups, items)


def check_inside(prompts: Prompts, height: int, width: int, name: str | None = None) -> None:
    """Refuse a prompt that lies wholly outside an image of `height`x`width` pixels.

    Raises:
        PromptError: naming the prompt and the image, which `name` calls by its name; also for a mask of
            another size.
    """
    where = f"{name or 'the image'} ({width}x{height} pixels)"
    for i, item in enumerate(prompts.items):
        outside = any(x < 0 or y < 0 or x > width or y > height for x, y in item.points)
        if item.box is not None:
            x1, y1, x2, y2 = item.box
            outside |= x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height
        if outside:
            raise PromptError(
                f"Prompt {i}, {_short.repr(prompts.given[i])}, is outside {where}.",
                "Coordinates are pixels of the original image, with (0, 0) at its top left corner.",
            )
        if item.mask is not None and item.mask.dtype == bool and item.mask.shape != (height, width):
            raise PromptError(
                f"The mask of prompt {i} has {item.mask.shape[1]}x{item.mask.shape[0]} pixels, unlike {where}.",
                "A mask of 0 and 1 has the size of the image.",
            )


def tokens(prompt: Prompt) -> tuple[list[list[float]], list[int]]:
    """Return a prompt as SAM's decoder takes it: points, then the corners of the box.

    SAM was trained with a padding point: where there is no box, a point (0, 0) of label -1 takes the place of
    its second corner. It is all that a prompt has that is a mask alone, as few graphs run without any token.

    Returns:
        [x, y] of each token in pixels of the image, and SAM's label of each.
    """
    labels = prompt.labels or []
    if prompt.box is not None:
        return [*prompt.points, prompt.box[:2], prompt.box[2:]], [*labels, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    return [*prompt.points, [0.0, 0.0]], [*labels, PADDING]


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


def _checked(points: Any = (), labels: Any = (), box: Any = None) -> Prompt:
    """Make a Prompt of parts that are already checked: there may be thousands."""
    prompt = object.__new__(Prompt)
    for name, value in (("points", list(points)), ("labels", list(labels)), ("box", box), ("mask", None)):
        object.__setattr__(prompt, name, value)
    return prompt


def _from_dict(parts: dict[str, Any]) -> Prompt:
    known = ("points", "labels", "box", "mask")
    for name in parts:
        if name not in known:
            raise PromptError(f"A prompt has no {_short.repr(name)}.", f"It has {', '.join(known)}.")
    return Prompt(**parts)


def _check_mask(mask: Any) -> np.ndarray:
    form = "A mask is HxW of 0 and 1 in the size of the image, or LxL float logits, as `result.logits` has them."
    try:
        array = np.asarray(mask)
    except ValueError as error:
        raise PromptError("The rows of the mask are of different length.", form) from error
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "bifu":
        raise PromptError(f"The mask has shape {array.shape} and dtype {array.dtype}.", form)
    if array.dtype.kind == "f":
        if array.shape[0] != array.shape[1]:
            raise PromptError(f"The logits have shape {array.shape}, which is not square.", form)
        if not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise PromptError("The logits hold numbers that are not finite as float32.", form)
        return array.astype(np.float32)
    if ((array != 0) & (array != 1)).any():
        raise PromptError("The mask holds other numbers than 0 and 1.", form)
    if not array.any():
        raise PromptError("The mask is empty.", "Give a mask that covers something, or none.")
    return array.astype(bool)


def _mask_list(masks: Any) -> list[Any]:
    if isinstance(masks, np.ndarray):
        return list(masks) if masks.ndim > 2 else [masks]
    if not _is_list(masks) or not masks:
        raise PromptError(f"The masks {_short.repr(masks)} are not a list of arrays.", "Give one for each object.")
    return list(masks)


def _nested(group: Any) -> bool:
    """Whether a value is a list of lists, or an empty list."""
    return _is_list(group) and (len(group) == 0 or _is_list(group[0]))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _plain(value: Any) -> Any:
    """Return an array, or a list of arrays, as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if _is_list(value) else value


def _as_list(prompt: Any, kind: str) -> list[Any]:
    if prompt is None:
        raise PromptError("No prompt was given.", _FORMS[kind])
    try:
        rows = _plain(prompt)
    except RecursionError:
        raise PromptError("The prompt is nested too deeply.", _FORMS[kind]) from None
    if not _is_list(rows):
        raise PromptError(f"The prompt {_short.repr(prompt)} is not a list.", _FORMS[kind])
    if not rows:
        raise PromptError("The prompt is an empty list.", _FORMS[kind])
    return list(rows)


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
        size = abs(cast(float, value))
        if not size <= _FAR:
            finite = size < math.inf
            what = f"{_short.repr(value)}, which is in no image" if finite else f"{float(value)}, which is not finite"
            raise PromptError(f"{where} holds {what}.", _FORMS[kind])
        numbers_only.append(value.item() if isinstance(value, np.generic) else cast(float, value))
    return numbers_only


def _label_groups(labels: Any, groups: Sequence[Sequence[Any]], *, negative_only: bool = False) -> list[list[int]]:
    form = "Give each point the label 1 (inside the object) or 0 (outside it), nested as the points are."
    labels = _plain(labels)
    if not _is_list(labels) or len(labels) != len(groups):
        raise PromptError(f"The labels {_short.repr(labels)} do not match the points.", form)
    checked = []
    for i, (values, points) in enumerate(zip(labels, groups, strict=True)):
        if not _is_list(values) or len(values) != len(points):
            raise PromptError(
                f"The labels {_short.repr(values)} do not match the {len(points)} points of prompt {i}.", form
            )
        for value in values:
            if isinstance(value, bool) or value not in (NEGATIVE, POSITIVE):
                raise PromptError(f"The label {_short.repr(value)} is not known.", form)
        if POSITIVE not in values and not negative_only:
            raise PromptError(f"The labels {_short.repr(values)} of prompt {i} have no point inside the object.", form)
        checked.append([int(value) for value in values])
    return checked

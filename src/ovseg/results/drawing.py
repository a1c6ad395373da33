"""Drawing masks, boxes and prompts on an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image

from ..stages.detection import rounded_boxes

# Colours (R, G, B) that keep apart from each other and from most pictures; the i-th object has the i-th
# colour, so that a picture is the same each time it is made.
PALETTE = (
    (230, 57, 70),
    (46, 134, 222),
    (38, 171, 88),
    (250, 166, 26),
    (155, 81, 224),
    (0, 184, 190),
    (240, 98, 160),
    (140, 120, 20),
    (90, 110, 250),
    (255, 112, 67),
    (124, 179, 66),
    (180, 80, 50),
)
_OPACITY = 0.45


def colour_of(index: int) -> tuple[int, int, int]:
    """Return the colour (R, G, B) of the object `index`."""
    return PALETTE[index % len(PALETTE)]


def draw_prompted_masks(
    pixels: np.ndarray, masks: Sequence[np.ndarray], mask_infos: Sequence[Mapping[str, Any]]
) -> PIL.Image.Image:
    """Draw masks with their outlines, then the prompts above them.

    Lines and letters grow with the image, so that a picture of 4000 pixels reads as one of 640.

    Args:
        pixels: HxWx3 uint8 BGR; not changed.
        masks: HxW arrays of 0 and 1 (8-bit or bool).
        mask_infos: for each mask its `label` and `prompt`.
    """
    canvas = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    scale = max(canvas.shape[:2]) / 640
    thickness = max(1, round(1.5 * scale))
    for i, mask in enumerate(masks):
        _draw_mask(canvas, np.ascontiguousarray(mask).view(np.uint8), colour_of(i), thickness)
    for i, info in enumerate(mask_infos):
        prompt = info["prompt"]
        # A prompt of several parts is a dict; regions that nobody prompted have no mark.
        box = prompt if info["label"] == "box_prompt" else prompt.get("box") if isinstance(prompt, dict) else None
        if box is not None:
            _draw_box(canvas, box, f"box {i + 1}", colour_of(i), thickness, scale)
        if info["label"] == "point_prompt":
            _draw_points(canvas, prompt, info.get("point_labels"), colour_of(i), scale)
        elif isinstance(prompt, dict) and "points" in prompt:
            _draw_points(canvas, prompt["points"], prompt["point_labels"], colour_of(i), scale)
    return PIL.Image.fromarray(canvas)


def draw_instances(
    pixels: np.ndarray, masks: Sequence[np.ndarray], boxes: Sequence[Mapping[str, Any]]
) -> PIL.Image.Image:
    """Draw masks with their outlines, as far as their boxes go, then boxes and labels, by class.

    Lines and letters grow with the image, and do not become smaller than can be read.

    Args:
        pixels: HxWx3 uint8 BGR; not changed.
        masks: HxW arrays of 0 and 1 (8-bit or bool).
        boxes: for each mask its `cls_id`, `label`, `score` and `coordinate`.
    """
    canvas = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    scale = max(1.0, max(canvas.shape[:2]) / 640)
    thickness = round(1.5 * scale)
    whole = rounded_boxes(np.array([box["coordinate"] for box in boxes])).tolist()
    for mask, box, (x1, y1, x2, y2) in zip(masks, boxes, whole, strict=True):
        # What a mask has beyond its box is left out, as in PaddleX's pictures.
        if x1 < x2 and y1 < y2:
            inside = np.ascontiguousarray(mask[y1:y2, x1:x2]).view(np.uint8)
            _draw_mask(canvas[y1:y2, x1:x2], inside, colour_of(box["cls_id"]), thickness)
    corners = [_corners(canvas, box["coordinate"]) for box in boxes]
    for box, (x1, y1, x2, y2) in zip(boxes, corners, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour_of(box["cls_id"]), thickness)
    # Last and from the lowest score up, so that no line runs through a label and the surest one is on top.
    for box, (x1, y1, _, _) in sorted(zip(boxes, corners, strict=True), key=lambda item: float(item[0]["score"])):
        # OpenCV's letters are ASCII: others would all become question marks.
        name = box["label"] if box["label"].isascii() else f"class {box['cls_id']}"
        _draw_label(canvas, x1, y1, f"{name} {box['score']:.2f}", colour_of(box["cls_id"]), scale)
    return PIL.Image.fromarray(canvas)


def draw_recognised(
    pixels: np.ndarray, boxes: Sequence[Mapping[str, Any]], nearest: Sequence[int | None]
) -> PIL.Image.Image:
    """Draw boxes with the label of the nearest item and its score, a colour for each label.

    Args:
        pixels: HxWx3 uint8 BGR; not changed.
        boxes: with their `labels`, `rec_scores` and `coordinate`.
        nearest: for each box the id of the nearest item.
    """
    canvas = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    scale = max(1.0, max(canvas.shape[:2]) / 640)
    colours: dict[str | None, int] = {}
    corners = []
    for box in boxes:
        colour = colour_of(colours.setdefault(box["labels"][0], len(colours)))
        x1, y1, x2, y2 = _corners(canvas, box["coordinate"])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, round(1.5 * scale))
        corners.append((x1, y1, colour))
    for box, item, (x1, y1, colour) in zip(boxes, nearest, corners, strict=True):
        label, score = box["labels"][0], box["rec_scores"][0]
        # OpenCV's letters are ASCII: others would all become question marks.
        name = label if label is None or label.isascii() else f"item {item}"
        _draw_label(canvas, x1, y1, "unknown" if name is None else f"{name} {score:.2f}", colour, scale)
    return PIL.Image.fromarray(canvas)


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    # Only the part of the picture that the mask covers is touched.
    part, part_mask = canvas[y : y + height, x : x + width], mask[y : y + height, x : x + width]
    painted = np.full_like(part, colour)
    cv2.addWeighted(painted, _OPACITY, part, 1 - _OPACITY, 0, dst=painted)
    cv2.copyTo(painted, part_mask, part)
    contours, _ = cv2.findContours(part_mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA, offset=(x, y))


def _draw_box(
    canvas: np.ndarray,
    box: Sequence[float],
    text: str,
    colour: tuple[int, int, int],
    thickness: int,
    scale: float,
) -> None:
    x1, y1, x2, y2 = _corners(canvas, box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
    _draw_label(canvas, x1, y1, text, colour, scale)


def _corners(canvas: np.ndarray, box: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the corners of a box as pixels that the canvas has."""
    height, width = canvas.shape[:2]
    limits = (width - 1, height - 1, width - 1, height - 1)
    x1, y1, x2, y2 = (int(min(max(value, 0), limit)) for value, limit in zip(box, limits, strict=True))
    return x1, y1, x2, y2


def _draw_label(canvas: np.ndarray, x1: int, y1: int, text: str, colour: tuple[int, int, int], scale: float) -> None:
    """Write a label above the top left corner (x1, y1) of a box."""
    width = canvas.shape[1]
    font, font_scale, font_thickness = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, max(1, round(scale))
    (text_width, text_height), below = cv2.getTextSize(text, font, font_scale, font_thickness)
    pad = max(1, round(2 * scale))
    # Above the box, or inside it where there is no room above.
    top = y1 - text_height - below - pad
    top = top if top >= 0 else y1
    left = min(x1, max(0, width - text_width - 2 * pad))
    cv2.rectangle(
        canvas,
        (left, top),
        (left + text_width + 2 * pad, top + text_height + below + pad),
        colour,
        cv2.FILLED,
    )
    cv2.putText(
        canvas,
        text,
        (left + pad, top + text_height + pad),
        font,
        font_scale,
        (255, 255, 255) if sum(colour) < 420 else (0, 0, 0),
        font_thickness,
        cv2.LINE_AA,
    )


def _draw_points(
    canvas: np.ndarray, prompt: Any, given_labels: Sequence[int] | None, colour: tuple[int, int, int], scale: float
) -> None:
    points = np.asarray(prompt, dtype=float).reshape(-1, 2)
    labels = [1] * len(points) if given_labels is None else given_labels
    radius = max(2, round(4 * scale))
    for (x, y), label in zip(points, labels, strict=True):
        centre = (int(x), int(y))
        # A point inside the object is a filled disc, one outside it a ring.
        cv2.circle(canvas, centre, radius + max(1, radius // 3), (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(canvas, centre, radius, colour, cv2.FILLED if label else max(1, radius // 2), cv2.LINE_AA)

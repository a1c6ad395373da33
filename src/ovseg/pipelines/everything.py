"""Everything mode: a grid of points as prompts, and of the masks that they give the good and different ones."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError, ModelError
from ..runtime import one_line
from ..stages.masks import RleMasks, decode_rle, encode_rle, upsampled_logits
from ..stages.prompts import parse_points
from ..stages.regions import (
    crop_boxes,
    fill_and_drop_small,
    near_crop_edge,
    point_grid,
    stability_score,
    suppress_overlaps,
)
from .sam import Decoded, Embedding, SamModel


def _option(default: Any, low: float, high: float = math.inf, *, whole: bool = False) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "whole": whole})


@dataclass(frozen=True)
class Everything:
    """Settings of everything mode; the defaults are those of the original SAM, before those of the model itself.

    Attributes:
        points_per_side: the grid has the square of it.
        pred_iou_thresh: masks whose predicted IoU is not above it are dropped; 0 keeps all.
        stability_score_thresh: masks that change more when their threshold is moved are dropped; 0 keeps all.
        box_nms_thresh: of two masks whose boxes have a higher IoU the one with the lower predicted IoU goes.
        crops: layers of crops that are looked at as well: 1 adds 2x2, 2 another 4x4.
        min_area: holes and parts with fewer pixels are filled and dropped.
        stability_score_offset: how far the threshold is moved, in logits.
        crop_nms_thresh: as `box_nms_thresh`, between crops; the smaller crop wins.
        crop_overlap: what crops share, as a part of the short side.
        crop_points_downscale: the grid of each layer has so many times fewer points a side than the last.

    Raises:
        ConfigError: a value that has no meaning.
    """

    points_per_side: int = _option(32, 1, 1024, whole=True)
    pred_iou_thresh: float = _option(0.88, 0, 1)
    stability_score_thresh: float = _option(0.95, 0, 1)
    box_nms_thresh: float = _option(0.7, 0, 1)
    crops: int = _option(0, 0, 5, whole=True)
    min_area: int = _option(0, 0, whole=True)
    stability_score_offset: float = _option(1.0, 0)
    crop_nms_thresh: float = _option(0.7, 0, 1)
    crop_overlap: float = _option(512 / 1500, 0, 1)
    crop_points_downscale: int = _option(1, 1, whole=True)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, low, high = getattr(self, item.name), item.metadata["low"], item.metadata["high"]
            kind = numbers.Integral if item.metadata["whole"] else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                what = "a whole number" if item.metadata["whole"] else "a number"
                bounds = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ConfigError(f"{item.name} is {value!r}.", f"Give {what}, {bounds}.")


def everything_settings(given: Mapping[str, Any]) -> Everything:
    """Check settings of everything mode.

    Raises:
        ConfigError: one that is not known or has no such value.
    """
    known = [item.name for item in fields(Everything)]
    for name in given:
        if name not in known:
            raise ConfigError(f"Everything mode has no setting {name!r}.", f"It has {', '.join(known)}.")
    return Everything(**given)


def own_settings(model: SamModel) -> Mapping[str, Any]:
    """Return the settings that a model folder has of its own.

    Raises:
        ModelError: one that is not known or has no such value.
    """
    try:
        everything_settings(model.everything)
    except (ConfigError, TypeError) as error:
        raise ModelError(
            f"The model.yaml of {model.name} has the postprocess.everything {model.everything!r}: {one_line(error)}",
            "Correct it, or export the model again.",
        ) from error
    return model.everything


@dataclass(frozen=True, eq=False)
class Region:
    """A mask that everything mode found.

    Attributes:
        rle: the mask in the size of the image, as `encode_rle` returns it.
        box: (x1, y1, x2, y2) in pixels of the image, the last ones inside it.
        point: (x, y) that prompted it.
        predicted_iou: as the model predicts it; None where it predicts none.
        stability: see `stability_score`.
        crop: (x1, y1, x2, y2) of the crop it was found in.
        area: pixels of the mask.
    """

    rle: dict[str, Any]
    box: tuple[int, int, int, int]
    point: tuple[float, float]
    predicted_iou: float | None
    stability: float
    crop: tuple[int, int, int, int]
    area: int

    @property
    def score(self) -> float:
        """What decides between two masks of the same thing."""
        return self.stability if self.predicted_iou is None else self.predicted_iou


def find_everything(
    model: SamModel,
    pixels: np.ndarray,
    settings: Everything,
    *,
    batch: int,
    embed: Callable[[np.ndarray], Embedding],
) -> list[Region]:
    """Return the masks of everything in an image, the largest first.

    Memory stays bounded: masks are pixels only while a batch of prompts is looked at, then run lengths.

    Args:
        model: a SAM that takes points.
        pixels: HxWx3 uint8 BGR.
        settings: what to look for.
        batch: prompts that are looked at together.
        embed: returns the embedding of an image or crop.

    Raises:
        PromptError: the model takes no points.
    """
    height, width = pixels.shape[:2]
    crops = crop_boxes(height, width, settings.crops, settings.crop_overlap)
    found: list[Region] = []
    for layer, crop in crops:
        side = max(1, settings.points_per_side // settings.crop_points_downscale**layer)
        in_crop = list(_crop_regions(model, pixels, crop, side, settings, batch, embed))
        found += _without_overlaps(in_crop, [region.score for region in in_crop], settings.box_nms_thresh)
    if len(crops) > 1:
        smaller_first = [1 / max(1, (r.crop[2] - r.crop[0]) * (r.crop[3] - r.crop[1])) for r in found]
        found = _without_overlaps(found, smaller_first, settings.crop_nms_thresh)
    if settings.min_area:
        found = _tidied(found, settings.min_area, max(settings.box_nms_thresh, settings.crop_nms_thresh))
    return sorted(found, key=lambda region: -region.area)


def _crop_regions(
    model: SamModel,
    pixels: np.ndarray,
    crop: tuple[int, int, int, int],
    points_per_side: int,
    settings: Everything,
    batch: int,
    embed: Callable[[np.ndarray], Embedding],
) -> Iterator[Region]:
    x, y, x2, y2 = crop
    embedding = embed(np.ascontiguousarray(pixels[y:y2, x:x2]))
    points = point_grid(points_per_side) * (x2 - x, y2 - y)
    for start in range(0, len(points), batch):
        part = points[start : start + batch]
        decoded = model.decode(embedding, parse_points(part), multimask=model.gives_three)
        for point, logits, predicted in _promising(part, decoded, settings.pred_iou_thresh):
            yield from _regions(model, embedding, pixels.shape[:2], crop, point, logits, predicted, settings)


def _promising(
    points: np.ndarray, decoded: Decoded, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, list[float | None]]]:
    """Yield for each point the logits MxLxL whose predicted IoU is high enough, and that IoU."""
    for i, point in enumerate(points):
        logits = decoded.logits[i]
        if decoded.iou is None:
            yield point, logits, [None] * len(logits)
            continue
        scores = decoded.iou[i]
        keep = scores > threshold if threshold > 0 else np.ones(len(scores), dtype=bool)
        if keep.any():
            yield point, logits[keep], scores[keep].tolist()


def _regions(
    model: SamModel,
    embedding: Embedding,
    shape: tuple[int, ...],
    crop: tuple[int, int, int, int],
    point: np.ndarray,
    low_res: np.ndarray,
    predicted: list[float | None],
    settings: Everything,
) -> Iterator[Region]:
    height, width = shape
    x, y = crop[:2]
    whole = (embedding.height, embedding.width) == (height, width)
    upsampled = upsampled_logits(low_res, model.size, embedding.height, embedding.width)
    for logits, iou in zip(upsampled, predicted, strict=True):
        stability = stability_score(logits, settings.stability_score_offset)
        if settings.stability_score_thresh > 0 and stability < settings.stability_score_thresh:
            continue
        mask = (logits > 0).view(np.uint8)
        box = _inclusive_box(mask)
        if near_crop_edge(box, crop, height, width):
            continue
        if not whole:
            in_image = np.zeros((height, width), dtype=np.uint8)
            in_image[y : y + embedding.height, x : x + embedding.width] = mask
            mask = in_image
        yield Region(
            rle=encode_rle([mask])[0],
            box=(box[0] + x, box[1] + y, box[2] + x, box[3] + y),
            point=(float(point[0]) + x, float(point[1]) + y),
            predicted_iou=iou,
            stability=stability,
            crop=crop,
            area=cv2.countNonZero(mask),
        )


def _inclusive_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width - 1, y + height - 1) if width else (0, 0, 0, 0)


def _without_overlaps(regions: list[Region], scores: list[float], threshold: float) -> list[Region]:
    boxes = np.array([region.box for region in regions]).reshape(-1, 4)
    return [regions[i] for i in suppress_overlaps(boxes, np.array(scores, dtype=np.float32), threshold)]


def _tidied(regions: list[Region], min_area: int, threshold: float) -> list[Region]:
    """Fill small holes, drop small parts, and drop what has become the same; unchanged masks go first."""
    tidy, scores = [], []
    for region in regions:
        mask, changed = fill_and_drop_small(decode_rle([region.rle])[0], min_area)
        if changed:
            found = {"rle": encode_rle([mask])[0], "box": _inclusive_box(mask), "area": cv2.countNonZero(mask)}
            region = Region(**{item.name: getattr(region, item.name) for item in fields(region)} | found)
        tidy.append(region)
        scores.append(0.0 if changed else 1.0)
    return _without_overlaps(tidy, scores, threshold)


def region_masks(regions: list[Region]) -> RleMasks:
    """Return the masks of regions, still as run lengths."""
    return RleMasks([region.rle for region in regions])


def region_info(region: Region) -> dict[str, Any]:
    """Return what a result says of a region."""
    x1, y1, x2, y2 = region.box
    return {
        "label": "everything",
        "prompt": list(region.point),
        "predicted_iou": region.predicted_iou,
        "stability_score": region.stability,
        "area": region.area,
        # The second corner just outside, as all boxes of results.
        "coordinate": [x1, y1, x2 + 1, y2 + 1] if region.area else [0, 0, 0, 0],
        "crop": list(region.crop),
    }

"""A model at work on the sample images, and whether two such works came to the same results: for `ovs tune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..images import read_images
from ..model_folder import ModelFolder
from ..samples import samples
from ..stages.prompts import parse_prompts
from .detector import Detector
from .embedder import Embedder
from .sam import SamModel
from .segmenter import Segmenter

# Least agreement with the results of the default: IoU of a mask or box, and cosine of an embedding.
LEAST_IOU, LEAST_COSINE = 0.98, 0.999
# Detections are compared above the score, and their scores may differ by the margin.
_SCORE, _MARGIN = 0.5, 0.05

Shown = tuple[np.ndarray, Any]


@dataclass(frozen=True)
class Workload:
    """What a loaded model does on one sample image after the other.

    Attributes:
        run: runs the model on the sample of a number; returns its masks, detections or embedding.
        agree: the least agreement of two such results, 0 to 1.
        least: the agreement from which on they count as the same.
        count: number of samples.
    """

    run: Callable[[int], Any]
    agree: Callable[[Any, Any], float]
    least: float
    count: int


def load_workload(folder: ModelFolder, device: Device, options: Mapping[str, Any]) -> Workload:
    """Load a model on a device.

    Args:
        folder: of any family.
        device: where it runs.
        options: of `Session`.

    Raises:
        OvsError: what the model raises that cannot be loaded.
    """
    images = [image.pixels for sample in samples() for image in read_images(str(sample.path))]
    if folder.family == "sam":
        sam = SamModel(folder, device, batch=16, session_options=options)
        prompts = [
            parse_prompts(list(sample.boxes.values()), "box")
            if "box" in sam.prompt_types
            else parse_prompts(list(sample.points.values()), "point")
            for sample in samples()
        ]
        return Workload(lambda i: sam.segment(sam.embed(images[i]), prompts[i]), _least_iou, LEAST_IOU, len(images))
    thresholds = np.full(max(len(folder.labels), 1), _SCORE - _MARGIN, np.float32)
    if folder.family == "picodet":
        detector = Detector(folder, device, options)
        return Workload(lambda i: detector.detect([images[i]], thresholds)[0], same_detections, LEAST_IOU, len(images))
    if folder.task == "image_recognition":
        embedder = Embedder(folder, device, batch_size=1, session_options=options)
        return Workload(lambda i: embedder.embed([images[i]])[0], _cosine, LEAST_COSINE, len(images))
    segmenter = Segmenter(folder, device, options)
    return Workload(lambda i: segmenter.segment([images[i]], thresholds)[0], same_detections, LEAST_IOU, len(images))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b)


def _least_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the least IoU of masks NxHxW, each with the one of its number; two empty ones are the same."""
    both = np.count_nonzero((a > 0) & (b > 0), axis=(1, 2))
    either = np.count_nonzero((a > 0) | (b > 0), axis=(1, 2))
    return float(np.min(np.where(either > 0, both / np.maximum(either, 1), 1.0), initial=1.0))


def same_detections(a: Any, b: Any) -> float:
    """Return the least IoU of detections with their like in the other list.

    Args:
        a: has `boxes` Nx4, `scores` N, and maybe `classes` N and `masks` NxHxW.
        b: likewise.

    Returns:
        0 if one that is well above the threshold has no like: of its class, and with nearly its score.
    """
    return min(_covered(a, b), _covered(b, a))


def _covered(a: Any, b: Any) -> float:
    worst = 1.0
    for i in np.flatnonzero(a.scores > _SCORE).tolist():
        like = [j for j in range(len(b.scores)) if abs(float(b.scores[j] - a.scores[i])) <= _MARGIN]
        if hasattr(a, "classes"):
            like = [j for j in like if a.classes[i] == b.classes[j]]
        worst = min(worst, max((_iou(a, i, b, j) for j in like), default=0.0))
    return worst


def _iou(a: Any, i: int, b: Any, j: int) -> float:
    if hasattr(a, "masks"):
        return _least_iou(a.masks[i : i + 1], b.masks[j : j + 1])
    return _box_iou(a.boxes[i], b.boxes[j])


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    high = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    areas = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return wide * high / max(areas - wide * high, 1e-9)

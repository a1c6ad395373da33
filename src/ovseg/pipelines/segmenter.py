"""Models of the five families of instance segmentation: one session, boxes and masks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ModelError
from ..schema import is_number
from ..session import Session
from ..stages.detection import check_shape, class_thresholds, clip_boxes, prepare, read_preprocessing
from ..stages.masks import binary_masks, mask_boxes, paste_into_boxes, resize_masks
from ..zoo import ModelFolder

_BOXES = ("boxes", "counts")
_NO_BOXES = ("labels", "scores")  # SOLOv2
# How masks get from the graph to the image: it may do so itself, or leave it to us, for those that are kept.
_PASTES = {"whole": ("masks",), "resize": ("low_res_masks", "mask_size"), "boxes": ("low_res_masks",)}


@dataclass(frozen=True)
class Instances:
    """What a model finds in one image, in its own order.

    Attributes:
        classes: N int64, class numbers.
        scores: N float32.
        boxes: Nx4 float32 (x1, y1, x2, y2), in pixels of the image, inside it.
        masks: NxHxW int8 of 0 and 1, in the size of the image.
    """

    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


class Segmenter:
    """A model of instance segmentation on one device. Threads may share it.

    Args:
        folder: model folder of the task `instance_segmentation`.
        device: where the session runs.
        session_options: passed to `Session`.

    Attributes:
        gives_boxes: False for SOLOv2, whose boxes are made from its masks.
        takes_batches: whether several images of one size may share a run.

    Raises:
        ModelError: if the graph or the preprocessing is not that of a family.
        DeviceUnavailable: if the device was named and cannot be used.
    """

    def __init__(self, folder: ModelFolder, device: Device, session_options: Mapping[str, Any]) -> None:
        self._folder = folder
        where = f"{folder.path / 'model.yaml'}: preprocess"
        self._preprocessing = read_preprocessing(folder.preprocess, where)
        self._session = Session(folder.files["model"], device, **session_options)
        self._inputs = {tensor.name: tensor for tensor in self._session.inputs}
        names = {tensor.name for tensor in self._session.outputs}
        self.gives_boxes = "boxes" in names
        self._paste, self._mask_threshold = _pasting(folder)
        self._outputs = (_BOXES if self.gives_boxes else _NO_BOXES) + _PASTES[self._paste]
        if (
            "image" not in self._inputs
            or not set(self._inputs) <= {"image", "im_shape", "scale_factor"}
            or not set(self._outputs) <= names
        ):
            raise ModelError(
                f"The model {folder.name} in {folder.path} has the inputs {', '.join(self._inputs)} and the "
                f"outputs {', '.join(names)}, which are not those of instance segmentation.",
                "Export the model again, or choose another.",
            )
        check_shape(self._preprocessing, self._inputs["image"].shape, where)
        self.takes_batches = self.gives_boxes and self._inputs["image"].shape[0] != 1 and folder.proven_batch != 1

    def segment(self, pixels: Sequence[np.ndarray], thresholds: np.ndarray) -> list[Instances]:
        """Find the instances in images.

        Args:
            pixels: HxWx3 uint8 BGR; all of one size if there are several.
            thresholds: float32, the threshold of each class.

        Raises:
            ModelError: if the model finds a class that has no label, or its outputs do not fit together.
        """
        prepared = prepare(pixels, self._preprocessing)
        feeds = {
            name: getattr(prepared, name).astype(tensor.dtype, copy=False) for name, tensor in self._inputs.items()
        }
        found = self._session.run(feeds, self._outputs)
        masks = found[_PASTES[self._paste][0]]
        masks = masks.reshape(-1, *masks.shape[-2:])
        size = found.get("mask_size", np.zeros(0, np.int64))[-2:]
        height, width = pixels[0].shape[:2]
        if not self.gives_boxes:
            return [self._without_boxes(found, masks, size, height, width, thresholds)]
        ends = np.cumsum(found["counts"].reshape(-1))
        # Paddle's R-CNN graphs give an image without a detection a row of score 0, and no mask.
        real = found["boxes"][:, 1] > 0
        if self._paste == "boxes" and len(masks) == real.sum() < len(real):
            masks = masks[np.maximum(np.cumsum(real) - 1, 0)] if len(masks) else np.zeros((len(real), 1, 1), np.float32)
        if len(ends) != len(pixels) or not ends[-1] <= len(found["boxes"]) or len(masks) < ends[-1]:
            raise ModelError(
                f"The model {self._folder.name} gives {len(found['boxes'])} boxes and {len(masks)} "
                f"masks with the counts {found['counts'].tolist()} for {len(pixels)} images.",
                "Use batch_size=1, or export the model again.",
            )
        return [
            self._with_boxes(found["boxes"][start:end], masks[start:end], size, height, width, thresholds)
            for start, end in zip((0, *ends[:-1]), ends, strict=True)
        ]

    def _with_boxes(
        self,
        rows: np.ndarray,
        masks: np.ndarray,
        size: np.ndarray,
        height: int,
        width: int,
        thresholds: np.ndarray,
    ) -> Instances:
        """Keep rows (class, score, x1, y1, x2, y2) above the threshold that have a part in the image."""
        classes, scores = rows[:, 0].astype(np.int64), rows[:, 1]
        boxes = clip_boxes(rows[:, 2:6], height, width)
        keep = (scores > class_thresholds(classes, thresholds)) & (classes > -1)
        self._check_labels(classes[keep])
        keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        indices = np.flatnonzero(keep)
        if self._paste == "boxes":
            whole = paste_into_boxes(masks[indices], rows[indices, 2:6], height, width, threshold=self._mask_threshold)
        else:
            whole = self._spread(masks, indices, size, height, width)
        return Instances(classes[indices], scores[indices], boxes[indices], whole)

    def _spread(self, masks: np.ndarray, indices: np.ndarray, size: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the chosen masks, which cover the image, in its size."""
        if self._paste == "whole":
            return binary_masks(masks, indices, height, width)
        return resize_masks(masks, indices, size, height, width, threshold=self._mask_threshold)

    def _without_boxes(
        self,
        found: Mapping[str, np.ndarray],
        masks: np.ndarray,
        size: np.ndarray,
        height: int,
        width: int,
        thresholds: np.ndarray,
    ) -> Instances:
        classes, scores = found["labels"].reshape(-1).astype(np.int64), found["scores"].reshape(-1)
        # As PaddleX: a score that equals the threshold is enough here, and not where there are boxes.
        indices = np.flatnonzero(scores >= class_thresholds(classes, thresholds))
        self._check_labels(classes[indices])
        whole = self._spread(masks, indices, size, height, width)
        return Instances(classes[indices], scores[indices], mask_boxes(list(whole)), whole)

    def _check_labels(self, classes: np.ndarray) -> None:
        unknown = classes[(classes < 0) | (classes >= len(self._folder.labels))]
        if len(unknown):
            raise ModelError(
                f"The model {self._folder.name} finds the class {unknown[0]}, and {self._folder.path} has "
                f"{len(self._folder.labels)} labels.",
                "Add the missing labels to its model.yaml, or export it again.",
            )


def _pasting(folder: ModelFolder) -> tuple[str, float]:
    """Return what `model.yaml` says of the way from the graph's masks to the image, and their threshold."""
    facts: Any = folder.facts.get("postprocess", {}).get("masks", {"paste": "whole", "threshold": 0})
    if (
        not isinstance(facts, Mapping)
        or str(facts.get("paste")) not in _PASTES
        or not is_number(facts.get("threshold"))
    ):
        raise ModelError(
            f"{folder.path / 'model.yaml'} has the postprocess.masks {facts!r}.",
            f"Give paste, one of {', '.join(_PASTES)}, and a threshold, or export the model again.",
        )
    return facts["paste"], float(facts["threshold"])

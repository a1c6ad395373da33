"""Models of the family picodet: boxes of the main objects of an image."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ModelError
from ..session import Session
from ..stages.detection import check_shape, class_thresholds, clip_boxes, prepare, read_preprocessing
from ..zoo import ModelFolder


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image, in its own order.

    Attributes:
        scores: N float32.
        boxes: Nx4 float32 (x1, y1, x2, y2), in pixels of the image, inside it.
    """

    scores: np.ndarray
    boxes: np.ndarray


class Detector:
    """A detector on one device. Threads may share it.

    Its graph takes `image` [N, 3, H, W] and, if it asks for them, `scale_factor` and `im_shape` [N, 2]; it gives
    `boxes` [K, 6] (class, score, x1, y1, x2, y2 in pixels of the original images) and `counts` [N], the rows that
    belong to each image.

    Args:
        folder: model folder of the family `picodet`.
        device: where the session runs.
        session_options: passed to `Session`.

    Attributes:
        together: images that share a run at most.

    Raises:
        ModelError: if the graph or the preprocessing is not that of the family.
        DeviceUnavailable: if the device was named and cannot be used.
    """

    def __init__(self, folder: ModelFolder, device: Device, session_options: Mapping[str, Any]) -> None:
        self._folder = folder
        where = f"{folder.path / 'model.yaml'}: preprocess"
        self._preprocessing = read_preprocessing(folder.preprocess, where)
        self._session = Session(folder.files["model"], device, **session_options)
        self._inputs = {tensor.name: tensor for tensor in self._session.inputs}
        outputs = {tensor.name for tensor in self._session.outputs}
        if (
            "image" not in self._inputs
            or not set(self._inputs) <= {"image", "im_shape", "scale_factor"}
            or not {"boxes", "counts"} <= outputs
        ):
            raise ModelError(
                f"The model {folder.name} in {folder.path} has the inputs {', '.join(self._inputs)} and the "
                f"outputs {', '.join(outputs)}, which are not those of a detector.",
                "Export the model again, or choose another.",
            )
        check_shape(self._preprocessing, self._inputs["image"].shape, where)
        # Kept in their ratio, images would differ in size.
        batches = (
            self._inputs["image"].shape[0] != 1 and folder.proven_batch != 1 and not self._preprocessing.keep_ratio
        )
        # What more images add does not fit a core's cache: on one thread and on two, eight images of ShiTu-tiny-det
        # take 1.24 and 1.30 times as long together as one by one.
        on_cpu = self._session.device.kind == "cpu"
        self.together = (max(1, self._session.threads // 2) if on_cpu else sys.maxsize) if batches else 1

    def detect(self, pixels: Sequence[np.ndarray], thresholds: np.ndarray) -> list[Detections]:
        """Find the objects in images.

        Args:
            pixels: HxWx3 uint8 BGR, one or more.
            thresholds: float32, the threshold of each class; detections have a higher score.

        Raises:
            ModelError: if the outputs of the model do not fit together.
        """
        groups = (pixels[start : start + self.together] for start in range(0, len(pixels), self.together))
        return [one for group in groups for one in self._run(group, thresholds)]

    def _run(self, pixels: Sequence[np.ndarray], thresholds: np.ndarray) -> list[Detections]:
        prepared = prepare(pixels, self._preprocessing)
        feeds = {
            name: getattr(prepared, name).astype(tensor.dtype, copy=False) for name, tensor in self._inputs.items()
        }
        found = self._session.run(feeds, ("boxes", "counts"))
        rows, ends = found["boxes"], np.cumsum(found["counts"].reshape(-1))
        if len(ends) != len(pixels) or ends[-1] > len(rows):
            raise ModelError(
                f"The model {self._folder.name} gives {len(rows)} boxes with the counts "
                f"{found['counts'].tolist()} for {len(pixels)} images.",
                "Use batch_size=1, or export the model again.",
            )
        return [
            _kept(rows[start:end], image.shape[0], image.shape[1], thresholds)
            for image, start, end in zip(pixels, (0, *ends[:-1]), ends, strict=True)
        ]


def _kept(rows: np.ndarray, height: int, width: int, thresholds: np.ndarray) -> Detections:
    """Keep rows (class, score, x1, y1, x2, y2) above the threshold that have a part in the image."""
    classes, scores, boxes = rows[:, 0], rows[:, 1], clip_boxes(rows[:, 2:6], height, width)
    keep = (scores > class_thresholds(classes.astype(np.int64), thresholds)) & (classes > -1)
    keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(scores[keep], boxes[keep])

"""What the formats have in common: the objects of a result, and a writer that takes results one by one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ...errors import ConfigError
from ...stages.masks import mask_boxes
from ..base import Result
from ..saving import Stems

# What a mask shows that was prompted and not classified.
UNNAMED = "object"


@dataclass(frozen=True, eq=False)
class Annotation:
    """One object of a result.

    Attributes:
        mask: HxW int8 of 0 and 1, in the size of the image.
        label: name of its class.
        class_id: number of its class in the model; 0 for prompted masks.
        score: the model's score or predicted IoU; None where there is none.
        box: [xmin, ymin, xmax, ymax] of the mask in pixels, the last ones just outside it.
    """

    mask: np.ndarray
    label: str
    class_id: int
    score: float | None
    box: list[float]

    @property
    def box_xywh(self) -> list[float]:
        """The box as x, y, width and height, as COCO has it."""
        x1, y1, x2, y2 = self.box
        return [x1, y1, x2 - x1, y2 - y1]


def objects_of(result: Result) -> Iterator[Annotation]:
    """Yield the objects of a result, each with its mask; empty masks are left out.

    Raises:
        ConfigError: the result has no masks.
    """
    if "masks" not in result:
        raise ConfigError(f"The result of {result.input_name} has no masks.", "Use a pipeline of segmentation.")
    boxes = result.get("boxes")
    scores = [box["score"] for box in boxes] if boxes is not None else getattr(result, "predicted_iou", None)
    for i, mask in enumerate(result["masks"]):
        box = mask_boxes([mask])[0].tolist()
        if box[2] == 0:
            continue
        score = None if scores is None or scores[i] is None else float(scores[i])
        label, class_id = (UNNAMED, 0) if boxes is None else (boxes[i]["label"], int(boxes[i]["cls_id"]))
        yield Annotation(mask, label, class_id, score, box)


class Writer(ABC):
    """Writes results in one format into a folder; a context manager, since some files hold all results.

    Args:
        folder: where to; it is made when it is needed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._stems = Stems()

    @abstractmethod
    def add(self, result: Result) -> None:
        """Write a result, or keep it for the file that holds all of them.

        Raises:
            SaveError: a file cannot be written; no part of it is left behind.
        """

    def close(self) -> None:  # noqa: B027 - most formats have nothing to finish
        """Write what holds all results."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def stem(self, result: Result) -> str:
        """A name for the files of a result: that of its input, and a number where it was there before."""
        return self._stems.take(Path(result.input_name).stem)


class Classes:
    """Numbers for the labels of all results, in the order in which they appear."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def number(self, label: str) -> int:
        """Return the number of a label, from 0."""
        if label not in self.names:
            self.names.append(label)
        return self.names.index(label)


def image_size(result: Result) -> tuple[int, int]:
    """Height and width of the image of a result."""
    height, width = result.pixels.shape[:2]
    return int(height), int(width)

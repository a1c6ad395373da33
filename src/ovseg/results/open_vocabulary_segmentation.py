"""Result of the pipeline open_vocabulary_segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from ..errors import ConfigError
from ..stages.masks import encode_rle
from ..stages.regions import stability_score
from .base import Result
from .drawing import draw_prompted_masks

MASK_FORMATS = ("list", "rle")


def check_mask_format(mask_format: str) -> str:
    """Return `mask_format` if it is "list" or "rle".

    Raises:
        ConfigError: if it is something else.
    """
    if mask_format not in MASK_FORMATS:
        raise ConfigError(f"The mask format {mask_format!r} is not known.", 'Use "list" or "rle".')
    return mask_format


@dataclass(frozen=True, eq=False)
class Decoding:
    """What stands behind the masks of a result.

    Attributes:
        logits: NxMxLxL float32, mask logits of low resolution: M masks for each of N prompts.
        iou: NxM float32, the IoU that the model predicts for each; None where it predicts none.
        chosen: N, which of the M masks the result has.
        upsample: turns logits KxLxL into masks KxHxW of the image.
        refine: makes a new result of this one and of further prompts.
    """

    logits: np.ndarray
    iou: np.ndarray | None
    chosen: np.ndarray
    upsample: Callable[[np.ndarray], np.ndarray]
    refine: Callable[..., OpenVocabularySegmentationResult]


class OpenVocabularySegmentationResult(Result):
    """Masks of one image, one for each prompt.

    It has the keys `input_path`, `page_index`, `prompts` ({"box_prompt": [...]}, {"point_prompt": [...]} or, of
    prompts of several kinds, {"mixed_prompt": [...]}), `masks` (a list of HxW int8 arrays of 0 and 1, in the
    size of the image) and `mask_infos` (for each mask its `label`, "box_prompt" and so on, and its `prompt`).
    In everything mode the label is "everything", and `masks` decodes each mask when it is asked for.

    Args:
        data: these keys.
        pixels: HxWx3 uint8 BGR.
        mask_format: how JSON holds the masks: "list" (nested lists, as PaddleX) or "rle" (COCO run lengths,
            `{"size": [H, W], "counts": str}`, a thousandth of the size).
        decoding: what stands behind the masks, where prompts were given.
    """

    def __init__(
        self,
        data: dict[str, Any],
        pixels: np.ndarray,
        mask_format: str = "list",
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(data, pixels)
        self.mask_format = check_mask_format(mask_format)
        self._decoding = decoding

    @property
    def logits(self) -> np.ndarray:
        """Logits of the masks in low resolution, NxLxL float32: a mask prompt for the same model.

        Raises:
            ConfigError: if the result has none.
        """
        found = self._need_decoding()
        return np.asarray(found.logits[np.arange(len(found.logits)), found.chosen])

    @property
    def predicted_iou(self) -> list[float | None]:
        """The IoU that the model predicts for each mask; None where it predicts none."""
        found = self._decoding
        if found is None:
            return [info.get("predicted_iou") for info in self["mask_infos"]]
        if found.iou is None:
            return [None] * len(found.chosen)
        return [float(row[i]) for row, i in zip(found.iou, found.chosen, strict=True)]

    def candidates(self, index: int) -> list[dict[str, Any]]:
        """Return all masks that the model gave for one prompt, the best first: three with `multimask=True`.

        The best has the highest predicted IoU; of a model that predicts none, it is the most stable.

        Args:
            index: number of the prompt.

        Returns:
            For each `mask` (HxW int8), `predicted_iou` (float or None) and `logits` (LxL float32).

        Raises:
            ConfigError: if there is no such prompt, or the result was made without prompts.
        """
        found = self._need_decoding()
        if not 0 <= index < len(found.logits):
            raise ConfigError(f"There is no prompt {index}.", f"The result has {len(found.logits)}, counted from 0.")
        logits = found.logits[index]
        scores = [None] * len(logits) if found.iou is None else [float(score) for score in found.iou[index]]
        trust = [stability_score(one, 1.0) for one in logits] if found.iou is None else found.iou[index]
        order = np.argsort(-np.asarray(trust), kind="stable").tolist()
        masks = found.upsample(logits)
        return [{"mask": masks[i], "predicted_iou": scores[i], "logits": logits[i]} for i in order]

    def refine(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        *,
        multimask: bool = False,
    ) -> OpenVocabularySegmentationResult:
        """Improve the masks: the last logits go back to the model, with the old prompts and new ones.

        >>> better = result.refine(points=[[120, 80]], labels=[0])  # doctest: +SKIP

        Args:
            points: new points. Of a result with one mask a list [[x, y], ...]; of several a list of such
                lists, one for each mask (None or [] where there is nothing new).
            labels: for each new point 1 (inside the object) or 0 (outside it), nested as `points`; 1 for all
                if not given.
            boxes: [[x1, y1, x2, y2], ...], in place of the old ones.
            multimask: choose the best of three masks.

        Raises:
            PromptError: prompts that cannot be used, or that the model does not take.
            ConfigError: if the result was made without prompts, or its image was closed.
        """
        return self._need_decoding().refine(self, points, labels, boxes, multimask)

    def _need_decoding(self) -> Decoding:
        if self._decoding is None:
            raise ConfigError(
                "This result has no logits: it was not made from prompts.",
                "Segment with prompts: pipeline.open(image).",
            )
        return self._decoding

    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        mask_format = self.mask_format if mask_format is None else check_mask_format(mask_format)
        return {**self, "masks": encode_rle(self["masks"]) if mask_format == "rle" else list(self["masks"])}

    def _print_data(self) -> dict[str, Any]:
        return {**self, "masks": "..."}

    def draw(self) -> PIL.Image.Image:
        """Return the image with masks and prompts drawn on it."""
        return draw_prompted_masks(self.pixels, self["masks"], self["mask_infos"])

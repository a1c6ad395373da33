"""Models of the family `sam`: an image encoder, and a prompt and mask decoder, as two sessions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ModelError, PromptError
from ..session import Session
from ..stages.masks import upsample_masks
from ..stages.prompts import Prompts, corner_points, scale_coords, with_padding_point
from ..stages.resize import normalise_and_pad, resize_long_side
from ..zoo import ModelFolder

# What PaddleX's SAMProcessor uses where `preprocess` says nothing: mean and standard deviation of ImageNet in
# R, G, B.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the encoder makes of an image: all that the decoder needs of it.

    Attributes:
        tensors: the encoder's outputs by name.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """

    tensors: Mapping[str, np.ndarray]
    height: int
    width: int


class SamModel:
    """A SAM on one device. Threads may share it.

    Three kinds of decoder are told apart by their inputs: the general one (`point_coords`, `point_labels` and
    a mask), and PaddleX's official ones, for boxes only (`boxes`) and for one point only (`points`).

    Args:
        folder: model folder of the family `sam`.
        device: where both sessions run.
        batch: prompts that go through the decoder at once.
        session_options: passed to `Session`.

    Attributes:
        prompt_types: those of "box" and "point" that the decoder takes.

    Raises:
        ModelError: if the graphs or the preprocessing are not those of the family.
        DeviceUnavailable: if the device was named and cannot be used.
    """

    def __init__(self, folder: ModelFolder, device: Device, *, batch: int, session_options: Mapping[str, Any]) -> None:
        self.name = folder.name
        self.size, self._mean, self._std = _preprocessing(folder)
        self._encoder = Session(folder.files["encoder"], device, **session_options)
        self._decoder = Session(folder.files["decoder"], device, **session_options)
        inputs = {tensor.name: tensor for tensor in self._decoder.inputs}
        self._embeddings = [tensor.name for tensor in self._encoder.outputs]
        self._scores = [tensor.name for tensor in self._decoder.outputs if tensor.name == "iou_predictions"]
        kinds = {
            "general": ("point_coords", "point_labels", "mask_input", "has_mask_input"),
            "boxes": ("boxes",),
            "points": ("points",),
        }
        names = set(inputs) - set(self._embeddings)
        found = [kind for kind, needed in kinds.items() if names == set(needed)]
        if not found or not set(self._embeddings) <= set(inputs):
            raise ModelError(
                f"The decoder of {folder.name} in {folder.path} has inputs that are not those of a SAM "
                f"decoder: {', '.join(inputs)}.",
                "Export the model again, or choose another.",
            )
        self._kind = found[0]
        self.prompt_types = {"general": ("box", "point"), "boxes": ("box",), "points": ("point",)}[self._kind]
        count = inputs[kinds[self._kind][0]].shape[0]
        # A graph that is fixed at one prompt is run once for each.
        self._batch = count if isinstance(count, int) else batch
        # A graph that names the axis of masks otherwise than that of prompts takes one mask for all of them.
        self._one_mask = self._kind == "general" and inputs["mask_input"].shape[0] != count

    def embed(self, pixels: np.ndarray) -> Embedding:
        """Run the encoder on an image, HxWx3 uint8 BGR."""
        image = normalise_and_pad(resize_long_side(pixels, self.size), self.size, self._mean, self._std)
        return Embedding(self._encoder.run({"image": image}), pixels.shape[0], pixels.shape[1])

    def check_prompts(self, prompts: Prompts) -> None:
        """Refuse prompts that the decoder cannot take.

        Raises:
            PromptError: saying which model can.
        """
        if prompts.kind not in self.prompt_types:
            raise PromptError(
                f"The model {self.name} takes {self.prompt_types[0]} prompts, not {prompts.kind} prompts.",
                f"Use the model SAM-tiny or SAM-H_{prompts.kind}.",
            )
        if self._kind == "points" and prompts.labels is not None and (prompts.labels.shape[1] > 1):
            raise PromptError(
                f"The model {self.name} takes one point for each mask, without labels.",
                "Use the model SAM-tiny for several points of one object.",
            )

    def segment(self, embedding: Embedding, prompts: Prompts) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the decoder on prompts of an image.

        Args:
            embedding: what `embed` returned for the image.
            prompts: prompts in pixels of the image.

        Returns:
            NxHxW int8 of 0 and 1: a mask of the image for each prompt; and N float32, the IoU that the model
            expects each mask to have with the true one, or None where the decoder does not tell.

        Raises:
            PromptError: if the decoder cannot take the prompts.
        """
        self.check_prompts(prompts)
        height, width = embedding.height, embedding.width
        feeds = self._prompt_feeds(prompts, height, width)
        masks = np.empty((len(prompts), height, width), dtype=bool)
        scores = np.empty(len(prompts), np.float32) if self._scores else None
        outputs = ["low_res_masks", *self._scores]
        for start in range(0, len(prompts), self._batch):
            part = {name: value[start : start + self._batch] for name, value in feeds.items()}
            if self._kind == "general":
                part |= self._no_mask(1 if self._one_mask else len(part["point_coords"]))
            found = self._decoder.run({**embedding.tensors, **part}, outputs)
            # The first mask is that of SAM's single-mask token, the one that PaddleX's graphs return.
            low_res = found["low_res_masks"][:, 0]
            upsample_masks(low_res, self.size, height, width, out=masks[start : start + self._batch])
            if scores is not None:
                scores[start : start + self._batch] = found["iou_predictions"][:, 0]
        return masks.view(np.int8), scores

    def _prompt_feeds(self, prompts: Prompts, height: int, width: int) -> dict[str, np.ndarray]:
        coords = scale_coords(prompts.coords, height, width, self.size)
        if self._kind != "general":
            return {self._kind: coords}
        if prompts.labels is None:
            coords, labels = corner_points(coords)
        else:
            coords, labels = with_padding_point(coords, prompts.labels)
        return {"point_coords": coords, "point_labels": labels.astype(np.float32)}

    def _no_mask(self, count: int) -> dict[str, np.ndarray]:
        side = self.size // 4
        return {
            "mask_input": np.zeros((count, 1, side, side), dtype=np.float32),
            "has_mask_input": np.zeros(count, dtype=np.float32),
        }


def _preprocessing(folder: ModelFolder) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return size, mean and standard deviation, checked."""
    facts = folder.preprocess
    size, mean, std = facts.get("size", 1024), facts.get("mean", MEAN), facts.get("std", STD)
    where = f"{folder.path / 'model.yaml'}: preprocess"
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ModelError(f"{where} has the size {size!r}, which is not a number of pixels.", "Correct the file.")
    checked = []
    for key, values in (("mean", mean), ("std", std)):
        numbers = (
            isinstance(values, list | tuple)
            and len(values) == 3
            and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        )
        if not numbers or (key == "std" and 0 in values):
            raise ModelError(f"{where} has the {key} {values!r}.", "Give three numbers, for R, G and B.")
        checked.append(tuple(float(value) for value in values))
    return size, checked[0], checked[1]

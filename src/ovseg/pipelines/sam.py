"""Models of the family `sam`: an image encoder, and a prompt and mask decoder, each a session."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ModelError, PromptError
from ..session import Session, Tensor, TensorInfo
from ..stages.masks import mask_logits, upsample_masks
from ..stages.prompts import Prompt, Prompts, scale_coords, tokens
from ..stages.regions import stability_score
from ..stages.resize import normalise_and_pad, resize_long_side
from ..zoo import ModelFolder

# What PaddleX's SAMProcessor uses where `preprocess` says nothing: mean and standard deviation of ImageNet in
# R, G, B.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

_POINT_INPUTS = ("point_coords", "point_labels")
_MASK_INPUTS = ("mask_input", "has_mask_input")
_SIZE_INPUT = "orig_im_size"
_KINDS = {"general": _POINT_INPUTS, "boxes": ("boxes",), "points": ("points",)}
_MASK_OUTPUTS = ("low_res_masks", "multi_masks", "low_res_logits")
_IOU_OUTPUTS = ("iou_predictions", "multi_iou_predictions", "iou_preds", "scores")
# SAM's decoder has four mask tokens: the first for prompts that leave no doubt, the others for whole, part, subpart.
_TOKENS = 4


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the encoder makes of an image: all that the decoder needs of it.

    Attributes:
        tensors: what the decoder takes, by the names of its inputs; on a device they stay in its memory.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
    """

    tensors: Mapping[str, Tensor]
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the decoder makes of prompts.

    Attributes:
        logits: NxMxLxL float32, mask logits of low resolution: M is 1, or 3 with `multimask`.
        iou: NxM float32, the IoU that the model predicts for each; None where it has no such output.
    """

    logits: np.ndarray
    iou: np.ndarray | None

    def best(self) -> np.ndarray:
        """For each prompt the number of the mask with the highest predicted IoU, or the most stable one."""
        scores = self.iou
        if scores is None:
            scores = np.array([[stability_score(logits, 1.0) for logits in masks] for masks in self.logits])
        return np.asarray(scores.argmax(axis=1))


class SamModel:
    """A SAM on one device. Threads may share it.

    Three kinds of decoder are told apart by their inputs: the general one (`point_coords`, `point_labels`, most
    with `mask_input` and `has_mask_input`, those of the original SAM's exporter with `orig_im_size`), and
    PaddleX's official ones, for boxes only (`boxes`) and for one point only (`points`). The encoder has one
    input: 1x3xSxS float32, normalised and padded, or HxWx3 of 0 to 255; `preprocess` wins over its shape.

    Args:
        folder: model folder of the family `sam`.
        device: where all sessions run.
        batch: prompts that go through the decoder at once.
        session_options: passed to `Session`.

    Attributes:
        prompt_types: those of "box" and "point" that the decoder takes.
        size: long side of the image that the encoder sees, in pixels.
        everything: settings of everything mode that suit the model, `postprocess.everything` of its `model.yaml`.

    Raises:
        ModelError: if the graphs or the preprocessing are not those of the family.
        DeviceUnavailable: if the device was named and cannot be used.
    """

    def __init__(self, folder: ModelFolder, device: Device, *, batch: int, session_options: Mapping[str, Any]) -> None:
        self.name = folder.name
        self.everything: Mapping[str, Any] = folder.facts.get("postprocess", {}).get("everything", {})
        self._encoder = Session(folder.files["encoder"], device, **session_options)
        if len(self._encoder.inputs) != 1:
            raise ModelError(
                f"The encoder of {folder.name} in {folder.path} has inputs that are not those of a SAM encoder: "
                f"{', '.join(tensor.name for tensor in self._encoder.inputs)}.",
                "Export the model again, or choose another.",
            )
        self._image = self._encoder.inputs[0]
        self._channels_last = _channels_last(self._image)
        embeddings = self._encoder.outputs
        self._decoder = _Decoder(folder, "decoder", Session(folder.files["decoder"], device, **session_options))
        self._multimask = self._decoder
        if "multimask" in folder.files:
            self._multimask = _Decoder(
                folder, "multimask", Session(folder.files["multimask"], device, **session_options)
            )
        self._names = self._decoder.embedding_names(embeddings)
        self._multimask.embedding_names(embeddings)
        self.prompt_types = {"general": ("box", "point"), "boxes": ("box",), "points": ("point",)}[self._decoder.kind]
        self._batch = batch
        guessed: dict[str, Any] = {"size": _guess_size(self._image, self._decoder.mask_side)}
        # A graph that takes whole bytes, or pixels with their channels last, normalises and pads itself.
        if self._channels_last or self._image.dtype == np.uint8:
            guessed["type"] = RAW
        facts = guessed | dict(folder.preprocess)
        self.size, self._mean, self._std = _preprocessing(facts, folder)
        self._raw = facts.get("type") == RAW

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `preprocess` of `model.yaml` says of this model."""
        if self._raw:
            return {"type": RAW, "size": self.size}
        return {"type": "SAMProcessor", "size": self.size, "mean": list(self._mean), "std": list(self._std)}

    @property
    def gives_three(self) -> bool:
        """Whether it can give three masks for a prompt."""
        return self._multimask.masks == _TOKENS or self._multimask is not self._decoder

    def embed(self, pixels: np.ndarray) -> Embedding:
        """Run the encoder on an image, HxWx3 uint8 BGR."""
        image = resize_long_side(pixels, self.size)
        if self._channels_last:
            fed = np.ascontiguousarray(image[..., ::-1]).astype(self._image.dtype)
            fed = fed if len(self._image.shape) == 3 else fed[None]
        elif self._raw:
            fed = normalise_and_pad(image, self.size, (0, 0, 0), (1, 1, 1)).astype(self._image.dtype)
        else:
            fed = normalise_and_pad(image, self.size, self._mean, self._std)
        found = self._encoder.run_resident({self._image.name: fed})
        tensors = {self._names[name]: value for name, value in found.items() if name in self._names}
        return Embedding(tensors, pixels.shape[0], pixels.shape[1])

    def check_prompts(self, prompts: Prompts, *, multimask: bool = False) -> None:
        """Refuse prompts that the decoder cannot take.

        Raises:
            PromptError: saying which model can.
        """
        kind = self._decoder.kind
        only = self.prompt_types[0]
        if kind != "general" and prompts.kind != only:
            asked = "box, point and mask prompts together" if prompts.kind == "mixed" else f"{prompts.kind} prompts"
            other = f" or SAM-H_{prompts.kind}" if prompts.kind != "mixed" else ""
            raise PromptError(
                f"The model {self.name} takes {only} prompts, not {asked}.", f"Use the model SAM-tiny{other}."
            )
        if kind == "points" and prompts.shows_labels:
            raise PromptError(
                f"The model {self.name} takes one point for each mask, without labels.",
                "Use the model SAM-tiny for several points of one object.",
            )
        if not self._decoder.takes_masks and any(item.mask is not None for item in prompts.items):
            raise PromptError(
                f"The model {self.name} takes no mask as a prompt: its archives hold no weights for it.",
                "Give points or a box instead, or use the model SAM-tiny.",
            )
        if multimask and not self.gives_three:
            raise PromptError(
                f"The model {self.name} gives one mask for each prompt, not three.",
                "Leave multimask out, or use SAM-tiny or a decoder that was exported with all its masks.",
            )

    def decode(self, embedding: Embedding, prompts: Prompts, *, multimask: bool = False) -> Decoded:
        """Run the decoder on prompts of an image. What one prompt gives does not depend on the others.

        Args:
            embedding: what `embed` returned for the image.
            prompts: prompts in pixels of the image.
            multimask: three masks for each prompt rather than one.

        Raises:
            PromptError: if the decoder cannot take the prompts.
        """
        self.check_prompts(prompts, multimask=multimask)
        decoder = self._multimask if multimask else self._decoder
        batches = self._feeds(decoder, prompts, embedding)
        if len(batches) == 1:
            return decoder.run({**embedding.tensors, **batches[0][1]}, multimask=multimask)
        logits: list[Any] = [None] * len(prompts)
        iou: list[Any] = [None] * len(prompts)
        for indices, feeds in batches:
            found = decoder.run({**embedding.tensors, **feeds}, multimask=multimask)
            for row, index in enumerate(indices):
                logits[index] = found.logits[row]
                iou[index] = None if found.iou is None else found.iou[row]
        return Decoded(np.stack(logits), None if iou[0] is None else np.stack(iou))

    def segment(self, embedding: Embedding, prompts: Prompts) -> np.ndarray:
        """Return a mask of the image for each prompt, NxHxW int8 of 0 and 1; see `decode`."""
        return self.masks(embedding, self.decode(embedding, prompts).logits[:, 0])

    def masks(self, embedding: Embedding, logits: np.ndarray) -> np.ndarray:
        """Turn logits NxLxL into masks of the image, NxHxW int8 of 0 and 1."""
        return upsample_masks(logits, self.size, embedding.height, embedding.width)

    def _feeds(
        self, decoder: _Decoder, prompts: Prompts, embedding: Embedding
    ) -> list[tuple[list[int], dict[str, np.ndarray]]]:
        """Return batches of prompts, as numbers of prompts and what the decoder takes of them.

        Prompts with as many tokens go together: to pad the others would change their masks.
        """
        height, width = embedding.height, embedding.width
        batches = []
        if decoder.kind != "general":
            raw = [item.box if decoder.kind == "boxes" else item.points for item in prompts.items]
            coords = scale_coords(np.asarray(raw, dtype=np.float64), height, width, self.size)
            for indices in _chunks(list(range(len(prompts))), decoder.count or self._batch):
                batches.append((indices, {decoder.kind: coords[indices]}))
            return batches
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        parts = [tokens(item) for item in prompts.items]
        for i, (_, labels) in enumerate(parts):
            groups[len(labels), prompts.items[i].mask is not None].append(i)
        for (_, has_mask), members in groups.items():
            count = 1 if has_mask and decoder.one_mask else decoder.count or self._batch
            for indices in _chunks(members, count):
                coords = np.array([parts[i][0] for i in indices], dtype=np.float64)
                feeds = {
                    "point_coords": scale_coords(coords, height, width, self.size),
                    "point_labels": np.array([parts[i][1] for i in indices], dtype=np.float32),
                    **decoder.mask_feeds([prompts.items[i] for i in indices], has_mask, self.size),
                }
                batches.append((indices, feeds))
        return batches


RAW = "RawRGB"
"""`preprocess.type` of an encoder that takes R, G, B of 0 to 255 and normalises itself."""


def _channels_last(image: TensorInfo) -> bool:
    return len(image.shape) == 3 or (len(image.shape) == 4 and image.shape[3] == 3 and image.shape[1] != 3)


def _guess_size(image: TensorInfo, mask_side: int | None) -> int:
    """Return the long side of the image that a graph takes: its own, or four times that of the mask prompt."""
    sides = [side for side in image.shape if isinstance(side, int) and side not in (1, 3)]
    return max(sides) if sides else 4 * mask_side if mask_side else 1024


class _Decoder:
    """A decoder graph: which inputs it has, and which of its outputs are masks and scores.

    Attributes:
        kind: a key of `_KINDS`.
        count: number of prompts that the graph is fixed at, or None.
        mask_side: side of the logits that it takes as a prompt, or None.
        masks: masks that it gives for each prompt; None where the graph does not say.
        one_mask: whether one mask prompt goes to all prompts of a run.
        takes_masks: whether it takes a mask as a prompt.
    """

    def __init__(self, folder: ModelFolder, role: str, session: Session) -> None:
        self._folder, self._role, self._session = folder, role, session
        self._inputs = {tensor.name: tensor for tensor in session.inputs}
        fitting = [kind for kind, needed in _KINDS.items() if set(needed) <= set(self._inputs)]
        outputs = {tensor.name: tensor for tensor in session.outputs}
        masks = next((name for name in _MASK_OUTPUTS if name in outputs), None)
        if len(fitting) != 1 or masks is None or len(self._inputs.keys() & set(_MASK_INPUTS)) == 1:
            raise self._wrong()
        self.kind = fitting[0]
        self._masks = masks
        self._iou = next((name for name in _IOU_OUTPUTS if name in outputs), None)
        own = {*_KINDS[self.kind], *_MASK_INPUTS, _SIZE_INPUT}
        self._embeddings = [name for name in self._inputs if name not in own]
        first = self._inputs[_KINDS[self.kind][0]].shape
        count = first[0] if first else None
        self.count = count if isinstance(count, int) else None
        # Exporters leave the masks' axes open where they name those of the predicted IoU.
        counts = [outputs[name].shape[1:2] for name in (masks, self._iou) if name is not None]
        self.masks = next((shape[0] for shape in counts if shape and isinstance(shape[0], int)), None)
        # A decoder made of PaddleX's two archives has points and boxes, and no weights for a mask.
        self.takes_masks = set(_MASK_INPUTS) <= set(self._inputs)
        # A graph that names the axis of masks otherwise than that of prompts takes one mask for all of them.
        self.one_mask = self.takes_masks and self._inputs["mask_input"].shape[0] != count
        side = self._inputs["mask_input"].shape[-1] if self.takes_masks else None
        self.mask_side = side if isinstance(side, int) else None
        self._no_masks: dict[str, np.ndarray] = {}  # what the last prompts without masks gave

    def embedding_names(self, outputs: Sequence[TensorInfo]) -> dict[str, str]:
        """Return the encoder's outputs and the inputs of this decoder that they go to."""
        given = [tensor.name for tensor in outputs]
        if set(self._embeddings) <= set(given):
            return {name: name for name in self._embeddings}
        if len(self._embeddings) == len(given) == 1:
            return {given[0]: self._embeddings[0]}
        raise self._wrong()

    def mask_feeds(self, prompts: Sequence[Prompt], has_mask: bool, size: int) -> dict[str, np.ndarray]:
        """Return the mask inputs for prompts that all have a mask, or all have none.

        Raises:
            PromptError: logits of another size than the decoder's.
        """
        if not self.takes_masks:
            return {}
        side = self.mask_side or size // 4
        count = 1 if self.one_mask else len(prompts)
        kept = self._no_masks  # taken once: another thread may replace it
        if not has_mask and len(kept.get("mask_input", ())) == count:
            return kept
        masks = np.zeros((count, 1, side, side), dtype=np.float32)
        if has_mask:
            for mask, prompt in zip(masks, prompts, strict=True):
                given = prompt.mask
                if given is None:
                    raise AssertionError("a group of prompts with masks has one without")
                if given.dtype != bool and given.shape != (side, side):
                    raise PromptError(
                        f"The logits of a mask prompt are {given.shape[0]}x{given.shape[1]}, and "
                        f"{self._folder.name} takes {side}x{side}.",
                        "Give the logits of a result of the same model, or a mask of the image.",
                    )
                mask[0] = mask_logits(given, size, side) if given.dtype == bool else given
        rank = len(self._inputs["has_mask_input"].shape)
        flags = np.full((count,) if rank < 2 else (count, 1), float(has_mask), dtype=np.float32)
        feeds = {"mask_input": masks, "has_mask_input": flags}
        if not has_mask:
            self._no_masks = feeds
        return feeds

    def run(self, feeds: dict[str, Tensor], *, multimask: bool) -> Decoded:
        """Run the graph and choose among its masks."""
        if _SIZE_INPUT in self._inputs:
            # Only for the graph's own full-size masks, which are left alone: let them cost nothing.
            feeds[_SIZE_INPUT] = np.ones(2, dtype=np.float32)
        wanted = [self._masks] if self._iou is None else [self._masks, self._iou]
        found = self._session.run(feeds, wanted)
        logits = found[self._masks]
        iou = None if self._iou is None else found[self._iou]
        # The first of four is that of SAM's single-mask token, the one that PaddleX's graphs return.
        if logits.shape[1] == _TOKENS:
            chosen = slice(1, None) if multimask else slice(0, 1)
            logits, iou = logits[:, chosen], None if iou is None else iou[:, chosen]
        return Decoded(logits, iou)

    def _wrong(self) -> ModelError:
        return ModelError(
            f"The {self._role} of {self._folder.name} in {self._folder.path} has inputs or outputs that are not those "
            f"of a SAM decoder: {', '.join(self._inputs)}; {', '.join(t.name for t in self._session.outputs)}.",
            "Export the model again, or choose another.",
        )


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _preprocessing(facts: Mapping[str, Any], folder: ModelFolder) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return size, mean and standard deviation, checked."""
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

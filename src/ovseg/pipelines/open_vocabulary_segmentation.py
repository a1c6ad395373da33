"""Promptable segmentation: for each box or point, the mask of what it shows (SAM)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ConfigError, ImageError, ModelError, PromptError
from ..images import Image, read_images
from ..results.open_vocabulary_segmentation import Decoding, OpenVocabularySegmentationResult, check_mask_format
from ..stages.masks import upsample_masks
from ..stages.prompts import (
    Prompt,
    Prompts,
    check_inside,
    combine_prompts,
    gather_prompts,
    parse_boxes,
    parse_points,
    parse_prompts,
)
from ..zoo import ModelFolder
from .base import OnError, Pipeline, origin
from .config import find_folder, overridden, whole_number
from .embedder import Embedder
from .everything import Region, everything_settings, find_everything, own_settings, region_info, region_masks
from .like import SETTINGS, rank_like
from .onnx_pair import open_pair
from .sam import Embedding, SamModel

MODEL = "SAM-tiny"
EMBEDDING_MODEL = "ShiTu-tiny-rec"
# An example shows its object inside of this margin, as a share of each side; a smaller part of that box is no object.
_AROUND, _LEAST_OBJECT = 0.08, 0.05
_SUB_MODULES = {"box": "BoxPromptSegmentation", "point": "PointPromptSegmentation"}


class OpenVocabularySegmentationPipeline(Pipeline):
    """Masks from prompts. Made by `create_pipeline("open_vocabulary_segmentation")`; threads may share it.

    Args:
        config: configuration, in the layout of `open_vocabulary_segmentation.yaml` beside this file or of
            PaddleX's.
        where: how messages name the configuration.
        model: name of the model for both kinds of prompt; wins over the configuration.
        model_dir: model folder for both kinds of prompt; wins over `model`.
        encoder: path of the ONNX image encoder of any SAM; with `decoder`, wins over `model_dir`.
        decoder: path of its ONNX decoder, as the original SAM's exporter writes it.
        embedding_model: name of the model that compares regions with an example; see `predict_like`.
        embedding_model_dir: model folder of the family shitu_rec or clip_vit; wins over `embedding_model`.
        embedding_cache: embeddings of this many images are kept; 0 keeps none.
        prompt_batch: prompts that go through the decoder at once.
        mask_format: "list" or "rle": how results write masks to JSON.
        **options: of `Pipeline`: `device`, `providers`, `provider_options`, `threads`, `optimization`,
            `max_pixels`.

    Raises:
        ConfigError: an option or key that is not known or has no such value.
        ModelError: no model can be found for either kind of prompt, or one cannot be used.
        DeviceUnavailable: the device was named and cannot be used.
    """

    name = "open_vocabulary_segmentation"
    keys = (*Pipeline.keys, "mask_format", "embedding_cache", "prompt_batch")

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        where: str = "The configuration",
        model: str | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        encoder: str | os.PathLike[str] | None = None,
        decoder: str | os.PathLike[str] | None = None,
        embedding_model: str | None = None,
        embedding_model_dir: str | os.PathLike[str] | None = None,
        embedding_cache: int | None = None,
        prompt_batch: int | None = None,
        mask_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, where=where, **options)
        settings = overridden(
            self._settings, embedding_cache=embedding_cache, prompt_batch=prompt_batch, mask_format=mask_format
        )
        self.mask_format = check_mask_format(settings.get("mask_format", "list"))
        self._batch = whole_number(settings.get("prompt_batch", 16), "prompt_batch", 1)
        self._embeddings = _Lru(whole_number(settings.get("embedding_cache", 4), "embedding_cache", 0))
        self._embedding_model, self._embedding_model_dir = embedding_model, embedding_model_dir
        if (encoder is None) != (decoder is None):
            missing = "decoder" if decoder is None else "encoder"
            raise ConfigError(f"The {missing} is missing.", "Give encoder and decoder together, each an ONNX file.")
        modules = self._sub_modules(dict.fromkeys(_SUB_MODULES.values(), ("model_name", "model_dir")), where)
        if encoder is not None and decoder is not None:
            self._folders: dict[str, ModelFolder | ModelError] = dict.fromkeys(
                _SUB_MODULES, open_pair(encoder, decoder)
            )
        else:
            self._folders = _find_folders(modules, model, model_dir)
        folders = {str(folder.files) for folder in self._folders.values() if isinstance(folder, ModelFolder)}
        if len(folders) == 1:
            # There is no doubt which model will be used: what is wrong with it or the device shows now.
            kind = next(kind for kind, folder in self._folders.items() if isinstance(folder, ModelFolder))
            self._model(kind, self.device)

    def predict(
        self,
        input: Any,
        prompt: Any = None,
        prompt_type: str | None = None,
        device: str | None = None,
        *,
        multimask: bool = False,
        mask_format: str | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[OpenVocabularySegmentationResult]:
        """Segment what the prompts show in each image.

        Args:
            input: path, URL, folder, BGR uint8 array HxWx3, "-" for standard input, or a list of these. PDF
                pages are images.
            prompt: boxes [[x1, y1, x2, y2], ...] or points [[x, y], ...], or an array Nx4 or Nx2, in pixels
                of the image, or a list of `Prompt`. Each gives one mask. The same prompts serve all images.
            prompt_type: "box" (also None, as in PaddleX) or "point"; left out with `Prompt`.
            device: device of this call; None is the pipeline's.
            multimask: let the model draw three masks for each prompt, and take the one that it thinks best;
                `mask_infos` say its `predicted_iou`, `result.candidates` has the others.
            mask_format: "list" or "rle"; None is the pipeline's.
            on_error: gets the error of each bad image. By default it is logged as a warning, or raised where
                the image is the only one.

        Returns:
            An iterator of results, each made when it is asked for.

        Raises:
            PromptError: prompts that cannot be used (at once), or that lie outside an only image (from the
                iterator).
            ImageError: from the iterator, an only image that cannot be read.
            DeviceUnavailable: the device cannot be used.
        """
        prompts = parse_prompts(prompt, prompt_type)
        chosen_device = self._device(device)
        model = self._model_for(prompts, chosen_device)
        model.check_prompts(prompts, multimask=multimask)
        chosen = self.mask_format if mask_format is None else check_mask_format(mask_format)

        def segment(image: Image) -> OpenVocabularySegmentationResult:
            return OpenImage(self, image, chosen_device)._segment(prompts, multimask, chosen)

        return self._results(input, segment, on_error)  # type: ignore[return-value]

    def predict_everything(
        self,
        input: Any,
        device: str | None = None,
        *,
        mask_format: str | None = None,
        on_error: OnError | None = None,
        **settings: Any,
    ) -> Iterator[OpenVocabularySegmentationResult]:
        """Segment everything in each image; see `segment_everything`.

        Args:
            input: as `predict` takes it.
            device: device of this call; None is the pipeline's.
            mask_format: "rle" (also None) or "list".
            on_error: as in `predict`.
            **settings: those of `Everything`.

        Returns:
            An iterator of results, each made when it is asked for.

        Raises:
            ConfigError: a setting that is not known or has no such value.
            PromptError: the model takes no points.
        """
        segment = self._everything(device, mask_format, settings)
        return self._results(input, segment, on_error)  # type: ignore[return-value]

    def predict_like(
        self,
        input: Any,
        example: Any,
        device: str | None = None,
        *,
        top: int | None = None,
        mask_format: str | None = None,
        on_error: OnError | None = None,
        **settings: Any,
    ) -> Iterator[OpenVocabularySegmentationResult]:
        """Segment what looks like an example: the masks of everything mode, the most similar first.

        `mask_infos` have the cosine `similarity` of the embeddings of the pipeline's `embedding_model`.

        Args:
            input: as `predict` takes it.
            example: path, URL or BGR uint8 array HxWx3 of one image; or a box [x1, y1, x2, y2] in pixels,
                which is cut out of each image.
            device: device of this call; None is the pipeline's.
            top: so many masks at most; None for all.
            mask_format: "rle" (also None) or "list".
            on_error: as in `predict`.
            **settings: those of `Everything`; those of `like.SETTINGS` have other defaults here.

        Raises:
            ConfigError: a setting that is not known or has no such value.
            ImageError: the example cannot be read.
            PromptError: a box that is none.
            ModelError: there is no embedding model.
        """
        segment = self._like(example, device, top, mask_format, settings)
        return self._results(input, segment, on_error)  # type: ignore[return-value]

    def _like(
        self,
        example: Any,
        device: str | None,
        top: int | None,
        mask_format: str | None,
        settings: Mapping[str, Any],
    ) -> Callable[[Image], OpenVocabularySegmentationResult]:
        """Check the arguments of `predict_like` and return what does it for an image."""
        like = self._example(example)
        if top is not None:
            whole_number(top, "top", 1)
        chosen = self._device(device)
        embedder = self._embedder(chosen)

        def rank(image: Image, regions: list[Region]) -> list[tuple[Region, float]]:
            shown, box = (image, like.given[0]) if isinstance(like, Prompts) else (like, _middle(like))
            return rank_like(embedder, image.pixels, regions, shown.pixels, self._main_object(shown, box, chosen))[:top]

        return self._everything(device, mask_format, {**SETTINGS, **settings}, rank)

    def _main_object(self, image: Image, box: list[float], device: Device) -> np.ndarray:
        """Return the mask HxW of the object in a box; the whole box where next to nothing is found."""
        model = self._model("point", device)
        x1, y1, x2, y2 = box
        by_box = "box" in model.prompt_types
        prompts = parse_boxes([box]) if by_box else parse_points([[(x1 + x2) / 2, (y1 + y2) / 2]])
        check_inside(prompts, image.height, image.width, image.path)
        mask: np.ndarray = model.segment(self._embed(model, image.pixels), prompts)[0]
        if np.count_nonzero(mask) < _LEAST_OBJECT * (x2 - x1) * (y2 - y1):
            mask = np.zeros_like(mask)
            # At least the pixel that the box's first corner is in.
            top, left = max(0, int(y1)), max(0, int(x1))
            mask[top : max(top + 1, int(y2)), left : max(left + 1, int(x2))] = 1
        return mask

    def _example(self, example: Any) -> Image | Prompts:
        """Read the example, or check the box that is cut out of each image."""
        if isinstance(example, list | tuple) or (isinstance(example, np.ndarray) and example.shape == (4,)):
            return parse_boxes([example])
        return self._read_one(example)

    def _embedder(self, device: Device) -> Embedder:
        folder = find_folder(
            {},
            self._embedding_model,
            self._embedding_model_dir,
            default=EMBEDDING_MODEL,
            families=("shitu_rec", "clip_vit"),
        )
        return self._loaded(
            folder,
            device,
            lambda found, on, options: Embedder(found, on, batch_size=self._batch, session_options=options),
        )

    def _everything(
        self,
        device: str | None,
        mask_format: str | None,
        settings: Mapping[str, Any],
        rank: Callable[[Image, list[Region]], list[tuple[Region, float]]] | None = None,
    ) -> Callable[[Image], OpenVocabularySegmentationResult]:
        """Check the settings and return what segments everything in an image, and sorts it by `rank`."""
        model = self._model("point", self._device(device))
        wanted = everything_settings({**own_settings(model), **settings})
        model.check_prompts(parse_points([[0, 0]]))
        chosen = check_mask_format("rle" if mask_format is None else mask_format)

        def segment(image: Image) -> OpenVocabularySegmentationResult:
            regions = find_everything(
                model, image.pixels, wanted, batch=self._batch, embed=lambda pixels: self._embed(model, pixels)
            )
            infos = [region_info(region) for region in regions]
            if rank is not None:
                ranked = rank(image, regions)
                regions = [region for region, _ in ranked]
                infos = [{**region_info(region), "similarity": similarity} for region, similarity in ranked]
            return OpenVocabularySegmentationResult(
                {
                    **origin(image),
                    "prompts": {"everything": asdict(wanted)},
                    "masks": region_masks(regions),
                    "mask_infos": infos,
                },
                image.pixels,
                chosen,
            )

        return segment

    def segment_everything(
        self,
        image: Any,
        points_per_side: int = 32,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        box_nms_thresh: float = 0.7,
        crops: int = 0,
        min_area: int = 0,
        *,
        device: str | None = None,
        mask_format: str | None = None,
        **settings: Any,
    ) -> OpenVocabularySegmentationResult:
        """Segment everything in one image: a grid of points prompts, and good and different masks stay.

        Memory is bounded: the result keeps run lengths, and decodes a mask when it is asked for. Masks are
        sorted by area, the largest first; `mask_infos` have `predicted_iou`, `stability_score`, `area`,
        `coordinate` ([xmin, ymin, xmax, ymax]), `crop` and the point as `prompt`.

        Args:
            image: path, URL or BGR uint8 array HxWx3: exactly one image.
            points_per_side: the grid has the square of it.
            pred_iou_thresh: see `Everything`, as for the others; None is the model's own, or else 0.88.
            stability_score_thresh: 0 to 1; None is the model's own, or else 0.95.
            box_nms_thresh: 0 to 1.
            crops: layers of crops.
            min_area: pixels.
            device: device of this call; None is the pipeline's.
            mask_format: how JSON holds the masks: "rle" (also None) or "list".
            **settings: further ones of `Everything`.

        Raises:
            ConfigError: a setting that is not known or has no such value.
            PromptError: the model takes no points.
            ImageError: the image cannot be read or is not exactly one.
        """
        settings |= {
            "points_per_side": points_per_side,
            "pred_iou_thresh": pred_iou_thresh,
            "stability_score_thresh": stability_score_thresh,
            "box_nms_thresh": box_nms_thresh,
            "crops": crops,
            "min_area": min_area,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return self._everything(device, mask_format, given)(self._read_one(image))

    def find_like(
        self,
        image: Any,
        example: Any,
        top: int | None = None,
        *,
        device: str | None = None,
        mask_format: str | None = None,
        **settings: Any,
    ) -> OpenVocabularySegmentationResult:
        """Segment what looks like an example in one image; arguments and errors as of `predict_like`."""
        return self._like(example, device, top, mask_format, settings)(self._read_one(image))

    def open(self, image: Any, device: str | None = None) -> OpenImage:
        """Open one image to prompt it again and again; it is encoded once.

        >>> with pipeline.open("cat.jpg") as image:  # doctest: +SKIP
        ...     left = image.segment(boxes=[[30, 20, 210, 300]])
        ...     both = image.segment(points=[[100, 150], [300, 160]])

        Args:
            image: path, URL or BGR uint8 array HxWx3: exactly one image.
            device: device of this image; None is the pipeline's.

        Raises:
            ImageError: if it cannot be read or is not exactly one image.
        """
        return OpenImage(self, self._read_one(image), self._device(device))

    def _read_one(self, image: Any) -> Image:
        opened = image if isinstance(image, Image) else None
        if opened is None:
            for found in read_images(image, max_pixels=self._max_pixels):
                if opened is not None:
                    raise ImageError(f"{found.path} holds more than one image.", "Open one image at a time.")
                opened = found
        if opened is None:
            raise ImageError("There is no image to open.", "Give a path, a URL or an array.")
        return opened

    def _model_for(self, prompts: Prompts, device: Device) -> SamModel:
        """Return the model for prompts; of mixed ones one that takes both kinds, where there is one."""
        if prompts.kind != "mixed":
            return self._model(prompts.kind, device)
        found = [self._model(kind, device) for kind, at in self._folders.items() if isinstance(at, ModelFolder)]
        return max(found, key=lambda model: len(model.prompt_types))

    def _model(self, prompt_type: str, device: Device) -> SamModel:
        """Return the model for a kind of prompt on a device, loading it the first time."""
        folder = self._folders[prompt_type]
        if isinstance(folder, ModelError):
            raise folder
        return self._loaded(
            folder,
            device,
            lambda found, on, options: SamModel(found, on, batch=self._batch, session_options=options),
        )

    def _embed(self, model: SamModel, pixels: np.ndarray) -> Embedding:
        """Return the embedding of an image, from the cache where the same pixels were there lately."""
        if not self._embeddings.capacity:
            return model.embed(pixels)
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
        key = (id(model), pixels.shape, digest)
        embedding = self._embeddings.get(key)
        if embedding is None:
            embedding = model.embed(pixels)
            self._embeddings.put(key, embedding)
        return embedding


class OpenImage:
    """An image that is encoded once, however often it is prompted. Made by the pipeline's `open`.

    It encodes at the first prompt and holds the embedding until it is closed.
    """

    def __init__(self, pipeline: OpenVocabularySegmentationPipeline, image: Image, device: Device) -> None:
        self._pipeline = pipeline
        self._device = device
        self._image: Image | None = image
        self._embeddings: dict[SamModel, Embedding] = {}
        self._encoding = threading.Lock()

    def segment(
        self,
        prompts: Any = None,
        *,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        masks: Any = None,
        multimask: bool = False,
        mask_format: str | None = None,
    ) -> OpenVocabularySegmentationResult:
        """Segment what the prompts show.

        Args:
            prompts: a `Prompt`, or a dict of its parts, or a list of these, instead of all that follows.
            boxes: [[x1, y1, x2, y2], ...] or an array Nx4, in pixels of the image: a mask for each.
            points: [[x, y], ...] or an array Nx2: a mask for each. A list of such lists: a mask for each
                list. Beside boxes or masks: the points of the i-th object, [] or None for none.
            labels: for each point 1 (inside the object) or 0 (outside it). With labels, the points of one
                flat list describe one object together.
            masks: for each object a mask of the image, HxW of 0 and 1, or logits LxL of the same model;
                None where there is none.
            multimask: let the model draw three masks for each prompt, and take the one that it thinks best;
                `mask_infos` say its `predicted_iou`, `result.candidates` has the others.
            mask_format: "list" or "rle"; None is the pipeline's.

        Raises:
            PromptError: prompts that cannot be used.
        """
        if prompts is None:
            parsed = combine_prompts(boxes, points, labels, masks)
        elif boxes is not None or points is not None or labels is not None or masks is not None:
            raise PromptError("Prompts were given in two ways.", "Put boxes, points and masks into the Prompt.")
        else:
            parsed = gather_prompts(prompts)
        chosen = self._pipeline.mask_format if mask_format is None else check_mask_format(mask_format)
        return self._segment(parsed, multimask, chosen)

    def _segment(self, prompts: Prompts, multimask: bool, mask_format: str) -> OpenVocabularySegmentationResult:
        image = self._image
        if image is None:
            raise ConfigError("The image is closed.", "Segment inside the `with` block that opened it.")
        check_inside(prompts, image.height, image.width, image.path)
        model = self._pipeline._model_for(prompts, self._device)
        model.check_prompts(prompts, multimask=multimask)
        with self._encoding:
            if model not in self._embeddings:
                self._embeddings[model] = self._pipeline._embed(model, image.pixels)
            embedding = self._embeddings[model]
        decoded = model.decode(embedding, prompts, multimask=multimask)
        chosen = decoded.best()
        masks = model.masks(embedding, decoded.logits[np.arange(len(prompts)), chosen])
        label = f"{prompts.kind}_prompt"
        infos: list[dict[str, Any]] = [{"label": label, "prompt": given} for given in prompts.given]
        if prompts.shows_labels:
            for info, item in zip(infos, prompts.items, strict=True):
                info["point_labels"] = item.labels
        result = OpenVocabularySegmentationResult(
            {**origin(image), "prompts": {label: prompts.given}, "masks": list(masks), "mask_infos": infos},
            image.pixels,
            mask_format,
            Decoding(
                decoded.logits,
                decoded.iou,
                chosen,
                upsample=lambda logits: upsample_masks(logits, model.size, image.height, image.width),
                refine=lambda *arguments: self._refine(prompts, *arguments),
            ),
        )
        if multimask:
            for info, score in zip(infos, result.predicted_iou, strict=True):
                info["predicted_iou"] = score
        return result

    def _refine(
        self,
        before: Prompts,
        result: OpenVocabularySegmentationResult,
        points: Any,
        labels: Any,
        boxes: Any,
        multimask: bool,
    ) -> OpenVocabularySegmentationResult:
        if points is None and boxes is None:
            raise PromptError("There is nothing to refine with.", "Give points=[[x, y], ...] or boxes.")
        logits = result.logits
        added = combine_prompts(boxes, points, labels, masks=logits)
        if len(added) != len(before):
            raise PromptError(f"There are {len(added)} new prompts for {len(before)} masks.", "Give one for each.")
        items = [
            Prompt(old.points + new.points, (old.labels or []) + (new.labels or []), new.box or old.box, new.mask)
            for old, new in zip(before.items, added.items, strict=True)
        ]
        return self._segment(gather_prompts(items), multimask, result.mask_format)

    def close(self) -> None:
        """Let go of the image and its embedding."""
        self._image = None
        self._embeddings = {}

    def __enter__(self) -> OpenImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Lru:
    """The last few embeddings, by content of the image. Threads may share it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: OrderedDict[Any, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Embedding | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: Any, embedding: Embedding) -> None:
        with self._lock:
            self._items[key] = embedding
            self._items.move_to_end(key)
            while len(self._items) > self.capacity:
                self._items.popitem(last=False)


def _find_folders(
    modules: Mapping[str, Mapping[str, Any]], model: str | None, model_dir: str | os.PathLike[str] | None
) -> dict[str, ModelFolder | ModelError]:
    """Return for each kind of prompt its model folder, or why there is none.

    A user of boxes need not have the model for points, so a model that is missing is an error when it is
    needed.

    Raises:
        ModelError: if there is a model for neither.
    """
    folders: dict[str, ModelFolder | ModelError] = {}
    for kind, key in _SUB_MODULES.items():
        try:
            folders[kind] = find_folder(modules[key], model, model_dir, default=MODEL, families=("sam",))
        except ModelError as error:
            folders[kind] = error
    missing = [folder for folder in folders.values() if isinstance(folder, ModelError)]
    if len(missing) == len(folders):
        raise missing[0]
    return folders


def _middle(image: Image) -> list[float]:
    """The box in which an example shows its object."""
    width, height = image.width, image.height
    return [_AROUND * width, _AROUND * height, (1 - _AROUND) * width, (1 - _AROUND) * height]

"""Promptable segmentation: for each box or point, the mask of what it shows (SAM)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ConfigError, ImageError, ModelError, PromptError
from ..images import Image, read_images
from ..results.open_vocabulary_segmentation import OpenVocabularySegmentationResult, check_mask_format
from ..stages.prompts import Prompts, check_inside, parse_boxes, parse_points, parse_prompts
from ..zoo import ModelFolder
from .base import OnError, Pipeline
from .config import find_folder, overridden, whole_number
from .sam import Embedding, SamModel

MODEL = "SAM-tiny"
_SUB_MODULES = {"box": "BoxPromptSegmentation", "point": "PointPromptSegmentation"}


class OpenVocabularySegmentationPipeline(Pipeline):
    """Masks from prompts. Made by `create_pipeline("open_vocabulary_segmentation")`; threads may share it.

    Args:
        config: configuration, in the layout of `open_vocabulary_segmentation.yaml` beside this file or of
            PaddleX's.
        where: how messages name the configuration.
        model: name of the model for both kinds of prompt; wins over the configuration.
        model_dir: model folder for both kinds of prompt; wins over `model`.
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
        modules = self._sub_modules(dict.fromkeys(_SUB_MODULES.values(), ("model_name", "model_dir")), where)
        self._folders = _find_folders(modules, model, model_dir)
        folders = {folder.path for folder in self._folders.values() if isinstance(folder, ModelFolder)}
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
        mask_format: str | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[OpenVocabularySegmentationResult]:
        """Segment what the prompts show in each image.

        Args:
            input: path, URL, folder, BGR uint8 array HxWx3, "-" for standard input, or a list of these. PDF
                pages are images.
            prompt: boxes [[x1, y1, x2, y2], ...] or points [[x, y], ...], or an array Nx4 or Nx2, in pixels
                of the image. Each gives one mask. The same prompts serve all images.
            prompt_type: "box" (also None, as in PaddleX) or "point".
            device: device of this call; None is the pipeline's.
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
        model = self._model(prompts.kind, self._device(device))
        model.check_prompts(prompts)
        chosen = self.mask_format if mask_format is None else check_mask_format(mask_format)

        def segment(image: Image) -> OpenVocabularySegmentationResult:
            check_inside(prompts, image.height, image.width, image.path)
            found = model.segment(self._embed(model, image.pixels), prompts)
            return _result(image, prompts, *found, chosen)

        return self._results(input, segment, on_error)  # type: ignore[return-value]

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
        opened = image if isinstance(image, Image) else None
        if opened is None:
            for found in read_images(image, max_pixels=self._max_pixels):
                if opened is not None:
                    raise ImageError(f"{found.path} holds more than one image.", "Open one image at a time.")
                opened = found
        if opened is None:
            raise ImageError("There is no image to open.", "Give a path, a URL or an array.")
        return OpenImage(self, opened, self._device(device))

    def _model(self, prompt_type: str, device: Device) -> SamModel:
        """Return the model for a kind of prompt on a device, loading it the first time."""
        folder = self._folders[prompt_type]
        if isinstance(folder, ModelError):
            raise folder
        return self._loaded(
            folder, device, lambda: SamModel(folder, device, batch=self._batch, session_options=self._session_options)
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
        self, *, boxes: Any = None, points: Any = None, labels: Any = None, mask_format: str | None = None
    ) -> OpenVocabularySegmentationResult:
        """Segment what the prompts show.

        Args:
            boxes: [[x1, y1, x2, y2], ...] or an array Nx4, in pixels of the image: a mask for each.
            points: [[x, y], ...] or an array Nx2: a mask for each. A list of such lists: a mask for each
                list.
            labels: for each point 1 (inside the object) or 0 (outside it). With labels, the points of one
                flat list describe one object together.
            mask_format: "list" or "rle"; None is the pipeline's.

        Raises:
            PromptError: prompts that cannot be used.
        """
        image = self._image
        if image is None:
            raise ConfigError("The image is closed.", "Segment inside the `with` block that opened it.")
        if (boxes is None) == (points is None):
            given = "No prompt was" if boxes is None else "Both boxes and points were"
            raise PromptError(f"{given} given.", "Give either boxes=[[x1, y1, x2, y2], ...] or points=[[x, y], ...].")
        if boxes is not None and labels is not None:
            raise PromptError("Labels were given with boxes.", "Only points have labels.")
        prompts = parse_boxes(boxes) if boxes is not None else parse_points(points, labels)
        check_inside(prompts, image.height, image.width, image.path)
        model = self._pipeline._model(prompts.kind, self._device)
        model.check_prompts(prompts)
        with self._encoding:
            if model not in self._embeddings:
                self._embeddings[model] = self._pipeline._embed(model, image.pixels)
            embedding = self._embeddings[model]
        chosen = self._pipeline.mask_format if mask_format is None else check_mask_format(mask_format)
        return _result(image, prompts, *model.segment(embedding, prompts), chosen)

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


def _result(
    image: Image, prompts: Prompts, masks: np.ndarray, scores: np.ndarray | None, mask_format: str
) -> OpenVocabularySegmentationResult:
    label = f"{prompts.kind}_prompt"
    infos = [{"label": label, "prompt": given} for given in prompts.given]
    if prompts.labels is not None and prompts.coords.shape[1] > 1:
        for info, given, labels in zip(infos, prompts.given, prompts.labels, strict=True):
            info["point_labels"] = labels[: len(given)].tolist()
    return OpenVocabularySegmentationResult(
        {
            "input_path": image.path,
            "page_index": image.page_index,
            "prompts": {label: prompts.given},
            "masks": list(masks),
            "mask_infos": infos,
        },
        image.pixels,
        mask_format,
        scores=None if scores is None else scores.tolist(),
    )

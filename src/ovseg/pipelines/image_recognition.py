"""General image recognition (PP-ShiTuV2): find the main objects of an image, and look each up in an index."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ConfigError, GalleryError, ImageError, OvsError
from ..images import Image
from ..index import Gallery, Index, Matches, Settings, create_index, is_milvus, load_index
from ..index.engine import require_engine
from ..index.items import check_k, checked_labels
from ..index.label_file import read_id_file
from ..index.storage import on_disk
from ..results.image_recognition import ImageRecognitionResult
from ..schema import is_number
from ..stages.detection import parse_threshold
from ..stages.embedding import binarise, crop
from .base import OnError, Pipeline, logger, origin
from .config import find_folder, overridden, whole_number
from .detector import Detector
from .embedder import Embedder
from .gallery import BadPictures, Picture, Progress, add_pictures, build_in_folder, list_pictures

DETECTION_MODEL = "ShiTu-tiny-det"
RECOGNITION_MODEL = "ShiTu-tiny-rec"
THRESHOLD = 0.5
TOPK = 5
_KEYS = ("model_name", "model_dir", "batch_size")

IndexLike = str | os.PathLike[str] | Index


class ImageRecognitionPipeline(Pipeline):
    """Objects recognised by an index of pictures. Made by `create_pipeline("PP-ShiTuV2")`; threads may share it.

    Args:
        config: configuration, in the layout of `PP-ShiTuV2.yaml` beside this file or of PaddleX's.
        where: how messages name the configuration.
        model: name of the feature model; wins over the configuration.
        model_dir: folder of the feature model; wins over `model`.
        det_model: name of the detector; wins over the configuration.
        det_model_dir: folder of the detector; wins over `det_model`.
        index: the index of a `predict` that names none.
        batch_size: images of a `predict` that are handled together.
        **options: of `Pipeline`: `device`, `providers`, `provider_options`, `threads`, `optimization`,
            `max_pixels`.

    Raises:
        ConfigError: an option or key that is not known or has no such value.
        ModelError: a model cannot be found or used.
        DeviceUnavailable: the device was named and cannot be used.
    """

    name = "PP-ShiTuV2"
    keys = (*Pipeline.keys, "index", "det_threshold", "rec_threshold", "rec_topk", "hamming_radius")

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        where: str = "The configuration",
        model: str | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        det_model: str | None = None,
        det_model_dir: str | os.PathLike[str] | None = None,
        index: IndexLike | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, where=where, **options)
        modules = self._sub_modules({"Detection": _KEYS, "Recognition": _KEYS}, where)
        detection = overridden(modules["Detection"], batch_size=batch_size)
        recognition = modules["Recognition"]
        self._det_folder = find_folder(
            detection, det_model, det_model_dir, default=DETECTION_MODEL, families=("picodet",)
        )
        self._rec_folder = find_folder(
            recognition, model, model_dir, default=RECOGNITION_MODEL, families=("shitu_rec", "clip_vit")
        )
        self._batch_size = whole_number(detection.get("batch_size", 1), "batch_size", 1)
        self._rec_batch_size = whole_number(recognition.get("batch_size", 16), "batch_size of Recognition", 1)
        settings = overridden(self._settings, index=index)
        self._det_threshold = self._parse_det_threshold(settings.get("det_threshold", THRESHOLD))
        self._rec_threshold = _number(settings.get("rec_threshold", THRESHOLD), "rec_threshold")
        self._radius = settings.get("hamming_radius", math.inf)
        self._topk = settings.get("rec_topk", TOPK)
        check_topk(self._topk)
        self._index = settings.get("index")
        self._load(self.device)

    @property
    def dim(self) -> int:
        """Length of the embeddings that the feature model makes."""
        return self._load(self.device)[1].dim

    def index_settings(self, metric_type: str = "IP", index_type: str = "HNSW32", **options: Any) -> Settings:
        """Return the settings of an index for this pipeline's embeddings.

        Args:
            metric_type: `IP`, `L2`, or `hamming`, for which the signs of the embedding are the bits.
            index_type: as in `Gallery`.
            **options: of `Gallery`, such as `ef`.

        Raises:
            ConfigError: a value that cannot be.
        """
        return Settings(self.dim, metric_type, index_type, model=self._rec_folder.name, **options)

    def embed(self, images: Sequence[np.ndarray], metric: str = "IP", device: str | None = None) -> np.ndarray:
        """Return the embeddings of whole images, or of crops, as an index of a metric takes them.

        Args:
            images: HxWx3 uint8 BGR.
            metric: `IP` or `L2` for [N, D] float32 of unit length, `hamming` for [N, D / 8] uint8.
            device: device of this call; None is the pipeline's.

        Raises:
            ImageError: one is something else.
        """
        for image in images:
            _check_pixels(image)
        embeddings = self._load(self._device(device))[1].embed(images)
        return binarise(embeddings) if metric == "hamming" else embeddings

    def embed_for(self, index: IndexLike, images: Sequence[np.ndarray], device: str | None = None) -> np.ndarray:
        """Return embeddings as `embed` does, of the metric of an index that is known to fit.

        Raises:
            GalleryError: the index is of another model or cannot be opened.
            ImageError: as there.
        """
        return self.embed(images, self._open(index).metric, device)

    # ------------------------------------------------------------ indexes

    def build_index(
        self,
        gallery_imgs: Any,
        gallery_label: Any,
        metric_type: str = "IP",
        index_type: str = "HNSW32",
        *,
        index: str | None = None,
        skip_bad: bool = False,
        on_error: OnError | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Index:
        """Make an index of pictures. Each picture is embedded as a whole; nothing is detected in it.

        Args:
            gallery_imgs: the folder that the paths of a label file start from; or a list of images (BGR uint8
                arrays, paths, URLs).
            gallery_label: a label file, with a path, a space or a tab, and a label in each line; or a list of labels.
            metric_type: `IP`, `L2` or `hamming`.
            index_type: `HNSW32`, `IVF`, `Flat` or `auto`, as in `Gallery`.
            index: `milvus://...` to make the index in Milvus; None makes it in memory, to be saved.
            skip_bad: leave out pictures that are missing or cannot be read, instead of raising.
            on_error: gets the error of each picture that is left out; by default it is logged.
            progress: called with the number of pictures done, and of all.
            **options: of `Gallery`, such as `ef`.

        Raises:
            GalleryError: pictures that are missing or cannot be read (all are named), bad lines, no picture.
            ConfigError: arguments that do not fit together.
            MissingExtra: a package that the index needs is not installed.
        """
        pictures = list_pictures(gallery_imgs, gallery_label)
        settings = self.index_settings(metric_type, index_type, **options)
        if index is None:
            require_engine(settings, len(pictures))
        built = self._embedded(pictures, settings, skip_bad, on_error, progress)
        return built if index is None else _moved(built, create_index(index, settings))

    def build_folder(
        self,
        folder: str | os.PathLike[str],
        gallery_imgs: Any,
        gallery_label: Any,
        metric_type: str = "IP",
        index_type: str = "HNSW32",
        *,
        replace: bool = False,
        skip_bad: bool = False,
        on_error: OnError | None = None,
        progress: Progress | None = None,
        say: Any = None,
        **options: Any,
    ) -> Gallery:
        """Make an index in a folder, as `build_index` and `save` would; begun again after an interrupt, it goes on.

        With arrays among the images it starts again: nothing tells whether they are those of the last time.

        Args:
            folder: of the index; it appears when everything is done.
            gallery_imgs: as in `build_index`, as are the others.
            gallery_label: see `build_index`.
            metric_type: see `build_index`.
            index_type: see `build_index`.
            replace: whether a gallery that is there may be replaced.
            skip_bad: see `build_index`.
            on_error: see `build_index`.
            progress: see `build_index`.
            say: told in words whether the work goes on or starts again.
            **options: of `Gallery`, such as `ef`.

        Raises:
            ConfigError: `folder` holds something already.
            GalleryError: as `build_index`; or somebody else is building there.
            SaveError: the folder cannot be written to.
        """
        pictures = list_pictures(gallery_imgs, gallery_label)
        settings = self.index_settings(metric_type, index_type, **options)
        require_engine(settings, len(pictures))
        return build_in_folder(
            on_disk(folder),
            settings,
            pictures,
            lambda images: self.embed(images, settings.metric),
            BadPictures(skip_bad, on_error or _log),
            replace=replace,
            max_pixels=self._max_pixels,
            progress=progress,
            say=say,
        )

    def append_index(
        self,
        gallery_imgs: Any,
        gallery_label: Any,
        index: IndexLike,
        *,
        skip_bad: bool = False,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Index:
        """Add pictures to an index, and return it; `save` commits the change to its folder.

        Args:
            gallery_imgs: as in `build_index`.
            gallery_label: as in `build_index`.
            index: what `build_index` returned, a folder, or `milvus://...`.
            skip_bad: as in `build_index`.
            on_error: as in `build_index`.
            progress: as in `build_index`.

        Raises:
            GalleryError: as `build_index`; or the index is of another model or cannot be opened. Nothing is added.
        """
        opened, pictures = self._open(index), list_pictures(gallery_imgs, gallery_label)
        # All are embedded before any is added: an index that is in use is changed whole or not at all.
        return _moved(self._embedded(pictures, opened.settings, skip_bad, on_error, progress), opened)

    def remove_index(self, remove_ids: Any, index: IndexLike) -> Index:
        """Remove items from an index of any type, and return it; `save` commits the change to its folder.

        Args:
            remove_ids: ids, or the path of a text file with an id at the beginning of each line.
            index: what `build_index` returned, a folder, or `milvus://...`.

        Raises:
            GalleryError: ids that are not in the index, or a bad file: nothing is removed.
        """
        opened = self._open(index)
        opened.remove(read_id_file(remove_ids) if isinstance(remove_ids, str | os.PathLike) else remove_ids)
        return opened

    def _embedded(
        self,
        pictures: Sequence[Picture],
        settings: Settings,
        skip_bad: bool,
        on_error: OnError | None,
        progress: Progress | None,
    ) -> Gallery:
        """Return a gallery of pictures, in memory."""
        gallery = Gallery.of(settings)
        add_pictures(
            gallery,
            pictures,
            lambda images: self.embed(images, settings.metric),
            BadPictures(skip_bad, on_error or _log),
            max_pixels=self._max_pixels,
            progress=progress,
        )
        return gallery

    def _open(self, index: IndexLike | None) -> Index:
        """Return an index that fits the feature model.

        Raises:
            ConfigError: none is named.
            GalleryError: it cannot be opened, or its embeddings are not those of the model.
        """
        if index is None or index == "None":  # as in PaddleX's YAML file
            raise ConfigError(
                "No index is named.", "Give predict() an index or the folder of one (--index), or name it in the YAML."
            )
        if isinstance(index, str | os.PathLike):
            opened: Index = load_index(index if is_milvus(index) else Path(index))  # type: ignore[arg-type]
        else:
            opened = index
        if not hasattr(opened, "settings"):
            raise ConfigError(
                f"An index of type {type(index).__name__} cannot be used.",
                "Give what build_index() or load_index() returned, or the folder of an index.",
            )
        if opened.dim != self.dim:
            raise GalleryError(
                f"The embeddings of the index have {opened.dim} dimensions, and those of the model "
                f"{self._rec_folder.name} have {self.dim}.",
                f"Use the model {opened.settings.model or 'that the index was built with'}, or build the index again.",
            )
        built_with = opened.settings.model
        if built_with not in (None, self._rec_folder.name):
            logger.warning(
                "The index was built with the model %s; the embeddings of %s may not fit.",
                built_with,
                self._rec_folder.name,
            )
        return opened

    # ------------------------------------------------------------ recognition

    def predict(
        self,
        input: Any,
        index: IndexLike | None = None,
        det_threshold: float | None = None,
        rec_threshold: float | None = None,
        rec_topk: int | None = None,
        hamming_radius: float | None = None,
        device: str | None = None,
        *,
        label: str | Iterable[str] | None = None,
        vote: bool = False,
        batch_size: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[ImageRecognitionResult]:
        """Recognise the objects of each image. Where none is detected, the whole image is the one object.

        Args:
            input: path, URL, folder, BGR uint8 array HxWx3, "-" for standard input, or a list of these. PDF
                pages are images.
            index: what `build_index` returned, a folder, or `milvus://...`; None is the pipeline's.
            det_threshold: from 0 to 1; detections have a higher score. None is the pipeline's, as for the next three.
            rec_threshold: an object is recognised if its nearest item has at least this similarity (IP), or at most
                this squared distance (L2).
            rec_topk: items of each object, at most; all of them, where the index has fewer.
            hamming_radius: as `rec_threshold`, in bits, for the hamming metric.
            device: device of this call; None is the pipeline's.
            label: look only at items of this label, or of these.
            vote: give each label once, those of the most items first, with the score of its nearest item.
            batch_size: images that are handled together; their objects go through the feature model in batches.
            on_error: gets the error of each bad image. By default it is logged as a warning, or raised where
                the image is the only one.

        Returns:
            An iterator of results, made as they are asked for.

        Raises:
            ConfigError: a threshold, number or label that cannot be, or no index (at once).
            GalleryError: the index cannot be opened, or is of another model (at once).
            ImageError: from the iterator, an only image that cannot be read.
            DeviceUnavailable: the device cannot be used.
        """
        opened = self._open(self._index if index is None else index)
        least = self._det_threshold if det_threshold is None else self._parse_det_threshold(det_threshold)
        topk = self._topk if rec_topk is None else rec_topk
        check_topk(topk)
        if opened.metric == "hamming":
            limit = _number(self._radius if hamming_radius is None else hamming_radius, "hamming_radius")
        else:
            limit = self._rec_threshold if rec_threshold is None else _number(rec_threshold, "rec_threshold")
        among = None if label is None else checked_labels(label)
        batch = self._batch_size if batch_size is None else whole_number(batch_size, "batch_size", 1)
        detector, embedder = self._load(self._device(device))

        def recognise(images: list[Image]) -> list[ImageRecognitionResult]:
            objects = [_objects(image, found) for image, found in zip(images, detect(images), strict=True)]
            crops = [crop(image.pixels, box) for image, found in zip(images, objects, strict=True) for box, _ in found]
            embeddings = embedder.embed(crops)
            if opened.metric == "hamming":
                embeddings = binarise(embeddings)
            matches = iter(opened.search(embeddings, topk, labels=among))
            return [
                _result(image, [(*one, next(matches)) for one in found], limit, vote)
                for image, found in zip(images, objects, strict=True)
            ]

        def detect(images: list[Image]) -> list[list[tuple[list[float], float]]]:
            found = detector.detect([image.pixels for image in images], least)
            return [list(zip(one.boxes.tolist(), one.scores.tolist(), strict=True)) for one in found]

        return self._batched_results(input, recognise, on_error, batch)  # type: ignore[arg-type, return-value]

    # ------------------------------------------------------------ settings and models

    def _parse_det_threshold(self, threshold: Any) -> np.ndarray:
        return parse_threshold(threshold, self._det_folder.labels or ("object",), THRESHOLD)

    def _load(self, device: Device) -> tuple[Detector, Embedder]:
        """Return the models on a device, loading them the first time."""
        size = self._rec_batch_size
        return (
            self._loaded(self._det_folder, device, Detector),
            self._loaded(
                self._rec_folder,
                device,
                lambda folder, on, options: Embedder(folder, on, batch_size=size, session_options=options),
            ),
        )


def _check_pixels(image: Any) -> None:
    """Refuse what is no image: OpenCV resizes other arrays into one of their own, and the network's stays as it was."""
    array = isinstance(image, np.ndarray)
    if not (array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        given = f"{image.dtype} {list(image.shape)}" if array else f"a {type(image).__name__}"
        raise ImageError(f"An image to embed is {given}.", "Give arrays HxWx3 uint8, in the order B, G, R.")


def _moved(items: Gallery, index: Index) -> Index:
    """Add all items of a gallery to an index, and return it."""
    index.add(items.embeddings(), items.labels, items.metadata)
    return index


def check_topk(topk: Any) -> None:
    """Refuse a rec_topk that cannot be.

    Raises:
        ConfigError: it is not a whole number of at least 1.
    """
    try:
        check_k(topk)
    except ConfigError:
        raise ConfigError(f"rec_topk is {topk!r}.", "Give a whole number of at least 1.") from None


def _number(value: Any, what: str) -> float:
    if not (is_number(value) or isinstance(value, np.number)) or math.isnan(value):
        raise ConfigError(f"{what} is {value!r}.", "Give a number.")
    return float(value)


def _objects(image: Image, found: list[tuple[list[float], float]]) -> list[tuple[list[float], float]]:
    """Return boxes and scores; where there is none, the box of the whole image, with the score 0."""
    return found or [([0.0, 0.0, float(image.width), float(image.height)], 0.0)]


def _result(
    image: Image, objects: list[tuple[list[float], float, Matches]], limit: float, vote: bool
) -> ImageRecognitionResult:
    boxes, kept = [], []
    for box, score, matches in objects:
        # As PaddleX: the nearest item decides, for all of them.
        if not len(matches.within(limit)):
            matches = Matches([], [], [], [], matches.metric)
        labels: list[str | None] = [*([one.label for one in matches.vote()] if vote else matches.labels)]
        scores: list[float | None] = [*([one.score for one in matches.vote()] if vote else matches.scores)]
        boxes.append(
            {"labels": labels or [None], "rec_scores": scores or [None], "det_score": score, "coordinate": box}
        )
        kept.append(matches)
    data = {**origin(image), "boxes": boxes}
    return ImageRecognitionResult(data, image.pixels, kept)


def _log(error: OvsError) -> None:
    logger.warning("%s", error)

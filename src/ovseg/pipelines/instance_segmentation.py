"""Instance segmentation: every object of the model's classes, with its class, score, box and mask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..device import Device
from ..errors import ModelError
from ..images import Image
from ..model_folder import FAMILIES, ModelFolder
from ..results.instance_segmentation import InstanceSegmentationResult
from ..results.open_vocabulary_segmentation import check_mask_format
from ..stages.detection import parse_threshold
from .base import OnError, Pipeline, origin
from .config import find_folder, overridden, whole_number
from .segmenter import Instances, Segmenter

MODEL = "Mask-RT-DETR-S"
THRESHOLD = 0.5
_SUB_MODULE = "InstanceSegmentation"
_FAMILIES = tuple(family for family, (task, _) in FAMILIES.items() if task == "instance_segmentation")
_KEYS = ("model_name", "model_dir", "batch_size", "threshold")

Threshold = float | Mapping[Any, float]


class InstanceSegmentationPipeline(Pipeline):
    """Objects of known classes. Made by `create_pipeline("instance_segmentation")`; threads may share it.

    Args:
        config: configuration, in the layout of `instance_segmentation.yaml` beside this file or of PaddleX's.
        where: how messages name the configuration.
        model: name of the model; wins over the configuration.
        model_dir: model folder; wins over `model`.
        threshold: least score, as in `predict`.
        batch_size: images that go through the model at once, as in `predict`.
        mask_format: "list" or "rle": how results write masks to JSON.
        **options: of `Pipeline`: `device`, `providers`, `provider_options`, `threads`, `optimization`,
            `max_pixels`.

    Raises:
        ConfigError: an option or key that is not known or has no such value.
        ModelError: the model cannot be found or used.
        DeviceUnavailable: the device was named and cannot be used.
    """

    name = "instance_segmentation"
    keys = (*Pipeline.keys, "mask_format")

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        where: str = "The configuration",
        model: str | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        threshold: Threshold | None = None,
        batch_size: int | None = None,
        mask_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, where=where, **options)
        settings = self._settings | self._sub_modules({_SUB_MODULE: _KEYS}, where)[_SUB_MODULE]
        settings = overridden(settings, threshold=threshold, batch_size=batch_size, mask_format=mask_format)
        self.mask_format = check_mask_format(settings.get("mask_format", "list"))
        self._folder = find_folder(settings, model, model_dir, default=MODEL, families=_FAMILIES)
        if not self.labels:
            raise ModelError(
                f"{self._folder.path / 'model.yaml'} has no labels.", "Add the class names, or export the model again."
            )
        self._thresholds = parse_threshold(settings.get("threshold", THRESHOLD), self.labels, THRESHOLD)
        self._batch_size = whole_number(settings.get("batch_size", 1), "batch_size", 1)
        self._model(self.device)

    @property
    def model(self) -> ModelFolder:
        """The model folder."""
        return self._folder

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the model's classes, by number."""
        return self._folder.labels

    def predict(
        self,
        input: Any,
        threshold: Threshold | None = None,
        device: str | None = None,
        *,
        batch_size: int | None = None,
        mask_format: str | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[InstanceSegmentationResult]:
        """Find the objects in each image.

        Args:
            input: path, URL, folder, BGR uint8 array HxWx3, "-" for standard input, or a list of these. PDF
                pages are images.
            threshold: a number from 0 to 1: objects have a higher score; or a mapping of label (or class
                number) to such a number, where classes that it leaves out have the pipeline's threshold.
                None is the pipeline's.
            device: device of this call; None is the pipeline's.
            batch_size: images that are read ahead and go through the model together, those of one size at
                once, where the model takes several. Results keep the order of the input. None is the
                pipeline's.
            mask_format: "list" or "rle"; None is the pipeline's.
            on_error: gets the error of each bad image. By default it is logged as a warning, or raised where
                the image is the only one.

        Returns:
            An iterator of results, made as they are asked for.

        Raises:
            ConfigError: a threshold, class, batch size or mask format that is not known (at once).
            ImageError: from the iterator, an only image that cannot be read.
            ModelError: from the iterator, a class without a label.
            DeviceUnavailable: the device cannot be used.
        """
        least = self._thresholds
        if threshold is not None:
            least = parse_threshold(threshold, self.labels, self._thresholds)
        chosen = self.mask_format if mask_format is None else check_mask_format(mask_format)
        batch = self._batch_size if batch_size is None else whole_number(batch_size, "batch_size", 1)
        model = self._model(self._device(device))

        def segment(images: list[Image]) -> list[InstanceSegmentationResult]:
            # The masks of a run have one size, so that images of different size cannot share one.
            groups: dict[tuple[int, ...], list[int]] = {}
            for i, image in enumerate(images):
                groups.setdefault(image.pixels.shape, []).append(i)
            found: dict[int, Instances] = {}
            for members in groups.values():
                pixels = [images[i].pixels for i in members]
                found |= zip(members, model.segment(pixels, least), strict=True)
            return [self._result(image, found[i], model.gives_boxes, chosen) for i, image in enumerate(images)]

        batch = batch if model.takes_batches else 1
        return self._batched_results(input, segment, on_error, batch)  # type: ignore[arg-type, return-value]

    def _model(self, device: Device) -> Segmenter:
        """Return the model on a device, loading it the first time."""
        return self._loaded(self._folder, device, Segmenter)

    def _result(
        self, image: Image, found: Instances, gives_boxes: bool, mask_format: str
    ) -> InstanceSegmentationResult:
        boxes = []
        for number, score, box in zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True):
            # PaddleX calls it otherwise where the model has no boxes: there it stands under both names.
            paddlex = {} if gives_boxes else {"class_id": number}
            entry = {"cls_id": number, "label": self.labels[number], "score": score}
            boxes.append(entry | paddlex | {"coordinate": box})
        return InstanceSegmentationResult(
            {
                **origin(image),
                "boxes": boxes,
                "masks": list(found.masks),
            },
            image.pixels,
            mask_format,
            crop_in_json=gives_boxes,
        )

"""Results in the formats of other tools: one file for each, and a table of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...errors import ConfigError
from .base import Writer
from .coco import CocoPolygons, CocoRle
from .geojson import GeoJson
from .label_studio import LabelStudioBrush, LabelStudioPolygons
from .labelme import Labelme
from .png import PngBinary, PngCutOut, PngIndex
from .yolo import YoloSegmentation

FORMATS: Mapping[str, type[Writer]] = {
    "coco": CocoRle,
    "coco-polygon": CocoPolygons,
    "yolo": YoloSegmentation,
    "labelme": Labelme,
    "label-studio": LabelStudioBrush,
    "label-studio-polygon": LabelStudioPolygons,
    "geojson": GeoJson,
    "png": PngBinary,
    "png-index": PngIndex,
    "png-cutout": PngCutOut,
}
"""Name to what writes it."""


def open_writer(name: str, folder: str | os.PathLike[str]) -> Writer:
    """Return what writes results in a format into a folder.

    >>> with open_writer("coco", "output") as writer:  # doctest: +SKIP
    ...     for result in pipeline.predict("photos/", boxes):
    ...         writer.add(result)

    Args:
        name: a key of `FORMATS`.
        folder: where to.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"There is no format {name!r}.", f"Use one of {', '.join(FORMATS)}.")
    return FORMATS[name](folder)

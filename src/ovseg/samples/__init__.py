"""Sample images that ship with ovseg, with prompts to try on them.

>>> from ovseg.samples import sample_path
>>> sample_path("coffee").name
'coffee.jpg'

`samples.yaml` beside this file lists them; NOTICE gives their authors and licences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from ..errors import ConfigError

__all__ = ["Sample", "gallery_path", "sample_path", "samples"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """A sample image and its prompts.

    Attributes:
        name: name to ask for, such as "coffee".
        path: the JPEG file.
        boxes: name of an object → its box (x0, y0, x1, y1), in pixels of the image.
        points: name of an object → a point (x, y) on it, in pixels of the image.
        author: who made the photograph.
        licence: SPDX identifier, or "Public domain".
        source: where the file was taken from.
    """

    name: str
    path: Path
    boxes: dict[str, tuple[float, float, float, float]]
    points: dict[str, tuple[float, float]]
    author: str
    licence: str
    source: str


@cache
def samples() -> tuple[Sample, ...]:
    """List the sample images, in the order in which a demonstration shows them."""
    listed = yaml.safe_load((_FOLDER / "samples.yaml").read_text(encoding="utf-8"))["samples"]
    return tuple(
        Sample(
            name=entry["name"],
            path=_FOLDER / entry["file"],
            boxes={name: (box[0], box[1], box[2], box[3]) for name, box in entry["boxes"].items()},
            points={name: (point[0], point[1]) for name, point in entry["points"].items()},
            author=entry["author"],
            licence=entry["licence"],
            source=entry["source"],
        )
        for entry in listed
    )


def sample_path(name: str) -> Path:
    """Find the file of a sample image.

    Raises:
        ConfigError: there is no sample of that name.
    """
    for sample in samples():
        if sample.name == name:
            return sample.path
    known = ", ".join(sample.name for sample in samples())
    raise ConfigError(f"There is no sample image named {name!r}.", f"Choose one of: {known}.")


def gallery_path() -> Path:
    """Find the sample gallery: pictures with `labels.txt`, and `scenes` to search, with `scenes.yaml`.

    `labels.txt` has a line for each picture, its path and its label; `scenes.yaml` the label and the box (x0, y0, x1,
    y1, in pixels) of each object of a scene.
    """
    return _FOLDER / "gallery"

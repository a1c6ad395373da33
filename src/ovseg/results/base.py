"""What the results of all pipelines have in common: printing and saving, as PaddleX's results do."""

from __future__ import annotations

import io
import json
import mimetypes
import os
import random
import time
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import PIL.Image

from ..errors import MissingExtra, SaveError
from .saving import atomic_write, write_json


class Result(dict[str, Any], ABC):
    """One image's result: a dict that can print itself and save itself.

    Args:
        data: `input_path` (str, or None for an array), `page_index` (int of a PDF page, else None) and
            whatever the pipeline found.
        pixels: HxWx3 uint8 BGR, the image to draw on.
    """

    def __init__(self, data: dict[str, Any], pixels: np.ndarray) -> None:
        super().__init__(data)
        self.pixels = pixels

    @abstractmethod
    def _json_data(self, mask_format: str | None = None) -> dict[str, Any]:
        """Return the result as what `json.dump` takes, but with masks as arrays or run lengths."""

    @abstractmethod
    def _print_data(self) -> dict[str, Any]:
        """Return what is printed: the result without its large arrays."""

    @abstractmethod
    def draw(self) -> PIL.Image.Image:
        """Return the image with the result drawn on it."""

    @property
    def json(self) -> dict[str, dict[str, Any]]:
        """The result as `{"res": {...}}` of plain lists, numbers and strings: what `save_to_json` writes."""
        return {"res": _plain(self._json_data())}

    @property
    def img(self) -> dict[str, PIL.Image.Image]:
        """The image with the result drawn on it, as `{"res": PIL.Image.Image}`."""
        return {"res": self.draw()}

    def print(
        self,
        json_format: bool = False,
        indent: int = 4,
        ensure_ascii: bool = False,
        *,
        format_json: bool | None = None,
    ) -> None:
        """Print the result to standard output; masks appear as '...'.

        Args:
            json_format: print JSON rather than a Python dict.
            indent: spaces of one level of JSON.
            ensure_ascii: escape everything but ASCII in JSON.
            format_json: another name of `json_format`, which PaddleX's guide uses.
        """
        data = {"res": self._print_data()}
        if json_format if format_json is None else format_json:
            print(json.dumps(_plain(data), indent=indent, ensure_ascii=ensure_ascii))
        else:
            print(data)

    def save_to_json(
        self,
        save_path: str | os.PathLike[str],
        indent: int | None = 4,
        ensure_ascii: bool = False,
        *,
        mask_format: str | None = None,
    ) -> None:
        """Save the result as JSON.

        Args:
            save_path: a path that ends in `.json`, or a folder, in which the file is named after the input:
                `{stem}_res.json`, or `{stem}_{page}_res.json` for a page of a PDF.
            indent: spaces of one level; None writes one line.
            ensure_ascii: escape everything but ASCII.
            mask_format: "list" (nested lists) or "rle" (COCO run lengths); None is the result's own.

        Raises:
            SaveError: if the file cannot be written; no part of it is left behind.
        """
        path = self._file(save_path, lambda mime: mime == "application/json", ".json")
        data = self._json_data(mask_format)
        with atomic_write(path) as file:
            write_json(file, data, indent=indent, ensure_ascii=ensure_ascii)

    def save_to_img(self, save_path: str | os.PathLike[str]) -> None:
        """Save the image with the result drawn on it.

        Args:
            save_path: a path that ends as an image file does, or a folder, in which the file is named after
                the input: `{stem}_res{suffix}`, with the suffix `.png` where the input is no image file.

        Raises:
            SaveError: if the file cannot be written; no part of it is left behind.
        """
        own_suffix = Path(self.input_name).suffix
        path = self._file(save_path, _is_image, own_suffix if _is_image(_mime(own_suffix)) else ".png")
        # The library has to know the format before a file is opened, and its own errors are not ours.
        encoded = io.BytesIO()
        image_format = PIL.Image.registered_extensions().get(path.suffix.lower())
        if image_format is None or image_format not in PIL.Image.SAVE:
            raise SaveError(f"{path} could not be written: no such image format.", "Use .png or .jpg.")
        picture = self.draw()
        try:
            picture.save(encoded, format=image_format, **({"quality": 90} if image_format == "JPEG" else {}))
        except Exception as error:  # encoders raise anything on what they cannot hold: OSError, ValueError, ...
            raise SaveError(
                f"{path} could not be written: {picture.width}x{picture.height} pixels as {image_format} ({error}).",
                "Use .png.",
            ) from error
        with atomic_write(path) as file:
            file.write(encoded.getbuffer())

    def save_as(self, name: str, save_path: str | os.PathLike[str]) -> None:
        """Save the result in the format of another tool: see `ovseg.results.formats`.

        Args:
            name: `coco`, `coco-polygon`, `yolo`, `labelme`, `label-studio`, `label-studio-polygon`, `geojson`,
                `png`, `png-index` or `png-cutout`.
            save_path: a folder.

        Raises:
            ConfigError: there is no such format.
            SaveError: a file cannot be written; no part of it is left behind.
        """
        from .formats import open_writer

        with open_writer(name, save_path) as writer:
            writer.add(self)

    def to_supervision(self) -> Any:
        """Return the objects as `supervision.Detections`: boxes, masks, scores and classes.

        Its `data["class_name"]` has the labels; objects without a score have NaN.

        Raises:
            MissingExtra: supervision is not installed.
        """
        from .formats.base import objects_of

        try:
            import supervision
        except ImportError as error:
            raise MissingExtra("supervision is not installed.", "Install it: pip install supervision.") from error
        items = list(objects_of(self))
        height, width = self.pixels.shape[:2]
        return supervision.Detections(
            xyxy=np.array([item.box for item in items], dtype=np.float32).reshape(-1, 4),
            mask=np.array([item.mask for item in items], dtype=bool).reshape(-1, height, width),
            confidence=np.array([np.nan if item.score is None else item.score for item in items], dtype=np.float32),
            class_id=np.array([item.class_id for item in items], dtype=int),
            data={"class_name": np.array([item.label for item in items], dtype=str)},
        )

    def save_all(self, save_path: str | os.PathLike[str]) -> None:
        """Save JSON and picture to a folder."""
        self.save_to_json(save_path)
        self.save_to_img(save_path)

    @cached_property
    def input_name(self) -> str:
        """File name of the input, which saved files are named after."""
        input_path = self.get("input_path")
        if input_path is None:
            # As PaddleX names the results of arrays: time and chance.
            return f"{int(time.time())}_{random.randint(1000, 9999)}"
        if input_path == "-":
            return "stdin"
        if "://" in input_path:
            input_path = unquote(urlsplit(input_path).path)
        name = Path(input_path)
        page, frame = self.get("page_index"), self.get("frame_index")
        if frame is not None:
            # Zeros in front, so that names sort as the frames do.
            return f"{name.stem}_{frame:06d}.png"
        return name.name if page is None else f"{name.stem}_{page}{name.suffix}"

    def _file(self, save_path: str | os.PathLike[str], is_file: Any, suffix: str) -> Path:
        if not isinstance(save_path, str | os.PathLike):
            raise SaveError(f"save_path is {save_path!r}.", "Give the path of a file or a folder.")
        path = Path(save_path)
        return path if is_file(_mime(path.name)) else path / f"{Path(self.input_name).stem}_res{suffix}"


def _mime(name: str) -> str:
    return mimetypes.guess_type(f"x{name}")[0] or ""


def _is_image(mime: str) -> bool:
    return mime.startswith("image/")


def _plain(value: Any) -> Any:
    """Return `value` with arrays and numpy's numbers as lists and Python's numbers."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

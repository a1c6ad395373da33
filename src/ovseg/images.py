"""Any source of images (array, path, URL, directory, list, standard input) as a lazy stream of `Image`."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ._decoding import Image, attempt, count_pages, decode_frames, decode_pages, frame_rate, shown
from .errors import ConfigError, ImageError, OvsError

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Image",
    "Source",
    "count_images",
    "frame_rate",
    "is_single",
    "read_images",
]

DEFAULT_MAX_PIXELS = 178_956_970
"""Largest height × width read by default, the limit of Pillow and PaddleX."""
MAX_DOWNLOAD_BYTES = 200 * 2**20
URL_TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and seconds without a byte."""

_PAGED_SUFFIXES = (".pdf", ".tif", ".tiff")
IMAGE_SUFFIXES = (
    *(
        ".bmp",
        ".dib",
        ".gif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".ras",
        ".sr",
        ".webp",
    ),
    *_PAGED_SUFFIXES,
)
"""Files taken from a directory, PDF included as in PaddleX. A file given by name may have any suffix."""

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
"""Files that are read as videos, frame by frame. They are not taken from a directory."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # two letters at least: C:// is a drive

Source: TypeAlias = "np.ndarray | str | os.PathLike[str] | list[Any] | tuple[Any, ...] | Iterator[Any]"


def read_images(
    source: Source,
    *,
    on_error: Callable[[ImageError], None] | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
) -> Iterator[Image]:
    """Read the images of a source one by one, each only when it is asked for.

    EXIF orientation is applied, alpha is dropped, grey is repeated in three channels, 16 bits are divided by
    256. A GIF gives its first frame, a TIFF or PDF every page, a video every frame.

    Args:
        source: a uint8 array (H×W×3 BGR, H×W×4 BGRA, H×W or H×W×1 grey); the path of an image, a PDF or a
            directory; an http(s) URL; "-" for the bytes of standard input; or a list, tuple or iterator of
            these. A directory is listed as it is walked, in the order of the sorted paths, with its
            sub-directories but not with symlinks to directories; only files named `IMAGE_SUFFIXES` count.
        on_error: gets the error of each item that cannot be read, and the stream goes on. By default the
            first such item raises.
        max_pixels: refuse an image of more pixels before it is decoded; 0 or None for no limit. A PDF page is
            rendered smaller instead. Arrays are not checked.

    Returns:
        An iterator of `Image`: uint8 H×W×3 BGR pixels, path and page index.

    Raises:
        ConfigError: `max_pixels` is negative.
        ImageError: (while iterating) an item cannot be read and `on_error` is None; the message names it.
        MissingExtra: (while iterating) a PDF needs pypdfium2 and `on_error` is None.
    """
    if max_pixels is not None and max_pixels < 0:
        raise ConfigError(f"max_pixels is {max_pixels}.", "Give a number of pixels, or 0 for no limit.")
    return _deliver(_items(source, max_pixels or math.inf), on_error)


def is_single(source: Source) -> bool:
    """Whether the source names one thing (array, file, URL, standard input) and not a set of them."""
    if isinstance(source, str | os.PathLike):
        return not _is_directory(source) and not os.fsdecode(source).lower().endswith(VIDEO_SUFFIXES)
    return isinstance(source, np.ndarray)


def count_images(source: Source) -> int | None:
    """Count the images of a source without decoding any.

    Returns:
        The number, in which a file that cannot be read counts as one; None for a directory, an iterator,
        standard input, a video, and a PDF or TIFF by URL.
    """
    if isinstance(source, list | tuple):
        counts = [count_images(item) for item in source]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
    if not isinstance(source, str | os.PathLike):
        return None if isinstance(source, Iterator) else 1
    if source == "-" or _is_directory(source):
        return None
    name = os.fsdecode(source)
    if name.lower().endswith(VIDEO_SUFFIXES):
        return None
    if not name.lower().endswith(_PAGED_SUFFIXES):
        return 1
    if _URL.match(name):
        return None
    try:
        return count_pages(_read_file(name), name)
    except OvsError:
        return 1


def _is_directory(path: str | os.PathLike[str]) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a parent may not be read


def _deliver(items: Iterator[Image | OvsError], on_error: Callable[[ImageError], None] | None) -> Iterator[Image]:
    for item in items:
        if isinstance(item, Image):
            yield item
        elif on_error is None:
            raise item
        else:
            on_error(item if isinstance(item, ImageError) else ImageError(item.cause, item.cure))
        del item  # or it would be held while the next one is decoded


def _items(source: object, max_pixels: float) -> Iterator[Image | OvsError]:
    """Yield images and, in their place, the errors of what cannot be read; raising would end the stream."""
    if isinstance(source, np.ndarray):
        yield attempt(partial(_to_bgr, source), None)
    elif isinstance(source, str) and source == "-":  # Path("-") is a file of that name
        yield from _file_items(source, _read_standard_input, max_pixels)
    elif isinstance(source, str) and (url := _URL.match(source)):
        yield from _url_items(source, url[1].lower(), max_pixels)
    elif isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        if _is_directory(name):
            yield from _directory_items(name, max_pixels)
        elif name.lower().endswith(VIDEO_SUFFIXES):
            yield from _video_items(name, max_pixels)
        else:
            yield from _file_items(name, _read_file, max_pixels)
    elif isinstance(source, list | tuple) and isinstance(_first_leaf(source), int | float | np.number):
        cause = f"A {type(source).__name__} of numbers is not an image."
        yield ImageError(cause, "Make an array of its pixels: np.array(pixels, np.uint8).")
    elif isinstance(source, list | tuple | Iterator) and not isinstance(source, io.IOBase):
        for item in source:
            yield from _items(item, max_pixels)
    else:
        yield ImageError(
            f"An input of type {type(source).__name__} is not an image.",
            "Give a path, a URL, a BGR uint8 array, or a list of these.",
        )


def _first_leaf(source: object) -> object:
    while isinstance(source, list | tuple) and source:
        source = source[0]
    return source


def _url_items(url: str, scheme: str, max_pixels: float) -> Iterator[Image | OvsError]:
    if scheme in ("http", "https"):
        yield from _file_items(url, _download, max_pixels)
    else:
        cause = f"{shown(url)} is a {scheme} address, and only http and https are read."
        yield ImageError(cause, "Give an http(s) URL or the path of a file.")


def _directory_items(folder: str, max_pixels: float) -> Iterator[Image | OvsError]:
    empty = True
    for found in _walk(folder):
        empty = False
        if isinstance(found, ImageError):
            yield found
        else:
            yield from _file_items(found, _read_file, max_pixels)
    if empty:
        suffixes = " ".join(IMAGE_SUFFIXES)
        cause = f"The directory {shown(folder)} holds no image."
        yield ImageError(cause, f"Give a directory with files named {suffixes}, or name the files.")


def _file_items(name: str, load: Callable[[str], bytes], max_pixels: float) -> Iterator[Image | OvsError]:
    try:
        data = load(name)
    except ImageError as error:
        yield error
    else:
        yield from decode_pages(data, name, max_pixels)


def _video_items(name: str, max_pixels: float) -> Iterator[Image | OvsError]:
    try:
        with Path(name).open("rb"):
            pass
    except (OSError, ValueError) as error:
        yield _unreadable(name, error)
    else:
        yield from decode_frames(name, max_pixels)


def _walk(folder: str) -> Iterator[str | ImageError]:
    """Yield the image files under a folder in the order of their sorted paths, listing directories lazily."""
    todo = [folder if folder.endswith(os.sep) else folder + os.sep]
    while todo:
        path = todo.pop()
        if not path.endswith(os.sep):
            yield path
            continue
        try:
            with os.scandir(path) as entries:
                todo += sorted((found for entry in entries if (found := _visited(entry))), reverse=True)
        except OSError as error:
            yield _unreadable(path, error)


def _visited(entry: os.DirEntry[str]) -> str | None:
    """Path of an entry to visit: a directory ends in a separator, so that it sorts as its files do."""
    if entry.is_dir(follow_symlinks=False):
        return entry.path + os.sep
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        return None
    try:
        return None if entry.is_dir() else entry.path
    except OSError:  # a link in a circle, or into a folder of somebody else's: reading it says so, of it alone
        return entry.path


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(name, error) from error


def _read_standard_input(_: str) -> bytes:
    try:
        return sys.stdin.buffer.read()
    except (AttributeError, OSError, ValueError) as error:  # AttributeError: there is none
        raise ImageError(
            "Standard input cannot be read.", "Pipe the bytes of an image to it, or give the path of a file."
        ) from error


def _unreadable(name: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{shown(name)} does not exist.", "Check the spelling and the current directory.")
    if isinstance(error, PermissionError):
        return ImageError(f"{shown(name)} may not be read by this user.", "Give the user permission to read it.")
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{shown(name)} cannot be read ({reason}).", "Give the path of a readable file.")


def _download(url: str) -> bytes:
    import requests

    data = bytearray()
    try:
        with requests.get(url, stream=True, timeout=URL_TIMEOUT) as response:
            response.raise_for_status()
            for chunk in response.iter_content(2**18):
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    cause = f"{shown(url)} is larger than {MAX_DOWNLOAD_BYTES} bytes."
                    raise ImageError(cause, "Download it yourself and give the path of the file.")
    except requests.HTTPError as error:
        cause = f"{shown(url)} answers {error.response.status_code} {error.response.reason}."
        raise ImageError(cause, "Check the address in a browser.") from error
    except requests.Timeout as error:
        cause = f"{shown(url)} does not answer in time."
        raise ImageError(cause, "Try again, or give the path of a downloaded file.") from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a host name that cannot be encoded
        cause = f"{shown(url)} cannot be downloaded ({type(error).__name__})."
        raise ImageError(cause, "Check the address and the network, or give a downloaded file.") from error
    return bytes(data)


def _to_bgr(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ImageError(
            f"The array has dtype {array.dtype}, and images are uint8.",
            "Scale it to 0-255 first: (x * 255).round().astype('uint8') for bool and for floats in 0-1, "
            "(x >> 8).astype('uint8') for full-range uint16.",
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise ImageError(
            f"The array has shape {array.shape}, which is not that of an image.",
            "Give H×W×3 (BGR), H×W×4 (BGRA) or H×W (grey); transpose C×H×W, and give a batch as list(batch).",
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[..., :3])

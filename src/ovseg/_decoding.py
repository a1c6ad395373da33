"""Bytes of an image, TIFF or PDF → its pages as `Image`.

The pixels are those of PaddleX: OpenCV decodes, Pillow decodes TIFF and what OpenCV cannot, pypdfium2 renders
PDF pages. Pillow reads every header first, so a decompression bomb is refused before it is decoded.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps

from .errors import ImageError, MissingExtra, OvsError

PDF_SCALE, PDF_MIN_SCALE = 2.0, 0.1
"""A PDF page is rendered at 2 × 72 dpi, or at the largest smaller scale that keeps to the pixel limit."""

# Naming the formats keeps out Pillow plugins that start other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "SUN", "JPEG2000", "AVIF")
# What OpenCV gives for these depends on its version (GIF, AVIF, the orientation of WebP).
_PILLOW_FORMATS = frozenset({"WEBP", "GIF", "AVIF"})
_PILLOW_PIXEL_LIMIT = 89_478_485
_CURE = "Check that it opens in an image viewer, then copy it again, save it as PNG or JPEG, or leave it out."

_pdfium = threading.Lock()  # PDFium is not thread-safe
_pillow_limit = threading.Lock()


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a source.

    Attributes:
        pixels: uint8 array of shape (height, width, 3), channels in BGR order.
        path: the file or URL as it was given or found, "-" for standard input, None for an array.
        page_index: 0-based page of a PDF or TIFF, None for every other image.
        frame_index: 0-based frame of a video, None for every other image.
    """

    pixels: np.ndarray
    path: str | None = None
    page_index: int | None = None
    frame_index: int | None = None

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])


def shown(name: str) -> str:
    """Name of a file as text that any UTF-8 stream can print, whatever bytes the name holds."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def attempt(decode: Callable[[], np.ndarray], name: str | None, page_index: int | None = None) -> Image | ImageError:
    """Return the image, or the error that says why there is none."""
    try:
        return Image(decode(), name, page_index)
    except ImageError as error:
        return error
    except Exception as error:  # decoders raise anything on broken data: OSError, SyntaxError, cv2.error, ...
        return _undecodable(name or "The array", error)


def _undecodable(name: str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    refused = ImageError(f"{shown(name)} cannot be decoded ({reason}).", _CURE)
    refused.__cause__ = error
    return refused


def decode_pages(data: bytes, name: str, max_pixels: float) -> Iterator[Image | OvsError]:
    """Yield the pages of a file one by one, or in their place the errors of those that cannot be read.

    Args:
        data: the whole file.
        name: what errors and `Image.path` call it.
        max_pixels: largest height × width that is decoded.
    """
    if not data:
        yield ImageError(f"{shown(name)} is empty.", "Give a file that holds an image.")
    elif is_pdf(data):
        yield from _pdf_pages(data, name, max_pixels)
    else:
        yield from _image_pages(data, name, max_pixels)


def count_pages(data: bytes, name: str) -> int:
    """Count the pages of a file without decoding one.

    Raises:
        ImageError: the header cannot be read.
        MissingExtra: it is a PDF and pypdfium2 is not installed.
    """
    if is_pdf(data):
        with _pdfium, closing(_open_pdf(data, name)) as document:
            return len(document)
    header = _open_header(data, name, math.inf)
    return _frame_count(header, name) if header.format == "TIFF" else 1


def is_pdf(data: bytes) -> bool:
    """Whether the bytes are those of a PDF, which may follow up to 1 kB of other things."""
    return b"%PDF-" in data[:1024]


def _image_pages(data: bytes, name: str, max_pixels: float) -> Iterator[Image | OvsError]:
    try:
        header = _open_header(data, name, max_pixels)
        pages = _frame_count(header, name) if header.format == "TIFF" else None
    except ImageError as error:
        yield error
        return
    if pages is None:
        yield attempt(partial(_decode, data, header, name), name)
        return
    for index in range(pages):
        yield attempt(partial(_tiff_page, header, index, name, max_pixels), name, index)


def _open_header(data: bytes, name: str, max_pixels: float) -> PIL.ImageFile.ImageFile:
    """Read size and format, as `PIL.Image.open` does; but that also applies Pillow's process-wide limit."""
    PIL.Image.init()
    start = data[:16].ljust(16, b"\0")
    for key in _FORMATS:
        factory, accept = PIL.Image.OPEN.get(key, (None, None))
        if factory is None or accept is None or accept(start) is not True:
            continue
        try:
            header = factory(io.BytesIO(data), "")
        except Exception as error:  # as in attempt
            raise _undecodable(name, error) from error
        _check_size(header, name, max_pixels)
        return header
    raise ImageError(
        f"{shown(name)} is not an image of a known format.",
        "Give a JPEG, PNG, WebP, TIFF, BMP, GIF, PNM or PDF file; convert other formats first.",
    )


def _check_size(picture: PIL.Image.Image, name: str, max_pixels: float) -> None:
    if picture.width * picture.height > max_pixels:
        cause = f"{shown(name)} has {picture.width} × {picture.height} pixels; the limit is {max_pixels}."
        raise ImageError(cause, "Scale it down, or raise max_pixels (0 for no limit) if you trust the file.")


def _decode(data: bytes, header: PIL.ImageFile.ImageFile, name: str) -> np.ndarray:
    if header.format in ("JPEG", "MPO") and not _jpeg_is_whole(data):
        raise ImageError(f"{shown(name)} is truncated: the end of the JPEG is missing.", _CURE)
    pixels = None
    # OpenCV makes a two-dimensional array of a PFM, whose pixels are floats.
    if header.format not in _PILLOW_FORMATS and header.mode != "F":
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return _decode_with_pillow(header, name) if pixels is None else pixels


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end marker follows the start of scan: OpenCV fills the missing rows of a cut JPEG with grey.

    Segments before the scan are stepped over, as an EXIF thumbnail in them has an end marker of its own.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        fill_byte = data[at + 1] == 0xFF
        at += 1 if fill_byte else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9", at) >= 0


def _frame_count(header: PIL.ImageFile.ImageFile, name: str) -> int:
    try:
        with _without_pillow_limit(header):
            return int(getattr(header, "n_frames", 1))
    except Exception as error:  # as in attempt
        raise _undecodable(name, error) from error


def _tiff_page(picture: PIL.ImageFile.ImageFile, index: int, name: str, max_pixels: float) -> np.ndarray:
    with _without_pillow_limit(picture):
        picture.seek(index)
        _check_size(picture, name, max_pixels)
        return _decode_with_pillow(picture, name)


def _decode_with_pillow(picture: PIL.ImageFile.ImageFile, name: str) -> np.ndarray:
    PIL.ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):  # convert("RGB") would clip at 255
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    if picture.mode in ("I", "F"):
        cure = "Scale it to 0-255 and save it with 8 bits per channel, or give a uint8 array."
        raise ImageError(f"{shown(name)} has signed, 32-bit or float pixels, whose white is unknown.", cure)
    return np.asarray(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR))


@contextmanager
def _without_pillow_limit(picture: PIL.Image.Image) -> Iterator[None]:
    """Let `max_pixels` alone judge a large image: Pillow's limit is global and cannot be given per call."""
    if picture.width * picture.height <= _PILLOW_PIXEL_LIMIT:
        yield
        return
    with _pillow_limit:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _pdf_pages(data: bytes, name: str, max_pixels: float) -> Iterator[Image | OvsError]:
    try:
        with _pdfium:
            document = _open_pdf(data, name)
            pages = len(document)
    except (ImageError, MissingExtra) as error:
        yield error
        return
    try:
        if pages == 0:
            yield ImageError(f"{shown(name)} is a PDF without pages.", "Give a PDF that has pages.")
        for index in range(pages):
            yield attempt(partial(_pdf_page, document, index, name, max_pixels), name, index)
    finally:
        with _pdfium:
            document.close()


def decode_frames(path: str, max_pixels: float) -> Iterator[Image | OvsError]:
    """Yield the frames of a video file one by one, or in their place the error that says why there is none."""
    reader = cv2.VideoCapture(path)
    try:
        index = 0
        while reader.isOpened():
            there, pixels = reader.read()
            if not there:
                break
            if pixels.shape[0] * pixels.shape[1] > max_pixels:
                cause = f"{shown(path)} has {pixels.shape[1]} × {pixels.shape[0]} pixels; the limit is {max_pixels}."
                yield ImageError(cause, "Scale it down, or raise max_pixels (0 for no limit) if you trust the file.")
                return
            yield Image(pixels, path, frame_index=index)
            index += 1
    finally:
        reader.release()
    if index == 0:
        cure = "Check that it plays, or save its frames as images and give their folder."
        yield ImageError(f"{shown(path)} is not a video that OpenCV can read.", cure)


def frame_rate(path: str) -> float | None:
    """Frames a second of a video file, or None where it does not say."""
    reader = cv2.VideoCapture(path)
    try:
        rate = reader.get(cv2.CAP_PROP_FPS) if reader.isOpened() else 0.0
    finally:
        reader.release()
    return float(rate) if 0 < rate < 1000 else None


def _open_pdf(data: bytes, name: str) -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        cause = f"{shown(name)} is a PDF, and pypdfium2, which reads PDF, is not installed."
        raise MissingExtra(cause, 'Install it: pip install "ovseg[pdf]".') from error
    try:
        document = pypdfium2.PdfDocument(data)
        document.init_forms()
    except pypdfium2.PdfiumError as error:
        cause = f"{shown(name)} is a PDF that cannot be opened ({error})."
        raise ImageError(cause, "Check that it opens in a viewer without a password.") from error
    return document


def _pdf_page(document: Any, index: int, name: str, max_pixels: float) -> np.ndarray:
    with _pdfium:
        page = document[index]
        try:
            width, height = page.get_size()
            scale = _pdf_scale(width, height, name, max_pixels)
            # A copy: the array of pypdfium2 is a view of memory that it frees.
            return np.array(page.render(scale=scale).to_numpy()[..., :3])
        finally:
            page.close()


def _pdf_scale(width: float, height: float, name: str, max_pixels: float) -> float:
    def pixels(scale: float) -> int:
        return math.ceil(width * scale) * math.ceil(height * scale)

    if pixels(PDF_SCALE) <= max_pixels:
        return PDF_SCALE
    if pixels(PDF_MIN_SCALE) > max_pixels:
        cause = f"{shown(name)} has a page of {width:.0f} × {height:.0f} points; {max_pixels} pixels are too few."
        raise ImageError(cause, "Scale the page down, or raise max_pixels (0 for no limit).")
    low, high = PDF_MIN_SCALE, PDF_SCALE
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (middle, high) if pixels(middle) <= max_pixels else (low, middle)
    return low

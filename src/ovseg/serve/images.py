"""Images of requests and of responses: Base64, files, run lengths."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import PIL.Image

from .._decoding import Image, count_pages, decode_pages
from ..errors import ImageError, MissingExtra
from ..stages.masks import encode_rle, mask_polygons
from .schemas import Mask

_LONGEST_JPEG = 65_500  # JPEG_MAX_DIMENSION in libjpeg


def read_image(given: str | bytes, max_pixels: int) -> Image:
    """Decode an image of a request.

    Args:
        given: Base64, or the bytes of the file.
        max_pixels: the largest height x width that is decoded.

    Raises:
        ImageError: it is no Base64, no image, too large, has several pages, or is a PDF where none are read.
    """
    data = given if isinstance(given, bytes) else _from_base64(given)
    pages = decode_pages(data, "The image", max_pixels)
    image = next(pages)
    if isinstance(image, MissingExtra):
        raise ImageError("The image is a PDF, which this service does not read.", "Send a picture of the page.")
    if not isinstance(image, Image):
        raise image
    if image.page_index is not None and count_pages(data, "The image") > 1:
        raise ImageError("The image has several pages.", "Send one page at a time.")
    return Image(image.pixels)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:  # some encoders break lines
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "The image is neither Base64 nor a URL.", "Send the bytes of the file in the standard alphabet of Base64."
        ) from None


def encode_jpeg(picture: PIL.Image.Image) -> str:
    """Return a picture as JPEG in Base64.

    Raises:
        ImageError: it is longer than a JPEG may be.
    """
    if max(picture.size) > _LONGEST_JPEG:
        raise ImageError(
            f"A picture of {picture.width}x{picture.height} pixels cannot be a JPEG.",
            "Set visualize to false, or send a smaller image.",
        )
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90)
    return base64.b64encode(file.getbuffer()).decode("ascii")


def encode_mask(mask: np.ndarray, polygons: bool, offset: tuple[int, int] = (0, 0)) -> Mask:
    """Return a mask for a response; it is the part of the image that begins at `offset`."""
    height, width = mask.shape
    # A box that is thinner than a pixel may round to nothing.
    counts = encode_rle([mask])[0]["counts"] if mask.size else ""
    outlines = None
    if polygons:
        found = mask_polygons(mask) if mask.size else []
        outlines = [[value + offset[i % 2] for i, value in enumerate(line)] for line in found]
    return Mask(rleResult=counts, counts=counts, size=(height, width), offset=offset, polygons=outlines)

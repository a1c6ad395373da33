"""From mask logits to masks of the image, and masks as run lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .resize import long_side_shape


def upsampled_logits(low_res_masks: np.ndarray, size: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Resize SAM's low-resolution logits to the image, one mask at a time.

    Twice bilinear, with half-pixel centres (`align_corners=False`): to the network's frame of `size`x`size`,
    from which the padding is cropped, and from there to the image.

    Args:
        low_res_masks: NxLxL float32 logits.
        size: side of the network's input frame, in pixels.
        height: height of the image, in pixels.
        width: width of the image, in pixels.

    Yields:
        HxW float32 logits, in one buffer that the next mask overwrites.
    """
    _, low_height, low_width = low_res_masks.shape
    cropped_height, cropped_width = long_side_shape(height, width, size)
    frame_height, frame_width = size, size
    if low_height == low_width and size % low_width == 0:
        # A whole factor lets us leave out the padding before the first resize rather than after it. One more
        # row and column than needed keeps every pixel that is left the same.
        factor = size // low_width
        low_height = min(low_height, -(-cropped_height // factor) + 1)
        low_width = min(low_width, -(-cropped_width // factor) + 1)
        frame_height, frame_width = low_height * factor, low_width * factor
    # One buffer for all masks: fresh memory for each costs more than the arithmetic.
    frame = np.empty((frame_height, frame_width), dtype=np.float32)
    logits = np.empty((height, width), dtype=np.float32)
    for low in low_res_masks[:, :low_height, :low_width]:
        cv2.resize(low, (frame_width, frame_height), dst=frame, interpolation=cv2.INTER_LINEAR)
        cropped = frame[:cropped_height, :cropped_width]
        cv2.resize(cropped, (width, height), dst=logits, interpolation=cv2.INTER_LINEAR)
        yield logits


def upsample_masks(
    low_res_masks: np.ndarray,
    size: int,
    height: int,
    width: int,
    *,
    threshold: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Turn SAM's low-resolution logits into masks of the image.

    The logits are resized as `upsampled_logits` does, and only then compared with `threshold`.

    Args:
        low_res_masks: NxLxL float32 logits.
        size: side of the network's input frame, in pixels.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        threshold: a pixel belongs to the mask if its logit is greater.
        out: NxHxW bool array to write to.

    Returns:
        NxHxW int8 of 0 and 1.
    """
    masks = np.empty((len(low_res_masks), height, width), dtype=bool) if out is None else out
    for logits, mask in zip(upsampled_logits(low_res_masks, size, height, width), masks, strict=True):
        np.greater(logits, threshold, out=mask)
    return masks.view(np.int8)


# A pixel that a mask covers whole, or not at all, is as sure as the logits that SAM feeds back to itself.
_SURE = 10.0


def mask_logits(mask: np.ndarray, size: int, low_size: int) -> np.ndarray:
    """Turn a mask of the image into low-resolution logits, SAM's mask prompt.

    Each low-resolution pixel gets the share of it that the mask covers, from -10 (none) to 10 (all).

    Args:
        mask: HxW bool.
        size: side of the network's input frame, in pixels.
        low_size: side of the logits, L.

    Returns:
        LxL float32; the padding at the right and bottom is -10.
    """
    height, width = long_side_shape(mask.shape[0], mask.shape[1], size)
    small_height = max(1, round(height * low_size / size))
    small_width = max(1, round(width * low_size / size))
    share = cv2.resize(mask.astype(np.float32), (small_width, small_height), interpolation=cv2.INTER_AREA)
    logits = np.full((low_size, low_size), -_SURE, dtype=np.float32)
    logits[:small_height, :small_width] = (2 * share - 1) * _SURE
    return logits


class RleMasks(Sequence[np.ndarray]):
    """Masks kept as run lengths, each decoded when it is asked for: thousands fit in memory.

    Attributes:
        rle: one `{"size": [H, W], "counts": str}` for each mask, as `encode_rle` returns it.
    """

    def __init__(self, rle: Sequence[Mapping[str, Any]]) -> None:
        self.rle = [dict(item) for item in rle]

    def __len__(self) -> int:
        return len(self.rle)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> RleMasks: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | RleMasks:
        if isinstance(index, slice):
            return RleMasks(self.rle[index])
        return decode_rle([self.rle[index]])[0]


def encode_rle(masks: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Encode masks as COCO's compressed run lengths.

    Args:
        masks: HxW arrays of 0 and 1 (bool or 8-bit); `RleMasks` are returned as they are.

    Returns:
        One `{"size": [H, W], "counts": str}` for each mask.
    """
    if isinstance(masks, RleMasks):
        return masks.rle
    encoded = []
    for mask in masks:
        # COCO counts down the columns; OpenCV transposes faster than numpy copies to Fortran order.
        columns = cv2.transpose(np.ascontiguousarray(mask).view(np.uint8))
        rle = coco_mask.encode(columns.T)
        encoded.append({"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")})
    return encoded


def decode_rle(encoded: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Decode what `encode_rle` returns.

    Returns:
        One HxW int8 array of 0 and 1 for each mask.
    """
    return [np.ascontiguousarray(coco_mask.decode(dict(rle))).view(np.int8) for rle in encoded]


def binary_masks(masks: np.ndarray, indices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the chosen ones of a network's masks as masks of the image.

    Args:
        masks: Mxhxw numbers, 0 outside of the object.
        indices: the ones to return.
        height: height of the image, in pixels.
        width: width of the image, in pixels. A mask of another size (graphs compute theirs from scale
            factors, and may be a pixel off) is cut or filled with 0 at the right and bottom.

    Returns:
        NxHxW int8 of 0 and 1.
    """
    rows, columns = min(height, masks.shape[1]), min(width, masks.shape[2])
    make = np.empty if (rows, columns) == (height, width) else np.zeros
    chosen = make((len(indices), height, width), dtype=bool)
    # One by one: to choose all at once would first copy the network's numbers, four bytes a pixel.
    for i, mask in zip(indices, chosen, strict=True):
        np.not_equal(masks[i, :rows, :columns], 0, out=mask[:rows, :columns])
    return chosen.view(np.int8)


def mask_boxes(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the box of what each mask covers.

    Args:
        masks: HxW arrays of 0 and 1 (bool or 8-bit).

    Returns:
        Nx4 float32 (x1, y1, x2, y2), the second corner just outside; zeros for an empty mask.
    """
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
        box[:] = (x, y, x + width, y + height)
    return boxes


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """Return the outlines of a mask as COCO's polygons.

    The polygons run through the centres of the outermost pixels, and holes are not in them, since COCO has no
    way to say so: `encode_rle` is exact.

    Args:
        mask: HxW array of 0 and 1 (bool or 8-bit).

    Returns:
        [x1, y1, x2, y2, ...] in pixels for each part that has at least three corners.
    """
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [contour.reshape(-1).astype(float).tolist() for contour in contours if len(contour) >= 3]

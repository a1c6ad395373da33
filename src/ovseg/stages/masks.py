"""From mask logits to masks of the image, and masks as run lengths."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .resize import long_side_shape


class _Scratch(threading.local):
    """Arrays of a thread that are used again: a megabyte anew from the system costs more than what is done with it."""

    most = 1 << 20
    """Numbers that are kept for each use."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, use: str, height: int, width: int) -> np.ndarray:
        """Return a float32 array HxW of any content, which the next call for this use may return again."""
        if height * width > self.most:
            return np.empty((height, width), dtype=np.float32)
        if use not in self._kept or self._kept[use].size < height * width:
            self._kept[use] = np.empty(height * width, dtype=np.float32)
        return self._kept[use][: height * width].reshape(height, width)


_scratch = _Scratch()


def upsampled_logits(
    low_res_masks: np.ndarray,
    size: int,
    height: int,
    width: int,
    *,
    above: float = -math.inf,
    scratch: _Scratch | None = None,
) -> Iterator[np.ndarray]:
    """Resize SAM's low-resolution logits to the image, one mask at a time.

    Twice bilinear, with half-pixel centres (`align_corners=False`): to the network's frame of `size`x`size`,
    from which the padding is cropped, and from there to the image.

    Args:
        low_res_masks: NxLxL float32 logits.
        size: side of the network's input frame, in pixels.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        above: rows at the bottom and columns at the right without a logit greater than this are left out.
        scratch: where buffers come from, by one caller at a time; None for fresh ones.

    Yields:
        HxW float32 logits, or their upper left part, in one buffer that the next mask overwrites.
    """
    # One buffer for all masks: fresh memory for each costs more than the arithmetic.
    scratch = _Scratch() if scratch is None else scratch
    cropped = long_side_shape(height, width, size)
    for low in low_res_masks:
        rows, columns = low.shape if above == -math.inf else _extent(low, above)
        down = _steps(rows, low.shape[0], size, cropped[0], height)
        across = _steps(columns, low.shape[1], size, cropped[1], width)
        resized = low
        for use, y, x in zip(("frame", "logits"), down, across, strict=True):
            # Scales and not sizes say what a part is resized to, so that its pixels are those of the whole.
            resized = cv2.resize(
                resized[: y.taken, : x.taken],
                None,
                dst=scratch.array(use, y.made, x.made),
                fx=x.scale,
                fy=y.scale,
                interpolation=cv2.INTER_LINEAR,
            )
        yield resized


def _extent(logits: np.ndarray, above: float) -> tuple[int, int]:
    """Rows and columns up to the last that has a logit greater than a number."""
    x, y, width, height = cv2.boundingRect((logits > above).view(np.uint8))
    return y + height, x + width


class _Step(NamedTuple):
    """One resize of an axis: numbers of pixels that it takes and makes, and how many it makes of one."""

    taken: int
    made: int
    scale: float


def _steps(reached: int, low: int, size: int, cropped: int, full: int) -> tuple[_Step, _Step]:
    """Resize the first `reached` logits of an axis, and what they have a share in, to the frame and to the image."""
    to_frame, to_image = size / low, full / cropped
    # Half a logit and half a pixel would do; whole ones leave room for rounding.
    kept = min(cropped, math.ceil((reached + 1) * to_frame + cropped / full))
    logits = min(low, math.ceil(kept / to_frame) + 1)
    return _Step(logits, round(logits * to_frame), to_frame), _Step(kept, round(kept * to_image), to_image)


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
    upsampled = upsampled_logits(low_res_masks, size, height, width, above=threshold, scratch=_scratch)
    for logits, mask in zip(upsampled, masks, strict=True):
        rows, columns = logits.shape
        np.greater(logits, threshold, out=mask[:rows, :columns])
        mask[rows:] = mask[:rows, columns:] = False
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


def resize_masks(
    low_res_masks: np.ndarray,
    indices: np.ndarray,
    size: Sequence[int] | np.ndarray,
    height: int,
    width: int,
    *,
    threshold: float,
) -> np.ndarray:
    """Spread the chosen ones of a network's masks over the image: bilinear, with half-pixel centres.

    Args:
        low_res_masks: Mxhxw float32, over the whole image.
        indices: the ones to return.
        size: height and width that the graph computes for the image; it may be a pixel off.
        height: height of the image, in pixels.
        width: width of the image, in pixels. Where `size` is another, masks are cut or filled with 0 at the right and
            bottom.
        threshold: a pixel belongs to the mask if it is greater.

    Returns:
        NxHxW int8 of 0 and 1.
    """
    rows, columns = min(height, int(size[0])), min(width, int(size[1]))
    make = np.empty if (rows, columns) == (height, width) else np.zeros
    chosen = make((len(indices), height, width), dtype=bool)
    # One buffer for all masks: fresh memory for each costs more than the arithmetic.
    spread = np.empty((int(size[0]), int(size[1])), dtype=np.float32)
    # A side of one pixel takes the first of the mask's, as in Paddle, and not the middle.
    rows_read, columns_read = (slice(1 if side == 1 else None) for side in spread.shape)
    for i, mask in zip(indices, chosen, strict=True):
        low_res = low_res_masks[i, rows_read, columns_read]
        cv2.resize(low_res, spread.shape[::-1], dst=spread, interpolation=cv2.INTER_LINEAR)
        np.greater(spread[:rows, :columns], threshold, out=mask[:rows, :columns])
    return chosen.view(np.int8)


def paste_into_boxes(
    low_res_masks: np.ndarray, boxes: np.ndarray, height: int, width: int, *, threshold: float
) -> np.ndarray:
    """Put masks that cover their boxes into the image: bilinear, 0 outside of the box (Mask R-CNN).

    Args:
        low_res_masks: Nxhxw float32 in 0..1.
        boxes: Nx4 float32 (x1, y1, x2, y2), in pixels of the image.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        threshold: a pixel belongs to the mask if it is not less; at least 0.5.

    Returns:
        NxHxW int8 of 0 and 1.
    """
    pasted = np.zeros((len(boxes), height, width), dtype=bool)
    for low, (x1, y1, x2, y2), mask in zip(low_res_masks, np.asarray(boxes, dtype=np.float32), pasted, strict=True):
        (top, rows), (left, columns) = _weights(y1, y2, height, len(low)), _weights(x1, x2, width, low.shape[1])
        inside = mask[top : top + len(rows), left : left + len(columns)]
        np.greater_equal(rows @ low @ columns.T, threshold, out=inside)
    return pasted.view(np.int8)


def _weights(start: np.float32, end: np.float32, pixels: int, cells: int) -> tuple[int, np.ndarray]:
    """How much of each cell of a mask the pixels of its box are made of, along one axis.

    The arithmetic is Paddle's to the last bit but for the sums: masks end where it says.

    Returns:
        The first pixel, and Pxcells float32 for the P pixels from there.
    """
    # Outside of the box less than half of a cell is left: no pixel there reaches the threshold.
    first, last = max(0, math.floor(start) - 1), min(pixels, math.ceil(end) + 1)
    one, two = np.float32(1), np.float32(2)
    centres = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = (centres - start) / (end - start) * two - one
    places = np.nan_to_num(((places + one) * np.float32(cells) - one) / two, nan=-2.0)
    places = np.clip(places, -2, cells + 1)  # far outside is outside
    below = np.floor(places)
    share = (places - below)[:, None]
    number = np.arange(cells, dtype=np.float32)
    weights = (number == below[:, None]) * (one - share) + (number == below[:, None] + one) * share
    return first, weights.astype(np.float32, copy=False)


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

"""Label Studio's tasks with predictions: one `tasks.json` for all images, to be imported into a project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...stages.polygons import join_outlines, mask_rings
from ..base import Result
from ..saving import atomic_write, write_json
from .base import Annotation, Writer, image_size, objects_of

# How long a run may be, in bits, for each of the four kinds of run in Label Studio's run lengths.
_SIZES = (3, 4, 8, 16)
_LARGEST = 1 << _SIZES[-1]


class LabelStudioBrush(Writer):
    """Brush labels: exact. The project's configuration has `<BrushLabels name="label" toName="image">`."""

    kind = "brushlabels"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._tasks: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Keep the task of one image."""
        height, width = image_size(result)
        path = result.get("input_path")
        regions = [region for i, item in enumerate(objects_of(result)) for region in self._regions(item, i)]
        common = {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "from_name": "label",
            "to_name": "image",
            "type": self.kind,
        }
        address = path if path is not None and "://" in path else Path(result.input_name).name
        self._tasks.append(
            {
                "data": {"image": address},
                "predictions": [{"model_version": "ovseg", "result": [common | region for region in regions]}],
            }
        )

    def close(self) -> None:
        """Write the file."""
        with atomic_write(self.folder / "tasks.json") as file:
            write_json(file, self._tasks, indent=None)

    def _regions(self, item: Annotation, number: int) -> list[dict[str, Any]]:
        value = {"format": "rle", "rle": encode_brush(item.mask), "brushlabels": [item.label]}
        return [_region(item, f"object-{number}", value)]


class LabelStudioPolygons(LabelStudioBrush):
    """Polygon labels, one for each part; `<PolygonLabels name="label" toName="image">`. Corners are per cent."""

    kind = "polygonlabels"

    def _regions(self, item: Annotation, number: int) -> list[dict[str, Any]]:
        height, width = item.mask.shape
        regions = []
        for part, (ring, holes) in enumerate(mask_rings(item.mask)):
            points = join_outlines([ring, *holes]) * (100 / width, 100 / height)
            value = {"points": points.tolist(), "closed": True, "polygonlabels": [item.label]}
            regions.append(_region(item, f"object-{number}-{part}", value))
        return regions


def _region(item: Annotation, name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "value": value} | ({} if item.score is None else {"score": item.score})


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask as Label Studio's run lengths: bits of an RGBA picture whose four channels are the mask.

    The layout is that of thi.ng's `rle-pack`: 32 bits for the number of values, 5 for the bits of a value less one,
    four times 4 for the bits of a run's length less one; then for each run a 1, 2 bits that choose the length, the
    length less one and the value.

    Args:
        mask: HxW array of 0 and 1.

    Returns:
        Bytes.
    """
    flat = np.ascontiguousarray(mask).reshape(-1).astype(bool)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.concatenate([starts, [len(flat)]])) * 4
    pieces = [f"{len(flat) * 4:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        while length:
            run = min(length, _LARGEST)
            kind = next(i for i, size in enumerate(_SIZES) if run <= 1 << size)
            pieces.append(f"1{kind:02b}{run - 1:0{_SIZES[kind]}b}{value}")
            length -= run
    bits = "".join(pieces)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))

"""GeoJSON-like polygons with holes, in pixels: one file for each image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...stages.polygons import mask_rings
from ..base import Result
from ..saving import atomic_write, write_json
from .base import Writer, image_size, objects_of


class GeoJson(Writer):
    """A `FeatureCollection` of `Polygon` and `MultiPolygon`, exact. Coordinates are pixels, y points down."""

    def add(self, result: Result) -> None:
        """Write the file of one image."""
        height, width = image_size(result)
        features = []
        for item in objects_of(result):
            parts = [[_closed(ring) for ring in (outer, *holes)] for outer, holes in mask_rings(item.mask)]
            geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": parts}
            if len(parts) == 1:
                geometry = {"type": "Polygon", "coordinates": parts[0]}
            facts = {"label": item.label, "class_id": item.class_id, "score": item.score}
            features.append({"type": "Feature", "bbox": item.box, "properties": facts, "geometry": geometry})
        data = {
            "type": "FeatureCollection",
            "features": features,
            "image": {"file_name": result.input_name, "width": width, "height": height},
        }
        with atomic_write(self.folder / f"{self.stem(result)}.geojson") as file:
            write_json(file, data, indent=None)


def _closed(ring: np.ndarray) -> list[Any]:
    corners: list[Any] = ring.tolist()
    return [*corners, corners[0]]

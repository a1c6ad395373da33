"""Small stores of drawings and photographs, as `ovseg_export.scenes.assets` prepares them: no package is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from ovseg_export.scenes.library import FORMAT, ObjectRecord, PhotoRecord

Drawing = tuple[str, str, np.ndarray]
"""Key, name, and pixels HxWx4 uint8 BGRA."""


def ellipse(colour: Iterable[int]) -> np.ndarray:
    """A drawing of 48x40 pixels: an ellipse on nothing."""
    bgra = np.zeros((48, 40, 4), np.uint8)
    cv2.ellipse(bgra, (20, 24), (18, 22), 0, 0, 360, (*map(int, colour), 255), -1)
    return bgra


def write_store(
    root: Path,
    drawings: Mapping[tuple[str, str], Iterable[Drawing]],
    photos: Mapping[str, str],
    rng: np.random.Generator,
) -> Path:
    """Write a store into an empty folder and return it.

    Args:
        root: the folder.
        drawings: set and split to its drawings.
        photos: name of a photograph to its split; their pixels are noise of 640x480.
        rng: makes the noise, after the drawings.
    """
    (root / "objects").mkdir()
    (root / "backgrounds").mkdir()
    objects, backgrounds = [], []
    for (name, split), items in drawings.items():
        with (root / "objects" / f"{name}.bin").open("ab") as file:
            for key, title, bgra in items:
                png = cv2.imencode(".png", bgra)[1].tobytes()
                objects.append(ObjectRecord(name, split, key, title, file.tell(), len(png), *bgra.shape[:2]))
                file.write(png)
    for name, split in photos.items():
        noise = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (640, 480))
        cv2.imwrite(str(root / "backgrounds" / f"{name}.jpg"), noise)
        backgrounds.append(PhotoRecord("noise", split, name, "CC0-1.0", f"backgrounds/{name}.jpg"))
    (root / "store.json").write_text(json.dumps({"format": FORMAT, "sets": []}))
    for name, records in (("objects", objects), ("backgrounds", backgrounds)):
        (root / f"{name}.json").write_text(json.dumps([asdict(record) for record in records]))
    return root

"""The prepared store of objects and backgrounds, as `assets prepare` writes it and `compose` reads it.

Layout of a store::

    store.json               format, sets with their licences
    objects.json             one record per object: set, key, name, file, offset, length, height, width
    objects/<set>.bin        PNG files (RGBA), one after the other
    backgrounds.json         one record per photograph: set, split, name, licence, file
    backgrounds/<name>.jpg
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FORMAT = 1


@dataclass(frozen=True)
class ObjectRecord:
    """Where one object lies and what it is; `key` is the emoji's code points (`1f436`) or the file's name."""

    set: str
    split: str
    key: str
    name: str
    offset: int
    length: int
    height: int
    width: int


@dataclass(frozen=True)
class PhotoRecord:
    """One background photograph."""

    set: str
    split: str
    name: str
    licence: str
    file: str
    weight: float = 1.0  # how often it is drawn beside the others


class Library:
    """Objects and photographs of one split. Decodes on demand; not for use from several threads at once.

    Args:
        root: the prepared store.
        split: `train`, `val`, several of them, or None for everything.
        keep: takes an object record, says whether to keep it (None: all).
        cache: number of decoded objects kept in memory.

    Raises:
        FileNotFoundError: if the folder is not a prepared store.
        ValueError: if it was written in another format.

    """

    def __init__(
        self,
        root: str | Path,
        split: str | tuple[str, ...] | None = None,
        keep: Callable[[ObjectRecord], bool] | None = None,
        cache: int = 2000,
    ) -> None:
        self.root = Path(root)
        head = json.loads((self.root / "store.json").read_text("utf-8"))
        if head.get("format") != FORMAT:
            raise ValueError(f"{self.root}: store format {head.get('format')!r}, expected {FORMAT}: prepare it again")
        records = [ObjectRecord(**entry) for entry in json.loads((self.root / "objects.json").read_text("utf-8"))]
        photos = [PhotoRecord(**entry) for entry in json.loads((self.root / "backgrounds.json").read_text("utf-8"))]
        splits = (split,) if isinstance(split, str) else split
        self.objects = [r for r in records if (splits is None or r.split in splits) and (keep is None or keep(r))]
        self.photos = [p for p in photos if splits is None or p.split in splits]
        weights = np.array([p.weight for p in self.photos])
        self._photo_steps = np.cumsum(weights) / max(1e-9, weights.sum())
        self._blobs: dict[str, np.ndarray] = {}
        self._photo_pixels: dict[int, np.ndarray] = {}
        self._decoded: OrderedDict[ObjectRecord, np.ndarray] = OrderedDict()
        self._cache = cache

    def object_pixels(self, record: ObjectRecord) -> np.ndarray:
        """The object's picture, HxWx4 uint8 BGRA, trimmed to its alpha; do not write to it."""
        found = self._decoded.get(record)
        if found is not None:
            self._decoded.move_to_end(record)
            return found
        if record.set not in self._blobs:
            self._blobs[record.set] = np.memmap(self.root / "objects" / f"{record.set}.bin", np.uint8, "r")
        blob = self._blobs[record.set][record.offset : record.offset + record.length]
        pixels = cv2.imdecode(blob, cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
            raise ValueError(f"{self.root}: object {record.set}/{record.key} is damaged: prepare the store again")
        self._decoded[record] = pixels
        if len(self._decoded) > self._cache:
            self._decoded.popitem(last=False)
        return pixels

    def draw_photo(self, rng: np.random.Generator) -> np.ndarray:
        """The pixels of a photograph drawn by weight."""
        return self.photo_pixels(min(int(np.searchsorted(self._photo_steps, rng.random())), len(self.photos) - 1))

    def photo_pixels(self, index: int) -> np.ndarray:
        """Photograph `index`, HxWx3 uint8 BGR; all stay in memory once read (about 3 MB each)."""
        if index not in self._photo_pixels:
            path = self.root / self.photos[index].file
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if pixels is None:
                raise ValueError(f"{path} cannot be read: prepare the store again")
            self._photo_pixels[index] = pixels
        return self._photo_pixels[index]

"""Which drawings show a thing of which class, and libraries of them from which every class is drawn equally often."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ovseg_export.scenes.compose import Instance
from ovseg_export.scenes.library import Library, ObjectRecord

from . import DRAWINGS, LABELS

STYLES = {"test": "noto", "development": "openmoji"}
TRAINING = ("train", "classes")  # splits
ROUNDS = 240  # entries of a class in a library
OTHERS = 0.2  # share of entries that are of no class
DRAWING_SIDE, PHOTO_SIDE = 176, 640  # of what is kept small, pixels

# Parts of names of drawings that might pass for a class, or have one in them, and of the many that show people.
_DOUBTFUL = (
    "airplane", "alarm", "ambulance", "apple", "arrival", "auto", "bag", "bake", "ball", "basket", "beach", "bear",
    "bed", "beer", "bento", "bicycl", "biking", "bird", "bison", "boar", "boat", "book", "bottle", "bowl", "boy",
    "bread", "briefcase", "brush", "buffalo", "burger", "bus", "cake", "camel", "candy", "canoe", "car", "cat",
    "champagne", "chess", "chicken", "chop", "clock", "closet", "cocktail", "computer", "cook", "couple", "cow",
    "cricket", "cup", "curry", "custard", "customs", "dagger", "deer", "departure", "desk", "document", "dodo", "dog",
    "donkey", "drink", "eagle", "egg", "emergency", "family", "feather", "field", "fish", "flag", "fondue", "food",
    "fork", "fox", "funicular", "girl", "glass", "goat", "guy", "hand", "hatching", "herb", "horse", "hospital",
    "hotel", "jar", "juggl", "kiss", "knife", "lemon", "llama", "luggage", "man", "mango", "mate", "men", "metro",
    "milk", "mobile", "moon", "mouse", "motor", "mountain", "nest", "news", "no ", "note", "notepad", "oclock",
    "orange", "owl", "page", "pan", "paint", "peach", "pencil", "people", "person", "phone", "pie", "plant", "plate",
    "police", "pool", "pot", "poultry", "purse", "race", "racing", "racket", "rail", "ram", "rat", "restaurant",
    "restroom", "rhino", "rice", "row", "sake", "salad", "school", "scroll", "seat", "seedling", "shopping", "sign",
    "skin tone", "ski", "sled", "soup", "spaghetti", "speaker", "station", "steam", "stop", "student", "surf",
    "sword", "taxi", "tea", "technologist", "television", "tennis", "thirty", "timer", "toilet", "tone", "tooth",
    "tractor", "train", "tram", "trolley", "truck", "turkey", "umbrella", "unicorn", "urn", "videocassette", "wagon",
    "wallet", "watch", "water", "wheel", "window", "wine", "wing", "wolf", "woman", "women", "worker",
)  # fmt: skip


def letters(name: str) -> str:
    """What names of one drawing share across sets: their letters."""
    return re.sub("[^a-z]", "", name.lower())


_LABEL_OF = {letters(name): label for label, names in DRAWINGS.items() for name in names}


def label_of(record: ObjectRecord | Instance) -> str | None:
    """The class of a drawing; clip art has none, as its names are not to be relied upon."""
    return None if record.set == "openclipart" else _LABEL_OF.get(letters(record.name))


def is_other(record: ObjectRecord) -> bool:
    """Whether a drawing certainly shows nothing of any class."""
    if record.set == "openclipart" or not record.name or label_of(record):
        return False
    return not any(part in record.name or part in letters(record.name) for part in _DOUBTFUL)


def shrunk(bgra: np.ndarray, side: int) -> np.ndarray:
    """A drawing with at most `side` pixels to its long side."""
    scale = side / max(bgra.shape[:2])
    if scale >= 1:
        return bgra
    size = max(2, round(bgra.shape[1] * scale)), max(2, round(bgra.shape[0] * scale))
    alpha = bgra[..., 3:].astype(np.float32) / 255
    colour = cv2.resize(bgra[..., :3] * alpha, size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)[..., None]
    colour = colour / np.maximum(alpha, 1 / 255)
    return np.clip(np.concatenate([colour, alpha * 255], 2) + 0.5, 0, 255).astype(np.uint8)


class Things(Library):
    """Drawings where every class, and within it every family of styles, is drawn equally often; and others.

    A class that the sets do not draw is left out.

    Args:
        root: the prepared store.
        split: as in `Library`.
        style: the only set to take, or None for all.
        photos: files of photographs that take the place of the store's.
        small: whether drawings are kept with 176 pixels to a side at most, and photographs with 640; scenes are made
            in a third of the time.
    """

    def __init__(
        self,
        root: Path,
        split: str | tuple[str, ...],
        style: str | None = None,
        photos: Sequence[Path] = (),
        *,
        small: bool = False,
    ) -> None:
        super().__init__(root, split, lambda record: style in (None, record.set))
        self._small = small
        self._drawings: dict[ObjectRecord, np.ndarray] = {}
        self._own = [cv2.imread(str(path)) for path in photos]
        families: dict[str, dict[str, list[ObjectRecord]]] = {label: {} for label in LABELS}
        for record in self.objects:
            if label := label_of(record):
                families[label].setdefault(record.set.split("-")[0], []).append(record)
        others = [record for record in self.objects if is_other(record)]
        self.objects = []
        for styles in (list(sets.values()) for sets in families.values() if sets):
            for i in range(ROUNDS):
                family = styles[i % len(styles)]
                self.objects.append(family[i // len(styles) % len(family)])
        count = round(len(self.objects) * OTHERS / (1 - OTHERS))
        self.objects += [others[i * len(others) // count] for i in range(count)]

    def object_pixels(self, record: ObjectRecord) -> np.ndarray:
        """As in `Library`, small if they are to be."""
        if not self._small:
            return super().object_pixels(record)
        if record not in self._drawings:
            self._drawings[record] = shrunk(super().object_pixels(record), DRAWING_SIDE)
        return self._drawings[record]

    def photo_pixels(self, index: int) -> np.ndarray:
        """As in `Library`, small if they are to be."""
        if index not in self._photo_pixels and self._small:
            photo = super().photo_pixels(index)
            scale = min(1.0, PHOTO_SIDE / max(photo.shape[:2]))
            self._photo_pixels[index] = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return super().photo_pixels(index)

    def draw_photo(self, rng: np.random.Generator) -> np.ndarray:
        """The pixels of a photograph."""
        return self._own[int(rng.integers(len(self._own)))] if self._own else super().draw_photo(rng)

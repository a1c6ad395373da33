r"""Write the sample gallery that ships with ovseg, and the identities that the tests hold the figures on.

    python -m ovseg_export.shitu_tiny.pictures --assets export/work/assets --gallery src/ovseg/samples/gallery
    python -m ovseg_export.shitu_tiny.pictures --assets export/work/assets --photos tests/data/photos \
        --identities tests/data/identities

Both hold Noto Emoji that are held out of training. The gallery is 36 pictures with `labels.txt`, and query scenes over
CC0 photographs with `scenes.yaml` (labels and boxes). The identities are two sheets of tiles, 100 gallery pictures and
a query of each as in `protocol.py`, over the photographs of the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import yaml

from ovseg_export.scenes.library import Library, ObjectRecord
from ovseg_export.scenes.pregenerate import write as write_whole

from .protocol import CANVAS, SEED, STYLES, camera, held_out, on_white, query, view

GALLERY = (
    "1f30b", "1f335", "1f34d", "1f353", "1f363", "1f366", "1f369", "1f36b", "1f375", "1f378", "1f3a1", "1f3ae",
    "1f3b0", "1f3e0", "1f409", "1f413", "1f418", "1f431", "1f434", "1f455", "1f456", "1f45c", "1f45f", "1f4af",
    "1f4e6", "1f4f7", "1f525", "1f577", "1f5fd", "1f60e", "1f94a", "1f966", "1f981", "1f99c", "1f99e", "26bd",
)  # fmt: skip
PICTURE = 128  # long side of a gallery picture, pixels
SCENES, COLUMNS, ROWS = 4, 3, 2  # query scenes, and the places in each
CELL = 200  # side of a place, pixels
TILES, TILE = 10, 64  # tiles to a side of a sheet, pixels of a tile


class Photographs(Library):
    """A library whose photographs are those of a folder."""

    def __init__(self, assets: Path, folder: Path) -> None:
        super().__init__(assets, "val")
        self.pictures = [cv2.imread(str(path)) for path in sorted(folder.glob("*.jpg"))]

    def draw_photo(self, rng: np.random.Generator) -> np.ndarray:
        return self.pictures[int(rng.integers(len(self.pictures)))]


def noto(library: Library) -> dict[str, ObjectRecord]:
    """The test's objects by key."""
    return {record.key: record for record in library.objects if record.set == STYLES["test"]}


def write_gallery(assets: Path, out: Path) -> None:
    library, photos = Library(assets, "val"), Library(assets, "train")
    records = [noto(library)[key] for key in GALLERY]
    unseen = held_out(assets)
    if not all(record.key in unseen for record in records):
        raise ValueError("the gallery is to hold only what was never trained on")
    lines = []
    for record in records:
        picture = on_white(library.object_pixels(record))
        scale = PICTURE / max(picture.shape[:2])
        name = f"{record.name.replace(' ', '_')}.jpg"
        _save(out / name, cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), 85)
        lines.append(f"{name} {record.name}")
    write_whole(out / "labels.txt", "".join(f"{line}\n" for line in lines).encode())
    backgrounds = [i for i, photo in enumerate(photos.photos) if photo.set == "panoramas"]
    rng = np.random.default_rng(SEED)
    backgrounds = list(rng.permutation(backgrounds)[:SCENES])
    order = list(rng.permutation(len(records)))
    scenes = []
    for number, background in enumerate(backgrounds):
        height, width = ROWS * CELL, COLUMNS * CELL
        photo = photos.photo_pixels(int(background))
        side = min(photo.shape[0], photo.shape[1] * height // width)
        picture = cv2.resize(photo[:side, : side * width // height], (width, height), interpolation=cv2.INTER_AREA)
        canvas, objects = picture.astype(np.float32), []
        for place in range(COLUMNS * ROWS):
            record = records[order[(number * COLUMNS * ROWS + place) % len(order)]]
            x, y = place % COLUMNS * CELL, place // COLUMNS * CELL
            colour, alpha = view(rng, library.object_pixels(record), rng.uniform(95, 150))
            edge = (CANVAS - CELL) // 2
            colour, alpha = (part[edge : edge + CELL, edge : edge + CELL] for part in (colour, alpha))
            window = canvas[y : y + CELL, x : x + CELL]
            window[...] = window * (1 - alpha[..., None]) + colour
            left, top, w, h = cv2.boundingRect((alpha >= 0.5).astype(np.uint8))
            objects.append({"label": record.name, "box": [x + left, y + top, x + left + w, y + top + h]})
        name = f"scene_{number + 1}.jpg"
        _save(out / "scenes" / name, camera(rng, canvas), 85)
        scenes.append({"file": name, "background": photos.photos[int(background)].name, "objects": objects})
    write_whole(
        out / "scenes" / "scenes.yaml", yaml.safe_dump(scenes, sort_keys=False, default_flow_style=None).encode()
    )


def write_identities(assets: Path, photos: Path, out: Path) -> None:
    library = Photographs(assets, photos)
    objects, keys = noto(library), held_out(assets)
    others = [record for key, record in sorted(objects.items()) if key not in keys]
    chosen = [objects[key] for key in sorted(keys)][:: len(keys) // TILES**2][: TILES**2]
    gallery, queries = [], []
    for number, record in enumerate(chosen):
        bgra = library.object_pixels(record)
        gallery.append(on_white(bgra))
        queries.append(query(np.random.default_rng([SEED, number]), library, bgra, others))
    for name, tiles in (("gallery", gallery), ("queries", queries)):
        small = [cv2.resize(tile, (TILE, TILE), interpolation=cv2.INTER_AREA) for tile in tiles]
        rows = [np.hstack(small[start : start + TILES]) for start in range(0, TILES**2, TILES)]
        _save(out / f"{name}.jpg", np.vstack(rows), 85)


def _save(path: Path, picture: np.ndarray, quality: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("export/work/assets"), help="the prepared store")
    parser.add_argument("--gallery", type=Path, help="folder of the sample gallery")
    parser.add_argument("--identities", type=Path, help="folder of the tests' identities")
    parser.add_argument("--photos", type=Path, help="photographs behind the tests' queries")
    args = parser.parse_args()
    if args.gallery:
        write_gallery(args.assets, args.gallery)
    if args.identities:
        write_identities(args.assets, args.photos, args.identities)


if __name__ == "__main__":
    main()

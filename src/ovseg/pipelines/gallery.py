"""Making galleries of pictures: which pictures, their embeddings, and a build that goes on after an interrupt."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, GalleryError, ImageError, OvsError, SaveError
from ..images import read_images
from ..index import Gallery, Index, Settings
from ..index.gallery import load_folder
from ..index.label_file import read_label_file
from ..index.storage import is_folder, is_free, is_gallery, read_manifest

# Pictures that are read before they are embedded and added together.
_AT_ONCE = 64
# Seconds of work that an interrupted build may lose.
_SAVE_SECONDS = 30.0

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture for a gallery.

    Attributes:
        source: what `read_images` takes; of several pages, the first counts.
        label: of the picture.
        name: how the list calls it; None for an array.
    """

    source: Any
    label: str
    name: str | None


def list_pictures(gallery_imgs: Any, gallery_label: Any) -> list[Picture]:
    """Return the pictures of a folder with a label file, or of lists of images and labels.

    Raises:
        GalleryError: the label file has bad lines, or there is no picture.
        ConfigError: arguments that do not fit together.
    """
    if isinstance(gallery_label, str | os.PathLike):
        if not isinstance(gallery_imgs, str | os.PathLike):
            raise ConfigError(
                f"gallery_label is the file {gallery_label} and gallery_imgs is a {type(gallery_imgs).__name__}.",
                "Give the folder that its paths start from, or two lists.",
            )
        root = Path(gallery_imgs)
        if not is_folder(root):
            raise GalleryError(f"There is no folder {root}.", "Name the folder that the paths of the list start from.")
        names, labels = read_label_file(gallery_label)
        return [Picture(root / name, label, name) for name, label in zip(names, labels, strict=True)]
    lists = isinstance(gallery_imgs, Iterable) and isinstance(gallery_label, Iterable)
    if not lists or isinstance(gallery_imgs, str | os.PathLike | np.ndarray):
        raise ConfigError(
            f"gallery_imgs is a {type(gallery_imgs).__name__} and gallery_label a {type(gallery_label).__name__}.",
            "Give a folder and the path of a label file, or a list of images and a list of labels.",
        )
    images, labels = list(gallery_imgs), list(gallery_label)
    if len(images) != len(labels):
        raise ConfigError(f"There are {len(images)} images and {len(labels)} labels.", "Give a label for each image.")
    for label in labels:
        if not isinstance(label, str):
            raise ConfigError(f"The label {label!r} is not a string.", "Give labels as strings.")
    if not images:
        raise GalleryError("The gallery has no picture.", "Give at least one.")
    return [
        Picture(image, label, os.fspath(image) if isinstance(image, str | os.PathLike) else None)
        for image, label in zip(images, labels, strict=True)
    ]


class BadPictures:
    """Keeps the errors of bad pictures, to name them all at the end."""

    def __init__(self, skip: bool, report: Callable[[OvsError], None] | None) -> None:
        self._skip, self._report = skip, report
        self.errors: list[OvsError] = []

    def add(self, error: OvsError) -> None:
        """Take note of a bad picture."""
        self.errors.append(error)
        if self._skip and self._report:
            self._report(error)

    def check(self, total: int) -> None:
        """Refuse to go on with bad pictures.

        Raises:
            GalleryError: there are some, and they are not to be skipped, or there is no other: all are named.
        """
        if self.errors and (not self._skip or len(self.errors) == total):
            listed = "\n".join(f"  {error.cause}" for error in self.errors)
            raise GalleryError(
                f"{len(self.errors)} of {total} pictures cannot be used:\n{listed}",
                "Correct the list or the files, or leave them out with skip_bad (--skip-bad).",
            )


def add_pictures(
    index: Index,
    pictures: Sequence[Picture],
    embed: Embed,
    bad: BadPictures,
    *,
    max_pixels: int,
    progress: Progress | None = None,
    saved: Callable[[], None] | None = None,
    total: int | None = None,
) -> None:
    """Embed pictures and add them to an index.

    Args:
        index: gets the embeddings.
        pictures: to add.
        embed: makes the embeddings, as the index holds them, of BGR images.
        bad: gets the errors of pictures that cannot be read.
        max_pixels: of an image, as in `read_images`.
        progress: told how many pictures are done, and of how many.
        saved: called after each batch.
        total: of a work of which `pictures` are the rest.

    Raises:
        GalleryError: bad pictures that are not to be skipped; those that are missing are found before any work.
    """
    total = len(pictures) if total is None else total
    there = [picture for picture in pictures if _is_there(picture, bad)]
    bad.check(total)
    done = total - len(there)
    for start in range(0, len(there), _AT_ONCE):
        batch = there[start : start + _AT_ONCE]
        read = [(picture, pixels) for picture in batch for pixels in _read(picture, bad, max_pixels)]
        if read:
            index.add(
                embed([pixels for _, pixels in read]),
                [picture.label for picture, _ in read],
                [{"path": picture.name} if picture.name is not None else None for picture, _ in read],
            )
        done += len(batch)
        if saved:
            saved()
        if progress:
            progress(done, total)
    bad.check(total)


def build_in_folder(
    folder: Path,
    settings: Settings,
    pictures: Sequence[Picture],
    embed: Embed,
    bad: BadPictures,
    *,
    replace: bool,
    max_pixels: int,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Gallery:
    """Build a gallery in a folder; what an interrupted build has done is not done again, but of arrays.

    The work is done in a folder beside, `FOLDER.part`, which takes the place of `folder` when it is whole.

    Raises:
        ConfigError: `folder`, or the folder beside it, holds something already.
        GalleryError: bad pictures; somebody else is building there; or the gallery to replace is damaged.
        SaveError: the folder cannot be written to.
    """
    if is_gallery(folder) and not replace:
        raise ConfigError(f"{folder} holds a gallery already.", "Use --force to replace it, or another folder.")
    if is_gallery(folder):
        read_manifest(folder)  # a damaged one cannot be replaced: better known before the work
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and is not a gallery.", "Name a new folder.")
    place = folder.resolve()  # "." has no name
    part = place.with_name(place.name + ".part")
    if not is_gallery(part) and not is_free(part):
        raise ConfigError(
            f"{part}, where the work is done, holds something else.", "Move it away, or name a new folder."
        )
    # Without a search structure, which would be built again for each of the saves on the way.
    wanted = dataclasses.replace(settings, index_type="Flat")
    if not is_gallery(part):
        Gallery.of(wanted).save(part)
    gallery = load_folder(part, write=True)
    try:
        rest = _rest(gallery, pictures) if gallery.settings == wanted else None
        if rest is None:
            if say:
                say(f"{part} was begun with another list or model, or with pictures without names: starting again")
            gallery.close()
            shutil.rmtree(part)
            Gallery.of(wanted).save(part)
            gallery = load_folder(part, write=True)
            rest = list(pictures)
        elif len(rest) < len(pictures) and say:
            say(f"going on with {part}: {len(pictures) - len(rest)} of {len(pictures)} are done")
        saver = _Saver(gallery)
        try:
            add_pictures(
                gallery,
                rest,
                embed,
                bad,
                max_pixels=max_pixels,
                progress=progress,
                saved=saver.save_if_due,
                total=len(pictures),
            )
        finally:  # Ctrl-C too: what is embedded is kept
            gallery.save()
    finally:
        gallery.close()
        if not len(gallery):  # nothing that is worth going on with
            shutil.rmtree(part, ignore_errors=True)
    with load_folder(part, write=True, index_type=settings.index_type) as gallery:
        # An empty folder is written into: it may be where a volume is mounted, and could not be replaced.
        gallery.save(folder if folder.exists() else None)
    if not folder.exists():
        try:
            part.replace(folder)
        except OSError as error:
            raise SaveError(
                f"{part} cannot be named {folder}: {error.strerror or error}.", "Rename it, it is whole."
            ) from error
    shutil.rmtree(part, ignore_errors=True)
    return load_folder(folder)


class _Saver:
    """Saves a gallery now and then."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery, self._last = gallery, time.monotonic()

    def save_if_due(self) -> None:
        if time.monotonic() - self._last > _SAVE_SECONDS:
            self._gallery.save()
            self._last = time.monotonic()


def _rest(gallery: Gallery, pictures: Sequence[Picture]) -> list[Picture] | None:
    """Return the pictures that are not in a gallery yet; None if others are in it, or arrays, which have no name."""
    if len(gallery) and any(picture.name is None for picture in pictures):
        return None
    names = [(entry or {}).get("path") for entry in gallery.metadata]
    done = Counter(zip(names, gallery.labels, strict=True))
    rest = []
    for picture in pictures:
        key = (picture.name, picture.label)
        if done[key]:
            done[key] -= 1
        else:
            rest.append(picture)
    return None if done.total() else rest


def _is_there(picture: Picture, bad: BadPictures) -> bool:
    """Whether a picture's file is there, where it is a file; this needs no reading."""
    if not isinstance(picture.source, str | os.PathLike) or "://" in os.fspath(picture.source):
        return True
    try:
        if Path(picture.source).is_file():
            return True
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    bad.add(ImageError(f"{picture.source} {reason}.", "Correct the list."))
    return False


def _read(picture: Picture, bad: BadPictures, max_pixels: int) -> Iterator[np.ndarray]:
    try:
        for image in read_images(picture.source, max_pixels=max_pixels):
            yield image.pixels
            return
        bad.add(ImageError("A list without an image is among the pictures.", "Give an image for each label."))
    except OvsError as error:
        bad.add(error)

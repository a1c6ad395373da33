"""The indexes of the service: folders named by their keys, kept open while they are used."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, GalleryError, OvsError
from ..index import Gallery, Matches, Settings
from ..index.gallery import load_folder
from ..index.storage import is_gallery, read_manifest

logger = logging.getLogger("ovseg")

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class UnknownIndex(OvsError):  # noqa: N818
    """A key that no index has."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no index {key[:64]!r}.", "Use the indexKey that /shitu-index-build gave.")


class IndexFailed(OvsError):  # noqa: N818
    """An index that is there and cannot be read or written: the log has the reason, which names files."""

    exit_code = 1


class OpenIndex:
    """An index in memory and in its folder, which threads may share. `predict` takes it as an index.

    A change is in the folder before a method returns; one that fails is in neither.

    Raises:
        IndexFailed: it cannot be read.
    """

    def __init__(self, key: str, folder: Path) -> None:
        self.key, self._folder = key, folder
        self._lock = threading.Lock()
        self._gallery = self._load()

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._gallery.dim

    @property
    def metric(self) -> str:
        """`IP`, `L2` or `hamming`."""
        return self._gallery.metric

    @property
    def settings(self) -> Settings:
        """All settings of the index."""
        return self._gallery.settings

    def search(self, embeddings: np.ndarray, k: int = 5, **options: Any) -> list[Matches]:
        """Find the nearest items, as `Gallery.search` does."""
        with self._lock:
            return self._gallery.search(embeddings, k, **options)

    def id_map(self) -> dict[str, str]:
        """Return the label of each id."""
        with self._lock:
            return _id_map(self._gallery)

    def add(self, embeddings: np.ndarray, labels: Sequence[str]) -> dict[str, str]:
        """Add items; return the label of each id.

        Raises:
            GalleryError: embeddings that are not those of the index.
            IndexFailed: the change could not be saved.
        """
        return self._change(lambda gallery: gallery.add(embeddings, labels))

    def remove(self, ids: Sequence[int]) -> dict[str, str]:
        """Remove items; return the label of each id that is left.

        Raises:
            GalleryError: ids that are not in the index: nothing is removed.
            IndexFailed: the change could not be saved.
        """
        return self._change(lambda gallery: gallery.remove(ids))

    def refresh(self) -> None:
        """Read the folder again if another process has changed it."""
        with self._lock:
            try:
                behind = read_manifest(self._folder).version != self._gallery.version
            except GalleryError as error:
                raise self._failed(error) from error
            if behind:
                self._gallery = self._load()

    def _change(self, change: Callable[[Gallery], object]) -> dict[str, str]:
        with self._lock:
            while True:
                version = self._gallery.version
                change(self._gallery)
                try:
                    self._gallery.save()
                    return _id_map(self._gallery)
                except OvsError as error:
                    self._gallery = self._load()  # what was in memory is ahead of the folder
                    quicker = isinstance(error, GalleryError) and self._gallery.version != version
                    if not quicker:
                        raise self._failed(error) from error
                    # Another process has changed the index: once more, after its change.

    def _load(self) -> Gallery:
        try:
            return load_folder(self._folder)
        except GalleryError as error:
            raise self._failed(error) from error

    def _failed(self, error: OvsError) -> IndexFailed:
        logger.error("index %s: %s", self.key, error)
        return IndexFailed(f"The index {self.key} cannot be read or written.", "The log of the service tells why.")


def check_folder(folder: Path) -> None:
    """Find out early whether a folder may hold indexes; it need not exist.

    Raises:
        ConfigError: there is something else in the folder's place.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder.", "Choose another --index-dir.")


class IndexStore:
    """Indexes by key, in a folder. Threads and processes may share it.

    Args:
        folder: holds a folder for each index.
        max_open: indexes that are kept in memory.

    Raises:
        ConfigError: there is something else in the folder's place.
    """

    def __init__(self, folder: Path, max_open: int = 64) -> None:
        check_folder(folder)
        self._folder, self._max_open = folder, max_open
        self._open: OrderedDict[str, OpenIndex] = OrderedDict()
        self._lock = threading.Lock()

    def create(self, gallery: Gallery) -> tuple[str, dict[str, str]]:
        """Save a new gallery; return its key, and the label of each id.

        Raises:
            SaveError: it cannot be written.
        """
        key = uuid.uuid4().hex
        try:
            gallery.save(self._folder / key)
        except OvsError:
            shutil.rmtree(self._folder / key, ignore_errors=True)  # nobody knows the key
            raise
        return key, _id_map(gallery)

    def get(self, key: str) -> OpenIndex:
        """Return the index of a key, as it is in the folder now.

        Raises:
            UnknownIndex: there is none.
            IndexFailed: it cannot be read.
        """
        folder = self._path(key)
        with self._lock:
            index = self._open.get(key)
            if index is None:
                index = self._open[key] = OpenIndex(key, folder)
            self._open.move_to_end(key)
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        index.refresh()
        return index

    def _path(self, key: str) -> Path:
        """Return the folder of an index.

        Raises:
            UnknownIndex: the key is none, or there is no such index.
        """
        if not _KEY.fullmatch(key):
            raise UnknownIndex(key)
        folder = self._folder / key
        if not is_gallery(folder) or folder.resolve().parent != self._folder.resolve():
            raise UnknownIndex(key)
        return folder


def _id_map(gallery: Gallery) -> dict[str, str]:
    return dict(zip(map(str, gallery.ids.tolist()), gallery.labels, strict=True))

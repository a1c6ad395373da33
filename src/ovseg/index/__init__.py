"""Galleries of embeddings: search, change, and keep them on disk or in Milvus.

>>> import numpy as np
>>> from ovseg import Gallery, load_index
>>> gallery = Gallery(2)
>>> gallery.add(np.eye(2, dtype=np.float32), ["east", "north"]).tolist()
[0, 1]
>>> gallery.search([0.9, 0.1], k=1)[0].labels
['east']

Importing this package loads numpy only; an engine's own package is loaded when an index of its kind is made.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .engine import Settings
from .gallery import Gallery, load_folder
from .items import Duplicate, Index, Matches, Vote

if TYPE_CHECKING:
    from .milvus import MilvusGallery

__all__ = [
    "Duplicate",
    "Gallery",
    "Index",
    "Matches",
    "Settings",
    "Vote",
    "create_index",
    "is_milvus",
    "load_index",
]


def is_milvus(where: str | os.PathLike[str]) -> bool:
    """Whether `where` is the address of a gallery in Milvus."""
    return isinstance(where, str) and where.startswith(("milvus://", "milvuss://"))


@overload
def load_index(where: Path, **options: Any) -> Gallery: ...
@overload
def load_index(where: str, **options: Any) -> Gallery | MilvusGallery: ...
def load_index(where: str | Path, **options: Any) -> Gallery | MilvusGallery:
    """Open a gallery: a folder that was saved, or `milvus://...`.

    Args:
        where: folder, or address.
        **options: of a folder: those of `gallery.load_folder`.

    Raises:
        GalleryError: not a gallery, or one that cannot be opened.
        ConfigError: an address that has no meaning, or what can be no path.
        SaveError: `write`, and the folder cannot be written to.
        MissingExtra: a package that it needs is not installed.
    """
    if isinstance(where, Path) or not is_milvus(where):
        return load_folder(where, **options)
    from .milvus import MilvusGallery

    return MilvusGallery.open(where)


def create_index(where: str, settings: Settings) -> MilvusGallery:
    """Make an empty gallery in Milvus.

    Raises:
        GalleryError: there is one already, or Milvus cannot be reached or refuses.
        ConfigError: an address that has no meaning.
        MissingExtra: pymilvus is not installed.
    """
    from .milvus import MilvusGallery

    return MilvusGallery.create(where, settings)

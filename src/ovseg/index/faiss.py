"""faiss, and approximate search in lists around centres (IVF) by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtra
from .engine import Settings

# Fewer vectors than this for each centre, and faiss warns that the centres are poor.
_PER_CENTRE = 39


def faiss_package() -> Any:
    """Return the module faiss.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra(
            "HNSW and IVF indexes and PaddleX's index folders need faiss, which is not installed.",
            'Install it with pip install "ovseg[index]", or open the index with index_type="Flat".',
        ) from error
    return faiss


class IvfEngine:
    """Vectors in lists, one around each centre; a search looks into the nearest `nprobe` lists.

    The centres are found from what is added first; `outgrown` says when there are too few of them.
    """

    def __init__(self, settings: Settings) -> None:
        self.dim = settings.dim
        self.metric = settings.metric
        self._nprobe = settings.nprobe
        self._faiss = faiss_package()
        self._index: Any = None
        self._ids = np.empty(0, np.int64)

    @classmethod
    def read(cls, settings: Settings, path: Path, ids: np.ndarray) -> IvfEngine:
        """Return the index of a file, in which `ids` were when it was written."""
        engine = cls(settings)
        read = engine._faiss.read_index_binary if engine.metric == "hamming" else engine._faiss.read_index
        engine._index = read(str(path))
        engine._ids = np.sort(ids)
        return engine

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        binary = self.metric == "hamming"
        if self._index is None:
            self._index = self._trained(np.zeros((1, self.dim // 8), np.uint8) if binary
                                        else np.zeros((1, self.dim), np.float32))  # fmt: skip
        write = self._faiss.write_index_binary if binary else self._faiss.write_index
        write(self._index, str(path))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """Ids in the index, [N] int64, ascending."""
        return self._ids

    def outgrown(self, more: int) -> bool:
        """Whether the index has so grown that it should have four times the centres."""
        return self._index is not None and _centres(len(self._ids) + more) >= 4 * self._index.nlist

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors [N, D] under ids [N] int64; the first call also finds the centres."""
        if not len(ids):
            return
        vectors = np.ascontiguousarray(vectors)
        if self._index is None:
            self._index = self._trained(vectors)
        self._index.add_with_ids(vectors, np.ascontiguousarray(ids))
        self._ids = np.concatenate([self._ids, ids])

    def remove(self, ids: np.ndarray) -> None:
        """Remove ids [N] int64."""
        if len(ids):
            self._index.remove_ids(np.ascontiguousarray(ids))
            self._ids = self._ids[~np.isin(self._ids, ids)]

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return ids [Q, k] int64, nearest first; -1 where the lists that are looked into hold no more."""
        if self._index is None or not len(queries):
            return np.full((len(queries), k), -1, np.int64)
        self._index.nprobe = min(self._index.nlist, self._nprobe or max(8, self._index.nlist // 16))
        ids: np.ndarray = self._index.search(np.ascontiguousarray(queries), k)[1]
        return ids

    def _trained(self, vectors: np.ndarray) -> Any:
        centres = _centres(len(vectors))
        if self.metric == "hamming":
            index = self._faiss.index_binary_factory(self.dim, f"BIVF{centres}")
        else:
            metric = self._faiss.METRIC_INNER_PRODUCT if self.metric == "IP" else self._faiss.METRIC_L2
            index = self._faiss.index_factory(self.dim, f"IVF{centres},Flat", metric)
            index.cp.min_points_per_centroid = 1
        index.train(vectors)
        return index


def _centres(size: int) -> int:
    return max(1, min(size // _PER_CENTRE, int(4 * math.sqrt(size))))

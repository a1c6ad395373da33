"""Approximate search in a graph (HNSW, Malkov and Yashunin 2016), by hnswlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtra
from .engine import Settings


def _hnswlib() -> Any:
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtra(
            "HNSW indexes need hnswlib, which is not installed.",
            'Install it with pip install "ovseg[index]" (it is built with a C++ compiler: on Debian, '
            "apt install g++ python3-dev), or open the index with index_type='Flat'.",
        ) from error
    return hnswlib


def _cores() -> int:
    """Return how many cores this process may use; hnswlib would count those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class HnswEngine:
    """A graph of vectors, float32 [N, D]; removed ones are marked, and what is added takes their places."""

    def __init__(self, settings: Settings, _capacity: int = 1024) -> None:
        self.dim = settings.dim
        self.metric = settings.metric
        self._ef = settings.ef
        self._index = _hnswlib().Index("ip" if self.metric == "IP" else "l2", self.dim)
        self._index.init_index(
            _capacity,
            M=settings.links or 32,
            ef_construction=settings.ef_construction,
            allow_replace_deleted=True,
        )
        self._index.set_num_threads(_cores())
        self._ids = np.empty(0, np.int64)
        self._removed = 0

    @classmethod
    def read(cls, settings: Settings, path: Path, ids: np.ndarray) -> HnswEngine:
        """Return the graph of a file, in which `ids` were when it was written."""
        engine = cls(settings, _capacity=1)
        engine._index = _hnswlib().Index("ip" if engine.metric == "IP" else "l2", engine.dim)
        engine._index.load_index(str(path), allow_replace_deleted=True)
        engine._index.set_num_threads(_cores())
        engine._ids = np.sort(ids)
        engine._removed = engine._index.get_current_count() - len(ids)
        return engine

    def write(self, path: Path) -> None:
        """Write the graph to a file."""
        self._index.save_index(str(path))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """Ids in the index, [N] int64, ascending."""
        return self._ids

    @property
    def outgrown(self) -> bool:
        """Whether most places of the graph are those of removed vectors."""
        return self._removed > len(self._ids) + 1000

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors [N, D] float32 under ids [N] int64, in the places of removed ones first."""
        places = self._index.get_current_count() + max(0, len(ids) - self._removed)
        if places > self._index.get_max_elements():
            self._index.resize_index(max(places, self._index.get_max_elements() * 3 // 2))
        self._index.add_items(vectors, ids, replace_deleted=self._removed > 0)
        self._removed = max(0, self._removed - len(ids))
        self._ids = np.concatenate([self._ids, ids])

    def remove(self, ids: np.ndarray) -> None:
        """Mark ids [N] int64 as removed."""
        for one in ids.tolist():
            self._index.mark_deleted(one)
        self._removed += len(ids)
        self._ids = self._ids[~np.isin(self._ids, ids)]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [Q, k] float32 and ids [Q, k] int64, nearest first; -1 where there is no more."""
        scores = np.zeros((len(queries), k), np.float32)
        found = np.full((len(queries), k), -1, np.int64)
        width = min(k, len(self._ids))
        if not width or not len(queries):
            return scores, found
        ids, distances = self._query(queries, width)
        found[:, :width] = ids
        # hnswlib's distance of an inner product is 1 - ip.
        scores[:, :width] = 1 - distances if self.metric == "IP" else distances
        return scores, found

    def _query(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ef = max(self._ef, k)
        while True:
            self._index.set_ef(ef)
            try:
                ids, distances = self._index.knn_query(queries, k=k)
                return ids.astype(np.int64), distances
            except RuntimeError:
                # Fewer than k were reached: look further, and at last at all.
                if ef >= self._index.get_current_count():
                    return self._all(queries, k)
                ef *= 4

    def _all(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare with every vector: for a graph in which removals have cut some off."""
        from .flat import FlatEngine

        vectors = np.asarray(self._index.get_items(self._ids), np.float32)
        table = FlatEngine(Settings(self.dim, self.metric, "Flat"), self._ids, vectors)
        scores, ids = table.search(queries, k)
        return ids, 1 - scores if self.metric == "IP" else scores

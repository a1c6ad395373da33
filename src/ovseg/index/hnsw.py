"""Approximate search in a graph (HNSW, Malkov and Yashunin 2016), by faiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .engine import Settings
from .faiss import faiss_package

# The range of the 8 bits is that of the vectors that are added first, and a tenth of it on either side.
_MARGIN = 0.1


class HnswEngine:
    """A graph over vectors kept as 8 bits a dimension: a quarter of the memory, and faster than floats.

    What it finds is meant to be scored again with the vectors themselves. Removed vectors are marked and
    stay in the graph, as ways to others, until `outgrown` says that it should be built again.
    """

    def __init__(self, settings: Settings) -> None:
        self.dim = settings.dim
        self.metric = settings.metric
        self._ef = settings.ef
        self._faiss = faiss_package()
        metric = self._faiss.METRIC_INNER_PRODUCT if self.metric == "IP" else self._faiss.METRIC_L2
        graph = self._faiss.IndexHNSWSQ(self.dim, self._faiss.ScalarQuantizer.QT_8bit, settings.links or 32, metric)
        graph.hnsw.efConstruction = settings.ef_construction
        self._faiss.downcast_index(graph.storage).sq.rangestat_arg = _MARGIN
        self._hold(self._faiss.IndexIDMap(graph), np.empty(0, np.int64), np.empty(0, bool))
        self._trained = 0

    def _hold(self, index: Any, place_ids: np.ndarray, alive: np.ndarray) -> None:
        self._index = index
        self._graph = self._faiss.downcast_index(index.index)
        self._place_ids = place_ids
        self._alive = alive
        self._selector: Any = None

    @classmethod
    def read(cls, settings: Settings, path: Path, ids: np.ndarray) -> HnswEngine:
        """Return the graph of a file, in which `ids` were when it was written.

        Raises:
            RuntimeError: the file holds no such graph.
        """
        engine = cls(settings)
        index = engine._faiss.read_index(str(path))
        place_ids = engine._faiss.vector_to_array(index.id_map)
        engine._hold(index, place_ids, np.isin(place_ids, ids))
        engine._trained = len(place_ids)
        return engine

    def write(self, path: Path) -> None:
        """Write the graph to a file."""
        self._faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        return int(np.count_nonzero(self._alive))

    @property
    def ids(self) -> np.ndarray:
        """Ids in the index, [N] int64, ascending."""
        ids: np.ndarray = self._place_ids[self._alive]
        return ids

    def outgrown(self, more: int) -> bool:
        """Whether a third would be of removed vectors, or five in six of vectors after the first."""
        places, live = len(self._alive) + more, len(self) + more
        return 3 * live < 2 * places or places > 6 * self._trained > 0

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors [N, D] float32 under ids [N] int64; the first call also sets the range of the 8 bits."""
        if not len(ids):
            return
        vectors = np.ascontiguousarray(vectors, np.float32)
        if not self._trained:
            self._index.train(vectors)
            self._trained = len(vectors)
        self._index.add_with_ids(vectors, np.ascontiguousarray(ids))
        self._place_ids = np.concatenate([self._place_ids, ids])
        self._alive = np.concatenate([self._alive, np.ones(len(ids), bool)])
        self._selector = None

    def remove(self, ids: np.ndarray) -> None:
        """Mark ids [N] int64 as removed."""
        self._alive[np.searchsorted(self._place_ids, ids)] = False
        self._selector = None

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return ids [Q, n] int64, among them most of the nearest k of each query; -1 where there is no more."""
        # Neighbours in 8 bits are not quite those in floats, hence more than k.
        wanted = min(2 * k + 10, len(self))
        # Removed ones take part in the walk, and so in the number of candidates that ef limits.
        ef = max(self._ef, wanted) * len(self._alive) // max(1, len(self))
        while True:
            places = self._search(queries, wanted, ef)
            # Where many were removed around a query, fewer are found: look further.
            if ef >= len(self._alive) or not (places < 0).any():
                return np.where(places < 0, -1, self._place_ids[places])
            ef *= 4

    def _search(self, queries: np.ndarray, count: int, ef: int) -> np.ndarray:
        parameters = self._faiss.SearchParametersHNSW(efSearch=min(ef, len(self._alive)))
        if not self._alive.all():
            if self._selector is None:
                bits = np.packbits(self._alive, bitorder="little")
                self._selector = self._faiss.IDSelectorBitmap(bits)
            parameters = self._faiss.SearchParametersHNSW(efSearch=min(ef, len(self._alive)), sel=self._selector)
        places: np.ndarray = self._graph.search(np.ascontiguousarray(queries), count, params=parameters)[1]
        return places

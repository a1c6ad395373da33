"""Approximate search in a graph (HNSW, Malkov and Yashunin 2016), by faiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .engine import Settings
from .faiss import faiss_package

# The range of the 8 bits is that of the vectors that are added first, and a tenth of it on either side.
_MARGIN = 0.1
# Candidates beyond k, at least: neighbours in 8 bits are not quite those in floats.
_MORE = 5


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
        self._changed()

    def _changed(self) -> None:
        self._live = int(np.count_nonzero(self._alive))
        self._parameters: dict[int, Any] = {}

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
        return self._live

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
        self._changed()

    def remove(self, ids: np.ndarray) -> None:
        """Mark ids [N] int64 as removed."""
        self._alive[np.searchsorted(self._place_ids, ids)] = False
        self._changed()

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return ids [Q, n] int64, among them most of the nearest k of each query; -1 where there is no more."""
        wanted = min(k + max(_MORE, k // 2), self._live)
        # Removed ones take part in the walk, and so in the number of candidates that ef limits.
        ef = max(self._ef, wanted) * len(self._alive) // max(1, self._live)
        while True:
            parameters = self._parameters_of(min(ef, len(self._alive)))
            places: np.ndarray = self._graph.search(np.ascontiguousarray(queries), wanted, params=parameters)[1]
            if places.min(initial=0) >= 0:
                return np.asarray(self._place_ids[places])
            # Where many were removed around a query, fewer are found: look further.
            if ef >= len(self._alive):
                return np.where(places < 0, -1, self._place_ids[places])
            ef *= 4

    def _parameters_of(self, ef: int) -> Any:
        """Return faiss's parameters of a search, made once: that takes as long as a part of a search."""
        if ef not in self._parameters:
            selector = {}
            if self._live < len(self._alive):
                selector["sel"] = self._faiss.IDSelectorBitmap(np.packbits(self._alive, bitorder="little"))
            self._parameters[ef] = self._faiss.SearchParametersHNSW(efSearch=ef, **selector)
        return self._parameters[ef]

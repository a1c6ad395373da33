"""Exact search: the table of a gallery's vectors, compared one and all by BLAS."""

from __future__ import annotations

import numpy as np

from .engine import Settings

# Rows and queries that are compared at a time: the scores of a step take at most 16 MB.
_ROWS = 16384
_QUERIES = 256
# Candidates of all queries that are scored at a time.
_GATHERED = 8192
# Candidates beyond k that L2 scores again: |q|² + |v|² - 2qv loses digits where q and v are close.
_SPARE = 8
# Share of |q|² + |v|² that float32 may lose of |q|² + |v|² - 2qv.
_LOST = 1e-5


class FlatEngine:
    """Vectors in a table, and exact search over them.

    Large arrays, such as a memory-mapped file, are kept as they are; what is added later is copied to a
    buffer.
    """

    def __init__(self, settings: Settings, ids: np.ndarray | None = None, vectors: np.ndarray | None = None):
        self.dim = settings.dim
        self.metric = settings.metric
        empty = np.empty((0, settings.width), settings.dtype)
        # A plain array: each access to a memmap would make another memmap, which takes longer than a short read.
        self._base = empty if vectors is None else np.asarray(vectors)
        self._tail = empty.copy()
        self._ids = np.empty(0, np.int64) if ids is None else ids.astype(np.int64)
        self._alive = np.ones(len(self._ids), bool)
        self._rows = len(self._ids)
        self._count = self._rows
        self._norms = np.empty(0, np.float32)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> int:
        """Rows of the table, with those of removed vectors."""
        return self._rows

    @property
    def ids(self) -> np.ndarray:
        """Ids in the index, [N] int64, ascending."""
        return self._ids[: self._rows][self._alive[: self._rows]]

    @property
    def row_ids(self) -> np.ndarray:
        """The id of each row, [rows] int64, ascending; removed ones too."""
        return self._ids[: self._rows]

    @property
    def alive(self) -> np.ndarray:
        """For each row, whether its vector is in the index, [rows] bool."""
        return self._alive[: self._rows]

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors [N, D] under ids [N] int64, ascending, above every id that was ever added."""
        used = self._rows - len(self._base)
        self._tail = _room(self._tail, used, len(ids))
        self._tail[used : used + len(ids)] = vectors
        self._ids = _room(self._ids, self._rows, len(ids))
        self._ids[self._rows : self._rows + len(ids)] = ids
        self._alive = _room(self._alive, self._rows, len(ids))
        self._alive[self._rows : self._rows + len(ids)] = True
        self._rows += len(ids)
        self._count += len(ids)

    def remove(self, ids: np.ndarray) -> None:
        """Remove ids [N] int64 that are in the index."""
        rows = self.rows_of(ids)
        self._count -= int(self._alive[rows].sum())
        self._alive[rows] = False

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows of ids that were ever added, [N] int64."""
        rows: np.ndarray = self.row_ids.searchsorted(ids)
        return rows

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Return for each id whether it is in the index, [N] bool."""
        if not self._rows:
            return np.zeros(len(ids), bool)
        rows = np.minimum(self.rows_of(ids), self._rows - 1)
        found: np.ndarray = (self.row_ids[rows] == ids) & self.alive[rows]
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of rows, [N, D]."""
        split = len(self._base)
        late = rows >= split
        if not late.any():
            return np.asarray(self._base[rows])
        out = np.empty((len(rows), self._tail.shape[1]), self._tail.dtype)
        out[late] = self._tail[rows[late] - split]
        out[~late] = self._base[rows[~late]]
        return out

    def block(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors of rows start to stop, without a copy where they lie together."""
        split = len(self._base)
        if stop <= split:
            return self._base[start:stop]
        if start >= split:
            return self._tail[start - split : stop - split]
        return np.concatenate([self._base[start:], self._tail[: stop - split]])

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest k of each query, exactly; equal scores by ascending id.

        Args:
            queries: [Q, D].
            k: how many.
            among: rows to look at, [N] int64; None for all that are in the index.

        Returns:
            Scores [Q, k] float32 and ids [Q, k] int64, nearest first; id -1 where there is no more.
        """
        scores = np.zeros((len(queries), k), np.float32)
        found = np.full((len(queries), k), -1, np.int64)
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            rows, nearness = self._nearest(queries[part], k, among)
            width = rows.shape[1]
            missing = np.isneginf(nearness)
            found[part, :width] = np.where(missing, -1, self.row_ids[rows] if width else rows)
            scores[part, :width] = np.where(missing, 0, nearness if self.metric == "IP" else -nearness)
        return scores, found

    def best(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest k of each query among candidates of its own, as `search` does.

        Args:
            queries: [Q, D].
            candidates: ids that are in the index, [Q, n] int64; -1 for none.
            k: how many.
        """
        scores = np.zeros((len(queries), k), np.float32)
        found = np.full((len(queries), k), -1, np.int64)
        width = min(k, candidates.shape[1])
        step = max(1, _GATHERED // max(1, candidates.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            ids, missing = candidates[part], candidates[part] < 0
            some = bool(missing.any())
            rows = self.rows_of(np.where(missing, self._ids[0], ids) if some else ids)
            near = self._score(queries[part], self.take(rows.reshape(-1)).reshape(*ids.shape, -1))
            if some:
                near[missing] = -np.inf
            lines = np.arange(len(ids))[:, None]  # take_along_axis, without what it checks
            order = np.lexsort((ids, -near), axis=1)[:, :width]
            ids, near = ids[lines, order], near[lines, order]
            found[part, :width] = ids
            near = near if self.metric == "IP" else 0 - near  # a distance of 0 is not to be -0.0
            scores[part, :width] = np.where(ids < 0, 0, near) if some else near
        return scores, found

    def _score(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return the nearness of queries [Q, D] and vectors of their own [Q, n, D], [Q, n] float32."""
        if self.metric == "IP":
            return np.asarray(np.matmul(vectors, queries[:, :, None])[..., 0], np.float32)
        if self.metric == "L2":
            apart = vectors - queries[:, None]
            return np.asarray(-np.einsum("qnd,qnd->qn", apart, apart), np.float32)
        return np.asarray(-np.bitwise_count(vectors ^ queries[:, None]).sum(2, np.int64), np.float32)

    def rebase(self, vectors: np.ndarray) -> None:
        """Take the vectors of the first rows from `vectors` [rows, D], such as a file that has them."""
        used = self._rows - len(self._base)
        late = self._tail[len(vectors) - len(self._base) : used]
        self._base, self._tail = np.asarray(vectors), late.copy()

    def pairs(self, threshold: float) -> list[tuple[int, int, float]]:
        """Return rows a < b and score of all pairs as near as `threshold`, nearest first."""
        rows = np.flatnonzero(self.alive)
        limit = threshold if self.metric == "IP" else -threshold
        found: list[tuple[int, int, float]] = []
        for start in range(0, len(rows), _QUERIES):
            left = rows[start : start + _QUERIES]
            queries = self.take(left)
            for other in range(start, len(rows), _ROWS):
                right = rows[other : other + _ROWS]
                near = self._compare(queries, self.take(right), right)
                slack = 0.0
                if self.metric == "L2":
                    own = self._squares(left[-1])[left][:, None]
                    near -= own
                    # What rounding may have taken from |q|² + |v|² - 2qv: scored again below.
                    slack = _LOST * float(own.max() + self._squares(right[-1])[right].max())
                for a, b in zip(*np.nonzero((near >= limit - slack) & (left[:, None] < right)), strict=True):
                    score = float(near[a, b])
                    if self.metric == "L2":
                        apart = queries[a] - self.take(right[b : b + 1])[0]
                        score = -float(apart @ apart)
                        if score < limit:
                            continue
                    found.append((int(left[a]), int(right[b]), score if self.metric == "IP" else -score))
        sign = -1 if self.metric == "IP" else 1
        return sorted(found, key=lambda pair: (sign * pair[2], pair[:2]))

    def _nearest(self, queries: np.ndarray, k: int, among: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and nearness (higher is nearer, -inf for none) of each query, [Q, at most k]."""
        wanted = k + _SPARE if self.metric == "L2" else k
        rows = np.zeros((len(queries), 0), np.int64)
        best = np.zeros((len(queries), 0), np.float32)
        total = self._rows if among is None else len(among)
        for start in range(0, total, _ROWS):
            stop = min(start + _ROWS, total)
            part = np.arange(start, stop) if among is None else among[start:stop]
            vectors = self.block(start, stop) if among is None else self.take(part)
            near = self._compare(queries, vectors, part)
            near[:, ~self._alive[part]] = -np.inf
            best = np.concatenate([best, near], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(part, near.shape)], axis=1)
            if best.shape[1] > wanted:
                keep = _largest(best, rows, wanted)
                best, rows = np.take_along_axis(best, keep, 1), np.take_along_axis(rows, keep, 1)
        if self.metric == "L2" and rows.shape[1]:
            gone = np.isneginf(best)
            dropped = best.min(axis=1) if total > best.shape[1] else np.full(len(best), -np.inf, np.float32)
            for one, query in enumerate(queries):
                apart = self.take(rows[one]) - query
                best[one] = -np.einsum("nd,nd->n", apart, apart)
            best[gone] = -np.inf
        order = np.lexsort((rows, -best), axis=1)[:, :k]
        rows, best = np.take_along_axis(rows, order, 1), np.take_along_axis(best, order, 1)
        if self.metric == "L2" and rows.shape[1]:
            for one in np.flatnonzero(_doubtful(queries, best[:, -1], dropped)).tolist():
                rows[one], best[one] = self._nearest_by_difference(queries[one], k, among)
        return rows, best

    def _nearest_by_difference(
        self, query: np.ndarray, k: int, among: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and nearness of one query for L2, [k] each, without the sums that lose digits: slowly."""
        rows, best = np.zeros(0, np.int64), np.zeros(0, np.float32)
        total = self._rows if among is None else len(among)
        for start in range(0, total, _ROWS):
            stop = min(start + _ROWS, total)
            part = np.arange(start, stop) if among is None else among[start:stop]
            vectors = self.block(start, stop) if among is None else self.take(part)
            near = np.empty(len(part), np.float32)
            for at in range(0, len(part), _QUERIES):  # as much as the processor's caches hold
                apart = vectors[at : at + _QUERIES] - query
                near[at : at + _QUERIES] = -np.einsum("nd,nd->n", apart, apart)
            near[~self._alive[part]] = -np.inf
            rows, best = np.concatenate([rows, part]), np.concatenate([best, near])
            keep = np.lexsort((rows, -best))[:k]
            rows, best = rows[keep], best[keep]
        return rows, best

    def _compare(self, queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the nearness of queries [Q, D] and vectors [N, D], [Q, N] float32."""
        if self.metric == "IP":
            return np.asarray(queries @ vectors.T, np.float32)
        if self.metric == "L2":
            return np.asarray(2 * (queries @ vectors.T) - self._squares(rows[-1])[rows], np.float32)
        left = np.unpackbits(queries, axis=1).astype(np.float32)
        right = np.unpackbits(vectors, axis=1).astype(np.float32)
        bits = left.sum(1)[:, None] + right.sum(1) - 2 * (left @ right.T)
        return np.asarray(-bits, np.float32)

    def _squares(self, last: int) -> np.ndarray:
        """Return |v|² of each row up to `last` at least, computed once."""
        norms = self._norms  # once: another thread may put more in its place
        if last >= len(norms):
            parts = [norms]
            for start in range(len(norms), self._rows, _ROWS):
                vectors = self.block(start, min(start + _ROWS, self._rows))
                parts.append(np.einsum("nd,nd->n", vectors, vectors))
            self._norms = norms = np.concatenate(parts)
        return norms


def _doubtful(queries: np.ndarray, worst: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Return for which queries a row that was left out may be nearer than the worst that was kept, [Q] bool.

    Args:
        queries: [Q, D].
        worst: nearness (minus the squared distance) of the last row that is kept, [Q].
        dropped: [Q], at least 2qv - |v|² of each row that was left out, as float32 has it; -inf where there is none.
    """
    own = np.einsum("qd,qd->q", queries, queries, dtype=np.float64)
    # A row that is nearer is no longer than this, and of the sum no more is lost than these shares.
    longest = (np.sqrt(own) + np.sqrt(-np.minimum(worst, 0.0))) ** 2
    doubtful: np.ndarray = worst <= dropped - own + _LOST * (own + longest)
    return doubtful & ~np.isneginf(dropped)


def _largest(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of each line's `count` largest values; of equal ones, those of the first rows."""
    columns = np.argpartition(-values, count - 1, axis=1)[:, :count]
    kept = np.take_along_axis(values, columns, 1)
    last = kept.min(axis=1, keepdims=True)
    cut_tie = np.count_nonzero(values == last, axis=1) > np.count_nonzero(kept == last, axis=1)
    for line in np.flatnonzero(cut_tie):
        columns[line] = np.lexsort((rows[line], -values[line]))[:count]
    return columns


def _room(array: np.ndarray, used: int, more: int) -> np.ndarray:
    """Return the array, or a larger copy of it, with space for `more` rows after `used`."""
    if used + more <= len(array):
        return array
    larger = np.empty((max(used + more, used + used // 2), *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger

"""A gallery in a folder: embeddings with labels, to search, to change and to save."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import GalleryError, MissingExtra
from . import storage
from .engine import AUTO_FLAT_LIMIT, GRAPH_LEAST, Engine, Settings, engine_kind, make_engine, read_engine
from .flat import FlatEngine
from .items import Duplicate, Matches, check_k, checked, checked_ids, checked_items, checked_labels, refuse_unknown

# Removed rows that a folder may have for each row in use, before a save writes it anew.
_DEAD_SHARE = 0.2
# Vectors that are handed to an engine at a time; it learns from the first ones what it must know of them.
_CHUNK = 1 << 17


class Gallery:
    """Embeddings with labels.

    Changes are made in memory and committed together by `save`. An id is never given twice. Several threads
    may search at once; `add`, `remove` and `save` need the gallery for themselves.

    Args:
        dim: length of an embedding; bits, a multiple of 8, for hamming.
        metric: `IP`, `L2` or `hamming`.
        index_type: `Flat` (exact), `HNSW32` (or another M; exact up to 2,000 items), `IVF`, or `auto`: exact up to
            20,000 items, HNSW above where faiss is installed.
        ef: HNSW: candidates looked at in a search; more is slower with better recall.
        ef_construction: HNSW: candidates looked at when a vector is added.
        nprobe: IVF: lists looked at in a search; None for a sixteenth of them, 8 at least.
        model: name of the model that makes the embeddings, to tell when another one is used.

    Raises:
        ConfigError: a value that cannot be.
    """

    def __init__(
        self,
        dim: int,
        *,
        metric: str = "IP",
        index_type: str = "auto",
        ef: int = 64,
        ef_construction: int = 100,
        nprobe: int | None = None,
        model: str | None = None,
    ) -> None:
        self._start(Settings(dim, metric, index_type, ef, ef_construction, nprobe, model))

    @classmethod
    def of(cls, settings: Settings) -> Gallery:
        """Return an empty gallery with these settings."""
        gallery = cls.__new__(cls)
        gallery._start(settings)
        return gallery

    def _start(self, settings: Settings) -> None:
        self._settings = settings
        self._table = FlatEngine(settings)
        self._labels: list[str] = []
        self._metadata: list[dict[str, Any] | None] = []
        self._next_id = 0
        self._engine: Engine | None = None
        self._engine_kind = "Flat"
        self._highest = -1  # id up to which the engine was given vectors
        self._stale = True
        self._sync_lock = threading.Lock()
        self._folder: Path | None = None
        self._manifest: storage.Manifest | None = None
        self._unsaved_removals: list[np.ndarray] = []
        self._graph_lag = 0  # changes since the search structure on disk
        self._release: Callable[[], None] | None = None

    # ------------------------------------------------------------ what it is

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._settings.dim

    @property
    def metric(self) -> str:
        """`IP`, `L2` or `hamming`."""
        return self._settings.metric

    @property
    def index_type(self) -> str:
        """The index type as asked for."""
        return self._settings.index_type

    @property
    def settings(self) -> Settings:
        """All settings of the index."""
        return self._settings

    @property
    def version(self) -> int:
        """Number of commits of the folder as opened or last saved; 0 for a gallery never saved."""
        return self._manifest.version if self._manifest else 0

    @property
    def next_id(self) -> int:
        """The id that the next item gets."""
        return self._next_id

    @property
    def ids(self) -> np.ndarray:
        """Ids of the items, [N] int64, ascending."""
        return self._table.ids

    @property
    def labels(self) -> list[str]:
        """Labels of the items, in the order of `ids`."""
        return [self._labels[row] for row in np.flatnonzero(self._table.alive)]

    @property
    def metadata(self) -> list[dict[str, Any] | None]:
        """Metadata of the items, in the order of `ids`; None where none was given."""
        return [self._metadata[row] for row in np.flatnonzero(self._table.alive)]

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"<Gallery of {len(self)} items, dim {self.dim}, {self.metric}, {self.index_type}>"

    def embeddings(self, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the embeddings of ids (all, if None), [N, D].

        Raises:
            GalleryError: an id that is not in the gallery.
        """
        wanted = self.ids if ids is None else self._known(ids)
        return self._table.take(self._table.rows_of(wanted))

    # ------------------------------------------------------------ changes

    def add(
        self,
        embeddings: np.ndarray,
        labels: Sequence[str],
        metadata: Sequence[dict[str, Any] | None] | None = None,
    ) -> np.ndarray:
        """Add items.

        Args:
            embeddings: [N, D] float; [N, D / 8] uint8 for hamming. They are taken as they are, not
                normalised.
            labels: N strings.
            metadata: N dicts that JSON can hold, or None.

        Returns:
            Ids of the items, [N] int64.

        Raises:
            GalleryError: embeddings of another length or type, or not finite; other numbers of labels.
        """
        vectors = checked(embeddings, self._settings)
        ids = np.arange(self._next_id, self._next_id + len(vectors), dtype=np.int64)
        self._add(ids, vectors, labels, metadata)
        return ids

    def _add(
        self,
        ids: np.ndarray,
        vectors: np.ndarray,
        labels: Sequence[str],
        metadata: Sequence[dict[str, Any] | None] | None,
    ) -> None:
        labels, entries = checked_items(len(vectors), labels, metadata)
        self._table.add(ids, vectors)
        self._labels += labels
        self._metadata += entries
        if len(ids):
            self._next_id = int(ids[-1]) + 1
        self._changed(len(ids))

    def remove(self, ids: Iterable[int] | np.ndarray) -> None:
        """Remove items; nothing is removed if one of the ids is not in the gallery.

        Raises:
            GalleryError: ids that are not in the gallery, naming them.
        """
        removed = np.unique(self._known(ids))
        self._table.remove(removed)
        self._unsaved_removals.append(removed)
        self._changed(len(removed))

    def _changed(self, count: int) -> None:
        self._stale = self._stale or count > 0
        self._graph_lag += count

    # ------------------------------------------------------------ search

    def search(
        self,
        embeddings: np.ndarray | Sequence[float],
        k: int = 5,
        *,
        labels: str | Iterable[str] | None = None,
    ) -> list[Matches]:
        """Find the items nearest to each query.

        Args:
            embeddings: [Q, D], or [D] for one query.
            k: how many, at most; a gallery of fewer items gives all of them, an empty one none.
            labels: look only at items of this label, or of these labels; this search is exact. None for all.

        Returns:
            Q matches.

        Raises:
            GalleryError: queries of another length or type than the gallery's, or not finite.
            ConfigError: k is not a whole number of at least 1.
        """
        check_k(k)
        queries = checked(embeddings, self._settings, one=True)
        k = min(int(k), len(self))
        if not k:
            return [Matches([], [], [], [], self.metric) for _ in queries]
        if labels is not None:
            wanted = checked_labels(labels)
            rows = [row for row in np.flatnonzero(self._table.alive) if self._labels[row] in wanted]
            scores, ids = self._table.search(queries, k, np.array(rows, np.int64))
        else:
            engine = self._searcher()
            # Asked for much of the gallery, an approximate engine is slower than looking at all of it.
            exact = engine is None or (k > 100 and 8 * k > len(self))
            if exact or engine is None:
                scores, ids = self._table.search(queries, k)
            else:
                scores, ids = self._table.best(queries, engine.candidates(queries, k), k)
                if len(ids) and ids[:, -1].min() < 0:  # there are k, and the engine did not reach them
                    short = np.flatnonzero(ids[:, -1] < 0)
                    scores[short], ids[short] = self._table.search(queries[short], k)
        return [self._matches(*pair) for pair in zip(scores, ids, strict=True)]

    def _matches(self, scores: np.ndarray, ids: np.ndarray) -> Matches:
        found = ids >= 0
        ids, scores = ids[found], scores[found]
        rows = self._table.rows_of(ids).tolist()
        return Matches(
            ids.tolist(),
            scores.tolist(),
            [self._labels[row] for row in rows],
            [self._metadata[row] for row in rows],
            self.metric,
        )

    def duplicates(self, threshold: float) -> list[Duplicate]:
        """Return the pairs of items that are as near as `threshold`, nearest first; every pair is compared.

        Args:
            threshold: similarity of at least this for IP; distance of at most this for L2 and hamming.
        """
        pairs = self._table.pairs(threshold)
        ids = self._table.row_ids
        return [
            Duplicate((int(ids[a]), int(ids[b])), (self._labels[a], self._labels[b]), score) for a, b, score in pairs
        ]

    def _searcher(self) -> Engine | None:
        """Return the engine, given all changes; None where the table itself is searched."""
        if not self._stale:
            return self._engine
        with self._sync_lock:
            if not self._stale:
                return self._engine
            kind = engine_kind(self._settings, len(self))
            # Half the size at which a graph is made: no back and forth at the limit.
            limit = AUTO_FLAT_LIMIT if self._settings.index_type == "auto" else GRAPH_LEAST
            if kind == "Flat" and self._engine is not None and len(self) <= limit // 2:
                self._engine, self._engine_kind = None, kind
            if kind != "Flat" and (self._engine is None or self._engine_kind != kind):
                self._new_engine(kind)
            if self._engine is not None:
                gone = self._engine.ids
                self._engine.remove(gone[~self._table.has(gone)])
                if self._engine.outgrown(len(self) - len(self._engine)):
                    self._new_engine(self._engine_kind)
                self._feed(self._engine)
            self._stale = False
            return self._engine

    def _new_engine(self, kind: str) -> Engine:
        self._engine, self._engine_kind, self._highest = make_engine(kind, self._settings), kind, -1
        return self._engine

    def _feed(self, engine: Engine) -> None:
        """Give the engine the vectors that came after those it was given."""
        ids = self._table.ids
        ids = ids[ids > self._highest]
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            engine.add(part, self._table.take(self._table.rows_of(part)))
            self._highest = int(part[-1])

    # ------------------------------------------------------------ the folder

    def save(self, folder: str | Path | None = None, *, timeout: float = 10) -> None:
        """Commit all changes to a folder: all of them are there afterwards, or, after any failure, none.

        In the folder that the gallery was opened from, or saved to before, what has changed is written.
        Another folder gets all of the gallery; a gallery that is there is replaced. Readers keep the version
        that they opened.

        Args:
            folder: None for the folder of the gallery.
            timeout: seconds to wait for another process that is writing.

        Raises:
            GalleryError: another process is writing, or has changed the folder since it was opened; or the
                folder is damaged.
            ConfigError: `folder` is not the path of a folder.
            SaveError: the folder cannot be written to.
        """
        if folder is None and self._folder is None:
            raise GalleryError("This gallery has no folder yet.", "Give save() a folder.")
        target = self._folder if folder is None else storage.on_disk(folder)
        assert target is not None
        ours = self._manifest is not None and self._folder is not None and _same(target, self._folder)
        if ours and self._release:
            self._commit(target, rewrite=False)
            return
        with storage.locked(target, timeout):
            if ours:
                self._commit(target, rewrite=False)
            else:
                self._write_all(target, storage.read_manifest(target) if storage.is_gallery(target) else None)

    def compact(self, *, timeout: float = 10) -> None:
        """Write the gallery's folder anew, without what was removed; changes are committed with it.

        Raises:
            GalleryError, SaveError: as `save` does.
        """
        if self._folder is None or self._manifest is None:
            raise GalleryError("This gallery has no folder yet.", "Save it first.")
        if self._release:
            self._commit(self._folder, rewrite=True)
            return
        with storage.locked(self._folder, timeout):
            self._commit(self._folder, rewrite=True)

    def _commit(self, folder: Path, *, rewrite: bool) -> None:
        manifest = self._manifest
        assert manifest is not None
        there = storage.read_manifest(folder)
        if (there.gallery, there.version) != (manifest.gallery, manifest.version):
            raise GalleryError(
                f"{folder} was changed by somebody else since it was opened (version {manifest.version}, now "
                f"{there.version}).",
                "Open it again and repeat the change; load_index(folder, write=True) keeps others out.",
            )
        added = self._table.rows - manifest.rows
        removed = _together(self._unsaved_removals)
        dead = self._table.rows - len(self)
        if rewrite or dead > _DEAD_SHARE * len(self) + 64:
            self._write_all(folder, there, gallery=manifest.gallery)
            return
        if not added and not len(removed) and self._settings == manifest.settings:
            return
        graph = self._graph_writer(always=False)
        self._manifest = storage.append(
            folder,
            replace(manifest, settings=self._settings),
            ids=self._table.row_ids[manifest.rows :],
            vectors=self._table.block(manifest.rows, self._table.rows),
            labels=self._labels[manifest.rows :],
            metadata=self._metadata[manifest.rows :],
            removed=removed,
            next_id=self._next_id,
            write_graph=graph,
        )
        self._table.rebase(storage.map_vectors(folder, self._manifest))
        self._saved(folder, wrote_graph=graph is not None)

    def _write_all(self, folder: Path, there: storage.Manifest | None, gallery: str | None = None) -> None:
        rows = np.flatnonzero(self._table.alive)
        graph = self._graph_writer(always=True)
        self._manifest = storage.write_generation(
            folder,
            there,
            self._settings,
            gallery=gallery,
            ids=self._table.ids,
            vectors=(self._table.take(rows[start : start + 1024]) for start in range(0, len(rows), 1024)),
            labels=[self._labels[row] for row in rows],
            metadata=[self._metadata[row] for row in rows],
            next_id=self._next_id,
            write_graph=graph,
        )
        self._labels = [self._labels[row] for row in rows]
        self._metadata = [self._metadata[row] for row in rows]
        vectors = storage.map_vectors(folder, self._manifest)
        self._table = FlatEngine(self._settings, self._table.ids, vectors)
        self._saved(folder, wrote_graph=graph is not None)

    def _saved(self, folder: Path, *, wrote_graph: bool) -> None:
        if self._release and not _same(folder, self._folder or folder):
            self.close()
        self._folder = folder
        self._unsaved_removals = []
        if wrote_graph:
            self._graph_lag = 0

    def _graph_writer(self, *, always: bool) -> tuple[str, storage.WriteGraph] | None:
        """Return what writes the search structure, where the one on disk is missing or far behind."""
        engine = self._searcher()
        if engine is None:
            return None
        on_disk = self._manifest.graph if self._manifest else None
        fresh = on_disk and (on_disk.kind, on_disk.index_type) == (self._engine_kind, self.index_type)
        if fresh and not always and self._graph_lag <= max(256, len(self) // 200):
            return None
        return self._engine_kind, engine.write

    def close(self) -> None:
        """Let others write the folder, where it was opened with write=True; changes not saved are dropped."""
        if self._release:
            self._release()
            self._release = None

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def _from_contents(cls, folder: Path, contents: storage.Contents, settings: Settings) -> Gallery:
        gallery = cls.of(settings)
        gallery._folder, gallery._manifest = folder, contents.manifest
        gallery._next_id = contents.manifest.next_id
        gallery._labels, gallery._metadata = contents.labels, contents.metadata
        gallery._table = FlatEngine(settings, contents.ids, contents.vectors)
        gallery._table.remove(contents.ids[contents.removed_at > 0])
        graph = contents.manifest.graph
        if graph and graph.index_type == settings.index_type:
            rows = slice(0, graph.rows)
            removed_at = contents.removed_at[rows]
            inside = contents.ids[rows][(removed_at == 0) | (removed_at > graph.version)]
            try:
                path = storage.graph_file(folder, graph)
                gallery._engine = read_engine(graph.kind, settings, path, inside)
            except (GalleryError, RuntimeError) as error:
                if storage.read_manifest(folder) == contents.manifest:
                    warnings.warn(f"{error} It is built again from the vectors.", stacklevel=3)
                return gallery
            except MissingExtra:
                if engine_kind(settings, len(gallery)) != "Flat":
                    raise
                return gallery  # `auto` is exact without faiss, and so is HNSW of few items
            gallery._engine_kind = graph.kind
            gallery._highest = int(contents.ids[graph.rows - 1]) if graph.rows else -1
            gallery._graph_lag = int((contents.removed_at > graph.version).sum()) + len(contents.ids) - graph.rows
        return gallery

    @classmethod
    def _from_items(
        cls,
        settings: Settings,
        ids: np.ndarray,
        vectors: np.ndarray,
        labels: Sequence[str],
        metadata: Sequence[dict[str, Any] | None] | None = None,
        next_id: int = 0,
    ) -> Gallery:
        """Return a gallery of items that have ids already, [N] int64, ascending."""
        gallery = cls.of(settings)
        gallery._add(ids, vectors, labels, metadata)
        gallery._next_id = max(gallery._next_id, next_id)
        return gallery

    # ------------------------------------------------------------ checks

    def _known(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        wanted = checked_ids(ids)
        refuse_unknown(wanted, wanted[~self._table.has(wanted)])
        return wanted


def load_folder(
    folder: str | Path,
    *,
    write: bool = False,
    verify: bool = False,
    index_type: str | None = None,
    ef: int | None = None,
    nprobe: int | None = None,
    timeout: float = 10,
) -> Gallery:
    """Open a gallery that was saved. Its vectors stay on disk and are mapped.

    Args:
        folder: as given to `Gallery.save`.
        write: keep other writers out until `close`, or the end of a `with` block. Without it, `save` fails if
            somebody else has saved since.
        verify: read all vectors and compare their checksums, too.
        index_type: another index type than the one saved, such as `Flat` where faiss is not installed; the
            next save keeps it.
        ef: another `ef` than the one saved.
        nprobe: another `nprobe` than the one saved.
        timeout: seconds to wait for another writer, with `write`.

    Raises:
        GalleryError: not a gallery, a damaged one (saying what can be saved), or one that is being written.
        ConfigError: `folder` is not the path of a folder.
        SaveError: `write`, and the folder cannot be written to.
        MissingExtra: the package of its index type is not installed.
    """
    path = storage.on_disk(folder)
    release = None
    if write:
        storage.read_manifest(path)  # make no lock in what is not a gallery
        release = storage.take_lock(path, timeout)
    try:
        contents = storage.read_folder(path, verify=verify)
        wishes: dict[str, Any] = {"index_type": index_type, "ef": ef, "nprobe": nprobe}
        settings = replace(contents.manifest.settings, **{k: v for k, v in wishes.items() if v is not None})
        gallery = Gallery._from_contents(path, contents, settings)
    except BaseException:
        if release:
            release()
        raise
    gallery._release = release
    return gallery


def salvage_index(folder: str | Path) -> tuple[Gallery, list[str]]:
    """Return what can be saved of a damaged gallery, as a gallery to save elsewhere, and what is wrong.

    Raises:
        GalleryError: nothing can be saved.
        ConfigError: `folder` is not the path of a folder.
    """
    path = storage.on_disk(folder)
    if not storage.is_folder(path):
        raise GalleryError(f"There is no folder {path}.", "Name the folder of a damaged gallery.")
    found = storage.salvage(path)
    gallery = Gallery._from_items(found.settings, found.ids, found.vectors, found.labels, found.metadata, found.next_id)
    return gallery, found.problems


def _together(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()

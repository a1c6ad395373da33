"""A gallery on disk: a folder that is changed whole or not at all.

    manifest.json     which files belong to the gallery, how much of them counts, and checksums
    vectors-G.bin     the vectors, one row after another; only ever appended to
    log-G.jsonl       what was added and removed, a checksum and a JSON record a line; only ever appended to
    graph-G-V.bin     the search structure as of version V, where building it takes long; can be built again
    lock              held by the one process that writes

A change appends to the vectors and the log and flushes both to the disk; it counts once a new manifest has
taken the place of the old one. What lies beyond the lengths in the manifest never counted and is cut off by
the next change. Compaction writes files of a new generation G. So a reader always sees the version of the
manifest that it read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConfigError, GalleryError, SaveError
from .engine import Settings

logger = logging.getLogger("ovseg")

FORMAT = 1
MANIFEST = "manifest.json"
LOCK = "lock"
# Files of a gallery's generations: only these are ever deleted.
_PARTS = re.compile(r"vectors-\d+\.bin|log-\d+\.jsonl|graph-\d+-\d+\.bin")
# Items of one record of the log: as much is lost where one record or its vectors are damaged.
_RECORD_ITEMS = 1024
# Times that a reader starts again because a compaction took away the files it was about to open.
_TRIES = 20


@dataclass(frozen=True)
class GraphFile:
    """The file of a search structure, and the state of the gallery that it holds."""

    name: str
    index_type: str
    kind: str
    version: int
    rows: int
    size: int
    crc: int


@dataclass(frozen=True)
class Manifest:
    """What a version of a gallery is made of."""

    gallery: str
    version: int
    generation: int
    settings: Settings
    next_id: int
    rows: int
    items: int
    log_size: int
    log_crc: int
    graph: GraphFile | None = None

    @property
    def vectors_name(self) -> str:
        """Name of the file of vectors."""
        return f"vectors-{self.generation}.bin"

    @property
    def log_name(self) -> str:
        """Name of the log."""
        return f"log-{self.generation}.jsonl"

    @property
    def vectors_size(self) -> int:
        """Bytes of the vectors that count."""
        return self.rows * self.settings.width * self.settings.dtype.itemsize


@dataclass
class Contents:
    """A gallery as read: one entry a row, removed ones too."""

    manifest: Manifest
    ids: np.ndarray
    vectors: np.ndarray
    labels: list[str]
    metadata: list[dict[str, Any] | None]
    removed_at: np.ndarray  # version of the removal; 0 for what is in the gallery


@dataclass
class Salvage:
    """What could be read of a damaged gallery.

    Attributes:
        settings: of the gallery.
        ids: [N] int64; labels, metadata and vectors [N, D] go with them.
        problems: one sentence each.
        lost: items known to be lost, those in damaged records apart.
        next_id: above every id that was seen.
    """

    settings: Settings
    ids: np.ndarray
    vectors: np.ndarray
    labels: list[str]
    metadata: list[dict[str, Any] | None]
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    next_id: int = 0


WriteGraph = Callable[[Path], None]


# ---------------------------------------------------------------- reading


def is_gallery(folder: Path) -> bool:
    """Whether a folder has what every gallery has: a manifest.

    Raises:
        GalleryError: the folder cannot be looked into.
    """
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise _unreadable(folder, error) from error


def on_disk(folder: str | os.PathLike[str]) -> Path:
    """Return the path of what is to be a folder.

    Raises:
        ConfigError: it is an address of Milvus, or can be no path.
    """
    name = os.fsdecode(folder) if isinstance(folder, str | os.PathLike) else folder
    if not isinstance(name, str) or "\0" in name:
        raise ConfigError(f"{name!r} is not the path of a folder.", "Give a path.")
    path = Path(name)
    if path.parts[:1] in (("milvus:",), ("milvuss:",)):
        raise ConfigError("This is for folders, and a gallery in Milvus is named.", "Name a folder.")
    return path


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        GalleryError: it cannot be looked at.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise _unreadable(path, error) from error


def is_free(folder: Path) -> bool:
    """Whether a folder is not there, or holds no more than an interrupted first save leaves."""
    if not folder.exists():
        return True
    ours = (LOCK, f"{MANIFEST}.part")
    return folder.is_dir() and all(p.name in ours or _PARTS.fullmatch(p.name) for p in folder.iterdir())


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a gallery.

    Raises:
        GalleryError: there is none, it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _not_a_gallery(folder) from None
    except OSError as error:
        raise _unreadable(folder, error) from error
    try:
        data = json.loads(raw)
        checksum = data.pop("checksum")
        version = data.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(folder, f"{MANIFEST} is not a manifest") from None
    _check_format(folder, version)
    if checksum != _crc_of(data):
        raise damaged(folder, f"the checksum of {MANIFEST} does not match")
    graph = data.pop("graph")
    settings = Settings.from_dict(data.pop("settings"))
    return Manifest(**data, settings=settings, graph=GraphFile(**graph) if graph else None)


def _check_format(folder: Path, version: object) -> None:
    if version != FORMAT:
        raise GalleryError(
            f"{folder} is a gallery of format {version!r}; this version of ovseg reads format {FORMAT}.",
            "Open it with the version of ovseg that wrote it.",
        )


def read_folder(folder: Path, *, verify: bool = False) -> Contents:
    """Read a gallery; its vectors are mapped, not read.

    Args:
        folder: of the gallery.
        verify: read all vectors and compare their checksums.

    Raises:
        GalleryError: not a gallery, damaged, of another format, or not to be read by this user.
    """
    manifest = read_manifest(folder)
    for _ in range(_TRIES):
        try:
            return _read_version(folder, manifest, verify)
        except FileNotFoundError as error:
            latest = read_manifest(folder)
            if latest == manifest:
                raise damaged(folder, f"{Path(error.filename).name} is missing") from None
            manifest = latest
        except OSError as error:
            raise _unreadable(folder, error) from error
    raise GalleryError(f"{folder} is compacted again and again.", "Try again when its writer has finished.")


def _read_version(folder: Path, manifest: Manifest, verify: bool) -> Contents:
    with (folder / manifest.log_name).open("rb") as file:
        log = file.read(manifest.log_size)
    if len(log) < manifest.log_size:
        raise damaged(folder, f"{manifest.log_name} is cut short")
    if zlib.crc32(log) != manifest.log_crc:
        raise damaged(folder, f"the checksum of {manifest.log_name} does not match")
    vectors_path = folder / manifest.vectors_name
    if vectors_path.stat().st_size < manifest.vectors_size:
        raise damaged(folder, f"{manifest.vectors_name} is cut short")
    vectors = map_vectors(folder, manifest)
    ids: list[int] = []
    labels: list[str] = []
    metadata: list[dict[str, Any] | None] = []
    removals: list[tuple[int, list[int]]] = []
    for line in log.splitlines()[1:]:
        record = json.loads(line[9:])
        if "removed" in record:
            removals.append((record["version"], record["removed"]))
            continue
        start = len(ids)
        ids += record["ids"]
        labels += record["labels"]
        metadata += record.get("metadata") or [None] * len(record["ids"])
        if verify and zlib.crc32(vectors[start : len(ids)].data) != record["crc"]:
            raise damaged(folder, f"the checksum of rows {start} to {len(ids) - 1} does not match")
    id_array = np.array(ids, np.int64)
    removed_at = np.zeros(len(ids), np.int64)
    for version, removed in removals:
        removed_at[np.searchsorted(id_array, removed)] = version
    return Contents(manifest, id_array, vectors, labels, metadata, removed_at)


def map_vectors(folder: Path, manifest: Manifest) -> np.ndarray:
    """Map the vectors of a version, [rows, D]."""
    settings = manifest.settings
    shape = (manifest.rows, settings.width)
    if not manifest.rows:
        return np.empty(shape, settings.dtype)
    return np.memmap(folder / manifest.vectors_name, settings.dtype, mode="r", shape=shape)


def graph_file(folder: Path, graph: GraphFile) -> Path:
    """Return the path of a search structure whose checksum matches.

    Raises:
        GalleryError: it is missing or damaged; it can be built again.
    """
    path = folder / graph.name
    try:
        whole = path.stat().st_size == graph.size and _crc_of_file(path) == graph.crc
    except OSError:  # a compaction may have taken it away meanwhile
        whole = False
    if not whole:
        raise GalleryError(f"{path} is missing or damaged.")
    return path


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def locked(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of a gallery: no other process, nor other gallery object, can write meanwhile.

    Raises:
        GalleryError: somebody else held it for `timeout` seconds.
        SaveError: the folder cannot be written to.
    """
    release = take_lock(folder, timeout)
    try:
        yield
    finally:
        release()


def take_lock(folder: Path, timeout: float) -> Callable[[], None]:
    """Take the lock of a gallery, as `locked` does, and return the function that gives it back."""
    import filelock

    lock = filelock.FileLock(folder / LOCK, timeout=timeout)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise GalleryError(
            f"{folder} is being written by another process.", "Try again when it has finished."
        ) from None
    except OSError as error:
        raise _not_written(folder, error) from error
    return lock.release


def append(
    folder: Path,
    manifest: Manifest,
    *,
    ids: np.ndarray,
    vectors: np.ndarray,
    labels: Sequence[str],
    metadata: Sequence[dict[str, Any] | None],
    removed: np.ndarray,
    next_id: int,
    write_graph: tuple[str, WriteGraph] | None,
) -> Manifest:
    """Commit a change to a locked gallery; return its new manifest.

    Args:
        folder: of the gallery.
        manifest: the version that is changed.
        ids: of the new rows, [N] int64, ascending; vectors [N, D], labels and metadata go with them.
        vectors: of the new rows.
        labels: of the new rows.
        metadata: of the new rows.
        removed: ids to remove, [M] int64, each once; they may be among the new ones.
        next_id: the id after all that were given.
        write_graph: kind of search structure, and what writes it; None keeps the file there is.

    Raises:
        GalleryError: the folder is damaged.
        SaveError: it cannot be written to.
    """
    version = manifest.version + 1
    lines = [*_add_lines(version, ids, [vectors], labels, metadata), *_remove_lines(version, removed)]
    try:
        with (folder / manifest.vectors_name).open("r+b") as file:
            _cut(folder, file, manifest.vectors_size)
            file.write(np.ascontiguousarray(vectors, manifest.settings.dtype).data)
            _flush(file)
        with (folder / manifest.log_name).open("r+b") as file:
            _cut(folder, file, manifest.log_size)
            log_crc = _write_lines(file, lines, manifest.log_crc)
            _flush(file)
            log_size = file.tell()
        changed = replace(
            manifest,
            version=version,
            next_id=next_id,
            rows=manifest.rows + len(ids),
            items=manifest.items + len(ids) - len(removed),
            log_size=log_size,
            log_crc=log_crc,
        )
        return _commit(folder, changed, write_graph)
    except OSError as error:
        raise _not_written(folder, error) from error


def write_generation(
    folder: Path,
    previous: Manifest | None,
    settings: Settings,
    *,
    gallery: str | None,
    ids: np.ndarray,
    vectors: Iterable[np.ndarray],
    labels: Sequence[str],
    metadata: Sequence[dict[str, Any] | None],
    next_id: int,
    write_graph: tuple[str, WriteGraph] | None,
) -> Manifest:
    """Write all of a gallery in files of their own, and commit it in place of what the folder holds.

    Args:
        folder: locked.
        previous: the manifest that the folder has.
        settings: of the gallery.
        gallery: its name among galleries, or None for a new one.
        ids: [N] int64, ascending; vectors (blocks of 1024 rows, the last of fewer), labels and metadata go
            with them.
        vectors: blocks of [at most 1024, D].
        labels: N.
        metadata: N.
        next_id: the id after all that were ever given.
        write_graph: kind of search structure, and what writes it.

    Raises:
        SaveError: the folder cannot be written to.
    """
    version = previous.version + 1 if previous else 1
    manifest = Manifest(
        gallery=gallery or uuid.uuid4().hex,
        version=version,
        generation=previous.generation + 1 if previous else 1,
        settings=settings,
        next_id=next_id,
        rows=len(ids),
        items=len(ids),
        log_size=0,
        log_crc=0,
    )
    try:
        with (folder / manifest.vectors_name).open("wb") as file:

            def written() -> Iterator[np.ndarray]:
                for block in vectors:
                    block = np.ascontiguousarray(block, settings.dtype)
                    file.write(block.data)
                    yield block

            lines = list(_add_lines(version, ids, written(), labels, metadata))
            _flush(file)
        with (folder / manifest.log_name).open("wb") as file:
            header = {"format": FORMAT, "settings": settings.as_dict(), "next_id": next_id}
            log_crc = _write_lines(file, [_line(header), *lines], 0)
            _flush(file)
            manifest = replace(manifest, log_size=file.tell(), log_crc=log_crc)
        return _commit(folder, manifest, write_graph)
    except OSError as error:
        raise _not_written(folder, error) from error


def _commit(folder: Path, manifest: Manifest, write_graph: tuple[str, WriteGraph] | None) -> Manifest:
    if write_graph:
        kind, write = write_graph
        path = folder / f"graph-{manifest.generation}-{manifest.version}.bin"
        try:
            write(path)
        except RuntimeError as error:  # how faiss says that a file cannot be written
            raise OSError(0, str(error)) from error
        with path.open("r+b") as file:
            _flush(file)
        graph = GraphFile(
            name=path.name,
            index_type=manifest.settings.index_type,
            kind=kind,
            version=manifest.version,
            rows=manifest.rows,
            size=path.stat().st_size,
            crc=_crc_of_file(path),
        )
        manifest = replace(manifest, graph=graph)
    data = asdict(manifest)
    data["checksum"] = _crc_of(data)
    data["format"] = FORMAT
    beside = folder / f"{MANIFEST}.part"
    with beside.open("wb") as file:
        file.write(json.dumps(data, indent=1).encode())
        _flush(file)
    # The names of the other files must be on the disk before the manifest that tells of them.
    _flush_folder(folder)
    beside.replace(folder / MANIFEST)
    try:
        _flush_folder(folder)
    except OSError as error:  # the change counts by now
        logger.warning("%s is saved, and a power cut might undo that: %s.", folder, error.strerror or error)
    with contextlib.suppress(OSError):  # what is left, a later change takes away
        _sweep(folder, manifest)
    return manifest


def _sweep(folder: Path, manifest: Manifest) -> None:
    """Remove the files of earlier generations, and those that an interrupted change left."""
    keep = {manifest.vectors_name, manifest.log_name, manifest.graph.name if manifest.graph else ""}
    for path in folder.iterdir():
        if _PARTS.fullmatch(path.name) and path.name not in keep:
            # Windows keeps a file that a reader has open.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                path.unlink()


def _add_lines(
    version: int,
    ids: np.ndarray,
    blocks: Iterable[np.ndarray],
    labels: Sequence[str],
    metadata: Sequence[dict[str, Any] | None],
) -> Iterator[bytes]:
    start = 0
    for block in blocks:
        for first in range(0, len(block), _RECORD_ITEMS):
            part = block[first : first + _RECORD_ITEMS]
            stop = start + len(part)
            record: dict[str, Any] = {
                "version": version,
                "ids": ids[start:stop].tolist(),
                "labels": list(labels[start:stop]),
                "crc": zlib.crc32(np.ascontiguousarray(part).data),
            }
            if any(entry is not None for entry in metadata[start:stop]):
                record["metadata"] = list(metadata[start:stop])
            yield _line(record)
            start = stop


def _remove_lines(version: int, removed: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(removed), _RECORD_ITEMS):
        yield _line({"version": version, "removed": removed[start : start + _RECORD_ITEMS].tolist()})


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _write_lines(file: BinaryIO, lines: Iterable[bytes], crc: int) -> int:
    for line in lines:
        file.write(line)
        crc = zlib.crc32(line, crc)
    return crc


def _cut(folder: Path, file: BinaryIO, size: int) -> None:
    """Cut off what an interrupted change left, and stand at the end."""
    if os.fstat(file.fileno()).st_size < size:
        raise damaged(folder, f"{Path(file.name).name} is cut short")
    file.truncate(size)
    file.seek(size)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _crc_of(data: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def _crc_of_file(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


# ---------------------------------------------------------------- damage


def salvage(folder: Path) -> Salvage:
    """Read all of a damaged gallery that its checksums prove right.

    Without a manifest, a change that was never committed may be among it.

    Raises:
        GalleryError: nothing can be read: no log whose first line is whole, or one of another format.
    """
    logs = sorted(folder.glob("log-*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    limit: int | None = None
    problems = []
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        checksum, version = manifest.pop("checksum"), manifest.pop("format")
        if checksum != _crc_of(manifest):
            raise ValueError
        _check_format(folder, version)
        logs = [folder / f"log-{manifest['generation']}.jsonl"]
        limit = manifest["log_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problems.append(f"{MANIFEST} is missing or damaged")
    for log in logs:
        found = _salvage_log(folder, log, limit, problems)
        if found:
            return found
    raise GalleryError(f"Nothing can be saved of {folder}: it has no readable log.", "Build the gallery again.")


def _salvage_log(folder: Path, log: Path, limit: int | None, problems: list[str]) -> Salvage | None:
    try:
        data = log.read_bytes()
    except OSError:
        return None
    if limit is not None and len(data) < limit:
        problems.append(f"{log.name} is cut short: what was last added or removed is forgotten")
    lines = data[:limit].splitlines()
    records = [_parse(line) for line in lines]
    if not records or not records[0] or "settings" not in records[0]:
        return None
    _check_format(folder, records[0].get("format"))
    try:
        settings = Settings.from_dict(records[0]["settings"])
    except (ConfigError, TypeError):
        return None
    next_id = records[0].get("next_id", 0)
    vectors_path = folder / log.name.replace("log-", "vectors-").replace(".jsonl", ".bin")
    row_bytes = settings.width * settings.dtype.itemsize
    try:
        raw = np.memmap(vectors_path, np.uint8, mode="r") if _has_bytes(vectors_path) else np.empty(0, np.uint8)
    except OSError as error:
        raise _unreadable(folder, error) from error
    kept: list[tuple[dict[str, Any], np.ndarray]] = []
    removed: set[int] = set()
    bad_records = lost = start = 0
    for record in records[1:]:
        if record is None:
            bad_records += 1
            continue
        if "removed" in record:
            removed.update(record["removed"])
            continue
        next_id = max(next_id, record["ids"][-1] + 1)
        size = len(record["ids"]) * row_bytes
        start = _row_of(raw, record["crc"], start, size, row_bytes, bad_records)
        if start + size > len(raw) or zlib.crc32(raw[start : start + size].data) != record["crc"]:
            lost += len(record["ids"])
        else:
            block = raw[start : start + size].view(settings.dtype).reshape(-1, settings.width)
            kept.append((record, block))
        start += size
    if bad_records:
        problems.append(f"{bad_records} records of {log.name} are damaged: removals among them are forgotten")
    if lost:
        problems.append(f"the vectors of {lost} items in {vectors_path.name} are damaged or missing")
    triples = [
        (i, label, entry, vector)
        for record, block in kept
        for i, label, entry, vector in zip(
            record["ids"],
            record["labels"],
            record.get("metadata") or [None] * len(record["ids"]),
            block,
            strict=True,
        )
        if i not in removed
    ]
    return Salvage(
        settings,
        ids=np.array([t[0] for t in triples], np.int64),
        vectors=np.array([t[3] for t in triples], settings.dtype).reshape(-1, settings.width),
        labels=[t[1] for t in triples],
        metadata=[t[2] for t in triples],
        problems=problems,
        lost=lost,
        next_id=next_id,
    )


def _row_of(raw: np.ndarray, crc: int, start: int, size: int, row_bytes: int, bad: int) -> int:
    """Return where a record's vectors begin: at `start`, or later where damaged records came before."""
    if not bad or zlib.crc32(raw[start : start + size].data) == crc:
        return start
    last = min(start + bad * _RECORD_ITEMS * row_bytes, len(raw) - size)
    for place in range(start + row_bytes, last + 1, row_bytes):
        if zlib.crc32(raw[place : place + size].data) == crc:
            return place
    return start


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def damaged(folder: Path, what: str) -> GalleryError:
    """Return the error that says what is wrong with a gallery and what can be saved of it."""
    try:
        found = salvage(folder)
    except GalleryError as error:
        return GalleryError(f"The gallery {folder} is damaged: {what}.", str(error))
    lost = f" ({found.lost} items are lost)" if found.lost else ""
    return GalleryError(
        f"The gallery {folder} is damaged: {what}.",
        f"{len(found.ids)} items can be saved{lost}: ovs index salvage {folder} NEW_FOLDER",
    )


def _not_a_gallery(folder: Path) -> GalleryError:
    if not folder.exists():
        return GalleryError(f"There is no folder {folder}.", "Build a gallery and save it there.")
    if (folder / "vector.index").is_file():
        return GalleryError(f"{folder} is an index of PaddleX.", f"Import it: ovs index import {folder} NEW_FOLDER")
    if any(folder.glob("log-*.jsonl")):
        return damaged(folder, f"{MANIFEST} is missing")
    return GalleryError(f"{folder} is not a gallery: it has no {MANIFEST}.", "Name a folder that was saved by ovseg.")


def _unreadable(folder: Path, error: OSError) -> GalleryError:
    return GalleryError(
        f"{error.filename or folder} cannot be read: {error.strerror or error}.", "Check the rights of the folder."
    )


def _not_written(folder: Path, error: OSError) -> SaveError:
    return SaveError(
        f"{folder} cannot be written: {error.strerror or error}.",
        "Check that the folder can be written to and that the disk has room; nothing has changed.",
    )

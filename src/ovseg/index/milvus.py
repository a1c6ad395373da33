"""A gallery in Milvus: on a server or a cluster, or in a file of one machine by Milvus Lite."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from ..errors import ConfigError, GalleryError, MissingExtra
from .engine import Settings
from .gallery import Gallery
from .items import Duplicate, Matches, check_k, checked, checked_ids, checked_items, checked_labels, refuse_unknown

DEFAULT_PORT = 19530
DEFAULT_COLLECTION = "gallery"
_FORM = "Write milvus://gallery.db for a file, or milvus://[user:password@]host[:port]/collection for a server."
# Items and queries of one call; the server refuses messages of more than 64 MB.
_ITEMS = 1000
# Bytes of a label that Milvus takes.
_LABEL_BYTES = 65_535
_LISTS = 1024
# The property of a collection that keeps the settings which Milvus has no word for.
_PROPERTY = "ovseg.settings"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Address:
    """Where a gallery is in Milvus.

    Attributes:
        uri: what `MilvusClient` takes: a path, or http(s)://host:port.
        token: `user:password`, or "".
        collection: name of the collection.
    """

    uri: str
    token: str
    collection: str

    @property
    def file(self) -> Path | None:
        """The file, or None for a server."""
        return None if "://" in self.uri else Path(self.uri)


def parse_address(address: str) -> Address:
    """Read `milvus://...` (`milvuss://` for TLS).

    >>> parse_address("milvus://shop/drinks.db")
    Address(uri='shop/drinks.db', token='', collection='gallery')
    >>> parse_address("milvus://root:secret@example.org/drinks")
    Address(uri='http://example.org:19530', token='root:secret', collection='drinks')

    Raises:
        ConfigError: it has no meaning.
    """
    scheme, _, rest = address.partition("://")
    path, file, collection = rest.partition(".db")
    if scheme == "milvus" and file and (not collection or collection.startswith("/")):
        return Address(path + file, "", collection.strip("/") or DEFAULT_COLLECTION)
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"{address} is not an address of Milvus: {error}.", _FORM) from error
    collection = parts.path.strip("/") or DEFAULT_COLLECTION
    if scheme not in ("milvus", "milvuss") or not parts.hostname or "/" in collection:
        raise ConfigError(f"{address} is not an address of Milvus.", _FORM)
    token = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(f"{'https' if scheme == 'milvuss' else 'http'}://{host}:{port}", token, collection)


class MilvusGallery:
    """Embeddings with labels in a collection of Milvus: what `Gallery` does, where others may write as well.

    Each change is Milvus's own and counts at once. Ids are given by Milvus, and never twice.
    """

    def __init__(self, client: Any, address: Address, settings: Settings) -> None:
        self._client = client
        self._address = address
        self._settings = settings

    @classmethod
    def open(cls, address: str) -> MilvusGallery:
        """Open a gallery.

        Raises:
            GalleryError: there is none, or Milvus cannot be reached.
            ConfigError: the address has no meaning.
            MissingExtra: pymilvus is not installed.
        """
        where = parse_address(address)
        if where.file and not where.file.exists():
            raise GalleryError(f"There is no file {where.file}.", "Build an index there: ovs index build.")
        client = _connect(where)
        try:
            if not _said(where, lambda: client.has_collection(where.collection)):
                raise GalleryError(
                    f"{address} has no collection {where.collection}.", "Build an index there: ovs index build."
                )
            facts = _said(where, lambda: client.describe_collection(where.collection))
            try:
                settings = Settings.from_dict(json.loads(facts["properties"][_PROPERTY]))
            except (ValueError, KeyError, TypeError):
                raise GalleryError(
                    f"The collection {where.collection} of {where.uri} was not made by ovseg.",
                    "Name another collection.",
                ) from None
            # Milvus Lite loads nothing by itself when a process opens the file, a server nothing that was released.
            _said(where, lambda: client.load_collection(where.collection))
        except BaseException:
            client.close()
            raise
        return cls(client, where, settings)

    @classmethod
    def create(cls, address: str, settings: Settings) -> MilvusGallery:
        """Make an empty gallery.

        Raises:
            GalleryError: there is a collection of this name, or Milvus cannot be reached or refuses.
            ConfigError: the address has no meaning.
            MissingExtra: pymilvus is not installed.
        """
        where = parse_address(address)
        if where.file:
            where.file.parent.mkdir(parents=True, exist_ok=True)
        client = _connect(where)
        try:
            if _said(where, lambda: client.has_collection(where.collection)):
                raise GalleryError(
                    f"{address} has a collection {where.collection} already.", "Append to it, or name another one."
                )
            _said(where, lambda: _make_collection(client, where.collection, settings))
        except BaseException:
            client.close()
            raise
        return cls(client, where, settings)

    # ------------------------------------------------------------ what it is

    @property
    def settings(self) -> Settings:
        """All settings of the index."""
        return self._settings

    @property
    def dim(self) -> int:
        """Length of an embedding; bits for hamming."""
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
    def ids(self) -> np.ndarray:
        """Ids of the items, [N] int64, ascending."""
        return np.array([row["id"] for row in self._rows("id")], np.int64)

    @property
    def labels(self) -> list[str]:
        """Labels of the items, in the order of `ids`."""
        return [row["label"] for row in self._rows("label")]

    @property
    def metadata(self) -> list[dict[str, Any] | None]:
        """Metadata of the items, in the order of `ids`; None where none was given."""
        return [row["metadata"] for row in self._rows("metadata")]

    def __len__(self) -> int:
        found = self._ask(self._client.query, filter="", output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def __repr__(self) -> str:
        return f"<MilvusGallery {self._address.collection} in {self._address.uri}>"

    def embeddings(self, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the embeddings of ids (all, if None), [N, D].

        Raises:
            GalleryError: an id that is not in the gallery.
        """
        if ids is None:
            return self._array([row["vector"] for row in self._rows("vector")])
        wanted = checked_ids(ids)
        found = {row["id"]: row["vector"] for row in self._get(wanted, "vector")}
        refuse_unknown(wanted, np.array([i for i in wanted.tolist() if i not in found], np.int64))
        return self._array([found[i] for i in wanted.tolist()])

    # ------------------------------------------------------------ changes

    def add(
        self,
        embeddings: np.ndarray,
        labels: Sequence[str],
        metadata: Sequence[dict[str, Any] | None] | None = None,
    ) -> np.ndarray:
        """Add items, as `Gallery.add` does; they are there at once.

        Returns:
            Ids of the items, [N] int64.

        Raises:
            GalleryError: embeddings, labels or metadata that do not fit, a label of more than 65,535 bytes; or Milvus
                refuses.
        """
        vectors = checked(embeddings, self._settings)
        names, entries = checked_items(len(vectors), labels, metadata)
        for label in names:
            if len(label.encode("utf-8", "surrogatepass")) > _LABEL_BYTES:
                raise GalleryError(f"The label {label[:40]!r}... is too long for Milvus.", "Give shorter labels.")
        ids: list[int] = []
        for start in range(0, len(vectors), _ITEMS):
            rows = [
                {"vector": self._vector(vector), "label": label, "metadata": entry}
                for vector, label, entry in zip(
                    *(part[start : start + _ITEMS] for part in (vectors, names, entries)), strict=True
                )
            ]
            ids += self._ask(self._client.insert, rows)["ids"]
        return np.array(ids, np.int64)

    def remove(self, ids: Iterable[int] | np.ndarray) -> None:
        """Remove items; nothing is removed if one of the ids is not there.

        Raises:
            GalleryError: ids that are not in the gallery, naming them; or Milvus refuses.
        """
        wanted = checked_ids(ids)
        known = {row["id"] for row in self._get(wanted, "id")}
        refuse_unknown(wanted, np.array([i for i in wanted.tolist() if i not in known], np.int64))
        removed = np.unique(wanted).tolist()
        for start in range(0, len(removed), _ITEMS):
            self._ask(self._client.delete, ids=removed[start : start + _ITEMS])

    # ------------------------------------------------------------ search

    def search(
        self,
        embeddings: np.ndarray | Sequence[float],
        k: int = 5,
        *,
        labels: str | Iterable[str] | None = None,
    ) -> list[Matches]:
        """Find the items nearest to each query, as `Gallery.search` does.

        Raises:
            GalleryError: queries that do not fit; or Milvus refuses, such as for k above 16,384.
            ConfigError: k is not a whole number of at least 1, or labels that are no strings.
        """
        check_k(k)
        queries = checked(embeddings, self._settings, one=True)
        options: dict[str, Any] = {"limit": int(k), "output_fields": ["label", "metadata"]}
        options["search_params"] = {"metric_type": _metric(self._settings), "params": self._search_params(int(k))}
        if labels is not None:
            wanted = sorted(checked_labels(labels))
            options["filter"] = f"label in {json.dumps(wanted, ensure_ascii=False)}"
        found: list[Matches] = []
        for start in range(0, len(queries), _ITEMS):
            data = [self._vector(query) for query in queries[start : start + _ITEMS]]
            for hits in self._ask(self._client.search, data, **options):
                found.append(
                    Matches(
                        [hit["id"] for hit in hits],
                        [float(hit["distance"]) for hit in hits],
                        [hit["entity"]["label"] for hit in hits],
                        [hit["entity"].get("metadata") for hit in hits],
                        self.metric,
                    )
                )
        return found

    def duplicates(self, threshold: float) -> list[Duplicate]:
        """Return the pairs of items that are as near as `threshold`, nearest first; all vectors are fetched for it."""
        return self._copy().duplicates(threshold)

    def _copy(self) -> Gallery:
        rows = list(self._rows("vector", "label", "metadata"))
        return Gallery._from_items(
            replace(self._settings, index_type="Flat"),
            np.array([row["id"] for row in rows], np.int64),
            self._array([row["vector"] for row in rows]),
            [row["label"] for row in rows],
            [row["metadata"] for row in rows],
        )

    # ------------------------------------------------------------ keeping

    def save(self, folder: str | Path | None = None) -> None:
        """Have Milvus write what it holds in memory; or, with a folder, copy the gallery there, ids included.

        Raises:
            GalleryError, SaveError: as `Gallery.save` does; or Milvus refuses.
        """
        if folder is None:
            self._ask(self._client.flush)
        else:
            copy = self._copy()
            copy._settings = self._settings
            copy.save(folder)

    def compact(self) -> None:
        """Have Milvus give back the space of removed items."""
        self._ask(self._client.compact)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> MilvusGallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ Milvus

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of the client on the collection."""
        return _said(self._address, lambda: method(self._address.collection, *args, **options))

    def _rows(self, *fields: str) -> Iterator[dict[str, Any]]:
        """Return all rows, by ascending id."""
        rows: list[dict[str, Any]] = []
        iterator = self._ask(self._client.query_iterator, batch_size=_ITEMS, output_fields=["id", *fields])
        try:
            while batch := _said(self._address, iterator.next):
                rows += batch
        finally:
            iterator.close()
        return iter(sorted(rows, key=lambda row: int(row["id"])))

    def _get(self, ids: np.ndarray, *fields: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in range(0, len(ids), _ITEMS):
            part = ids[start : start + _ITEMS].tolist()
            rows += self._ask(self._client.get, ids=part, output_fields=["id", *fields])
        return rows

    def _vector(self, vector: np.ndarray) -> Any:
        return vector.tobytes() if self.metric == "hamming" else vector.tolist()

    def _array(self, vectors: Sequence[Any]) -> np.ndarray:
        if self.metric == "hamming":  # bytes, or a list of them
            vectors = [np.frombuffer(v[0] if isinstance(v, list) else v, np.uint8) for v in vectors]
        return np.array(vectors, self._settings.dtype).reshape(-1, self._settings.width)

    def _search_params(self, k: int) -> dict[str, Any]:
        settings = self._settings
        if settings.links is not None:
            return {"ef": max(settings.ef, k)}
        return {"nprobe": settings.nprobe or _LISTS // 16} if settings.index_type == "IVF" else {}


def _connect(where: Address) -> Any:
    # gRPC writes of each lost connection to standard error, though it makes a new one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from pymilvus import MilvusClient

        if where.file:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"milvus:// needs {error.name or 'pymilvus'}, which is not installed.",
            'Install it with pip install "ovseg[milvus]".',
        ) from error
    # Each failure is raised with its text: there is no need to log it too.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return _said(where, lambda: MilvusClient(where.uri, token=where.token))


def _said(where: Address, call: Callable[[], _T]) -> _T:
    """Call Milvus; say its errors as ours."""
    from pymilvus.exceptions import MilvusException

    try:
        return call()
    except (MilvusException, OSError) as error:
        reason = " ".join(str(getattr(error, "message", "") or error).split()).rstrip(".")
        raise GalleryError(
            f"Milvus at {where.uri} says: {reason}.",
            "Check the address and the settings; one process may have a file open.",
        ) from error


def _make_collection(client: Any, name: str, settings: Settings) -> None:
    from pymilvus import DataType

    binary = settings.metric == "hamming"
    schema = client.create_schema(auto_id=True, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.BINARY_VECTOR if binary else DataType.FLOAT_VECTOR, dim=settings.dim)
    schema.add_field("label", DataType.VARCHAR, max_length=_LABEL_BYTES)
    schema.add_field("metadata", DataType.JSON, nullable=True)
    kind, params = "AUTOINDEX", {}
    if settings.links is not None:
        kind, params = "HNSW", {"M": settings.links, "efConstruction": settings.ef_construction}
    elif settings.index_type == "IVF":
        kind, params = "BIN_IVF_FLAT" if binary else "IVF_FLAT", {"nlist": _LISTS}
    elif settings.index_type == "Flat" or binary:
        kind = "BIN_FLAT" if binary else "FLAT"
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type=kind, metric_type=_metric(settings), params=params)
    client.create_collection(
        name,
        schema=schema,
        index_params=indexes,
        consistency_level="Strong",
        properties={_PROPERTY: json.dumps(settings.as_dict())},
    )


def _metric(settings: Settings) -> str:
    return settings.metric.upper()

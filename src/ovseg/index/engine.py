"""What every search engine of a gallery can do, and the choice of one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError

# Higher is nearer for IP; lower is nearer for L2 (squared, as faiss gives it) and hamming (bits).
METRICS = ("IP", "L2", "hamming")
INDEX_TYPES = ("auto", "Flat", "HNSW32", "IVF")
# One query over n vectors of 512 dimensions on one core: exact search takes less than 5 ms up to here; above, HNSW
# is worth its memory and its build.
AUTO_FLAT_LIMIT = 20_000
# Up to here, exact search is as fast as a graph, whatever the index type.
GRAPH_LEAST = 2_000


class Engine(Protocol):
    """An approximate index over vectors with stable ids.

    Vectors are [N, D] float32, or [N, D / 8] uint8 for the hamming metric (D counts bits). An engine finds
    candidates; the table of vectors gives them their scores. Its structure is worth keeping on disk, as
    building it takes long.
    """

    dim: int
    metric: str

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors under ids ([N] int64, ascending, above every id that was ever added)."""
        ...

    def remove(self, ids: np.ndarray) -> None:
        """Remove ids ([N] int64) that are in the index."""
        ...

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return ids [Q, n] int64, among them most of the nearest k of each query; -1 where there is no more."""
        ...

    def __len__(self) -> int: ...

    @property
    def ids(self) -> np.ndarray:
        """Ids in the index, [N] int64, ascending."""
        ...

    def outgrown(self, more: int) -> bool:
        """Whether it should be built again, rather than be given `more` vectors."""
        ...

    def write(self, path: Path) -> None:
        """Write the structure to one file."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a gallery is indexed.

    Args:
        dim: length of an embedding (bits for hamming).
        metric: `IP`, `L2` or `hamming`.
        index_type: `auto`, `Flat`, `HNSW<M>` (such as HNSW32) or `IVF`.
        ef: HNSW: candidates looked at in a search; more is slower with better recall.
        ef_construction: HNSW: candidates looked at when a vector is added.
        nprobe: IVF: lists looked at in a search; None for a sixteenth of them, 8 at least.
        model: name of the model that makes the embeddings; None where it is not known.

    Raises:
        ConfigError: a value that cannot be.
    """

    dim: int
    metric: str = "IP"
    index_type: str = "auto"
    ef: int = 64
    ef_construction: int = 100
    nprobe: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "ef", "ef_construction", "nprobe"):
            value = getattr(self, name)
            if name == "nprobe" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}.", "Give a whole number of at least 1.")
        if self.metric not in METRICS:
            raise ConfigError(f"There is no metric {self.metric!r}.", f"Choose one of {', '.join(METRICS)}.")
        if self.metric == "hamming" and self.dim % 8:
            raise ConfigError(f"{self.dim} bits are not whole bytes.", "Give a dim that 8 divides.")
        links = self.links
        if self.index_type not in ("auto", "Flat", "IVF") and links is None:
            raise ConfigError(
                f"There is no index type {self.index_type!r}.", f"Choose one of {', '.join(INDEX_TYPES)}."
            )
        if links is not None and self.metric == "hamming":
            raise ConfigError(f"{self.index_type} has no hamming metric.", "Choose Flat or IVF.")
        if links is not None and links < 2:
            raise ConfigError(f"{self.index_type} has too few links.", "Choose HNSW32, or HNSW2 at least.")

    @property
    def links(self) -> int | None:
        """M of `HNSW<M>`, or None for another index type."""
        match = re.fullmatch(r"HNSW(\d{1,3})", self.index_type)
        return int(match[1]) if match else None

    @property
    def width(self) -> int:
        """Columns of the array of vectors."""
        return self.dim // 8 if self.metric == "hamming" else self.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array of vectors, little endian as on disk."""
        return np.dtype("u1" if self.metric == "hamming" else "<f4")

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Return settings from a dict as `as_dict` gave it."""
        return cls(**{str(k): v for k, v in values.items()})


def engine_kind(settings: Settings, size: int) -> str:
    """Return `Flat`, `HNSW` or `IVF`: the engine for a gallery of `size` items.

    HNSW is exact up to GRAPH_LEAST items; `auto` is exact up to AUTO_FLAT_LIMIT items, for the hamming metric, and
    where faiss is not installed.
    """
    if settings.links is not None:
        return "HNSW" if size > GRAPH_LEAST else "Flat"
    if settings.index_type != "auto":
        return settings.index_type
    large = size > AUTO_FLAT_LIMIT and settings.metric != "hamming"
    return "HNSW" if large and importlib.util.find_spec("faiss") else "Flat"


def make_engine(kind: str, settings: Settings) -> Engine:
    """Return an empty engine of a kind other than Flat.

    Raises:
        MissingExtra: faiss is not installed.
    """
    if kind == "HNSW":
        from .hnsw import HnswEngine

        return HnswEngine(settings)
    from .faiss import IvfEngine

    return IvfEngine(settings)


def require_engine(settings: Settings, size: int) -> None:
    """Make sure, before long work, that a gallery of `size` items can be searched.

    Raises:
        MissingExtra: faiss is needed and not installed.
    """
    kind = engine_kind(settings, size)
    if kind != "Flat":
        make_engine(kind, settings)


def read_engine(kind: str, settings: Settings, path: Path, ids: np.ndarray) -> Engine:
    """Return the engine that `write` wrote to `path` when `ids` were in it.

    Raises:
        RuntimeError: the file holds no such engine.
        MissingExtra: faiss is not installed.
    """
    if kind == "HNSW":
        from .hnsw import HnswEngine

        return HnswEngine.read(settings, path, ids)
    from .faiss import IvfEngine

    return IvfEngine.read(settings, path, ids)

"""What every index of items takes and gives: matches, and checks of embeddings, labels and ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, GalleryError
from .engine import Settings


@dataclass(frozen=True)
class Vote:
    """A label, how many of the matches have it, and the score of the nearest of them."""

    label: str
    count: int
    score: float


@dataclass(frozen=True)
class Matches:
    """The items found for one query, nearest first.

    Attributes:
        ids: of the items.
        scores: similarities, descending, for IP; distances, ascending, for L2 (squared, as faiss gives them)
            and hamming (bits).
        labels: of the items.
        metadata: of the items; None where none was given.
        metric: `IP`, `L2` or `hamming`.
    """

    ids: list[int]
    scores: list[float]
    labels: list[str]
    metadata: list[dict[str, Any] | None]
    metric: str

    def __len__(self) -> int:
        return len(self.ids)

    def within(self, threshold: float) -> Matches:
        """Return the matches at least as near: scores ≥ threshold for IP, ≤ threshold for distances."""
        keep = [s >= threshold if self.metric == "IP" else s <= threshold for s in self.scores]
        count = sum(keep)  # they are sorted
        return Matches(
            self.ids[:count],
            self.scores[:count],
            self.labels[:count],
            self.metadata[:count],
            self.metric,
        )

    def vote(self) -> list[Vote]:
        """Return the labels by the number of matches, then by the nearest of them."""
        nearest: dict[str, float] = {}
        for label, score in zip(self.labels, self.scores, strict=True):
            nearest.setdefault(label, score)
        votes = [Vote(label, self.labels.count(label), score) for label, score in nearest.items()]
        # The sort is stable and the labels come nearest first.
        return sorted(votes, key=lambda vote: -vote.count)


@dataclass(frozen=True)
class Duplicate:
    """Two items that are as near as asked, the lower id first."""

    ids: tuple[int, int]
    labels: tuple[str, str]
    score: float


class Index(Protocol):
    """Embeddings with labels, to search and to change: a gallery in a folder, or in Milvus."""

    @property
    def settings(self) -> Settings:
        """All settings of the index."""
        ...

    @property
    def dim(self) -> int:
        """Length of an embedding; bits for hamming."""
        ...

    @property
    def metric(self) -> str:
        """`IP`, `L2` or `hamming`."""
        ...

    @property
    def ids(self) -> np.ndarray:
        """Ids of the items, [N] int64, ascending."""
        ...

    @property
    def labels(self) -> list[str]:
        """Labels of the items, in the order of `ids`."""
        ...

    @property
    def metadata(self) -> list[dict[str, Any] | None]:
        """Metadata of the items, in the order of `ids`; None where none was given."""
        ...

    def __len__(self) -> int: ...

    def embeddings(self, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the embeddings of ids (all, if None), [N, D]."""
        ...

    def add(
        self,
        embeddings: np.ndarray,
        labels: Sequence[str],
        metadata: Sequence[dict[str, Any] | None] | None = None,
    ) -> np.ndarray:
        """Add items; return their ids, [N] int64."""
        ...

    def remove(self, ids: Iterable[int] | np.ndarray) -> None:
        """Remove items; nothing is removed if one of the ids is not there."""
        ...

    def search(
        self,
        embeddings: np.ndarray | Sequence[float],
        k: int = 5,
        *,
        labels: str | Iterable[str] | None = None,
    ) -> list[Matches]:
        """Find the items nearest to each query, among those of some labels or all."""
        ...

    def duplicates(self, threshold: float) -> list[Duplicate]:
        """Return the pairs of items that are as near as `threshold`, nearest first."""
        ...

    def save(self) -> None:
        """Commit all changes."""
        ...

    def close(self) -> None:
        """Give back what is held: a lock, a connection."""
        ...


def check_k(k: Any) -> None:
    """Refuse a number of matches that cannot be.

    Raises:
        ConfigError: k is not a whole number of at least 1.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ConfigError(f"k is {k!r}.", "Give a whole number of at least 1.")


def checked(embeddings: Any, settings: Settings, one: bool = False) -> np.ndarray:
    """Return embeddings as the array that an index of these settings holds.

    Args:
        embeddings: [N, D] numbers; [N, D / 8] uint8 for hamming.
        settings: of the index.
        one: whether [D] is taken as well.

    Raises:
        GalleryError: another shape or type, or values that are not finite.
    """
    try:
        array = np.asarray(embeddings)
    except ValueError:
        raise GalleryError("The embeddings differ in length.", f"Give arrays of {settings.dim} values.") from None
    if one and array.ndim == 1:
        array = array[None]
    hamming = settings.metric == "hamming"
    what = f"[N, {settings.width}] {'uint8' if hamming else 'float32'}"
    if array.ndim == 2 and array.shape[1] == settings.width:
        if hamming and array.dtype == np.uint8:
            return array
        if not hamming and array.dtype.kind in "fiu":
            vectors = np.ascontiguousarray(array, np.float32)
            if not np.isfinite(vectors).all():
                raise GalleryError("An embedding holds NaN or infinity.", "Check the model and its input.")
            return vectors
    elif array.size == 0 and array.ndim <= 2:
        return np.empty((0, settings.width), settings.dtype)
    raise GalleryError(
        f"The embeddings have shape {list(array.shape)} and type {array.dtype}; the gallery's are {what} "
        f"(metric {settings.metric}).",
        "Use the model, and the metric, that the gallery was built with.",
    )


def checked_items(
    count: int, labels: Sequence[str], metadata: Sequence[dict[str, Any] | None] | None
) -> tuple[list[str], list[dict[str, Any] | None]]:
    """Return labels and metadata as lists of `count` each.

    Raises:
        GalleryError: other numbers of them, labels that are not strings, or metadata that JSON cannot hold.
    """
    if isinstance(labels, str):
        raise GalleryError(f"labels is the string {labels!r}.", "Give a list with one label an embedding.")
    if not isinstance(labels, Iterable):
        raise GalleryError(f"labels is {labels!r}.", "Give a list with one label an embedding.")
    names = list(labels)
    entries: list[dict[str, Any] | None] = [None] * len(names) if metadata is None else list(metadata)
    if len(names) != count or len(entries) != count:
        raise GalleryError(
            f"There are {count} embeddings, {len(names)} labels and {len(entries)} metadata.",
            "Give one label, and one entry of metadata if any, for each embedding.",
        )
    for label in names:
        if not isinstance(label, str):
            raise GalleryError(f"The label {label!r} is not a string.", "Give labels as strings.")
    for entry in entries:
        _check_metadata(entry)
    return names, entries


def checked_labels(labels: str | Iterable[str]) -> set[str]:
    """Return the labels that a search is limited to.

    Raises:
        ConfigError: they are neither a string nor a list of strings.
    """
    wanted = [labels] if isinstance(labels, str) or not isinstance(labels, Iterable) else list(labels)
    if not all(isinstance(label, str) for label in wanted):
        raise ConfigError(f"The labels to look at are {labels!r}.", "Give a label, or a list of labels, as strings.")
    return set(wanted)


def checked_ids(ids: Iterable[int] | np.ndarray) -> np.ndarray:
    """Return ids as [N] int64.

    Raises:
        GalleryError: they are not whole numbers.
    """
    wanted = np.asarray(list(ids) if isinstance(ids, Iterable) and not isinstance(ids, np.ndarray) else ids)
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise GalleryError("The ids are not a list of whole numbers.", "Give ids as add() returned them.")
    return wanted.astype(np.int64)


def refuse_unknown(wanted: np.ndarray, unknown: np.ndarray) -> None:
    """Refuse ids that are not in the index.

    Raises:
        GalleryError: there are some.
    """
    if len(unknown):
        shown = ", ".join(map(str, unknown[:10].tolist())) + (", …" if len(unknown) > 10 else "")
        raise GalleryError(
            f"{len(unknown)} of {len(wanted)} ids are not in the gallery: {shown}.",
            "Give ids that `gallery.ids` lists; nothing was changed.",
        )


def _check_metadata(entry: Any) -> None:
    if entry is None:
        return
    try:
        kept = isinstance(entry, dict) and json.loads(json.dumps(entry, allow_nan=False)) == entry
    except (TypeError, ValueError):
        kept = False
    if not kept:
        raise GalleryError(
            f"The metadata {entry!r} cannot be kept as JSON.", "Give a dict of strings, numbers and lists."
        )

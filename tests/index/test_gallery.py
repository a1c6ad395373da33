"""The gallery as a library: add, remove, search, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ovseg import ConfigError, Gallery, GalleryError, load_index
from ovseg.index import Vote


def small(metric: str = "IP") -> Gallery:
    gallery = Gallery(2, metric=metric, index_type="Flat")
    gallery.add(
        np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32),
        ["east", "north-east", "north", "west"],
        [{"file": "e.jpg"}, None, {"size": [1, 2]}, None],
    )
    return gallery


def test_similarities_descend_and_distances_ascend() -> None:
    query = np.array([1, 0], np.float32)
    by_ip = small().search(query, 3)[0]
    assert by_ip.labels == ["east", "north-east", "north"]
    assert by_ip.scores == pytest.approx([1, 0.8, 0])
    assert by_ip.metadata == [{"file": "e.jpg"}, None, {"size": [1, 2]}]
    by_l2 = small("L2").search(query, 4)[0]
    assert by_l2.labels == ["east", "north-east", "north", "west"]
    assert by_l2.scores == pytest.approx([0, 0.4, 2, 4])  # squared, as faiss and PaddleX give them


def test_thresholds_keep_the_near_ones() -> None:
    query = np.array([1, 0], np.float32)
    assert small().search(query, 4)[0].within(0.8 - 1e-6).labels == ["east", "north-east"]
    assert small("L2").search(query, 4)[0].within(0.4 + 1e-6).labels == ["east", "north-east"]
    assert small().search(query, 4)[0].within(2).labels == []


def test_votes_count_labels() -> None:
    gallery = Gallery(1)
    gallery.add(np.array([[9], [8], [7], [6], [5]]), ["a", "b", "b", "c", "a"])
    votes = gallery.search([1.0], 5)[0].vote()
    assert votes == [Vote("a", 2, 9.0), Vote("b", 2, 8.0), Vote("c", 1, 6.0)]


def test_labels_filter_the_search() -> None:
    query = np.array([[1, 0], [0, 1]], np.float32)
    found = small().search(query, 3, labels=["north", "west"])
    assert [m.labels for m in found] == [["north", "west"], ["north", "west"]]
    assert small().search(query, 3, labels="west")[0].ids == [3]
    assert len(small().search(query, 3, labels="south")[0]) == 0
    pytest.importorskip("faiss")
    gallery = Gallery(8, index_type="HNSW32")
    data = np.random.default_rng(0).standard_normal((500, 8))
    gallery.add(data, [str(i % 50) for i in range(500)])
    assert gallery.search(data[:1], 100, labels="7")[0].ids != []
    assert sorted(gallery.search(data[:1], 100, labels="7")[0].ids) == list(range(7, 500, 50))


def test_ids_are_never_given_twice(tmp_path) -> None:
    gallery = small()
    gallery.remove([3])
    assert gallery.add([[1.0, 1.0]], ["again"]).tolist() == [4]
    gallery.remove([4])
    gallery.save(tmp_path / "g")
    gallery = load_index(tmp_path / "g")
    assert gallery.add([[1.0, 1.0]], ["again"]).tolist() == [5]
    gallery.remove(gallery.ids)
    gallery.compact()
    gallery = load_index(tmp_path / "g")
    assert len(gallery) == 0 and gallery.add([[1.0, 1.0]], ["again"]).tolist() == [6]


def test_embeddings_labels_and_metadata_are_given_back() -> None:
    gallery = small()
    gallery.remove([1])
    assert gallery.ids.tolist() == [0, 2, 3]
    assert gallery.labels == ["east", "north", "west"]
    assert gallery.metadata == [{"file": "e.jpg"}, {"size": [1, 2]}, None]
    assert gallery.embeddings([3, 0]).tolist() == [[-1, 0], [1, 0]]
    assert gallery.embeddings().shape == (3, 2)


def test_the_arrays_of_the_caller_are_copied() -> None:
    gallery = Gallery(2)
    data = np.eye(2, dtype=np.float32)
    gallery.add(data, ["a", "b"])
    data[:] = 0
    assert gallery.embeddings().tolist() == [[1, 0], [0, 1]]


def test_k_above_the_size_gives_all_and_an_empty_gallery_nothing() -> None:
    assert len(small().search([1.0, 0.0], 100)[0]) == 4
    empty = Gallery(2)
    assert [len(m) for m in empty.search(np.ones((3, 2)), 5)] == [0, 0, 0]
    assert empty.search(np.empty((0, 2)), 5) == [] and empty.search([], 5) == []
    assert empty.duplicates(0) == [] and empty.embeddings().shape == (0, 2)


@pytest.mark.parametrize("k", [0, -1, 2.0, "5", None, True])
def test_k_that_cannot_be(k: object) -> None:
    for gallery in (small(), Gallery(2)):
        with pytest.raises(ConfigError, match="k is"):
            gallery.search([1.0, 0.0], k)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("embeddings", "says"),
    [
        (np.ones((2, 3)), r"shape \[2, 3\].*\[N, 2\] float32"),
        (np.ones((2, 2, 2)), "shape"),
        ([[1.0, math.nan]], "NaN"),
        ([[1.0, math.inf]], "NaN or infinity"),
        ([[1.0, 1e300]], "NaN or infinity"),
        ([["a", "b"]], "type"),
        ([[1.0], [1.0, 2.0]], "differ in length"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_embeddings_of_another_model(embeddings: object, says: str) -> None:
    gallery = small()
    with pytest.raises(GalleryError, match=says):
        gallery.search(embeddings)  # type: ignore[arg-type]
    with pytest.raises(GalleryError, match=says):
        gallery.add(embeddings, ["x", "y"])  # type: ignore[arg-type]
    assert len(gallery) == 4


def test_metrics_do_not_mix() -> None:
    bits = Gallery(16, metric="hamming")
    bits.add(np.array([[0, 255], [3, 0]], np.uint8), ["a", "b"])
    assert bits.search(np.array([[1, 0]], np.uint8), 2)[0].scores == [1, 9]
    with pytest.raises(GalleryError, match="hamming"):
        bits.search(np.ones((1, 2), np.float32))
    with pytest.raises(GalleryError, match="metric hamming"):
        bits.search(np.ones((1, 16), np.float32))


def test_labels_and_metadata_that_do_not_fit() -> None:
    gallery = small()
    for labels, metadata in (
        ("ab", None),
        (["a"], None),
        (["a", 7], None),
        (["a", "b"], [None]),
        (["a", "b"], [None, {1: 2}]),
        (["a", "b"], [None, {"x": np.ones(2)}]),
        (["a", "b"], [None, "text"]),
    ):
        with pytest.raises(GalleryError):
            gallery.add(np.ones((2, 2)), labels, metadata)  # type: ignore[arg-type]
    assert len(gallery) == 4 and gallery.next_id == 4


def test_unknown_ids_are_named_and_nothing_is_removed() -> None:
    gallery = small()
    gallery.remove([2])
    with pytest.raises(GalleryError, match=r"3 of 4 ids are not in the gallery: 2, 9, -1\."):
        gallery.remove([0, 2, 9, -1])
    with pytest.raises(GalleryError, match="whole numbers"):
        gallery.remove([0.5])  # type: ignore[list-item]
    for ids in (5, None, "1"):
        with pytest.raises(GalleryError, match="whole numbers"):
            gallery.remove(ids)  # type: ignore[arg-type]
    with pytest.raises(GalleryError, match="7"):
        gallery.embeddings([7])
    assert gallery.ids.tolist() == [0, 1, 3]
    gallery.remove([0, 0])
    gallery.remove([])
    assert gallery.ids.tolist() == [1, 3]


@pytest.mark.parametrize("metric", ["IP", "L2"])
def test_duplicates_are_all_near_pairs(vectors, metric: str) -> None:
    data = vectors(600)
    data[500] = data[3]
    gallery = Gallery(32, metric=metric, index_type="Flat")
    gallery.add(data, [str(i) for i in range(600)])
    gallery.remove([10])
    wide = data.astype(float)
    scores = wide @ wide.T if metric == "IP" else ((wide[:, None] - wide) ** 2).sum(2)
    limit = 0.9 if metric == "IP" else 0.2
    near = scores >= limit if metric == "IP" else scores <= limit
    near[10] = near[:, 10] = False
    found = gallery.duplicates(limit)
    assert {d.ids for d in found} == set(zip(*np.nonzero(np.triu(near, 1)), strict=True))
    assert found[0].ids == (3, 500) and found[0].labels == ("3", "500")
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=metric == "IP")


def test_auto_changes_from_exact_to_hnsw_and_back(vectors, monkeypatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("ovseg.index.engine.AUTO_FLAT_LIMIT", 300)
    monkeypatch.setattr("ovseg.index.gallery.AUTO_FLAT_LIMIT", 300)
    data = vectors(400)
    gallery = Gallery(32)
    gallery.add(data[:300], ["x"] * 300)
    assert gallery._searcher() is None
    gallery.add(data[300:], ["x"] * 100)
    assert gallery._searcher() is not None
    assert gallery.search(data[350], 1)[0].ids == [350]
    gallery.remove(range(150))
    assert gallery._searcher() is not None  # no back and forth at the limit
    gallery.remove(range(150, 260))
    assert gallery._searcher() is None and gallery.search(data[350], 1)[0].ids == [350]

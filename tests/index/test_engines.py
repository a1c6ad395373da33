"""Every engine against a plain loop over all vectors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from ovseg import ConfigError, Gallery
from ovseg.index.engine import AUTO_FLAT_LIMIT, GRAPH_LEAST, Settings, engine_kind, make_engine
from ovseg.index.flat import FlatEngine


def truth(gallery: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores of all vectors, in float64, as PaddleX's faiss defines them."""
    if metric == "hamming":
        return np.unpackbits(gallery ^ query, axis=1).sum(1).astype(float)
    wide, one = gallery.astype(float), query.astype(float)
    return wide @ one if metric == "IP" else ((wide - one) ** 2).sum(1)


def order(scores: np.ndarray, metric: str) -> np.ndarray:
    return np.lexsort((np.arange(len(scores)), -scores if metric == "IP" else scores))


@pytest.mark.parametrize("metric", ["L2", "hamming"])
def test_a_distance_of_zero_has_no_sign(metric: str) -> None:
    settings = Settings(8, metric)
    vectors = np.ones((1, settings.width), settings.dtype)
    table = FlatEngine(settings, np.zeros(1, np.int64), vectors)
    for scores, _ in (table.search(vectors, 1), table.best(vectors, np.zeros((1, 1), np.int64), 1)):
        assert not np.signbit(scores).any()


@pytest.mark.parametrize("metric", ["IP", "L2", "hamming"])
def test_exact_search_is_exact(vectors, metric: str) -> None:
    # More than one block of rows, and a removal in each.
    if metric == "hamming":
        data = np.random.default_rng(0).integers(0, 256, (17_000, 4), dtype=np.uint8)
    else:
        data = 3 * vectors(17_000)
    engine = FlatEngine(Settings(32, metric, "Flat"))
    for part in np.array_split(np.arange(len(data)), 7):
        engine.add(part, data[part])
    removed = np.arange(0, 17_000, 5)
    engine.remove(removed)
    assert len(engine) == 17_000 - len(removed)
    scores, ids = engine.search(data[:40], 12)
    for number in range(40):
        real = truth(data, data[number], metric)
        real[removed] = -np.inf if metric == "IP" else np.inf
        nearest = order(real, metric)[:12]
        assert np.array_equal(ids[number], nearest)
        assert np.allclose(scores[number], real[nearest], atol=1e-5)


def test_l2_of_far_and_close_vectors(vectors) -> None:
    # |q|² + |v|² - 2qv alone is never 0 here.
    data = (2 + 1e-2 * vectors(500)).astype(np.float32)
    engine = FlatEngine(Settings(32, "L2", "Flat"))
    engine.add(np.arange(500), data)
    scores, ids = engine.search(data[:5], 1)
    assert ids[:, 0].tolist() == [0, 1, 2, 3, 4] and scores.max() == 0


@pytest.mark.parametrize("filtered", [False, True])
def test_l2_is_exact_far_from_the_origin(vectors, filtered: bool) -> None:
    # In float32, |q|² + |v|² - 2qv is off by more here than most of the distances differ.
    data = (1000 + vectors(17_000)).astype(np.float32)
    engine = FlatEngine(Settings(32, "L2", "Flat"))
    engine.add(np.arange(17_000), data)
    removed = np.arange(0, 17_000, 5)
    engine.remove(removed)
    among = np.flatnonzero(engine.alive) if filtered else None
    scores, ids = engine.search(data[:5], 12, among)
    for number in range(5):
        real = truth(data, data[number], "L2")
        real[removed] = np.inf
        nearest = order(real, "L2")[:12]
        assert np.array_equal(ids[number], nearest)
        assert np.allclose(scores[number], real[nearest], rtol=1e-3)


def test_threads_that_measure_the_vectors_at_once(vectors) -> None:
    class Interrupted(FlatEngine):
        """Another thread finishes where this one has just looked how many lengths there are."""

        @property
        def _norms(self) -> np.ndarray:
            found = self.__dict__["norms"]
            if not len(found) and self.rows and not self.__dict__.get("met"):
                self.__dict__["met"] = True
                FlatEngine._squares(self, self.rows - 1)
            return found

        @_norms.setter
        def _norms(self, norms: np.ndarray) -> None:
            self.__dict__["norms"] = norms

    data = vectors(20)
    engine = Interrupted(Settings(32, "L2", "Flat"))
    engine.add(np.arange(10), data[:10])
    engine.search(data[:1], 1)
    engine.add(np.arange(10, 20), 2 * data[10:])
    assert engine.search(2 * data[15:16], 1)[1].tolist() == [[15]]
    assert np.allclose(engine._squares(19), [1] * 10 + [4] * 10)


def test_equal_scores_come_by_id() -> None:
    engine = FlatEngine(Settings(4, "IP", "Flat"))
    engine.add(np.arange(100), np.ones((100, 4), np.float32))
    engine.remove(np.array([0, 3]))
    assert engine.search(np.ones((1, 4), np.float32), 4)[1].tolist() == [[1, 2, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "index_type", "metric"),
    [("HNSW", "HNSW32", "IP"), ("HNSW", "HNSW32", "L2"), *(("IVF", "IVF", m) for m in ("IP", "L2", "hamming"))],
)
def test_approximate_engines_find_what_exact_search_finds(vectors, kind: str, index_type: str, metric: str) -> None:
    pytest.importorskip("faiss")
    data = 3 * vectors(3000)
    if metric == "hamming":
        data = np.packbits(data > 0, axis=1)
    settings = Settings(32, metric, index_type)
    engine, exact = make_engine(kind, settings), FlatEngine(settings)
    for one in (engine, exact):
        one.add(np.arange(2000), data[:2000])
        one.remove(np.arange(0, 2000, 4))
        one.add(np.arange(2000, 3000), data[2000:])
    assert len(engine) == 2500 and np.array_equal(engine.ids, exact.ids)
    candidates = engine.candidates(data[:200], 5)
    assert not np.isin(np.arange(0, 2000, 4), candidates).any()
    scores, ids = exact.best(data[:200], candidates, 5)
    true_scores, true_ids = exact.search(data[:200], 5)
    if metric == "hamming":  # many equal distances: which of them are found is open
        assert np.mean(scores == true_scores) >= 0.9
        return
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, true_ids, strict=True)])
    assert recall >= (0.99 if kind == "HNSW" else 0.9)
    same = ids == true_ids
    assert np.allclose(scores[same], true_scores[same], atol=1e-4)


@pytest.mark.parametrize("metric", ["IP", "L2", "hamming"])
def test_candidates_are_scored_as_by_exact_search(vectors, metric: str) -> None:
    data = np.packbits(vectors(500) > 0, axis=1) if metric == "hamming" else vectors(500)
    engine = FlatEngine(Settings(32, metric, "Flat"), np.arange(200), data[:200])
    engine.add(np.arange(200, 500), data[200:])
    everything = np.broadcast_to(np.arange(500), (400, 500)).copy()
    everything[:, 7] = -1
    engine.remove(np.array([7]))
    for found, true in zip(engine.best(data[:400], everything, 9), engine.search(data[:400], 9), strict=True):
        assert np.allclose(found, true, atol=1e-5)
    scores, ids = engine.best(data[:1], np.array([[3, -1]]), 4)
    assert ids.tolist() == [[3, -1, -1, -1]] and scores[0, 1:].tolist() == [0, 0, 0]


def test_hnsw_is_built_again_when_a_third_is_removed(vectors) -> None:
    pytest.importorskip("faiss")
    engine = make_engine("HNSW", Settings(32, "IP", "HNSW32"))
    assert not engine.outgrown(500)
    engine.add(np.arange(600), vectors(600))
    engine.remove(np.arange(0, 200))
    assert not engine.outgrown(0)
    engine.remove(np.arange(200, 202))
    assert engine.outgrown(0) and not engine.outgrown(10)
    assert engine.outgrown(3001)


def test_the_graph_stays_as_large_as_the_gallery(vectors) -> None:
    pytest.importorskip("faiss")
    gallery = Gallery(32, index_type="HNSW32")
    gallery.add(vectors(2500), ["x"] * 2500)
    for number in range(6):
        gallery.remove(gallery.ids[:1000])
        gallery.add(vectors(1000, seed=number + 1), ["x"] * 1000)
        gallery.search(vectors(1), 3)
        assert len(gallery._engine) == 2500 and gallery._engine._index.ntotal <= 3750


def test_hnsw_finds_all_there_are(vectors, monkeypatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("ovseg.index.engine.GRAPH_LEAST", 10)
    gallery = Gallery(32, metric="L2", index_type="HNSW2", ef=1, ef_construction=1)
    gallery.add(vectors(4000), ["x"] * 4000)
    gallery.remove(range(0, 1300))
    found = gallery.search(vectors(20), 60)
    assert gallery._engine is not None
    assert [len(set(m.ids)) for m in found] == [60] * 20 and min(min(m.ids) for m in found) >= 1300
    assert all(m.scores == sorted(m.scores) for m in found)


def test_churn_keeps_recall_and_size(vectors, tmp_path) -> None:
    pytest.importorskip("faiss")
    gallery = Gallery(32, index_type="HNSW32")
    gallery.add(vectors(3000), ["x"] * 3000)
    gallery.save(tmp_path / "churned")
    gone: set[int] = set()
    for number in range(10):
        out = np.random.default_rng(number).choice(gallery.ids, 1500, replace=False)
        gone |= set(out.tolist())
        gallery.remove(out)
        assert gallery.add(vectors(1500, seed=number + 1), ["x"] * 1500)[0] == 3000 + 1500 * number
        gallery.save()
    fresh = Gallery(32, index_type="HNSW32")
    fresh.add(gallery.embeddings(), gallery.labels)
    fresh.save(tmp_path / "fresh")
    queries = vectors(200, seed=77)
    exact = FlatEngine(gallery.settings)
    exact.add(gallery.ids, gallery.embeddings())
    true_ids = exact.search(queries, 10)[1]
    found = [m.ids for m in gallery.search(queries, 10)]
    assert not gone & {i for line in found for i in line}
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true_ids.tolist(), strict=True)])
    assert recall >= 0.98
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).iterdir()) for n in ("churned", "fresh")]
    assert sizes[0] <= 1.3 * sizes[1]


def test_auto_is_exact_until_it_is_large() -> None:
    settings = Settings(512)
    assert engine_kind(settings, AUTO_FLAT_LIMIT) == "Flat"
    large = "HNSW" if importlib.util.find_spec("faiss") else "Flat"
    assert engine_kind(settings, AUTO_FLAT_LIMIT + 1) == large
    assert engine_kind(Settings(512, "hamming"), 10**6) == "Flat"
    small, big = (engine_kind(Settings(512, index_type="HNSW32"), size) for size in (GRAPH_LEAST, GRAPH_LEAST + 1))
    assert (small, big) == ("Flat", "HNSW")


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"dim": 2.5},
        {"metric": "cosine"},
        {"index_type": "HNSW"},
        {"index_type": "HNSW1"},
        {"ef": 0},
        {"dim": 12, "metric": "hamming"},
        {"metric": "hamming", "index_type": "HNSW32"},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Settings(**{"dim": 16, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["HNSW", "IVF"])
def test_a_missing_package_says_how_to_install_it(kind: str) -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from ovseg.errors import MissingExtra\n"
        "from ovseg.index.engine import Settings, make_engine\n"
        f"try: make_engine({kind!r}, Settings(8))\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "ovseg[index]"' in done.stdout

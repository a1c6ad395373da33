"""Every engine against a plain loop over all vectors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from ovseg import ConfigError, Gallery
from ovseg.index.engine import AUTO_FLAT_LIMIT, Settings, engine_kind, make_engine
from ovseg.index.flat import FlatEngine


def truth(gallery: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores of all vectors, in float64, as PaddleX's faiss defines them."""
    if metric == "hamming":
        return np.unpackbits(gallery ^ query, axis=1).sum(1).astype(float)
    wide, one = gallery.astype(float), query.astype(float)
    return wide @ one if metric == "IP" else ((wide - one) ** 2).sum(1)


def order(scores: np.ndarray, metric: str) -> np.ndarray:
    return np.lexsort((np.arange(len(scores)), -scores if metric == "IP" else scores))


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


def test_equal_scores_come_by_id() -> None:
    engine = FlatEngine(Settings(4, "IP", "Flat"))
    engine.add(np.arange(100), np.ones((100, 4), np.float32))
    engine.remove(np.array([0, 3]))
    assert engine.search(np.ones((1, 4), np.float32), 4)[1].tolist() == [[1, 2, 4, 5]]


def approximate() -> list[object]:
    hnsw = pytest.mark.skipif(not importlib.util.find_spec("hnswlib"), reason="needs hnswlib")
    ivf = pytest.mark.skipif(not importlib.util.find_spec("faiss"), reason="needs faiss")
    return [
        *(pytest.param("HNSW", "HNSW32", metric, marks=hnsw) for metric in ("IP", "L2")),
        *(pytest.param("IVF", "IVF", metric, marks=ivf) for metric in ("IP", "L2", "hamming")),
    ]


@pytest.mark.parametrize(("kind", "index_type", "metric"), approximate())
def test_approximate_engines_find_what_exact_search_finds(vectors, kind: str, index_type: str, metric: str) -> None:
    data = vectors(3000)
    if metric == "hamming":
        data = np.packbits(data > 0, axis=1)
    settings = Settings(32, metric, index_type)
    engine, exact = make_engine(kind, settings), FlatEngine(settings)
    for one in (engine, exact):
        one.add(np.arange(2000), data[:2000])
        one.remove(np.arange(0, 2000, 4))
        one.add(np.arange(2000, 3000), data[2000:])
    assert len(engine) == 2500 and np.array_equal(engine.ids, exact.ids)
    scores, ids = engine.search(data[:200], 5)
    true_scores, true_ids = exact.search(data[:200], 5)
    assert not np.isin(np.arange(0, 2000, 4), ids).any()
    if metric == "hamming":  # many equal distances: which of them are found is open
        assert np.mean(scores == true_scores) >= 0.9
        return
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, true_ids, strict=True)])
    assert recall >= (0.99 if kind == "HNSW" else 0.9)
    same = ids == true_ids
    assert np.allclose(scores[same], true_scores[same], atol=1e-4)


def test_hnsw_gives_places_of_removed_vectors_to_new_ones(vectors) -> None:
    pytest.importorskip("hnswlib")
    engine = make_engine("HNSW", Settings(32, "IP", "HNSW32"))
    engine.add(np.arange(500), vectors(500))
    for number in range(10):
        first = 500 + 250 * number
        engine.remove(engine.ids[:250])
        engine.add(np.arange(first, first + 250), vectors(250, seed=number + 1))
    assert engine._index.get_current_count() == 500


def test_hnsw_finds_all_there_are(vectors) -> None:
    pytest.importorskip("hnswlib")
    engine = make_engine("HNSW", Settings(32, "L2", "HNSW2", ef=1, ef_construction=1))
    data = vectors(400)
    engine.add(np.arange(400), data)
    engine.remove(np.arange(0, 390))
    scores, ids = engine.search(data[:3], 20)
    assert all(set(line[:10]) == set(range(390, 400)) for line in ids.tolist()) and (ids[:, 10:] == -1).all()
    assert (np.diff(scores[:, :10], axis=1) >= 0).all()


def test_churn_keeps_recall_and_size(vectors, tmp_path) -> None:
    pytest.importorskip("hnswlib")
    gallery = Gallery(32, index_type="HNSW32")
    gallery.add(vectors(1500), ["x"] * 1500)
    gallery.save(tmp_path / "churned")
    gone: set[int] = set()
    for number in range(10):
        out = np.random.default_rng(number).choice(gallery.ids, 750, replace=False)
        gone |= set(out.tolist())
        gallery.remove(out)
        assert gallery.add(vectors(750, seed=number + 1), ["x"] * 750)[0] == 1500 + 750 * number
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
    large = "HNSW" if importlib.util.find_spec("hnswlib") else "Flat"
    assert engine_kind(settings, AUTO_FLAT_LIMIT + 1) == large
    assert engine_kind(Settings(512, "hamming"), 10**6) == "Flat"


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


@pytest.mark.parametrize(("package", "kind", "extra"), [("hnswlib", "HNSW", "index"), ("faiss", "IVF", "faiss")])
def test_a_missing_package_says_how_to_install_it(package: str, kind: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from ovseg.errors import MissingExtra\n"
        "from ovseg.index.engine import Settings, make_engine\n"
        f"try: make_engine({kind!r}, Settings(8))\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f'pip install "ovseg[{extra}]"' in done.stdout
    assert (kind == "IVF") or "C++ compiler" in done.stdout

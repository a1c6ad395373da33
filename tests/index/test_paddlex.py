"""PaddleX's folders, made by faiss as PaddleX 3.7.2 makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ovseg import Gallery, GalleryError, SaveError
from ovseg.index.paddlex import export_paddlex, import_paddlex

faiss = pytest.importorskip("faiss")


def paddlex_index(folder: Path, data: np.ndarray, kind: str, metric: str, remove: tuple[int, ...] = ()) -> Any:
    """Build, remove and save as PaddleX's FaissBuilder and IndexData do; return the index of faiss."""
    factory = f"IVF{len(data) // 8},Flat" if kind == "IVF" else kind
    number = faiss.METRIC_INNER_PRODUCT if metric == "IP" else faiss.METRIC_L2
    index = faiss.IndexIDMap2(faiss.index_factory(data.shape[1], factory, number))
    index.train(data)
    index.add_with_ids(data, np.arange(len(data)))
    if remove:
        index.remove_ids(np.array(remove))
    labels = {i: f"标签 {i % 7}" for i in range(len(data)) if i not in remove}
    save(folder, index, {"id_map": labels, "metric_type": metric, "index_type": kind})
    return index


def save(folder: Path, index: Any, info: dict[str, Any], name: str = "id_map.yaml") -> None:
    folder.mkdir(exist_ok=True)
    faiss.write_index(index, str(folder / "vector.index"))
    text = yaml.dump(info, default_flow_style=False, allow_unicode=True)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("metric", ["IP", "L2"])
@pytest.mark.parametrize("kind", ["Flat", "IVF", "HNSW32"])
def test_an_imported_index_answers_as_paddlex_does(vectors, tmp_path, kind: str, metric: str) -> None:
    data = vectors(160)
    index = paddlex_index(tmp_path / "px", data, kind, metric)
    gallery = import_paddlex(tmp_path / "px")
    assert (gallery.metric, gallery.index_type, gallery.dim) == (metric, kind, 32)
    assert gallery.ids.tolist() == list(range(160)) and np.array_equal(gallery.embeddings(), data)
    if kind == "IVF":
        faiss.downcast_index(index.index).nprobe = 20
    scores, ids = index.search(vectors(30, seed=1), 5)
    for line, (theirs, their_ids) in zip(
        gallery.search(vectors(30, seed=1), 5), zip(scores, ids, strict=True), strict=True
    ):
        if kind == "Flat":
            assert line.ids == their_ids.tolist()
            assert line.labels == [f"标签 {i % 7}" for i in their_ids]
            assert line.scores == pytest.approx(theirs.tolist(), abs=1e-4)
        else:
            assert line.scores[0] == pytest.approx(theirs[0], abs=1e-4)


def test_a_flat_index_with_removals(vectors, tmp_path) -> None:
    data = vectors(100)
    paddlex_index(tmp_path, data, "Flat", "IP", remove=(3, 50))
    gallery = import_paddlex(tmp_path)
    kept = [i for i in range(100) if i not in (3, 50)]
    assert gallery.ids.tolist() == kept and np.array_equal(gallery.embeddings(), data[kept])
    assert gallery.next_id == 100


def test_an_ivf_index_with_removals_gets_its_ids_back(vectors, tmp_path) -> None:
    data = vectors(100)
    index = paddlex_index(tmp_path, data, "IVF", "L2", remove=(3, 50))
    assert index.search(data[60:61], 1)[1] != 60  # what PaddleX itself answers from then on
    gallery = import_paddlex(tmp_path)
    assert np.array_equal(gallery.embeddings([2, 4, 60]), data[[2, 4, 60]])
    assert gallery.search(data[60], 1)[0].ids == [60]


def test_an_ivf_index_whose_ids_are_lost_is_refused(vectors, tmp_path) -> None:
    data = vectors(100)
    index = paddlex_index(tmp_path, data, "IVF", "IP", remove=(3,))
    index.add_with_ids(data[:5], np.arange(100, 105))
    labels = {i: "x" for i in range(105) if i != 3}
    save(tmp_path, index, {"id_map": labels, "metric_type": "IP", "index_type": "IVF"})
    with pytest.raises(GalleryError, match="do not agree"):
        import_paddlex(tmp_path)


def test_the_file_name_of_the_guide_and_labels_that_look_like_numbers(vectors, tmp_path) -> None:
    index = paddlex_index(tmp_path, vectors(3), "Flat", "IP")
    (tmp_path / "id_map.yaml").unlink()
    (tmp_path / "index_info.yaml").write_text(
        "id_map:\n  0: 007\n  1: yes\n  2: 1.50\nindex_type: Flat\nmetric_type: IP\n"
    )
    assert index.ntotal == 3 and import_paddlex(tmp_path).labels == ["007", "yes", "1.50"]


@pytest.mark.parametrize("metric", ["IP", "L2"])
@pytest.mark.parametrize("kind", ["Flat", "IVF", "HNSW32"])
def test_export_and_import_again(vectors, tmp_path, kind: str, metric: str) -> None:
    gallery = Gallery(32, metric=metric, index_type=kind)
    gallery.add(vectors(120), ["ü", "yes", "12"] * 40)
    gallery.remove([0, 17])
    export_paddlex(gallery, tmp_path / "px")
    # As PaddleX's IndexData.load reads it.
    index = faiss.read_index(str(tmp_path / "px" / "vector.index"))
    info = yaml.safe_load((tmp_path / "px" / "id_map.yaml").read_text(encoding="utf-8"))
    assert index.ntotal == len(info["id_map"]) == 118
    assert (info["index_type"], info["metric_type"]) == (kind, metric)
    assert info["id_map"][1] == "yes"
    assert index.search(gallery.embeddings([30]), 1)[1].tolist() == [[30]]
    again = import_paddlex(tmp_path / "px")
    assert again.ids.tolist() == gallery.ids.tolist() and again.labels == gallery.labels
    assert np.array_equal(again.embeddings(), gallery.embeddings())


def test_an_export_that_fails_leaves_what_is_there(vectors, tmp_path, monkeypatch) -> None:
    gallery = Gallery(32)
    gallery.add(vectors(3), ["a", "b", "c"])
    export_paddlex(gallery, tmp_path / "px")
    before = {path.name: path.read_bytes() for path in (tmp_path / "px").iterdir()}
    gallery.remove([0])
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SaveError, match="No space left"):
        export_paddlex(gallery, tmp_path / "px")
    assert {path.name: path.read_bytes() for path in (tmp_path / "px").iterdir()} == before
    with pytest.raises(SaveError, match="No space left"):
        export_paddlex(gallery, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_cannot_be_imported_or_exported(vectors, tmp_path) -> None:
    with pytest.raises(GalleryError, match="no folder"):
        import_paddlex(tmp_path / "none")
    with pytest.raises(GalleryError, match=r"no id_map\.yaml or index_info\.yaml"):
        import_paddlex(tmp_path)
    paddlex_index(tmp_path, vectors(20), "Flat", "IP")
    good = (tmp_path / "id_map.yaml").read_text(encoding="utf-8")
    for text, says in (
        ("", "is not the map"),
        ("id_map: [", "is not the map"),
        (good.replace("metric_type: IP", "metric_type: L2"), "has the metric IP, and its map says L2"),
        (good.replace("  3:", "  99:"), "do not agree"),
        (good.replace("index_type: Flat", "index_type: PQ"), "PQ"),
    ):
        (tmp_path / "id_map.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(GalleryError, match=says):
            import_paddlex(tmp_path)
    (tmp_path / "id_map.yaml").write_text(good, encoding="utf-8")
    (tmp_path / "vector.index").write_bytes(b"nothing of faiss's")
    with pytest.raises(GalleryError, match="not an index that faiss can read"):
        import_paddlex(tmp_path)
    (tmp_path / "vector.index").unlink()
    with pytest.raises(GalleryError, match=r"no vector\.index"):
        import_paddlex(tmp_path)
    with pytest.raises(GalleryError, match="empty"):
        export_paddlex(Gallery(4), tmp_path)


def test_a_map_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    (tmp_path / "id_map.yaml").touch()

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(GalleryError, match=r"id_map\.yaml cannot be read: Permission denied"):
        import_paddlex(tmp_path)

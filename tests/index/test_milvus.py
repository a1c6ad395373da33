"""A gallery in Milvus, for real: Milvus Lite in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ovseg import ConfigError, Gallery, GalleryError, load_index
from ovseg.index import Settings, create_index
from ovseg.index.milvus import Address, MilvusGallery, parse_address

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


def test_it_does_what_a_gallery_in_a_folder_does(vectors, tmp_path: Path) -> None:
    where = f"milvus://{tmp_path}/sub/g.db"
    data, queries = vectors(300), vectors(20, seed=5)
    labels = [f"label '{i % 7}\" 红" for i in range(300)]
    metadata = [{"path": f"{i}.jpg"} if i % 2 else None for i in range(300)]
    mine = create_index(where, Settings(32, "L2", "HNSW32", model="m"))
    assert mine.search(queries, 5) and all(not len(m) for m in mine.search(queries, 5))
    ids = mine.add(data, labels, metadata)
    theirs = Gallery(32, metric="L2", index_type="Flat")
    theirs.add(data, labels, metadata)
    assert len(mine) == 300 and mine.labels == labels and mine.metadata == metadata
    assert np.array_equal(mine.ids, ids) and np.array_equal(mine.embeddings(ids[[7, 3]]), data[[7, 3]])
    for a, b in zip(mine.search(queries, 5), theirs.search(queries, 5), strict=True):
        assert a.labels == b.labels and a.metadata == b.metadata and a.metric == "L2"
        assert [i - ids[0] for i in a.ids] == b.ids and a.scores == pytest.approx(b.scores, abs=1e-4)
    one = mine.search(queries[0], 50, labels=labels[3])[0]
    assert set(one.labels) == {labels[3]} and len(one) == len([i for i in labels if i == labels[3]])
    mine.remove(ids[-5:])
    with pytest.raises(GalleryError, match=rf"1 of 2 ids are not in the gallery: {ids[-1]}\."):
        mine.remove([ids[0], ids[-1]])
    assert len(mine) == 295
    with pytest.raises(GalleryError, match=r"shape \[1, 8\]"):
        mine.search(np.ones((1, 8)))
    with pytest.raises(ConfigError, match="k is 0"):
        mine.search(queries, 0)
    mine.save()
    mine.close()

    with load_index(where) as again:
        assert isinstance(again, MilvusGallery)
        assert again.settings == Settings(32, "L2", "HNSW32", model="m") and len(again) == 295
        # Never an id twice, not even that of the last one, removed before the file was closed.
        assert int(again.add(data[:1], ["new"])[0]) > int(ids[-1])
        assert again.duplicates(1e-6)[0].labels == (labels[0], "new")
        again.save(tmp_path / "folder")
        with pytest.raises(GalleryError, match="already"):
            create_index(where.replace("g.db", "./g.db"), again.settings)
    copy = load_index(tmp_path / "folder", verify=True)
    assert len(copy) == 296 and copy.labels[:3] == labels[:3] and copy.index_type == "HNSW32"


def test_another_process_opens_the_file(tmp_path: Path) -> None:
    """In the process that made it, Milvus Lite keeps a collection loaded."""
    where = f"milvus://{tmp_path}/g.db"
    make = "gallery = create_index(sys.argv[1], Settings(2)); gallery.add([[0, 1], [1, 0]], ['a', 'b']); gallery.save()"
    ask = "gallery = load_index(sys.argv[1]); print(gallery.labels, gallery.search([1, 0], 1)[0].labels)"
    start = "import sys; from ovseg import load_index; from ovseg.index import Settings, create_index; "
    for code, says in ((make, ""), (ask, "['a', 'b'] ['b']\n"), (ask, "['a', 'b'] ['b']\n")):
        command = [sys.executable, "-c", f"{start}{code}; gallery.close()", where]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == says


def test_similarities_descend(tmp_path: Path) -> None:
    with create_index(f"milvus://{tmp_path}/g.db/drinks", Settings(2, "IP", "Flat")) as gallery:
        gallery.add(np.array([[1, 0], [0.8, 0.6], [-1, 0]]), ["east", "north-east", "west"])
        found = gallery.search([1.0, 0.0], 9)[0]
        assert found.labels == ["east", "north-east", "west"] and found.scores == pytest.approx([1, 0.8, -1])
        assert found.within(0.8 - 1e-6).labels == ["east", "north-east"]


def test_what_is_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="There is no file"):
        load_index(f"milvus://{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
    create_index(f"milvus://{tmp_path}/g.db/one", Settings(2)).close()
    with pytest.raises(GalleryError, match="no collection other"):
        load_index(f"milvus://{tmp_path}/g.db/other")
    with pytest.raises(GalleryError, match=r"Milvus at http://127\.0\.0\.1:9 says"):
        load_index("milvus://127.0.0.1:9/x")


def test_addresses() -> None:
    assert parse_address("milvus:///data/g.db") == Address("/data/g.db", "", "gallery")
    assert parse_address("milvus://a/g.db/x") == Address("a/g.db", "", "x")
    assert parse_address("milvus://h") == Address("http://h:19530", "", "gallery")
    assert parse_address("milvuss://u:p%40@h:1/c") == Address("https://h:1", "u:p@", "c")
    for wrong in ("milvus://", "milvus://h:port/c", "milvus://h/a/b"):
        with pytest.raises(ConfigError, match="is not an address of Milvus"):
            parse_address(wrong)

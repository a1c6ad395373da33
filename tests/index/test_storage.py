"""The folder: whole after any kill, honest about damage, one writer, readers that keep what they opened."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ovseg import ConfigError, Gallery, GalleryError, SaveError, load_index
from ovseg.errors import MissingExtra
from ovseg.index import storage
from ovseg.index.gallery import load_folder, salvage_index
from ovseg.index.paddlex import export_paddlex, import_paddlex
from ovseg.index.storage import is_gallery

ROOT = Path(__file__).parents[2]
KINDS = ["Flat", *(["HNSW32", "IVF"] if importlib.util.find_spec("faiss") else [])]


def make(folder: Path, count: int = 3000, index_type: str = "Flat") -> Gallery:
    gallery = Gallery(8, metric="L2", index_type=index_type)
    data = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    gallery.add(data, [f"label {i}" for i in range(count)], [{"n": i} for i in range(count)])
    gallery.save(folder)
    return gallery


def same(one: Gallery, other: Gallery) -> bool:
    return (
        np.array_equal(one.ids, other.ids)
        and one.labels == other.labels
        and one.metadata == other.metadata
        and np.array_equal(one.embeddings(), other.embeddings())
        and one.next_id == other.next_id
    )


@pytest.mark.parametrize("index_type", KINDS)
def test_a_gallery_comes_back_as_saved(tmp_path, index_type: str) -> None:
    gallery = make(tmp_path / "g", index_type=index_type)
    queries = gallery.embeddings(range(20))
    for number in range(6):
        gallery.remove(gallery.ids[number::11])
        gallery.add(queries + 1 + number, [f"größe {number}\n\ud800"] * 20)
        gallery.save()
        again = load_index(tmp_path / "g", verify=True)
        assert same(gallery, again) and again.version == number + 2
        assert [m.ids for m in again.search(queries, 4)] == [m.ids for m in gallery.search(queries, 4)]
    files = sorted(p.name.split("-")[0] for p in (tmp_path / "g").iterdir())
    assert files.count("vectors") == 1 and files.count("log") == 1 and files.count("graph") <= 1


def test_the_search_structure_is_read_and_not_built_again(tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss")
    make(tmp_path / "g", index_type="HNSW32")
    gallery = load_index(tmp_path / "g")
    monkeypatch.setattr("ovseg.index.hnsw.HnswEngine.add", None)
    query = gallery.embeddings([5])
    assert gallery.search(query, 1)[0].ids == [5]


@pytest.mark.parametrize("index_type", ["auto", "HNSW32"])
def test_what_is_exact_without_faiss_opens_without_it(tmp_path, monkeypatch, index_type: str) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("ovseg.index.engine.AUTO_FLAT_LIMIT", 50)
    monkeypatch.setattr("ovseg.index.engine.GRAPH_LEAST", 50)
    gallery = Gallery(4, index_type=index_type)
    gallery.add(np.eye(4, dtype=np.float32).repeat(25, axis=0), ["a"] * 100)
    gallery.save(tmp_path / "gallery")
    monkeypatch.setitem(sys.modules, "faiss", None)
    if index_type == "auto":
        assert load_index(tmp_path / "gallery").search([1, 0, 0, 0], 1)[0].ids == [0]
    else:
        with pytest.raises(MissingExtra):
            load_index(tmp_path / "gallery")


def test_a_damaged_search_structure_is_built_again(tmp_path) -> None:
    pytest.importorskip("faiss")
    gallery = make(tmp_path / "g", index_type="HNSW32")
    graph = next((tmp_path / "g").glob("graph-*"))
    flip(graph, 5000)
    with pytest.warns(UserWarning, match="graph.*built again"):
        again = load_index(tmp_path / "g")
    assert again.search(gallery.embeddings([5]), 1)[0].ids == [5]


def test_a_search_structure_that_is_taken_away_while_it_is_read(tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss")
    gallery = make(tmp_path / "g", index_type="HNSW32")

    def gone(path: Path) -> int:
        path.unlink()
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("ovseg.index.storage._crc_of_file", gone)
    with pytest.warns(UserWarning, match="graph.*built again"):
        again = load_index(tmp_path / "g")
    assert again.search(gallery.embeddings([5]), 1)[0].ids == [5]


def test_compaction_keeps_everything_and_frees_space(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    gallery.remove(range(400))
    gallery.save()
    before = size(tmp_path / "g")
    gallery.compact()
    assert size(tmp_path / "g") < 0.9 * before
    assert same(gallery, load_index(tmp_path / "g", verify=True)) and len(gallery) == 2600


def test_saving_elsewhere_copies_and_replaces(tmp_path) -> None:
    gallery = make(tmp_path / "a")
    other = Gallery(4, index_type="Flat")
    other.add(np.eye(4), list("abcd"))
    other.save(tmp_path / "b")
    gallery.save(tmp_path / "b")
    assert same(gallery, load_index(tmp_path / "b", verify=True)) and same(gallery, load_index(tmp_path / "a"))
    with pytest.raises(GalleryError, match="changed by somebody else"):
        other.add(np.eye(4), list("abcd"))
        other.save()
    with pytest.raises(GalleryError, match="no folder yet"):
        Gallery(4).save()


def test_another_index_type_is_kept_by_the_next_save(tmp_path) -> None:
    make(tmp_path / "g", index_type=KINDS[-1])
    gallery = load_index(tmp_path / "g", index_type="Flat")
    gallery.save()
    assert load_index(tmp_path / "g").index_type == "Flat"


def test_a_reader_keeps_the_version_it_opened(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    reader = load_index(tmp_path / "g")
    ids, data, found = reader.ids, reader.embeddings(), reader.search(gallery.embeddings([1, 2]), 9)
    gallery.remove(range(1500))
    gallery.add(np.ones((50, 8)), ["new"] * 50)
    gallery.compact()
    assert np.array_equal(reader.ids, ids) and np.array_equal(reader.embeddings(), data)
    assert reader.search(data[1:3], 9) == found
    reader.remove([7])
    with pytest.raises(GalleryError, match=r"version 1, now 2.*Open it again"):
        reader.save()


READER = """
import sys, time
import numpy as np
from ovseg import load_index
print("ready", flush=True)
versions = set()
# As many versions as it takes, however little of a core the writer gets meanwhile.
end = time.monotonic() + 60
while len(versions) < 5 and time.monotonic() < end:
    gallery = load_index(sys.argv[1], verify=True)
    ids = gallery.ids
    # Each version holds 50 items in a row, with embeddings that tell their ids.
    assert len(ids) == 50 and ids[-1] - ids[0] == 49, ids
    assert np.array_equal(gallery.embeddings()[:, 0], ids % 1000)
    versions.add(gallery.version)
print(len(versions))
"""


def test_readers_in_other_processes_see_whole_versions(tmp_path) -> None:
    def items(first: int) -> np.ndarray:
        return np.repeat((np.arange(first, first + 50) % 1000)[:, None], 4, axis=1)

    gallery = Gallery(4, index_type="Flat")
    gallery.add(items(0), ["x"] * 50)
    gallery.save(tmp_path / "g")
    reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path / "g")], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    while reader.poll() is None:
        old, first = gallery.ids, gallery.next_id
        gallery.add(items(first), ["x"] * 50)
        gallery.remove(old)
        gallery.save()  # appends, and compacts every few times
    assert reader.returncode == 0
    assert int(reader.stdout.read()) == 5


WRITER = """
import sys
from ovseg import load_index
with load_index(sys.argv[1], write=True):
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_two_writers(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "g")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "open\n"
    gallery.remove([1])
    with pytest.raises(GalleryError, match="being written by another process"):
        gallery.save(timeout=0.1)
    with pytest.raises(GalleryError, match="being written"):
        load_index(tmp_path / "g", write=True, timeout=0)
    assert len(load_index(tmp_path / "g")) == 3000  # readers are not kept out
    writer.communicate("\n")
    gallery.save()
    assert len(load_index(tmp_path / "g")) == 2999


def crash_test() -> ModuleType:
    script = ROOT / "benchmarks" / "index_crash.py"
    spec = importlib.util.spec_from_file_location("index_crash", script)
    assert spec is not None and spec.loader is not None
    crash = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crash)
    return crash


def test_a_worker_that_ends_by_itself_is_not_taken_for_killed(tmp_path) -> None:
    crash = crash_test()
    Gallery(crash.DIM, metric="L2").save(tmp_path / "g")
    command = [sys.executable, crash.__file__, "--serve", str(tmp_path / "g")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        worker = crash.Worker(server)
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(RuntimeError, match="ended by itself"):
            worker.kill()


def test_nothing_is_lost_in_crashes(tmp_path) -> None:
    versions = crash_test().run(tmp_path / "g", kills=20, index_type=KINDS[min(1, len(KINDS) - 1)], flush=False)
    assert len(versions) == 20 and versions[-1] > 5


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# The file, what happens to it, what the error says, and how many of 3000 items can be saved (1024 a record).
DAMAGE: list[tuple[str, Callable[[Path], None], str, int]] = [
    ("manifest.json", Path.unlink, "manifest.json is missing", 3000),
    ("manifest.json", lambda p: p.write_text("{"), "manifest.json is not a manifest", 3000),
    ("manifest.json", lambda p: p.write_text("[]"), "manifest.json is not a manifest", 3000),
    (
        "manifest.json",
        lambda p: p.write_text(p.read_text().replace('"items": 3000', '"items": 2999')),
        "checksum of manifest.json",
        3000,
    ),
    ("log-1.jsonl", lambda p: flip(p, 1000), "checksum of log-1.jsonl", 1976),
    ("log-1.jsonl", lambda p: cut(p, 0.9), "log-1.jsonl is cut short", 2048),
    ("vectors-1.bin", lambda p: flip(p, 40_000), "checksum of rows 1024 to 2047", 1976),
    ("vectors-1.bin", lambda p: cut(p, 0.5), "vectors-1.bin is cut short", 1024),
    ("vectors-1.bin", Path.unlink, "vectors-1.bin is missing", 0),
]


@pytest.mark.parametrize(("name", "harm", "says", "left"), DAMAGE, ids=[f"{d[0]}-{d[2]}" for d in DAMAGE])
def test_damage_is_named_and_the_rest_is_saved(
    tmp_path, name: str, harm: Callable[[Path], None], says: str, left: int
) -> None:
    whole = make(tmp_path / "g")
    harm(tmp_path / "g" / name)
    with pytest.raises(GalleryError, match=says) as raised:
        load_index(tmp_path / "g", verify=True)
    assert f"{left} items can be saved" in str(raised.value)
    saved, problems = salvage_index(tmp_path / "g")
    assert len(saved) == left and problems
    assert np.array_equal(saved.embeddings(), whole.embeddings(saved.ids))
    assert saved.labels == [f"label {i}" for i in saved.ids] and saved.metadata == [{"n": i} for i in saved.ids]
    saved.save(tmp_path / "saved")
    assert len(load_index(tmp_path / "saved", verify=True)) == left


def test_salvage_keeps_removals(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    gallery.remove([5, 6])
    gallery.save()
    (tmp_path / "g" / "manifest.json").unlink()
    saved, problems = salvage_index(tmp_path / "g")
    assert same(saved, gallery) and problems == ["manifest.json is missing or damaged"]


def test_salvage_says_that_removals_are_forgotten(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    gallery.remove([5, 6])
    gallery.save()
    log = tmp_path / "g" / "log-1.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    saved, problems = salvage_index(tmp_path / "g")
    assert len(saved) == 3000 and "log-1.jsonl is cut short" in problems[0]


def test_nothing_to_salvage(tmp_path) -> None:
    make(tmp_path / "g")
    (tmp_path / "g" / "log-1.jsonl").unlink()
    with pytest.raises(GalleryError, match=r"log-1\.jsonl is missing.*Nothing can be saved"):
        load_index(tmp_path / "g")


def test_a_folder_damaged_under_a_writer_is_not_written_to(tmp_path) -> None:
    gallery = make(tmp_path / "g")
    cut(tmp_path / "g" / "vectors-1.bin", 0.5)
    gallery.add(np.ones((1, 8)), ["new"])
    with pytest.raises(GalleryError, match="cut short"):
        gallery.save()
    assert (tmp_path / "g" / "vectors-1.bin").stat().st_size == 3000 * 32 / 2


def test_folders_that_are_no_galleries(tmp_path) -> None:
    with pytest.raises(GalleryError, match="There is no folder"):
        load_index(tmp_path / "none")
    with pytest.raises(GalleryError, match="is not a gallery"):
        load_index(tmp_path, write=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "vector.index").touch()
    with pytest.raises(GalleryError, match=r"index of PaddleX.*ovs index import"):
        load_index(tmp_path)
    with pytest.raises(GalleryError, match="is not a gallery"):
        load_index(Path(__file__))


@pytest.mark.parametrize("name", ["milvus://host/drinks", "a\0b", None, 3])
def test_what_can_be_no_folder(tmp_path, monkeypatch, name: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if name is not None:  # which is the gallery's own
        with pytest.raises(ConfigError):
            Gallery(2).save(name)
    for function in (load_folder, salvage_index, import_paddlex, partial(export_paddlex, Gallery(2))):
        with pytest.raises(ConfigError):
            function(name)
    assert not list(tmp_path.iterdir())


def test_a_name_too_long_for_a_folder() -> None:
    for function in (load_index, salvage_index, import_paddlex):
        with pytest.raises(GalleryError, match="cannot be read"):
            function("x" * 300)


def test_the_files_of_others_are_left_alone(tmp_path) -> None:
    mine = [tmp_path / "g" / name for name in ("log-final.jsonl", "vectors-old.bin", "graph-of-sales.bin")]
    (tmp_path / "g").mkdir()
    for path in mine:
        path.write_text("mine")
    make(tmp_path / "g").compact()
    assert all(path.read_text() == "mine" for path in mine)
    assert sorted(path.name for path in (tmp_path / "g").glob("vectors-*")) == ["vectors-2.bin", "vectors-old.bin"]


def test_files_that_cannot_be_read_are_named(tmp_path) -> None:
    for name in ("vectors-1.bin", "log-1.jsonl"):
        make(tmp_path / name, count=3)
        (tmp_path / name / name).unlink()
        (tmp_path / name / name).mkdir()  # root may read any file
        with pytest.raises(GalleryError, match=f"{name} cannot be read: Is a directory"):
            load_index(tmp_path / name)
    with pytest.raises(GalleryError, match="cannot be read: File name too long"):
        load_index(tmp_path / ("x" * 300))
    with pytest.raises(GalleryError, match="cannot be read: File name too long"):
        is_gallery(tmp_path / ("x" * 300))


def test_another_format(tmp_path) -> None:
    make(tmp_path / "g")
    path = tmp_path / "g" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(GalleryError, match="gallery of format 2; this version of ovseg reads format 1"):
        load_index(tmp_path / "g")
    with pytest.raises(GalleryError, match="gallery of format 2"):
        salvage_index(tmp_path / "g")


READ_ONLY = """
import os, sys
import filelock
from ovseg import SaveError, load_index
load_index(sys.argv[1]).search([0.0] * 8, 1)
if os.getuid() == 0:
    os.setuid(65534)  # after the imports: the interpreter may be root's alone
def lock():
    load_index(sys.argv[1], write=True)
gallery = load_index(sys.argv[1])
print(gallery.search([0.0] * 8, 1)[0].labels)
gallery.remove([1])
for act in (gallery.save, lambda: gallery.save(sys.argv[1] + "/in"), lock):
    try:
        act()
    except SaveError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX")
def test_a_read_only_folder_is_read_and_not_written() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which only its owner may enter
        Path(name).chmod(0o755)
        make(Path(name) / "g")
        (Path(name) / "g").chmod(0o555)
        (Path(name) / "g" / "lock").chmod(0o444)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, f"{name}/g"], capture_output=True, text=True, check=True
        )
        (Path(name) / "g").chmod(0o755)
    assert done.stdout.startswith("['label ") and done.stdout.count("cannot be written") == 3


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch) -> None:
    gallery = make(tmp_path / "g")
    gallery.remove([1])
    gallery.add(np.ones((1, 8)), ["new"])
    real = os.fsync
    for fails_at in range(1, 5):
        calls = 0

        def fsync(handle: int, fails_at: int = fails_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(SaveError, match="No space left"):
            gallery.save()
        monkeypatch.setattr(os, "fsync", real)
        assert len(load_index(tmp_path / "g", verify=True)) == 3000
    gallery.save()
    assert same(gallery, load_index(tmp_path / "g", verify=True))


def test_what_fails_once_the_change_counts_is_a_warning(tmp_path, monkeypatch, caplog) -> None:
    gallery = make(tmp_path / "g")
    flush, calls = storage._flush_folder, 0

    def fails_the_second_time(folder: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(5, "Input/output error")
        flush(folder)

    def fails(path: Path) -> None:
        nonlocal calls
        calls += 1
        raise OSError(5, "Input/output error")

    gallery.add(np.ones((1, 8)), ["new"])
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_flush_folder", fails_the_second_time)
        gallery.save()
    assert calls == 2 and "is saved, and a power cut might undo that: Input/output error." in caplog.text
    assert same(gallery, load_index(tmp_path / "g", verify=True))
    gallery.add(np.ones((1, 8)), ["newer"])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        gallery.compact()
    assert calls == 3 and same(gallery, load_index(tmp_path / "g", verify=True))
    assert len(list((tmp_path / "g").glob("vectors-*"))) == 2
    gallery.compact()
    assert len(list((tmp_path / "g").glob("vectors-*"))) == 1

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from ovseg.errors import ConfigError, GalleryError, SaveError
from ovseg.index import Gallery
from ovseg.index.gallery import load_folder
from ovseg.serve.indexes import IndexFailed, IndexStore, UnknownIndex

VECTORS = np.eye(4, dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore(tmp_path / "indexes", max_open=2)


def new(store: IndexStore) -> str:
    gallery = Gallery(4)
    gallery.add(VECTORS[:2], ["a", "b"])
    key, ids = store.create(gallery)
    assert ids == {"0": "a", "1": "b"}
    return key


def test_changes_are_in_the_folder(store: IndexStore, tmp_path: Path) -> None:
    key = new(store)
    assert store.get(key).add(VECTORS[2:3], ["c"]) == {"0": "a", "1": "b", "2": "c"}
    assert store.get(key).remove([0]) == {"1": "b", "2": "c"}
    again = IndexStore(tmp_path / "indexes").get(key)
    assert again.id_map() == {"1": "b", "2": "c"}
    assert again.search(VECTORS[2:3], 1)[0].labels == ["c"]


def test_an_index_stays_open(store: IndexStore) -> None:
    keys = [new(store) for _ in range(3)]
    first = store.get(keys[0])
    assert store.get(keys[0]) is first
    store.get(keys[1]), store.get(keys[2])
    assert store.get(keys[0]) is not first  # only two are kept


@pytest.mark.parametrize(
    "key", ["", ".", "..", "../x", "a/../b", "/etc", "a\\b", "a.b", "a\0b", "a" * 65, "-a", "%2e%2e", "\ud800"]
)
def test_a_key_cannot_leave_the_folder(store: IndexStore, tmp_path: Path, key: str) -> None:
    Gallery(4).save(tmp_path / "x")
    new(store)
    with pytest.raises(UnknownIndex):
        store.get(key)


def test_a_link_cannot_leave_the_folder(store: IndexStore, tmp_path: Path) -> None:
    Gallery(4).save(tmp_path / "elsewhere")
    new(store)
    (tmp_path / "indexes" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnknownIndex):
        store.get("link")


def test_concurrent_writers_lose_nothing(store: IndexStore) -> None:
    key = new(store)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for i in range(5):
                store.get(key).add(VECTORS[:1], [f"{number} {i}"])
                store.get(key).search(VECTORS[:1], 3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    labels = list(store.get(key).id_map().values())
    assert sorted(labels) == sorted(["a", "b", *(f"{n} {i}" for n in range(6) for i in range(5))])


def test_another_process_may_write_as_well(store: IndexStore, tmp_path: Path) -> None:
    key = new(store)
    mine = store.get(key)
    with load_folder(tmp_path / "indexes" / key, write=True) as other:
        other.add(VECTORS[2:3], ["theirs"])
        other.save()
    assert mine.add(VECTORS[3:], ["mine"]) == {"0": "a", "1": "b", "2": "theirs", "3": "mine"}
    with load_folder(tmp_path / "indexes" / key, write=True) as other:
        other.remove([2])
        other.save()
    assert store.get(key).id_map() == {"0": "a", "1": "b", "3": "mine"}


def test_other_processes_may_be_quicker_several_times(
    store: IndexStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = store.get(new(store))
    save, times = Gallery.save, iter(range(5))

    def late(gallery: Gallery) -> None:
        if next(times, None) is not None:
            with load_folder(tmp_path / "indexes" / index.key, write=True) as other:
                other.add(VECTORS[2:3], ["theirs"])
                save(other)
        save(gallery)

    monkeypatch.setattr(Gallery, "save", late)
    assert list(index.add(VECTORS[3:], ["mine"]).values()) == ["a", "b", *["theirs"] * 5, "mine"]


def test_a_change_that_cannot_be_saved_is_not_in_memory(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new(store)
    index = store.get(key)

    def full(*_: object, **__: object) -> None:
        raise SaveError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("ovseg.index.storage.append", full)
        with pytest.raises(IndexFailed):
            index.add(VECTORS[2:3], ["c"])
    assert index.id_map() == {"0": "a", "1": "b"}
    assert index.add(VECTORS[2:3], ["d"]) == {"0": "a", "1": "b", "2": "d"}


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "indexes").write_text("")
    with pytest.raises(ConfigError, match="no folder"):
        IndexStore(tmp_path / "indexes")


def test_an_index_that_cannot_be_saved_leaves_nothing(store: IndexStore, tmp_path: Path) -> None:
    """Files of this process may not grow beyond a kilobyte, so that writing fails as on a full disk."""
    gallery = Gallery(4)
    gallery.add(np.ones((1000, 4), np.float32), ["a"] * 1000)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(SaveError):
            store.create(gallery)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / "indexes").iterdir()) == []


def test_unknown_ids(store: IndexStore) -> None:
    index = store.get(new(store))
    with pytest.raises(GalleryError, match="7"):
        index.remove([0, 7])
    assert index.id_map() == {"0": "a", "1": "b"}


def test_damage_names_no_files(store: IndexStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = new(store)
    (tmp_path / "indexes" / key / "manifest.json").write_text("{")
    with pytest.raises(IndexFailed) as caught:
        store.get(key)
    assert str(tmp_path) not in str(caught.value) and str(tmp_path) in caplog.text


def test_kill_9_loses_no_committed_change(tmp_path: Path) -> None:
    """The process says each change that was committed; after the kill, all that it said are there."""
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from ovseg.index import Gallery
        from ovseg.serve.indexes import IndexStore

        store = IndexStore(Path(sys.argv[1]))
        gallery = Gallery(4)
        gallery.add(np.eye(4, dtype=np.float32), list("abcd"))
        key, _ = store.create(gallery)
        print(key, flush=True)
        for number in range(100000):
            store.get(key).add(np.eye(4, dtype=np.float32)[:1], [str(number)])
            print(number, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    said = [process.stdout.readline().strip() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    store = IndexStore(tmp_path)
    labels = list(store.get(key).id_map().values())
    assert labels[: 4 + len(said)] == [*"abcd", *said] and len(labels) <= 5 + len(said)
    assert store.get(key).add(VECTORS[:1], ["after"])

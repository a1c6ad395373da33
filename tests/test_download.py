from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from file_server import FileServer

from ovseg.cache import ensure_space, record_checksum, recorded_checksum
from ovseg.download import ATTEMPTS, NotOnServer, download
from ovseg.errors import DownloadError

CONTENT = random.Random(1).randbytes(900_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.tar"


def folder_of(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_download_gives_the_file_its_checksum_and_nothing_else(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    seen: list[tuple[int, int | None]] = []
    found = download(file_server.url("a"), target, sha256=SHA256, progress=lambda *step: seen.append(step))
    assert found == SHA256
    assert target.read_bytes() == CONTENT
    assert folder_of(target) == ["model.tar"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_closed_connection_is_resumed_where_it_stopped(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000, 250_000]
    assert download(file_server.url("a"), target) == SHA256
    assert [asked for _, asked in file_server.log] == [None, "bytes=300000-", "bytes=550000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError, match="300000 of 900000 bytes"):
        download(file_server.url("a"), target)
    assert not target.exists()
    assert folder_of(target) == ["model.tar.part", "model.tar.part.json"]
    file_server.log.clear()
    assert download(file_server.url("a"), target, sha256=SHA256) == SHA256
    assert file_server.log == [("/a", "bytes=300000-")]


def test_attempts_that_get_further_do_not_count(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [50_000] * (2 * ATTEMPTS)
    assert download(file_server.url("a"), target) == SHA256
    assert len(file_server.log) == 2 * ATTEMPTS + 1


def test_a_server_without_ranges_starts_again(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.ranges = False
    file_server.cut_after = [300_000]
    assert download(file_server.url("a"), target) == SHA256
    assert target.stat().st_size == len(CONTENT)


def test_a_server_without_ranges_that_always_stops_is_given_up(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.ranges = False
    file_server.cut_after = [300_000] * 100
    with pytest.raises(DownloadError, match="closed the connection after 300000"):
        download(file_server.url("a"), target)
    assert len(file_server.log) == ATTEMPTS + 1


def test_another_file_on_the_server_is_not_appended_to_the_first(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        download(file_server.url("a"), target)
    other = random.Random(2).randbytes(len(CONTENT))
    file_server.files["a"] = other
    file_server.cut_after.clear()
    file_server.log.clear()
    assert download(file_server.url("a"), target) == hashlib.sha256(other).hexdigest()
    assert file_server.log == [("/a", "bytes=300000-")]  # If-Range: one request is enough


def test_another_file_is_seen_where_the_server_ignores_if_range(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        download(file_server.url("a"), target)
    other = random.Random(2).randbytes(len(CONTENT))
    file_server.files["a"] = other
    file_server.cut_after.clear()
    file_server.if_range = False
    assert download(file_server.url("a"), target) == hashlib.sha256(other).hexdigest()


def test_another_size_under_the_same_etag_starts_again(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        download(file_server.url("a"), target)
    note = target.with_name("model.tar.part.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"size": len(CONTENT) + 1}))
    file_server.cut_after.clear()
    file_server.log.clear()
    assert download(file_server.url("a"), target) == SHA256
    assert [asked for _, asked in file_server.log] == ["bytes=300000-", None]


@pytest.mark.parametrize("etag", ["weak", ""])
def test_without_a_strong_validator_nothing_is_resumed(etag: str, file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.etag = etag
    file_server.cut_after = [300_000]
    assert download(file_server.url("a"), target) == SHA256
    assert [asked for _, asked in file_server.log] == [None, None]


def test_a_whole_part_is_not_downloaded_again(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.cut_after = [300_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        download(file_server.url("a"), target)
    target.with_name("model.tar.part").write_bytes(CONTENT)
    file_server.log.clear()
    assert download(file_server.url("a"), target) == SHA256
    assert file_server.log == []


def test_a_wrong_checksum_says_both_and_leaves_nothing(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    with pytest.raises(DownloadError) as error:
        download(file_server.url("a"), target, sha256="0" * 64)
    assert "0" * 64 in error.value.cause and SHA256 in error.value.cause
    assert folder_of(target) == []


def test_passing_trouble_is_tried_again(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = CONTENT
    file_server.statuses = [503, 429, 500]
    assert download(file_server.url("a"), target) == SHA256


def test_a_missing_file_is_not_tried_again(file_server: FileServer, target: Path) -> None:
    with pytest.raises(NotOnServer, match="404"):
        download(file_server.url("nothing"), target)
    assert len(file_server.log) == 1


def test_no_server_at_all(file_server: FileServer, target: Path) -> None:
    with pytest.raises(DownloadError, match="could not be downloaded"):
        download("http://127.0.0.1:9/a", target)


def test_offline_asks_nobody(file_server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_server.files["a"] = CONTENT
    monkeypatch.setenv("OVSEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match="OVSEG_OFFLINE"):
        download(file_server.url("a"), target)
    assert file_server.log == []
    monkeypatch.setenv("OVSEG_OFFLINE", "0")
    assert download(file_server.url("a"), target) == SHA256


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(file_server: FileServer, target: Path) -> None:
    file_server.files["a"] = b"x"
    file_server.announced = 1 << 60
    with pytest.raises(DownloadError, match="are needed in") as error:
        download(file_server.url("a"), target)
    assert "OVSEG_HOME" in error.value.cure
    assert len(file_server.log) == 1
    with pytest.raises(DownloadError, match="are needed in"):
        ensure_space(target.parent, 1 << 60)


def test_a_folder_that_cannot_be_made(file_server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be created"):
        download(file_server.url("a"), tmp_path / "file" / "a")


def test_only_http(target: Path) -> None:
    with pytest.raises(DownloadError, match="not an http or https address"):
        download("file:///etc/passwd", target)


def test_recorded_checksums_are_kept_by_url(home: Path) -> None:
    assert recorded_checksum("http://a") is None
    record_checksum("http://a", SHA256)
    record_checksum("http://b", "1" * 64)
    assert recorded_checksum("http://a") == SHA256
    (home / "checksums.json").write_text("{")
    with pytest.raises(DownloadError, match="not valid JSON"):
        recorded_checksum("http://a")

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from file_server import tar_of

from ovseg import archives
from ovseg.archives import unpack
from ovseg.errors import DownloadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    return folder


def archive_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return path


def zip_of(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return buffer.getvalue()


def tar_with(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


FILES = {"top/a.onnx": b"aaa", "top/sub/b.bin": b"bb"}


@pytest.mark.parametrize(
    "content",
    [tar_of(FILES), tar_of(FILES, "w:gz"), tar_of(FILES, "w:xz"), zip_of(*FILES.items())],
    ids=["tar", "tar.gz", "tar.xz", "zip"],
)
def test_unpack_gives_the_one_top_folder(content: bytes, tmp_path: Path, folder: Path) -> None:
    top = unpack(archive_of(tmp_path, content), folder)
    assert top == folder / "top"
    assert (top / "a.onnx").read_bytes() == b"aaa"
    assert (top / "sub" / "b.bin").read_bytes() == b"bb"


def test_unpack_gives_the_folder_itself_when_files_lie_loose(tmp_path: Path, folder: Path) -> None:
    assert unpack(archive_of(tmp_path, tar_of({"a": b"1", "b/c": b"2"})), folder) == folder


OUTSIDE = ["../evil", "{outside}/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_member_leaves_the_folder(kind: str, name: str, tmp_path: Path, folder: Path) -> None:
    name = name.format(outside=tmp_path)
    content = tar_of({name: b"evil"}) if kind == "tar" else zip_of((name, b"evil"))
    before = sorted(tmp_path.rglob("*"))
    path = archive_of(tmp_path, content)
    with pytest.raises(DownloadError, match="outside of the folder"):
        unpack(path, folder)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "../../up"),
        special("link", tarfile.SYMTYPE, "a.onnx"),
        special("hard", tarfile.LNKTYPE, "../../up"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.linkname}",
)
def test_links_and_devices_are_refused(member: tarfile.TarInfo, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DownloadError, match="neither a plain file nor a folder"):
        unpack(archive_of(tmp_path, tar_with(tarfile.TarInfo("a.onnx"), member)), folder)
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]


def test_a_file_is_not_written_through_a_link(tmp_path: Path, folder: Path) -> None:
    through = tarfile.TarInfo("link/evil")
    content = tar_with(special("link", tarfile.SYMTYPE, str(tmp_path)), through)
    with pytest.raises(DownloadError):
        unpack(archive_of(tmp_path, content), folder)
    assert not (tmp_path / "evil").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(DownloadError, match="neither a plain file"):
        unpack(archive_of(tmp_path, zip_of((link, b"/etc/passwd"))), folder)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_is_refused_before_it_is_written(kind: str, tmp_path: Path, folder: Path) -> None:
    zeros = bytes(archives.FREE_BYTES + 1)
    content = gzip.compress(tar_of({"zeros": zeros}), 1) if kind == "tar.gz" else zip_of(("zeros", zeros))
    with pytest.raises(DownloadError, match="unpacks to far more"):
        unpack(archive_of(tmp_path, content), folder)
    assert list(folder.iterdir()) == []


def test_too_many_members_are_refused(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(DownloadError, match="unpacks to far more"):
        unpack(archive_of(tmp_path, tar_of({str(i): b"" for i in range(4)})), folder)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path, folder: Path) -> None:
    content = tar_with(tarfile.TarInfo("a"), tarfile.TarInfo("a"))
    with pytest.raises(DownloadError, match="twice"):
        unpack(archive_of(tmp_path, content), folder)


def test_a_page_instead_of_an_archive(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DownloadError, match="neither a tar nor a zip"):
        unpack(archive_of(tmp_path, b"<html>please log in</html>"), folder)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_cut_short_is_damaged(mode: str, tmp_path: Path, folder: Path) -> None:
    whole = tar_of({"a": bytes(range(256)) * 1000, "b": bytes(range(256)) * 1000}, mode)
    with pytest.raises(DownloadError, match=r"damaged|neither"):
        unpack(archive_of(tmp_path, whole[: len(whole) // 2]), folder)


def test_a_member_shorter_than_stated_is_refused(tmp_path: Path, folder: Path) -> None:
    content = bytearray(zip_of(("a", b"abc")))
    # The uncompressed size in the central directory (APPNOTE 4.3.12) is at offset 24.
    content[content.index(b"PK\x01\x02") + 24] += 1
    with pytest.raises(DownloadError, match=r"its size is not|damaged"):
        unpack(archive_of(tmp_path, bytes(content)), folder)


def test_a_changed_byte_in_a_zip_is_damaged(tmp_path: Path, folder: Path) -> None:
    content = bytearray(zip_of(("a", bytes(range(256)) * 100)))
    content[60] ^= 0xFF
    with pytest.raises(DownloadError, match="damaged"):
        unpack(archive_of(tmp_path, bytes(content)), folder)


def test_a_name_in_a_zip_that_is_not_its_encoding_is_damaged(tmp_path: Path, folder: Path) -> None:
    content = zip_of(("mé", b"a")).replace("é".encode(), b"\xff\xff")
    with pytest.raises(DownloadError, match="damaged"):
        unpack(archive_of(tmp_path, content), folder)


@pytest.mark.parametrize("end", ["changed", "missing"])
def test_a_gzip_whose_checksum_is_wrong_or_missing_is_refused(end: str, tmp_path: Path, folder: Path) -> None:
    content = gzip.compress(tar_of({"model/inference.yml": b"a: 1", "model/weights": bytes(range(256)) * 40}))
    checksum, rest = content[-8:-4], content[-4:]
    ending = bytes(255 - byte for byte in checksum) + rest if end == "changed" else b""
    with pytest.raises(DownloadError):
        unpack(archive_of(tmp_path, content[:-8] + ending), folder)
    unpack(archive_of(tmp_path, content), tmp_path / "outer")

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg import GalleryError
from ovseg.index.label_file import read_id_file, read_label_file


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("0/0.jpg 脉动\n", [("0/0.jpg", "脉动")]),
        ("a.jpg Red Bull, 250 ml\nb.jpg x", [("a.jpg", "Red Bull, 250 ml"), ("b.jpg", "x")]),
        ("a.jpg\tRed Bull\nmy pictures/b 1.jpg\tx y\n", [("a.jpg", "Red Bull"), ("my pictures/b 1.jpg", "x y")]),
        ("\ufeffa.jpg one\r\n\r\n  b.jpg   two  \r\n", [("a.jpg", "one"), ("b.jpg", "two")]),
        ("a.jpg o\u2028ne\rb.jpg two", [("a.jpg", "o\u2028ne"), ("b.jpg", "two")]),
    ],
)
def test_labels(tmp_path: Path, text: str, items: list[tuple[str, str]]) -> None:
    (tmp_path / "gallery.txt").write_bytes(text.encode())
    assert list(zip(*read_label_file(tmp_path / "gallery.txt"), strict=True)) == items


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a.jpg one\nb.jpg\n\nc.jpg two\n\td\n", r"no label in 2 of its lines \(line 2: 'b\.jpg'; line 5: 'd'\)"),
        (b"x\n" * 30, "no label in 30 .*and 20 more"),
        (b"a.jpg one\nb.jpg \xff\n", r"Line 2 of .*gallery\.txt is not UTF-8"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n \n", "is empty"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "gallery.txt").write_bytes(data)
    with pytest.raises(GalleryError, match=says):
        read_label_file(tmp_path / "gallery.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for read in (read_label_file, read_id_file):
        with pytest.raises(GalleryError, match="There is no file"):
            read(tmp_path / "none.txt")
        for path in (tmp_path, "a\0b"):
            with pytest.raises(GalleryError, match="cannot be read"):
                read(path)


def test_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbf12 red bull\r\n\r\n7\n")
    assert read_id_file(path) == [12, 7]
    path.write_text("1\nnorth\n2.5\n")
    with pytest.raises(GalleryError, match=r"no id in 2 of its lines \(line 2: 'north'; line 3: '2\.5'\)"):
        read_id_file(path)

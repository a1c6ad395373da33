"""Lists of a gallery's pictures with their labels, and of ids, as text files."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import GalleryError

# How many bad lines a message names.
_SHOWN = 10


def read_label_file(path: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Read a list of pictures: a path and a label a line.

    The first tab separates them, or the first space in a line without a tab; so a label may have spaces, and a path
    too where a tab follows it. UTF-8, with or without a byte order mark, with any line ends; empty lines are left out.

    Returns:
        Paths and labels.

    Raises:
        GalleryError: the file cannot be read, holds no line, or has bad ones: all are named by number.
    """
    paths, labels, bad = [], [], []
    for number, line in _lines(path, "a path and a label a line"):
        separator = "\t" if "\t" in line else " "
        name, _, label = line.partition(separator)
        if name.strip() and label.strip():
            paths.append(name.strip())
            labels.append(label.strip())
        else:
            bad.append((number, line))
    _refuse(path, bad, "no label", "Write a path, a space or a tab, and a label in each line.")
    if not paths:
        raise GalleryError(f"{path} is empty.", "Write a path, a space or a tab, and a label in each line.")
    return paths, labels


def read_id_file(path: str | os.PathLike[str]) -> list[int]:
    """Read a list of ids: each line begins with one.

    Raises:
        GalleryError: the file cannot be read, or has bad lines: all are named by number.
    """
    ids, bad = [], []
    for number, line in _lines(path, "an id a line"):
        try:
            ids.append(int(line.split()[0]))
        except ValueError:
            bad.append((number, line))
    _refuse(path, bad, "no id", "Begin each line with an id.")
    return ids


def _lines(path: str | os.PathLike[str], form: str) -> list[tuple[int, str]]:
    """Return the lines that are not empty, each with its number."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise GalleryError(f"There is no file {path}.", f"Name a text file with {form}.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise GalleryError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", f"Name a text file with {form}."
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise GalleryError(f"Line {number} of {path} is not UTF-8.", "Save the file as UTF-8.") from error
    # Not splitlines(), which also splits at characters that labels may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _refuse(path: str | os.PathLike[str], bad: list[tuple[int, str]], what: str, cure: str) -> None:
    if not bad:
        return
    shown = "; ".join(f"line {number}: {line[:60]!r}" for number, line in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise GalleryError(f"{path} has {what} in {len(bad)} of its lines ({shown}{more}).", cure)

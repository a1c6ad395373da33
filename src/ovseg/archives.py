"""Unpack an archive that somebody else made: nothing leaves the folder, nothing fills the disk."""

from __future__ import annotations

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from .cache import ensure_space
from .errors import DownloadError

MAX_MEMBERS = 10_000
MAX_RATIO = 20
"""Weights hardly compress: unpacked bytes per byte of archive, beyond which it is taken for a bomb."""
_MOST_PADDING = 64
"""Megabytes that a tar may hold after its last member."""
FREE_BYTES = 64 << 20
"""Unpacked bytes that are always allowed."""

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    UnicodeError,  # zip: a name that is not the UTF-8 it is said to be
    NotImplementedError,  # zip: an unknown compression
    RuntimeError,  # zip: encrypted
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: IO[bytes] | None  # None: a folder


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip file (told by content) into the empty `folder`.

    Only folders and plain files are made. Links are refused whatever they point at: models have none, and
    without them a name that is checked once cannot lead elsewhere later.

    Returns:
        `folder`, or its one sub-folder if that is all the archive holds.

    Raises:
        DownloadError: not an archive, a damaged one, a member that may not be made, too large, or no space.

    """
    limit = max(FREE_BYTES, MAX_RATIO * archive.stat().st_size)
    unpacked, members = 0, 0
    try:
        with _members(archive) as listing:
            for member in listing:
                members += 1
                unpacked += member.size
                if unpacked > limit or members > MAX_MEMBERS:
                    raise _refused(archive, member.name, "it unpacks to far more than a model of its size")
                path = folder / _safe_name(archive, member.name)
                if member.open is None:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                ensure_space(folder, member.size)
                path.parent.mkdir(parents=True, exist_ok=True)
                # "x": a name that comes twice is refused instead of overwritten.
                with member.open as source, path.open("xb") as target:
                    _copy(source, target, member.size, archive, member.name)
    except FileExistsError as failure:
        raise DownloadError(f"{archive} holds {failure.filename} twice.", "Do not use it.") from failure
    except _DAMAGED as failure:
        raise DownloadError(f"{archive} is damaged: {failure}.", "Delete it and download it again.") from failure
    except OSError as failure:
        raise DownloadError(f"{archive} could not be unpacked: {failure}.", "Check space and permissions.") from failure
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def is_archive(path: Path) -> bool:
    """Tell whether a file begins as a tar, or ends as a zip."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def _copy(source: IO[bytes], target: IO[bytes], size: int, archive: Path, name: str) -> None:
    """Copy `size` bytes: the size in the header is what was counted, so it is what is written."""
    left = size
    while left and (chunk := source.read(min(left, 1 << 20))):
        target.write(chunk)
        left -= len(chunk)
    if left:
        raise _refused(archive, name, "its size is not the one that the archive states")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if not is_archive(archive):
        raise DownloadError(f"{archive} is neither a tar nor a zip archive.", "Delete it and download it again.")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield _zip_members(archive, packed)
        return
    with tarfile.open(archive) as tar:
        yield _tar_members(archive, tar)
        # The checksum of a compressed file stands at its end, which no member reaches.
        for _ in range(_MOST_PADDING):
            if tar.fileobj is None or not tar.fileobj.read(1 << 20):
                return
    raise DownloadError(f"{archive} does not end where its last member does.", "Do not use it.")


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    # One by one: what comes after a member is only decompressed once that member has been allowed.
    for member in tar:
        if member.isdir():
            yield _Member(member.name, 0, None)
        elif member.isreg() and not member.issparse():
            yield _Member(member.name, member.size, tar.extractfile(member))
        else:
            raise _refused(archive, member.name, "it is neither a plain file nor a folder")


def _zip_members(archive: Path, packed: zipfile.ZipFile) -> Iterator[_Member]:
    for member in packed.infolist():
        # The upper half is the Unix mode; 0 where the archive comes from a system without one.
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir():
            yield _Member(member.filename, 0, None)
        elif kind in (0, stat.S_IFREG):
            yield _Member(member.filename, member.file_size, packed.open(member))
        else:
            raise _refused(archive, member.filename, "it is neither a plain file nor a folder")


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    # Backslashes and drive letters are names here and paths on Windows.
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise _refused(archive, name, "it would be written outside of the folder")
    return path


def _refused(archive: Path, name: str, reason: str) -> DownloadError:
    return DownloadError(f"{archive}: member '{name}' is refused: {reason}.", "Do not use this archive.")

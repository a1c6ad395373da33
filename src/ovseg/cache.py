"""Where downloaded and exported models lie on this machine, and who may write there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DownloadError


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with its `~` or `~name` expanded, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user: then it is the name of a file
        return Path(path)


def cache_dir() -> Path:
    """Return the cache folder: `OVSEG_HOME`, else `ovseg` in the cache folder of the user."""
    home = os.environ.get("OVSEG_HOME")
    if home:
        return expand(home).absolute()
    import platformdirs

    return platformdirs.user_cache_path("ovseg", appauthor=False)


def models_dir() -> Path:
    """Return the folder of the model folders."""
    return cache_dir() / "models"


def archives_dir() -> Path:
    """Return the folder of the downloaded archives."""
    return cache_dir() / "archives"


def engines_dir() -> Path:
    """Return the folder of what execution providers compile, such as TensorRT's engines."""
    return cache_dir() / "engines"


def tuned_dir() -> Path:
    """Return the folder of the settings that `ovs tune` found."""
    return cache_dir() / "tuned"


def checksums_file() -> Path:
    """Return the file that maps each URL without a published SHA-256 to the one of its first download."""
    return cache_dir() / "checksums.json"


def make_folder(folder: Path) -> Path:
    """Create `folder` if it is not there and return it.

    Raises:
        DownloadError: it cannot be created.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise DownloadError(
            f"The cache folder {folder} cannot be created: {failure.strerror}.",
            "Set OVSEG_HOME to a folder that you may write.",
        ) from failure
    return folder


@contextmanager
def locked(name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `name` of the cache: one writer at a time, among threads and processes.

    Args:
        name: model name, or another word that can be a file name.
        on_wait: called once if somebody else holds the lock and this call waits.

    """
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(cache_dir() / "locks") / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait:
            on_wait()
        lock.acquire()
    except OSError as failure:
        raise DownloadError(
            f"The cache {cache_dir()} cannot be locked: {failure.strerror}.",
            "Set OVSEG_HOME to a folder that you may write, on a local disk.",
        ) from failure
    try:
        yield
    finally:
        lock.release()


def ensure_space(folder: Path, size: int) -> None:
    """Raise DownloadError unless the disk of `folder` has room for `size` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DownloadError(
            f"{size / 1e6:.1f} MB are needed in {folder} and {free / 1e6:.1f} MB are free.",
            "Free some space, or use a folder on another disk: --out of an export, OVSEG_HOME for the cache.",
        )


def recorded_checksum(url: str) -> str | None:
    """Return the SHA-256 that the first download of `url` had, or None."""
    checksum = _read_checksums().get(url)
    return checksum if isinstance(checksum, str) else None


def record_checksum(url: str, sha256: str) -> None:
    """Remember the SHA-256 of `url`, for later downloads to be compared with."""
    # All models share the file, so the lock of one model is not enough.
    with locked(".checksums"):
        checksums = _read_checksums() | {url: sha256}
        unfinished = checksums_file().with_suffix(".tmp")
        unfinished.write_text(json.dumps(checksums, indent=1, sort_keys=True), encoding="utf-8")
        unfinished.replace(checksums_file())


def _read_checksums() -> dict[str, object]:
    try:
        content = json.loads(checksums_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as failure:
        # An unreadable record must not turn the check off in silence.
        raise DownloadError(f"{checksums_file()} is not valid JSON: {failure}.", "Repair or delete it.") from failure
    return content if isinstance(content, dict) else {}


def offline() -> bool:
    """Tell whether `OVSEG_OFFLINE` forbids the network."""
    return os.environ.get("OVSEG_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")

"""Bring a model of the zoo onto this machine, and take it away again."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from .archives import is_archive, unpack
from .cache import (
    archives_dir,
    locked,
    make_folder,
    models_dir,
    offline,
    record_checksum,
    recorded_checksum,
)
from .download import NotOnServer, Progress, download, file_sha256
from .errors import DownloadError, MissingExtra, ModelError
from .model_folder import ModelFolder, open_model_folder
from .zoo import (
    Archive,
    ModelSpec,
    bundled_dir,
    find_model,
    installed_dir,
    model_spec,
)


def pull_model(
    name: str, *, progress: Progress | None = None, notify: Callable[[str], None] = lambda message: None
) -> ModelFolder:
    """Download the model `name`, make its folder in the cache and return it; at once if it is there already.

    One process at a time works on a model; another that asks for it waits and finds it done.

    Args:
        name: model name.
        progress: told the bytes received, see `download.Progress`.
        notify: told in words what happens.

    Raises:
        ModelError: no such model, or the archive does not hold it.
        DownloadError: see `download.download` and `archives.unpack`.
        MissingExtra: the archive is Paddle's and the export stage is not installed; the archive is kept.

    """
    if installed_dir(name) is not None:
        return find_model(name)
    spec = model_spec(name)
    if spec.bundled:
        return find_model(name)  # raises: it should be here
    with locked(name, lambda: notify(f"waiting for another process that pulls {name}")):
        if installed_dir(name) is not None:
            return find_model(name)
        for leftover in make_folder(models_dir()).glob(f".{name}.tmp-*"):
            shutil.rmtree(leftover)
        archive, path = fetch_archive(spec, progress, notify)
        export_model = _load_exporter(spec, path) if archive.format == "paddle" else None
        with _scratch(name) as scratch, _scratch(name) as exported:
            notify(f"unpacking {path.name}")
            unpacked = unpack(path, scratch)
            if export_model is None:
                return _install(spec, unpacked)
            notify(f"exporting {name} to ONNX")
            export_model(unpacked, exported, name=name, origin=archive.url, progress=notify)
            return _install(spec, exported)


def remove_model(name: str) -> list[Path]:
    """Delete the model `name` and its archives from the cache; return what was deleted.

    Raises:
        ModelError: it ships with ovseg, it is not in the cache, or there is no such model.

    """
    if installed_dir(name) == bundled_dir(name):
        raise ModelError(f"{name} ships with ovseg and is not in the cache.", "There is nothing to remove.")
    if installed_dir(name) is None:
        model_spec(name)
    with locked(name):
        there = [folder for folder in (models_dir() / name, archives_dir() / name) if folder.exists()]
        for folder in there:
            shutil.rmtree(folder)
    if not there:
        raise ModelError(f"The model {name} is not in the cache.", "There is nothing to remove.")
    return there


def fetch_archive(spec: ModelSpec, progress: Progress | None, notify: Callable[[str], None]) -> tuple[Archive, Path]:
    """Return the first archive of `spec` that is in the cache or on its server, and its path.

    The caller holds the lock of the model (`cache.locked`).

    Raises:
        DownloadError: see `download.download`; or the archive in the cache has another checksum.

    """
    targets = [(archive, _archive_path(spec, archive)) for archive in spec.archives]
    for archive, path in targets:
        if path.is_file():
            found, expected = file_sha256(path), archive.sha256 or recorded_checksum(archive.url)
            if found != (expected or found):
                raise DownloadError(
                    f"{path} has SHA-256 {found}, and {expected} was expected.",
                    f"Run `ovs models rm {spec.name}` and pull again.",
                )
            return archive, path
    for index, (archive, path) in enumerate(targets, start=1):
        if not offline():  # else download says so
            notify(f"downloading {archive.url}")
        try:
            download_archive(archive.url, path, sha256=archive.sha256, progress=progress)
        except NotOnServer as failure:
            if index == len(targets):
                raise
            notify(failure.cause)
            continue
        return archive, path
    raise ModelError(f"The zoo gives no archive of {spec.name}.", "Give its folder as model_dir.")


def download_archive(url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Download an archive to `path`; where no checksum is published, later downloads must equal the first one.

    What is no archive, such as the login page of a network, is neither kept nor taken for the first one.

    Raises:
        DownloadError: see `download.download`; or what came is no archive.

    """
    expected = sha256 or recorded_checksum(url)
    found = download(url, path, sha256=expected, progress=progress)
    if not is_archive(path):
        path.unlink()
        raise DownloadError(
            f"What {url} gives is neither a tar nor a zip archive.",
            "Check the address, and whether a proxy or a login page answers instead.",
        )
    if expected is None:
        record_checksum(url, found)


def archive_name(url: str) -> str:
    """The file name at the end of an address; `archive` where there is none.

    Raises:
        DownloadError: it is no address.

    """
    try:
        return PurePosixPath(urlsplit(url).path).name or "archive"
    except ValueError as failure:
        raise DownloadError(f"{url} is no address: {failure}.", "Correct it.") from failure


def _archive_path(spec: ModelSpec, archive: Archive) -> Path:
    # Releases of a model have the same file name: the address tells them apart.
    address = hashlib.sha256(archive.url.encode()).hexdigest()[:8]
    return archives_dir() / spec.name / f"{address}-{archive_name(archive.url)}"


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """Give an empty folder beside the models, where a rename can put it in place; delete what is left."""
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=make_folder(models_dir())))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(spec: ModelSpec, folder: Path) -> ModelFolder:
    """Check the finished `folder` and give it its place."""
    found = open_model_folder(folder, verify=True)
    if (found.name, found.family) != (spec.name, spec.family):
        raise ModelError(
            f"The archive holds {found.name} ({found.family}), not {spec.name} ({spec.family}).",
            "Correct the address in the zoo.",
        )
    place = models_dir() / spec.name
    if place.exists():
        raise ModelError(f"{place} is in the way and no model folder.", f"Run `ovs models rm {spec.name}`.")
    folder.chmod(0o755)  # a temporary folder is for its owner only
    folder.rename(place)
    return find_model(spec.name)


def _load_exporter(spec: ModelSpec, archive: Path) -> Any:
    try:
        return importlib.import_module("ovseg_export").export_model
    except ImportError as failure:
        raise MissingExtra(
            f"{spec.name} comes in Paddle's format and the export stage cannot be loaded ({failure}); "
            f"the archive is kept in {archive}.",
            f'Run `pip install "ovseg[export]"` and `ovs models pull {spec.name}` again.',
        ) from failure

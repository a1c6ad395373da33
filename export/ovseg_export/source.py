"""Where a Paddle model comes from: a name of the zoo, a folder, an archive or an address."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg import schema
from ovseg.archives import is_archive, unpack
from ovseg.cache import archives_dir, expand, locked, recorded_checksum
from ovseg.download import Progress, file_sha256
from ovseg.errors import DownloadError, ModelError
from ovseg.pull import archive_name, download_archive, fetch_archive
from ovseg.zoo import model_spec

Say = Callable[[str], None]


@dataclass(frozen=True)
class PaddleModel:
    """A Paddle inference model on this machine.

    Attributes:
        program: `inference.json` or `inference.pdmodel`, as published.
        parameters: `inference.pdiparams`.
        config: content of `inference.yml`.
        config_path: where that stands, for messages.
        origin: what the user named: address, archive or folder.

    """

    program: Path
    parameters: Path
    config: Mapping[str, Any]
    config_path: Path
    origin: str


@contextmanager
def open_source(
    source: str | Path,
    *,
    scratch: Path | None = None,
    say: Say = lambda message: None,
    progress: Progress | None = None,
) -> Iterator[PaddleModel]:
    """Have a Paddle model on this machine for as long as the context lasts.

    Args:
        source: model folder, `.tar`, `.tar.gz` or `.zip` archive, http(s) address of an archive, or a name
            of the zoo.
        scratch: folder on a disk with room for the unpacked archive; the system's temporary one if left out.
        say: told in words what happens.
        progress: told the bytes received, see `ovseg.download.Progress`.

    Raises:
        DownloadError: the download failed or its checksum differs; a damaged archive.
        ModelError: there is no such source, or it is not a whole Paddle model.

    """
    with tempfile.TemporaryDirectory(prefix="ovseg-source-", dir=scratch) as room:
        found, origin = _locate(str(source), say, progress)
        if found.is_file():
            say(f"unpacking {found.name}")
            unpacked = Path(room) / "archive"
            unpacked.mkdir()
            found = unpack(found, unpacked)
        yield _open_folder(found, origin)


def _locate(source: str, say: Say, progress: Progress | None) -> tuple[Path, str]:
    """The folder or archive that `source` names, and where it comes from."""
    if re.match(r"https?://", source):
        return _fetch_url(source, say, progress), source
    path = expand(source)
    if path.is_file() and not is_archive(path):
        raise ModelError(f"{path} is no archive.", "Give the folder that holds the model, or an archive of it.")
    if path.exists():
        return path, path.absolute().name
    if "/" in source or "\\" in source or path.suffix in (".tar", ".gz", ".tgz", ".zip", ".json", ".pdmodel"):
        raise ModelError(f"There is no file or folder {source}.", "Check the path.")
    spec = model_spec(source)
    if not any(archive.format == "paddle" for archive in spec.archives):
        raise ModelError(f"{source} is no Paddle model: it comes as ONNX.", f"Run `ovs models pull {source}`.")
    with locked(source, lambda: say(f"waiting for another process that pulls {source}")):
        archive, path = fetch_archive(spec, progress, say)
    return path, archive.url


def _fetch_url(url: str, say: Say, progress: Progress | None) -> Path:
    """Download an archive to the cache, or find it there."""
    address = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = archives_dir() / f"url-{address}" / archive_name(url)
    with locked(f"url-{address}", lambda: say(f"waiting for another process that downloads {url}")):
        if path.is_file():
            found, expected = file_sha256(path), recorded_checksum(url)
            if found != (expected or found):
                raise DownloadError(f"{path} has SHA-256 {found}, and {expected} was expected.", "Delete it.")
        else:
            say(f"downloading {url}")
            download_archive(url, path, progress=progress)
    return path


def _open_folder(folder: Path, origin: str) -> PaddleModel:
    folder = _find_folder(folder, origin)
    programs = [folder / name for name in ("inference.json", "inference.pdmodel") if (folder / name).is_file()]
    program = programs[0]  # the newer format needs no translation by Paddle
    parameters, config_path = folder / "inference.pdiparams", folder / "inference.yml"
    for path, holds in ((parameters, "the weights"), (config_path, "the preprocessing and the labels")):
        if not path.is_file():
            raise ModelError(
                f"{origin} is incomplete: {path.name}, which holds {holds}, is missing.",
                "Download or export the model again, whole.",
            )
    if not program.stat().st_size:
        raise ModelError(f"{origin}: {program.name} is empty.", "Download or export the model again, whole.")
    config = schema.read_yaml(config_path, ModelError)
    if not isinstance(config, dict) or not config:
        raise ModelError(
            f"{config_path} holds {schema.shown(config)}, not a mapping.",
            "Use the inference.yml of this model.",
        )
    return PaddleModel(program, parameters, config, config_path, origin)


def _find_folder(folder: Path, origin: str) -> Path:
    """The folder with the program: `folder`, or one of its sub-folders, as fine-tuning leaves it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if any((candidate / name).is_file() for name in ("inference.json", "inference.pdmodel")):
            return candidate
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise ModelError(
        f"{origin} has no inference.json and no inference.pdmodel; it holds {held}.",
        "Give a Paddle inference model: program, inference.pdiparams and inference.yml.",
    )

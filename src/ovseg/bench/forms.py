"""The Paddle archives of our models, for PaddleX and Paddle: made once, by the export stage, and kept in the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..cache import cache_dir, locked
from ..errors import MissingExtra, OvsError
from ..model_folder import ModelFolder
from ..zoo import bundled_dir


class NoArchive(OvsError):  # noqa: N818
    """A model that cannot be written as a Paddle archive."""

    exit_code = 1


def export_stage() -> bool:
    """Whether the export stage and Paddle are installed."""
    return all(importlib.util.find_spec(module) is not None for module in ("ovseg_export", "paddle", "onnx"))


def require_export_stage() -> None:
    """Raise MissingExtra unless Paddle archives can be made here."""
    if not export_stage():
        raise MissingExtra(
            "The comparison needs our models as Paddle archives, which the export stage makes.",
            'Run `pip install "ovseg[export]"`.',
        )


def archive(folder: ModelFolder) -> Path:
    """Return the Paddle archive of the same weights as a model that ships.

    Raises:
        NoArchive: there is no way to make one.
    """
    if folder.path != bundled_dir(folder.name):
        raise NoArchive(f"{folder.name} comes without a Paddle archive.", "Name its archive with --archive.")
    prints = "".join(sorted(str(facts["sha256"]) for facts in folder.facts["files"].values()))
    target = _root() / f"{folder.name}-{hashlib.sha256(prints.encode()).hexdigest()[:12]}"
    return _made(target, folder.name)


def _root() -> Path:
    return cache_dir() / "bench" / "archives"


def _made(target: Path, name: str) -> Path:
    """Let the export stage write an archive, in a process of its own since Paddle may crash."""
    with locked(f"bench-{target.name}"):
        if target.is_dir():
            return target
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "ovseg_export.paddle_forms", name, str(part)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise NoArchive(f"{name} cannot be written as a Paddle archive: {last}.", f"Run {' '.join(command)}.")
        part.replace(target)
    return target

"""The alternatives, each in an environment of its own: made when it is needed, or named by the user."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_dir, expand, locked
from ..errors import ConfigError, MissingExtra, OvsError

Say = Callable[[str], None]


class EnvironmentFailure(OvsError):  # noqa: N818
    """An environment of an alternative that could not be made."""

    exit_code = 1


@dataclass(frozen=True)
class Peer:
    """An alternative.

    Attributes:
        title: how tables call it.
        requirements: what `pip install` gets.
        modules: what must be there to import.
        side: the module in `workers` that runs it.
        archives: whether it reads Paddle archives rather than our ONNX files.
    """

    title: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    side: str
    archives: bool


PEERS: Mapping[str, Peer] = {
    "paddlex": Peer(
        "PaddleX", ("paddlex[cv]==3.7.2", "paddlepaddle==3.2.2"), ("paddlex", "paddle"), "paddlex_side", True
    ),
    "paddle": Peer("Paddle", ("paddlepaddle==3.2.2", "setuptools"), ("paddle",), "paddle_side", True),
    "torch": Peer(
        "PyTorch", ("torch>=2.6", "onnx2torch>=1.5.15"), ("torch", "onnx2torch", "onnx"), "torch_side", False
    ),
    "openvino": Peer("OpenVINO", ("openvino>=2025.0",), ("openvino", "numpy"), "openvino_side", False),
}


def parse_peers(names: Sequence[str], given: Sequence[str]) -> dict[str, Path | None]:
    """Return the alternatives that are asked for, each with its interpreter, or None where one is to be made.

    Args:
        names: of alternatives.
        given: `NAME=PYTHON`: an interpreter that has the packages.

    Raises:
        ConfigError: an alternative that is not known, or an interpreter for one that is not asked for.
    """
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--against names {name!r}, which is not known.", f"Use some of {', '.join(PEERS)}.")
    found: dict[str, Path | None] = dict.fromkeys(names)
    for item in given:
        name, equals, python = item.partition("=")
        if not equals or name not in found:
            raise ConfigError(
                f"--env {item!r} is not an interpreter for something that --against names.",
                "Write it as --against paddlex --env paddlex=/path/to/python.",
            )
        found[name] = expand(python)
    return found


def interpreter(name: str, given: Path | None, say: Say) -> Path:
    """Return an interpreter that has what an alternative needs, making an environment if none is given.

    Raises:
        ConfigError: the interpreter that is given does not run.
        MissingExtra: it lacks a package.
        EnvironmentFailure: the environment cannot be made.
    """
    peer = PEERS[name]
    if given is None:
        return _make(name, peer, say)
    probe = "import importlib.util as u, sys; print('lacks', *[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        done = subprocess.run([str(given), "-c", probe, *peer.modules], capture_output=True, text=True, check=True)
        word, *missing = done.stdout.split() or [""]
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        word, missing = "", []
    if word != "lacks":
        raise ConfigError(f"{given} does not run as a Python interpreter.", "Check --env.")
    if missing:
        packages = " ".join(f'"{requirement}"' for requirement in peer.requirements)
        raise MissingExtra(
            f"{given} lacks {', '.join(missing)}, which the comparison with {peer.title} needs.",
            f"Run `{given} -m pip install {packages}`, or leave --env out to have an environment made.",
        )
    return given


def _make(name: str, peer: Peer, say: Say) -> Path:
    """Return the interpreter of the environment in the cache, made of the peer's requirements the first time."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256(" ".join((version, *peer.requirements)).encode()).hexdigest()[:12]
    folder = cache_dir() / "bench" / f"{name}-{key}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = folder / "finished"  # environments cannot be moved, so this is what tells a whole one
    with locked(f"bench-{name}-{key}"):
        if finished.is_file():
            return python
        say(f"Making an environment with {', '.join(peer.requirements)} in {folder}; this happens once.")
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise EnvironmentFailure(
                    f"An environment for {peer.title} cannot be made: {last}",
                    f"Make one yourself and name it: --env {name}=/path/to/python.",
                )
        finished.touch()
    return python

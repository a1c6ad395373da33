"""Writes a network as an official inference archive: graph, parameters, `inference.yml`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("json", "pdmodel")
_FRESH = "OVSEG_BUILDER_FORMAT"  # set in the process that writes, to its format


@dataclass(frozen=True)
class Blueprint:
    """A network ready to be saved.

    Attributes:
        network: `paddle.nn.Layer` in evaluation mode.
        inputs: `paddle.static.InputSpec` of each input, in the order of `forward`.
        config: What `inference.yml` says.
    """

    network: Any
    inputs: tuple[Any, ...]
    config: Mapping[str, Any]


def write_archive(family: str, out_dir: str | Path, *, seed: int, fmt: str, options: Mapping[str, Any]) -> Path:
    """Build a member of `family` and write it to `out_dir`.

    A fresh process writes it: the format decides Paddle's program representation, which is fixed when Paddle is
    imported, and Paddle's tracer has been seen to crash in a process that did much else before.

    Args:
        family: Name of a module beside this one that has `make(seed=…, **options) -> Blueprint`.
        out_dir: Folder to create; files of an earlier build in it are replaced.
        seed: Decides every weight.
        fmt: `json` (PIR, Paddle 3.0.0 and later) or `pdmodel`.
        options: Keyword arguments of `make`; they must survive JSON.

    Returns:
        `out_dir` as a path, holding `inference.json` or `inference.pdmodel`, `inference.pdiparams` and
        `inference.yml`.

    Raises:
        ValueError: `fmt` is neither of the two formats.
        RuntimeError: The fresh process failed; the message carries the end of what it printed.
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt is {fmt!r}, not one of {', '.join(FORMATS)}")
    out_dir = Path(out_dir)
    if os.environ.get(_FRESH) != fmt:
        return _write_in_fresh_process(family, out_dir, seed=seed, fmt=fmt, options=options)

    import paddle
    import yaml

    if fmt == "pdmodel":
        from .legacy import restore_old_functions

        restore_old_functions()
    module = importlib.import_module(f"{__package__}.{family}")
    # Parameter names end in a counter; a fresh counter makes the sorted parameter file reproducible.
    with paddle.utils.unique_name.guard():
        paddle.seed(seed)
        blueprint: Blueprint = module.make(seed=seed, **options)
        blueprint.network.eval()
        _name_buffers(blueprint.network)
        out_dir.mkdir(parents=True, exist_ok=True)
        for stale in out_dir.glob("inference.*"):
            stale.unlink()
        static = paddle.jit.to_static(blueprint.network, input_spec=list(blueprint.inputs), full_graph=True)
        paddle.jit.save(static, str(out_dir / "inference"))
    (out_dir / "inference.pdiparams.info").unlink(missing_ok=True)
    (out_dir / "inference.yml").write_text(
        yaml.safe_dump(json.loads(json.dumps(blueprint.config)), sort_keys=False), encoding="utf-8"
    )
    return out_dir


def _name_buffers(network: Any) -> None:
    """Rename buffers after their place in the network.

    Paddle names them by a counter when a name is first asked for, in an order that is its own affair, and
    the parameter file is sorted by name: two builds could differ in the order of their bytes.
    """
    for place, buffer in network.named_buffers():
        if buffer.name.startswith(("eager_tmp", "generated_tensor")):
            buffer.name = f"buffer.{place}"


def _write_in_fresh_process(family: str, out_dir: Path, *, seed: int, fmt: str, options: Mapping[str, Any]) -> Path:
    request = json.dumps(
        {
            "family": family,
            "out_dir": str(out_dir.resolve()),
            "seed": seed,
            "fmt": fmt,
            "options": dict(options),
        }
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        _FRESH: fmt,
        "FLAGS_enable_pir_api": "1" if fmt == "json" else "0",
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "ovseg_export.builders", request]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # killed by a signal: once more, since what is written is the same either way
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"building {family} as {fmt} ended with exit code {done.returncode}:\n{tail}")
    return out_dir

"""What providers keep of a model on disk, such as TensorRT's engines: where, for which shapes, for how long it holds.

TensorRT takes minutes to build an engine, which then fits one model, one version of TensorRT, one kind of GPU and one
range of shapes. All of that is in the name of its folder, so that an engine of another version is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import schema
from .cache import engines_dir, make_folder
from .device import TENSORRT, Provider
from .download import file_sha256
from .errors import ModelError
from .runtime import cuda_devices

logger = logging.getLogger("ovseg")

# Name of a free axis, as the export writes it, to the least, the usual and the largest size that an engine is built
# for; `profiles` in model.yaml wins.
AXES: Mapping[str, tuple[int, int, int]] = {
    "batch": (1, 1, 16),
    "prompts": (1, 1, 16),
    "masks": (1, 1, 16),
    "points": (1, 2, 16),
}
_PROFILES = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
# Providers that only want a folder, and tell themselves what in it is still good: the option that takes it.
_FOLDER_OPTIONS = {"OpenVINOExecutionProvider": "cache_dir", "CoreMLExecutionProvider": "ModelCacheDirectory"}
_LIBRARIES = tuple(form.format(major) for major in range(15, 9, -1) for form in ("libnvinfer.so.{}", "nvinfer_{}.dll"))
_UNFIT = "takes-no-profiles"  # a file in the folder of engines
_SPEAK_SECONDS = 10.0

Shapes = Mapping[str, Sequence[int | str | None]]


def kept_options(provider: Provider, model: str | bytes, shapes: Shapes) -> dict[str, str]:
    """Return the options that let a provider keep what it makes of a model; those that are set already are left out.

    Args:
        provider: with its options so far.
        model: path of the ONNX file, or its bytes.
        shapes: name of each input of the graph to its shape, with the names of free axes; used for TensorRT only.
    """
    found: dict[str, str] = {}
    option = _FOLDER_OPTIONS.get(provider.name)
    # With options of the user's own and none of ours, nothing is written that was not asked for.
    if option is not None and provider.options:
        found[option] = str(make_folder(engines_dir() / option.lower()))
    # Without the library there will be no engines.
    if provider.name == TENSORRT and provider.is_on("trt_engine_cache_enable") and tensorrt_version() != "none":
        found = profiles(shapes, _ranges(model))
        folder = _tensorrt_folder(provider.options | found, model)
        if (folder / _UNFIT).exists():
            found = {}
            folder = _tensorrt_folder(provider.options, model)
        found |= {"trt_engine_cache_path": str(make_folder(folder)), "trt_timing_cache_path": str(folder.parent)}
    return {name: value for name, value in found.items() if name not in provider.options}


def has_engines(options: Mapping[str, str]) -> bool:
    """Whether TensorRT has kept an engine in the folder that the options name."""
    path = options.get("trt_engine_cache_path")
    return path is not None and any(Path(path).glob("*.engine"))


def give_up_engines(options: Mapping[str, str]) -> None:
    """Remove the engines of a folder of ours, which could not be loaded."""
    folder = Path(options.get("trt_engine_cache_path", ""))
    if folder.is_relative_to(engines_dir()):
        shutil.rmtree(folder)
        make_folder(folder)


def give_up_profiles(options: Mapping[str, str]) -> None:
    """Note that a graph takes no profiles: TensorRT cut it into parts whose inputs have other free axes."""
    folder = Path(options.get("trt_engine_cache_path", ""))
    if folder.is_relative_to(engines_dir()) and not set(_PROFILES).isdisjoint(options):
        give_up_engines(options)
        (folder / _UNFIT).touch()


def profiles(shapes: Shapes, ranges: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return TensorRT's options for the shapes that an engine is built for.

    Args:
        shapes: name of each input to its shape.
        ranges: name of a free axis to its least, usual and largest size.

    Returns:
        Nothing if no axis is free, or one is of unknown range: then TensorRT builds for the shapes as they come.
    """
    free = {name: shape for name, shape in shapes.items() if any(not isinstance(size, int) for size in shape)}
    axes = {axis for shape in free.values() for axis in shape if not isinstance(axis, int)}
    if not free or not axes <= set(ranges):
        return {}
    return {
        option: ",".join(f"{name}:{'x'.join(str(_size(axis, ranges, at)) for axis in free[name])}" for name in free)
        for at, option in enumerate(_PROFILES)
    }


def _size(axis: int | str | None, ranges: Mapping[str, Sequence[int]], at: int) -> int:
    return axis if isinstance(axis, int) else ranges[str(axis)][at]


def _ranges(model: str | bytes) -> Mapping[str, Sequence[int]]:
    """Return the ranges of free axes: those of the model's folder over those of `AXES`."""
    described = None if isinstance(model, bytes) else Path(model).parent / "model.yaml"
    if described is None or not described.is_file():
        return AXES
    facts = schema.read_yaml(described, ModelError)
    own = facts.get("profiles", {}) if isinstance(facts, Mapping) else {}
    if not isinstance(own, Mapping):
        raise ModelError(f"{described}: profiles is {own!r}.", "Give axes with their sizes: {batch: [1, 4, 32]}.")
    for axis, sizes in own.items():
        whole = isinstance(sizes, list) and all(type(size) is int for size in sizes)
        if not (whole and len(sizes) == 3 and sizes == sorted(sizes) and sizes[0] >= 1):
            raise ModelError(
                f"{described}: profiles.{axis} is {sizes!r}.", "Give the least, the usual and the largest size."
            )
    return {**AXES, **own}


def _tensorrt_folder(options: Mapping[str, str], model: str | bytes) -> Path:
    """Return the folder of the engines of a model, for a version of TensorRT, a GPU and these options."""
    digest = hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else file_sha256(Path(model))
    names = cuda_devices() or ()
    index = int(options.get("device_id", "0"))
    gpu = re.sub("[^A-Za-z0-9]+", "-", names[index]) if index < len(names) else "unknown"
    # The device's number may change, and what it is may not.
    meant = json.dumps({name: value for name, value in options.items() if name != "device_id"}, sort_keys=True)
    settings = hashlib.sha256(meant.encode()).hexdigest()
    return engines_dir() / f"tensorrt-{tensorrt_version()}-{gpu}" / f"{digest[:16]}-{settings[:8]}"


def tensorrt_version() -> str:
    """Version of the TensorRT library that is found, such as `101400` for 10.14; `none` without it."""
    for name in _LIBRARIES:
        try:
            return str(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):  # not there, or no TensorRT
            continue
    return "none"


@contextmanager
def telling_of_build(label: str, options: Mapping[str, str]) -> Iterator[None]:
    """Say that an engine is being built, and for how long, if the folder of the options has none yet.

    A line that counts on a terminal; else one line of the log now and then.
    """
    path = options.get("trt_engine_cache_path")
    if path is None or has_engines(options):
        yield
        return
    done, started = threading.Event(), time.monotonic()
    text = f"TensorRT is building an engine for {label}, once; this takes minutes"
    logger.info("%s. It is kept in %s.", text, path)

    def speak(terminal: Any) -> None:
        while not done.wait(1.0 if terminal else _SPEAK_SECONDS):
            if terminal:
                print(f"\r{text}: {time.monotonic() - started:.0f} s", end="", file=terminal, flush=True)
            else:
                logger.info("%s: %.0f s so far", text, time.monotonic() - started)

    terminal = sys.stderr if sys.stderr.isatty() else None
    speaker = threading.Thread(target=speak, args=(terminal,), daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
        if terminal:
            print("\r\033[K", end="", file=terminal, flush=True)
        logger.info("The engine for %s took %.0f s.", label, time.monotonic() - started)

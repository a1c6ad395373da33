"""Anybody's SAM: an encoder and a decoder as two plain ONNX files, or a model folder made of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ..cache import expand, locked, make_folder, models_dir
from ..device import resolve_device
from ..download import file_sha256
from ..errors import ConfigError, ModelError
from ..zoo import ModelFolder, is_name, load_zoo, open_model_folder
from .sam import SamModel

# Where exporters put the weights of a graph that is too large for one file, beside the graph.
_DATA_SUFFIXES = (".data", "_data", ".weights")


def open_pair(encoder: str | os.PathLike[str], decoder: str | os.PathLike[str]) -> ModelFolder:
    """Describe two ONNX files as a model folder; sizes and layout are read from the graphs by `SamModel`.

    Raises:
        ModelError: a file that is not there.
    """
    files = {"encoder": expand(encoder), "decoder": expand(decoder)}
    for role, path in files.items():
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on a name that is too long
            raise ModelError(f"There is no {role} {path}.", "Give the path of its ONNX file.")
    return ModelFolder(
        path=files["encoder"].parent,
        name=files["encoder"].stem,
        task="open_vocabulary_segmentation",
        family="sam",
        files=files,
        preprocess={},
        labels=(),
        facts={},
    )


def add_model(
    name: str,
    encoder: str | os.PathLike[str],
    decoder: str | os.PathLike[str],
    *,
    licence: str | None = None,
    source: str | None = None,
) -> ModelFolder:
    """Copy two ONNX files into the cache as a model folder, so that `model=name` finds them.

    Args:
        name: what to call it.
        encoder: path of the image encoder.
        decoder: path of the decoder.
        licence: of the weights, if you want it noted.
        source: where they come from.

    Raises:
        ConfigError: a name that is taken, or cannot be a folder name.
        ModelError: a file that is not there, or graphs that are not those of a SAM.
    """
    if not is_name(name):
        raise ConfigError(f"{name!r} cannot be a folder name.", "Use letters, digits and . _ + - only.")
    if name in load_zoo():
        raise ConfigError(f"{name} is a model of the zoo.", "Choose another name.")
    files = open_pair(encoder, decoder).files
    place = models_dir() / name
    with locked(name):
        if place.exists():
            raise ConfigError(
                f"There is a model {name} already, in {place}.", "Remove that folder, or choose another name."
            )
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=make_folder(models_dir())))
        try:
            entries = {role: _copy(role, path, scratch) for role, path in files.items()}
            facts = {
                "format": 1,
                "name": name,
                "family": "sam",
                "task": "open_vocabulary_segmentation",
                "files": entries,
                "preprocess": {},
                "licence": licence or "unknown",
                "source": source or f"Added from {files['encoder'].name} and {files['decoder'].name}",
            }
            (scratch / "model.yaml").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
            # What ONNX Runtime does not take is refused before it has a place; also if weights are missing.
            model = SamModel(open_model_folder(scratch), resolve_device("cpu"), batch=1, session_options={})
            facts["preprocess"] = model.preprocessing
            facts["prompts"] = list(model.prompt_types)
            (scratch / "model.yaml").write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")
            scratch.chmod(0o755)  # a temporary folder is for its owner only
            scratch.rename(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return open_model_folder(place)


def _copy(role: str, path: Path, folder: Path) -> dict[str, Any]:
    """Copy a graph and the files with its weights; return its entry of `files`."""
    entry = _entry(path, folder / f"{role}.onnx")
    data = []
    for beside in (path.with_name(path.name + suffix) for suffix in _DATA_SUFFIXES):
        if beside.is_file():
            # The graph names the file with its weights, so it keeps its name.
            if (folder / beside.name).exists():
                raise ConfigError(
                    f"Encoder and decoder both have a file {beside.name}.", "Rename one, in the graph too."
                )
            data.append(_entry(beside, folder / beside.name))
    return entry | ({"data": data} if data else {})


def _entry(path: Path, place: Path) -> dict[str, Any]:
    try:
        shutil.copyfile(path, place)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be copied: {error.strerror or error}.", "Check the disk and the file."
        ) from error
    return {"path": place.name, "sha256": file_sha256(place), "size": place.stat().st_size}

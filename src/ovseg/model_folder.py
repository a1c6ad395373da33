"""A model folder: ONNX files and the `model.yaml` that describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import schema
from .cache import expand
from .download import file_sha256
from .errors import ModelError, OvsError
from .schema import ANYTHING, COUNT, MAPPING, SHA256, TEXT, TEXTS, Field, one_of

_INSTANCE = ("instance_segmentation", ("model",))
_RECOGNITION = ("image_recognition", ("model",))
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sam": ("open_vocabulary_segmentation", ("encoder", "decoder")),
    "mask_rtdetr": _INSTANCE,
    "mask_rcnn": _INSTANCE,
    "cascade_mask_rcnn": _INSTANCE,
    "ppyoloe_seg": _INSTANCE,
    "solov2": _INSTANCE,
    "picodet": _RECOGNITION,
    "shitu_rec": _RECOGNITION,
    "clip_vit": _RECOGNITION,
}
"""Family to its pipeline and to the roles of the ONNX files that the pipeline asks for."""

FORMAT = Field("1, the only format there is", lambda value: value == 1 and not isinstance(value, bool))
TASK = one_of(*sorted({task for task, _ in FAMILIES.values()}))
FAMILY = one_of(*FAMILIES)
PROMPTS = Field("a list of box, point", lambda value: schema.is_texts(value) and set(value) <= {"box", "point"})
_FOLDER_FIELDS = {
    "format": FORMAT.needed(),
    "name": TEXT.needed(),
    "family": FAMILY.needed(),
    "task": TASK.needed(),
    "files": Field("a mapping, role to file", lambda v: MAPPING.accepts(v) and bool(v)).needed(),
    "preprocess": MAPPING.needed(),
    "labels": TEXTS,
    "prompts": PROMPTS,
    "opset": COUNT,
    "licence": TEXT,
    "source": ANYTHING,
    "parity": ANYTHING,
    "inputs": ANYTHING,
    "outputs": ANYTHING,
    "postprocess": MAPPING,
    "metric": ANYTHING,
    "profiles": MAPPING,
}
_FILE_FIELDS = {
    "path": TEXT.needed(),
    "sha256": SHA256.needed(),
    "size": COUNT,
    "data": Field("a list of files", lambda v: isinstance(v, list)),
}


@dataclass(frozen=True)
class ModelFolder:
    """A folder with ONNX files and the `model.yaml` that describes them.

    Attributes:
        path: the folder.
        files: role (`encoder`, `decoder`, `model`) to the path of its ONNX file.
        preprocess: how an image becomes the input, as exported.
        labels: class names by index; empty where the model has no classes.
        facts: the whole `model.yaml`.

    """

    path: Path
    name: str
    task: str
    family: str
    files: Mapping[str, Path]
    preprocess: Mapping[str, Any]
    labels: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def proven_batch(self) -> int | None:
        """The largest batch that the export has tried: some graphs take one image only, whatever their input says."""
        parity = self.facts.get("parity")
        return parity.get("batch") if isinstance(parity, Mapping) else None


def open_model_folder(path: str | Path, *, verify: bool = False) -> ModelFolder:
    """Read and check the `model.yaml` of a model folder.

    Args:
        path: the folder.
        verify: also compare the SHA-256 of each file (reads them whole).

    Raises:
        ModelError: no such folder or file, a wrong or unknown key, a path that leaves the folder, a file that
            is missing, cut short, or (verify) not the one described.

    """
    folder = expand(path)
    described = folder / "model.yaml"
    # os.path's functions say no to what can be no path; those of Path raise.
    if not os.path.isfile(described):  # noqa: PTH113
        state = "has no model.yaml" if os.path.isdir(folder) else "does not exist"  # noqa: PTH112
        raise ModelError(
            f"The model folder {folder} {state}.", "Give a folder that `ovs models pull` or the export made."
        )
    facts = schema.read_yaml(described, ModelError)
    schema.check(facts, _FOLDER_FIELDS, str(described), ModelError)
    check_task(facts, str(described), ModelError)
    for role in FAMILIES[facts["family"]][1]:
        if role not in facts["files"]:
            raise ModelError(
                f"{described}: key 'files.{role}' is missing: family {facts['family']} needs it.",
                "Export it again.",
            )
    files = {role: _file(folder, entry, f"{described}: files.{role}", verify) for role, entry in facts["files"].items()}
    return ModelFolder(
        path=folder,
        name=facts["name"],
        task=facts["task"],
        family=facts["family"],
        files=files,
        preprocess=facts["preprocess"],
        labels=tuple(facts.get("labels", [])),
        facts=facts,
    )


def _file(folder: Path, entry: Any, where: str, verify: bool) -> Path:
    """Check one entry of `files`, and the entries of its `data` (ONNX external data); return the path."""
    schema.check(entry, _FILE_FIELDS, where, ModelError)
    name = entry["path"]
    path: Path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{where}: key 'path': '{name}' is outside of the folder.", "Do not use this folder.")
        if not path.is_file():
            raise ModelError(f"{where}: {path} is missing.", "Copy the folder again, whole.")
        size = path.stat().st_size
        found = file_sha256(path) if verify else entry["sha256"]
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{where}: {schema.shown(name)} cannot be read: {reason}.",
            "Copy the folder again, or allow its files to be read.",
        ) from error
    if size != entry.get("size", size):
        raise ModelError(f"{where}: {path} has {size} bytes, not {entry['size']}.", "Copy the folder again, whole.")
    if found != entry["sha256"]:
        raise ModelError(
            f"{where}: {path} has SHA-256 {found}, not {entry['sha256']}.",
            "Copy the folder again, or export it.",
        )
    for index, extra in enumerate(entry.get("data", [])):
        _file(folder, extra, f"{where}.data[{index}]", verify)
    return path


def check_task(entry: Mapping[str, Any], where: str, error: type[OvsError]) -> None:
    """Raise `error` unless the task of `entry` is the one of its family."""
    task, _ = FAMILIES[entry["family"]]
    if entry["task"] != task:
        raise error(f"{where}: key 'task': family {entry['family']} is for {task}.", "Correct task or family.")

"""The models that ovseg knows (`model_zoo.yaml`), and where their folders are on this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import schema
from .cache import expand, models_dir
from .errors import ConfigError, ModelError
from .model_folder import FAMILY, FORMAT, PROMPTS, TASK, ModelFolder, check_task, open_model_folder
from .schema import FLAG, MAPPING, NUMBER, POSITIVE, SHA256, TEXT, TEXTS, Field, one_of

__all__ = [
    "Archive",
    "Metric",
    "ModelFolder",
    "ModelSpec",
    "added_models",
    "bundled_dir",
    "find_model",
    "installed_dir",
    "is_name",
    "load_zoo",
    "model_spec",
    "open_model_folder",
    "shipped_zoo",
    "zoo_path",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")  # with what is put beside it, a folder has 255 at most

_ZOO_FIELDS = {
    "format": FORMAT.needed(),
    "sources": MAPPING,
    "preprocess": MAPPING,
    "labels": MAPPING,
    "models": MAPPING.needed(),
}
_ARCHIVE_FIELDS = {
    "url": Field("an http or https address", lambda v: isinstance(v, str) and bool(re.match(r"https?://", v))).needed(),
    "format": one_of("paddle", "onnx").needed(),
    "sha256": SHA256,
}
_METRIC_FIELDS = {"name": TEXT.needed(), "value": NUMBER.needed(), "dataset": TEXT}
_ENTRY_FIELDS = {
    "task": TASK.needed(),
    "family": FAMILY.needed(),
    "archives": Field("a list", lambda value: isinstance(value, list)),
    "size_mb": POSITIVE,
    "licence": TEXT.needed(),
    "metric": MAPPING,
    "preprocess": Field("a mapping or a name of one", lambda v: TEXT.accepts(v) or MAPPING.accepts(v)).needed(),
    "labels": Field("a list of texts or a name of one", lambda v: TEXT.accepts(v) or TEXTS.accepts(v)),
    "prompts": PROMPTS,
    "bundled": FLAG,
}


@dataclass(frozen=True)
class Archive:
    """Where a model can be downloaded.

    Attributes:
        url: http or https address.
        format: `paddle` (Paddle's inference model, to be exported) or `onnx` (a model folder, ready).
        sha256: published checksum in hexadecimal, or None.

    """

    url: str
    format: str
    sha256: str | None = None


@dataclass(frozen=True)
class Metric:
    """A published figure."""

    name: str
    value: float
    dataset: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One entry of the zoo; the keys are explained at the top of `model_zoo.yaml`."""

    name: str
    task: str
    family: str
    licence: str
    archives: tuple[Archive, ...] = ()
    size_mb: float | None = None
    metric: Metric | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    bundled: bool = False


def is_name(name: str) -> bool:
    """Whether `name` can be the name of a model, and so of a folder."""
    return bool(_NAME.fullmatch(name))


def added_models() -> list[ModelFolder]:
    """Return the model folders in the cache that are not of the zoo, by name; broken ones are left out."""
    zoo, found = load_zoo(), []
    for described in sorted(models_dir().glob("*/model.yaml")):
        if is_name(described.parent.name) and described.parent.name not in zoo:
            with contextlib.suppress(ModelError):
                found.append(open_model_folder(described.parent))
    return found


def zoo_path() -> Path:
    """Return the table in use: `OVSEG_ZOO`, else the one that ships."""
    chosen = os.environ.get("OVSEG_ZOO")
    return expand(chosen) if chosen else shipped_zoo()


def shipped_zoo() -> Path:
    """Return the table in the package, or that of the source checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "model_zoo.yaml"
    return packaged if packaged.is_file() else here.parents[1] / "model_zoo.yaml"


def load_zoo(path: Path | None = None) -> dict[str, ModelSpec]:
    """Read the model table.

    Args:
        path: the table; None for `zoo_path()`.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong; the message names entry and key.

    """
    path = path or zoo_path()
    data = schema.read_yaml(path, ConfigError)
    schema.check(data, _ZOO_FIELDS, str(path), ConfigError)
    return {name: _spec(name, entry, data, f"{path}: models.{name}") for name, entry in data["models"].items()}


def model_spec(name: str, zoo: Mapping[str, ModelSpec] | None = None) -> ModelSpec:
    """Return the entry `name` of the zoo.

    Raises:
        ModelError: there is none; the message gives the nearest name.

    """
    zoo = load_zoo() if zoo is None else zoo
    if name not in zoo:
        hint = schema.nearest(name, zoo) or "."
        raise ModelError(f"There is no model named '{name}'{hint}", "`ovs models list` shows all of them.")
    return zoo[name]


def _spec(name: str, entry: Any, zoo: Mapping[str, Any], where: str) -> ModelSpec:
    if not is_name(name):
        raise ConfigError(f"{where}: '{name}' cannot be a folder name.", "Use letters, digits and . _ + - only.")
    schema.check(entry, _ENTRY_FIELDS, where, ConfigError)
    check_task(entry, where, ConfigError)
    archives = [
        _archive(name, item, zoo.get("sources", {}), f"{where}.archives[{index}]")
        for index, item in enumerate(entry.get("archives", []))
    ]
    if not archives and not entry.get("bundled"):
        raise ConfigError(f"{where}: key 'archives' is missing.", "Add it, or `bundled: true`.")
    if "metric" in entry:
        schema.check(entry["metric"], _METRIC_FIELDS, f"{where}.metric", ConfigError)
    labels = _named(entry.get("labels", []), zoo.get("labels", {}), TEXTS, f"{where}.labels")
    preprocess = _named(entry["preprocess"], zoo.get("preprocess", {}), MAPPING, f"{where}.preprocess")
    return ModelSpec(
        name=name,
        task=entry["task"],
        family=entry["family"],
        licence=entry["licence"],
        archives=tuple(archives),
        size_mb=entry.get("size_mb"),
        metric=_metric(entry["metric"]) if "metric" in entry else None,
        preprocess=preprocess,
        labels=tuple(labels),
        prompts=tuple(entry.get("prompts", [])),
        bundled=entry.get("bundled", False),
    )


def _archive(name: str, item: Any, sources: Mapping[str, Any], where: str) -> Archive:
    facts = _named(item, sources, MAPPING, where)
    schema.check(facts, _ARCHIVE_FIELDS, where, ConfigError)
    return Archive(facts["url"].replace("{name}", name), facts["format"], facts.get("sha256"))


def _metric(facts: Mapping[str, Any]) -> Metric:
    return Metric(facts["name"], float(facts["value"]), facts.get("dataset"))


def _named(value: Any, shelf: Mapping[str, Any], kind: Field, where: str) -> Any:
    """Return `value`, or what stands under that name in `shelf` if it is a name."""
    if not isinstance(value, str):
        return value
    if value not in shelf:
        hint = schema.nearest(value, shelf) or "."
        raise ConfigError(f"{where}: '{value}' is not defined{hint}", "Defined: " + ", ".join(shelf) + ".")
    if not kind.accepts(shelf[value]):
        raise ConfigError(f"{where}: '{value}' must be {kind.expected}.", "Correct its definition.")
    return shelf[value]


def bundled_dir(name: str) -> Path:
    """Return where the bundled model `name` ships, or would."""
    return Path(__file__).resolve().parent / "models" / name


def installed_dir(name: str) -> Path | None:
    """Return the folder of the model `name` on this machine, bundled before cached, or None.

    Raises:
        ModelError: the cache cannot be read.

    """
    if not is_name(name):
        return None
    folders = (bundled_dir(name), models_dir() / name)
    try:
        return next((folder for folder in folders if (folder / "model.yaml").is_file()), None)
    except OSError as error:  # such as a folder of somebody else's
        raise ModelError(
            f"The cache folder {models_dir()} cannot be read: {error.strerror}.",
            "Set OVSEG_HOME to a folder that you may read and write.",
        ) from error


def find_model(name: str | None, model_dir: str | Path | None = None) -> ModelFolder:
    """Return the model folder to use: `model_dir`, else the bundled one, else the one in the cache.

    Args:
        name: model name; not looked at where `model_dir` is given, since the folder says what it holds.
        model_dir: a model folder.

    Raises:
        ModelError: no such model, not on this machine (the message says how to get it), or a broken folder.

    """
    if model_dir is not None:
        return open_model_folder(model_dir)
    if not name:
        raise ModelError("Neither a model name nor a model folder is given.", "Give model_name or model_dir.")
    folder = installed_dir(name)
    if folder is not None:
        return open_model_folder(folder)
    if model_spec(name).bundled:
        raise ModelError(f"{name} ships with ovseg, and {bundled_dir(name)} is missing.", "Install ovseg again.")
    raise ModelError(
        f"The model {name} is not on this machine ({models_dir() / name}).",
        f"Run `ovs models pull {name}`, or give its folder as model_dir.",
    )

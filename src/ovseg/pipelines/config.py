"""A pipeline's configuration: PaddleX's YAML layout, with a few keys of our own."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelError
from ..schema import read_yaml
from ..zoo import ModelFolder, find_model

# Keys of PaddleX that choose among Paddle's engines or say what we know already.
IGNORED = frozenset({"use_hpip", "hpi_config", "engine", "engine_config", "pp_option", "module_name", "batch_size"})


def load_config(source: Any) -> tuple[dict[str, Any], str]:
    """Read a configuration.

    Args:
        source: a mapping, or the path of a YAML file.

    Returns:
        The configuration, and how messages name it.

    Raises:
        ConfigError: if the file cannot be read or does not hold a mapping.
    """
    if isinstance(source, Mapping):
        return dict(source), "The configuration"
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"A configuration of type {type(source).__name__} cannot be used.",
            "Give a dict or the path of a YAML file.",
        )
    path = Path(source)
    loaded = read_yaml(path, ConfigError)
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} does not hold a mapping of keys to values.", "`ovs config` writes one to start from."
        )
    return loaded, str(path)


def check_keys(mapping: Any, known: Collection[str], where: str) -> dict[str, Any]:
    """Return `mapping` without the keys that are ignored and those that are null, which stands for the default.

    Raises:
        ConfigError: if it is no mapping or holds a key that is not known.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} does not hold a mapping of keys to values.", "Correct the file.")
    for key in mapping:
        if key not in known and key not in IGNORED:
            raise ConfigError(f"{where} has the key {key!r}, which is not known.", f"Known keys: {', '.join(known)}.")
    return {key: value for key, value in mapping.items() if key in known and value is not None}


def overridden(settings: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Return `settings` with the options of a call in their place, except those that are None."""
    return {**settings, **{key: value for key, value in given.items() if value is not None}}


def find_folder(
    settings: Mapping[str, Any],
    model: str | None,
    model_dir: str | os.PathLike[str] | None,
    *,
    default: str,
    families: Collection[str],
) -> ModelFolder:
    """Return the model folder that a sub-module uses.

    Args:
        settings: of the sub-module; its `model_dir` and then its `model_name` count where neither argument is
            given.
        model: name of the model.
        model_dir: model folder; wins over `model`.
        default: name of the model where nothing is given.
        families: of the models that can be used.

    Raises:
        ConfigError: if name or folder is no text.
        ModelError: if there is no such model, or it is of another family.
    """
    if model is None and model_dir is None:
        model, model_dir = settings.get("model_name", default), settings.get("model_dir")
    for key, value in (("model_name", model), ("model_dir", model_dir)):
        if value is not None and not isinstance(value, str | os.PathLike):
            raise ConfigError(f"{key} is {value!r}.", "Give a text.")
    folder = find_model(model, None if model_dir is None else os.fspath(model_dir))
    if folder.family not in families:
        raise ModelError(
            f"The model {folder.name} in {folder.path} is of the family {folder.family}, for {folder.task}; needed is "
            f"{' or '.join(families)}.",
            "`ovs models list` shows the models of each pipeline.",
        )
    return folder


def whole_number(value: Any, what: str, least: int) -> int:
    """Return `value` if it is an int of at least `least`.

    Raises:
        ConfigError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} is {value!r}.", f"Give a whole number of at least {least}.")
    return value

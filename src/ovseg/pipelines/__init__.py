"""Pipelines: from a source of images to results."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .base import Pipeline
from .config import load_config

__all__ = ["PIPELINES", "Pipeline", "config_file", "create_pipeline"]

# Pipeline name to module and class, imported when the pipeline is made.
PIPELINES = {
    "open_vocabulary_segmentation": (".open_vocabulary_segmentation", "OpenVocabularySegmentationPipeline"),
    "instance_segmentation": (".instance_segmentation", "InstanceSegmentationPipeline"),
    "PP-ShiTuV2": (".image_recognition", "ImageRecognitionPipeline"),
}

logger = logging.getLogger("ovseg")


def config_file(name: str) -> Path:
    """Return the YAML file of a pipeline as it ships.

    Raises:
        ConfigError: if no pipeline has this name.
    """
    if name not in PIPELINES:
        raise ConfigError(
            f"There is no pipeline {name!r}.",
            f"Use one of {', '.join(PIPELINES)}, or the path of a YAML file.",
        )
    return Path(__file__).parent / f"{name}.yaml"


def create_pipeline(
    pipeline: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | str | os.PathLike[str] | None = None,
    device: str | None = None,
    *,
    pipeline_name: str | None = None,
    use_hpip: bool | None = None,
    hpi_config: Any = None,
    engine: str | None = None,
    engine_config: Any = None,
    pp_option: Any = None,
    **options: Any,
) -> Pipeline:
    """Make a pipeline.

    >>> pipeline = create_pipeline("open_vocabulary_segmentation", device="cpu")  # doctest: +SKIP

    Args:
        pipeline: name of a pipeline, or path of its YAML file (ours or PaddleX's).
        config: configuration as a dict, or path of a YAML file; wins over `pipeline`.
        device: `cpu`, `gpu`, `gpu:1`, `npu:0`, ...; None or `auto` takes the best that can be used.
        pipeline_name: another name of `pipeline`.
        use_hpip: run each model with the setting that `ovs tune` finds fastest on this machine; it is looked for,
            once, where it is not known. None is what the configuration says.
        hpi_config: what may be tried: PaddleX's `backend`, `backend_config` and `auto_config`.
        engine: accepted for PaddleX's sake, as are the next two: they choose among Paddle's engines, and ONNX
            Runtime is the only engine here.
        engine_config: see `engine`.
        pp_option: see `engine`.
        **options: of the pipeline's class, such as `model` and `model_dir`; they win over the configuration.

    Raises:
        ConfigError: an unknown pipeline, an option that it does not have, or a configuration that cannot be
            used.
        ModelError: the model is not there or cannot be used.
        DeviceUnavailable: the device was named and cannot be used.
    """
    if pipeline is not None and pipeline_name is not None and pipeline != pipeline_name:
        raise ConfigError(
            f"Two pipelines are named: {str(pipeline)!r} and {pipeline_name!r}.", "Name the pipeline once."
        )
    pipeline = pipeline_name if pipeline is None else pipeline
    for name, value in {
        "engine": engine,
        "engine_config": engine_config,
        "pp_option": pp_option,
    }.items():
        if value:
            logger.info("%s is ignored: ONNX Runtime is the only engine.", name)

    if config is None and pipeline is None:
        raise ConfigError("No pipeline was named.", f"Use one of {', '.join(PIPELINES)}, or the path of a YAML file.")
    source = config if config is not None else pipeline
    if isinstance(source, str) and source in PIPELINES:
        source = config_file(source)
    # os.path's function says no to what can be no path; that of Path raises.
    elif isinstance(source, str) and not source.lower().endswith((".yaml", ".yml")) and not os.path.exists(source):  # noqa: PTH110
        config_file(source)  # raises: it is neither a name nor a file
    loaded, where = load_config(source)
    if loaded.get("pipeline_name") is None:
        raise ConfigError(f"{where} has no pipeline_name.", f"Set it to one of {', '.join(PIPELINES)}.")
    name = str(loaded["pipeline_name"])
    if name not in PIPELINES:
        raise ConfigError(f"{where} is for the pipeline {name!r}, which is not known.", f"Use {', '.join(PIPELINES)}.")
    module, class_name = PIPELINES[name]
    pipeline_class: type[Pipeline] = getattr(importlib.import_module(module, __name__), class_name)
    known = {*inspect.signature(pipeline_class).parameters, *inspect.signature(Pipeline).parameters}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"The pipeline {name} has no option {unknown[0]}.", "Leave it out.")
    if use_hpip is None:
        use_hpip = loaded.get("use_hpip")
    if use_hpip is not None and not isinstance(use_hpip, bool):
        raise ConfigError(f"use_hpip is {use_hpip!r}.", "Use true or false.")
    hpi_config = loaded.get("hpi_config") if hpi_config is None else hpi_config
    return pipeline_class(loaded, device=device, where=where, use_hpip=bool(use_hpip), hpi_config=hpi_config, **options)

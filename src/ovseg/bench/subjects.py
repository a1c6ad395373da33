"""What there is to measure: the pipelines, and the models that ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelError
from ..model_folder import ModelFolder, open_model_folder
from ..pipelines import PIPELINES
from ..samples import gallery_path, samples
from ..schema import nearest
from ..zoo import bundled_dir, load_zoo

TASKS = {name: "image_recognition" if name == "PP-ShiTuV2" else name for name in PIPELINES}
"""Pipeline to the task of its models."""
STAND_IN = "Mask-RT-DETR-S"
"""The model that stands in for instance segmentation where none ships: the builder's, with random weights."""
_INDEXED = ("picodet", "shitu_rec", "clip_vit")  # their sample is a scene of the gallery


@dataclass(frozen=True)
class Subject:
    """Something that is measured.

    Attributes:
        name: how tables call it.
        pipeline: the pipeline that it belongs to.
        runs: what a side runs: the name of a pipeline, a family, or `sam encoder` or `sam decoder`.
        family: of its model, or of its first one.
        folders: role to model folder; the one role of a single model is `model`.
        whole: whether PaddleX and Paddle have a counterpart: not of a part of SAM, which they run in one piece.
        random: whether the weights are random.
        batches: whether a call takes several images or prompts.
    """

    name: str
    pipeline: str
    runs: str
    family: str
    folders: dict[str, ModelFolder]
    whole: bool = True
    random: bool = False
    batches: bool = True

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a pipeline, which reads files, rather than a model, which gets pixels."""
        return self.runs in PIPELINES

    def request(self, batches: Sequence[int]) -> dict[str, Any]:
        """Return what the sides need to know, as JSON takes it."""
        facts: dict[str, Any] = {
            "name": self.name,
            "runs": self.runs,
            "family": self.family,
            "folders": {role: str(folder.path) for role, folder in self.folders.items()},
            "batches": list(batches),
        }
        if self.family in _INDEXED:
            lines = [line.split("\t" if "\t" in line else " ", 1) for line in _label_lines()]
            facts["image"] = str(gallery_path() / "scenes" / "scene_1.jpg")
            facts["gallery"] = [str(gallery_path() / path) for path, _ in lines]
            facts["labels"] = [label for _, label in lines]
        else:
            sample = samples()[0]
            facts["image"] = str(sample.path)
            facts["boxes"] = [list(box) for box in sample.boxes.values()]
        return facts


@dataclass(frozen=True)
class Choice:
    """What is measured, and why something is not.

    Attributes:
        subjects: in the order of the tables.
        missing: a sentence for each pipeline that cannot be measured.
    """

    subjects: list[Subject] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def choose(names: Sequence[str], stand_in: Path | None) -> Choice:
    """Return the subjects of some pipelines: the pipeline, then each of its models that ships.

    Args:
        names: of pipelines; none means all.
        stand_in: model folder for instance segmentation where no model for it ships; None if there is none.

    Raises:
        ConfigError: there is no such pipeline.
        ModelError: a pipeline that was named has no model.
    """
    check_pipelines(names)
    choice = Choice()
    for pipeline in names or PIPELINES:
        models = shipped(pipeline)
        if not models and stand_in is not None:
            models = [open_model_folder(stand_in)]
        if not models:
            reason = f"No model for {pipeline} ships, and the export extra, which would build one, is not installed."
            if names:
                raise ModelError(reason, 'Run `pip install "ovseg[export]"`.')
            choice.missing.append(reason)
            continue
        choice.subjects.extend(_of_pipeline(pipeline, models, random=not shipped(pipeline)))
    return choice


def check_pipelines(names: Sequence[str]) -> None:
    """Refuse a name that is no pipeline's.

    Raises:
        ConfigError: naming it.
    """
    for name in names:
        if name not in PIPELINES:
            hint = nearest(name, PIPELINES) or "."
            raise ConfigError(f"There is no pipeline {name!r}{hint}", f"Use some of {', '.join(PIPELINES)}.")


def shipped(pipeline: str) -> list[ModelFolder]:
    """Return the models of a pipeline that ship."""
    specs = [spec for spec in load_zoo().values() if spec.bundled and spec.task == TASKS[pipeline]]
    return [open_model_folder(bundled_dir(spec.name)) for spec in specs]


def _of_pipeline(pipeline: str, models: list[ModelFolder], *, random: bool) -> list[Subject]:
    if pipeline == "PP-ShiTuV2":
        roles = {
            "detection": next(model for model in models if model.family == "picodet"),
            "recognition": next(model for model in models if model.family != "picodet"),
        }
    else:
        roles = {"model": models[0]}
    first = next(iter(roles.values()))
    subjects = [Subject(pipeline, pipeline, pipeline, first.family, roles, random=random)]
    for model in models:
        if model.family == "sam":
            parts = {part: f"{model.name} {part}" for part in ("encoder", "decoder")}
        else:
            parts = {"": model.name}
        for part, name in parts.items():
            runs = f"{model.family} {part}".strip()
            several = part != "encoder" and model.proven_batch != 1
            folders = {"model": model}
            subjects.append(Subject(name, pipeline, runs, model.family, folders, not part, random, several))
    return subjects


def _label_lines() -> list[str]:
    return (gallery_path() / "labels.txt").read_text(encoding="utf-8").splitlines()

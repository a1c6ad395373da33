"""What there is to measure: the pipelines, and the models that ship or are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..images import read_images
from ..model_folder import ModelFolder, open_model_folder
from ..pipelines import PIPELINES
from ..samples import gallery_path, samples
from ..schema import nearest
from ..zoo import bundled_dir, load_zoo

TASKS = {name: "image_recognition" if name == "PP-ShiTuV2" else name for name in PIPELINES}
"""Pipeline to the task of its models."""
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
        batches: whether a call takes several images or prompts.
    """

    name: str
    pipeline: str
    runs: str
    family: str
    folders: dict[str, ModelFolder]
    whole: bool = True
    batches: bool = True

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a pipeline, which reads files, rather than a model, which gets pixels."""
        return self.runs in PIPELINES

    def request(self, batches: Sequence[int], image: Path | None = None) -> dict[str, Any]:
        """Return what the sides need to know, as JSON takes it.

        Args:
            batches: images or prompts of a call.
            image: file to measure on; None for a sample.

        Raises:
            ImageError: the image cannot be read.
        """
        facts: dict[str, Any] = {
            "name": self.name,
            "runs": self.runs,
            "family": self.family,
            "folders": {role: str(folder.path) for role, folder in self.folders.items()},
            "preprocess": {role: dict(folder.preprocess) for role, folder in self.folders.items()},
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
        if image is not None:
            (given,) = read_images(image)
            height, width = given.pixels.shape[:2]
            facts["image"] = str(image.absolute())
            facts["boxes"] = [[0.2 * width, 0.2 * height, 0.7 * width, 0.8 * height]]
        return facts


def choose(names: Sequence[str], given: Sequence[Path] = ()) -> list[Subject]:
    """Return the subjects of some pipelines: each pipeline, then its models.

    Args:
        names: of pipelines; none means those of the models given, or all.
        given: model folders to measure in the place of those that ship.

    Raises:
        ConfigError: there is no such pipeline, or a model is none of its models.
        ModelError: a folder is no model folder.
    """
    check_pipelines(names)
    folders = [open_model_folder(path) for path in given]
    chosen = names or [
        name for name in PIPELINES if not folders or any(folder.task == TASKS[name] for folder in folders)
    ]
    for folder in folders:
        if folder.task not in {TASKS[name] for name in chosen}:
            raise ConfigError(f"{folder.path} is no model of {' or '.join(chosen)}.", f"It does {folder.task}.")
    return [
        subject
        for name in chosen
        for subject in _of_pipeline(name, [folder for folder in folders if folder.task == TASKS[name]])
    ]


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


def _of_pipeline(pipeline: str, given: list[ModelFolder]) -> list[Subject]:
    models = given or shipped(pipeline)
    if pipeline == "PP-ShiTuV2":
        known = [*given, *shipped(pipeline)]
        roles = {
            "detection": next(model for model in known if model.family == "picodet"),
            "recognition": next(model for model in known if model.family != "picodet"),
        }
    else:
        roles = {"model": models[0]}
    first = next(iter(roles.values()))
    subjects = [Subject(pipeline, pipeline, pipeline, first.family, roles)]
    for model in models:
        if model.family == "sam":
            parts = {part: f"{model.name} {part}" for part in ("encoder", "decoder")}
        else:
            parts = {"": model.name}
        for part, name in parts.items():
            runs = f"{model.family} {part}".strip()
            several = part != "encoder" and model.proven_batch != 1
            folders = {"model": model}
            subjects.append(Subject(name, pipeline, runs, model.family, folders, not part, several))
    return subjects


def _label_lines() -> list[str]:
    return (gallery_path() / "labels.txt").read_text(encoding="utf-8").splitlines()

"""The stages against numbers that PaddleX's own classes made: see make_paddlex_instances.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from instance_graphs import write_folder

from ovseg import create_pipeline
from ovseg.results.instance_segmentation import InstanceSegmentationResult
from ovseg.session import Session
from ovseg.stages.detection import prepare, read_preprocessing

HERE = Path(__file__).parent
SHAPES = ((48, 64), (64, 48), (100, 37), (19, 90), (33, 33), (7, 5))
LABELS = ["person", "dog", "kite"]
_UNIT = {"mean": [0.0] * 3, "std": [255.0] * 3}
_IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"size": [40, 56], "keep_ratio": False, "interp": "cubic"} | _UNIT,
    "ratio": {"size": [48, 64], "keep_ratio": True, "interp": "cubic", "pad_stride": 32} | _IMAGENET,
    "floats": {"size": [48, 64], "keep_ratio": True, "interp": "linear", "pad_stride": 32}
    | _IMAGENET
    | {"normalize_first": True},
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(HERE / "paddlex_instances.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "paddlex_instances.json").read_text())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_inputs_are_paddlex_inputs(arrays: dict[str, np.ndarray], height: int, width: int, kind: str) -> None:
    name = f"{height}x{width}"
    prepared = prepare([arrays[f"{name}.pixels"]], read_preprocessing(KINDS[kind], "x"))
    for key in ("im_shape", "scale_factor"):
        assert np.array_equal(getattr(prepared, key), arrays[f"{name}.{kind}.{key}"])
    assert prepared.image.shape == arrays[f"{name}.{kind}.image"].shape
    # Floats are normalised after the resize here, and before it in PaddleX: the last bit may differ.
    tolerance = 2e-6 if kind == "floats" else 0
    assert np.abs(prepared.image - arrays[f"{name}.{kind}.image"]).max() <= tolerance


def predict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, outputs: Any, threshold: float
) -> InstanceSegmentationResult:
    """Run the pipeline with a network that gives `outputs`, as PaddleX's classes were given them."""
    pipeline: Any = create_pipeline("instance_segmentation", model_dir=folder, device="cpu")
    monkeypatch.setattr(Session, "run", lambda self, feeds, names=None: outputs)
    (result,) = pipeline.predict(pixels, threshold=threshold)
    monkeypatch.undo()
    assert isinstance(result, InstanceSegmentationResult)
    return result


def digests(masks: list[np.ndarray]) -> list[list[Any]]:
    return [[*mask.shape, hashlib.sha1(mask.astype(np.uint8).tobytes()).hexdigest()] for mask in masks]


@pytest.mark.parametrize("threshold", [0.05, 0.5])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_results_are_paddlex_results(
    arrays: dict[str, np.ndarray],
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    height: int,
    width: int,
    threshold: float,
) -> None:
    name = f"{height}x{width}"
    rows, masks = arrays[f"{name}.rows"], arrays[f"{name}.masks"].astype(np.int32)
    folder = write_folder(tmp_path / "boxes", "batch", labels=LABELS)
    outputs = {"boxes": rows, "counts": np.array([len(rows)], np.int32), "masks": masks}
    result = predict(folder, monkeypatch, arrays[f"{name}.pixels"], outputs, threshold)
    expected = results[f"{name}.{threshold}"]
    assert len(expected["boxes"]) > 1
    assert result["boxes"] == expected["boxes"]
    assert digests(result.crop()) == expected["masks"]

    folder = write_folder(tmp_path / "solo", "without_boxes", labels=LABELS)
    outputs = {"labels": abs(rows[:, 0]).astype(np.int64), "scores": rows[:, 1], "masks": masks}
    result = predict(folder, monkeypatch, arrays[f"{name}.pixels"], outputs, threshold)
    expected = results[f"{name}.{threshold}.solo"]
    keys = ("label", "score", "class_id")
    assert [{key: box[key] for key in keys} for box in result["boxes"]] == expected["boxes"]
    assert digests(result["masks"]) == expected["masks"]


def test_json_is_paddlex_json(arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, masks = arrays["7x5.rows"], arrays["7x5.masks"]
    folder = write_folder(tmp_path / "x", "batch", labels=LABELS)
    outputs = {"boxes": rows, "counts": np.array([len(rows)], np.int32), "masks": masks}
    result = predict(folder, monkeypatch, arrays["7x5.pixels"], outputs, 0.05)
    result["input_path"] = "folder/caf\u00e9.jpg"
    result.save_to_json(tmp_path)
    ours = (tmp_path / "caf\u00e9_res.json").read_text(encoding="utf-8")
    theirs = (HERE / "paddlex_instances_result.json").read_text(encoding="utf-8")
    assert json.loads(ours) == json.loads(theirs)
    # To the letter but for the numbers that PaddleX clips to whole ones.
    assert ours.replace(".0,\n", ",\n").replace(".0\n", "\n") == theirs

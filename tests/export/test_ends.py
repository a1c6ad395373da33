"""The ends of a feature model's graph: bytes in, embeddings of unit length out, and the same as without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ovseg_export import ends
from ovseg_export.ends import take_pixels
from recognition_graphs import EMBEDDER, write_embedder

from ovseg.device import resolve_device
from ovseg.model_folder import open_model_folder
from ovseg.pipelines.embedder import Embedder
from ovseg.session import Session

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
HOW = {"type": "Resize", "size": [16, 16], "keep_ratio": False, "interp": "linear", "mean": MEAN, "std": STD}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """What the proof of an export feeds: PaddleX's normalisation of bytes [N, H, W, 3], B, G, R."""
    rgb = (pixels[..., ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))


def embedder(folder: Path) -> Embedder:
    return Embedder(open_model_folder(folder), resolve_device("cpu"), batch_size=2, session_options={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model that takes a normalised image."""
    return write_embedder(tmp_path / "rec", preprocess=HOW)


@pytest.mark.parametrize("interp", ["linear", "area"])
def test_the_embedder_finds_the_same_with_and_without(interp: str, tmp_path: Path) -> None:
    folder = write_embedder(tmp_path / "rec", preprocess=HOW | {"interp": interp})
    images = [noise(20, 30), noise(16, 16, seed=1), noise(7, 300, seed=2), np.zeros((5, 5, 3), np.uint8)]
    images.append(noise(40, 60, seed=3)[::2, ::-2])  # not in one piece
    before = embedder(folder).embed(images)
    kept = [image.copy() for image in images]
    assert take_pixels(folder / "model.onnx", HOW, [{"image": normalised(noise(2, 16, 16))}])
    after = embedder(folder).embed(images)
    assert [np.array_equal(a, b) for a, b in zip(images, kept, strict=True)] == [True] * len(images)
    assert after.shape == (5, 24) and after.dtype == np.float32
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-7)
    assert np.ptp(before, axis=0).max() > 0.1  # they are not all alike
    (entry,) = Session(folder / "model.onnx", "cpu").inputs
    assert (entry.name, entry.dtype, entry.shape) == ("pixels", np.uint8, ("batch", 16, 16, 3))


def test_zeros_stay_and_nan_is_not_taken_for_zeros(tmp_path: Path) -> None:
    text = EMBEDDER.replace("Sub (flat, grey)", "Log (flat)")  # of what is negative it gives NaN, of ones zeros
    path = write_embedder(tmp_path / "rec", text) / "model.onnx"
    how = HOW | {"mean": [0.0] * 3, "std": [255.0] * 3}
    assert take_pixels(path, how, [{"image": np.ones((1, 3, 16, 16), np.float32)}])
    session = Session(path, "cpu")
    assert not session.run({"pixels": np.full((1, 16, 16, 3), 255, np.uint8)})["unit_embedding"].any()
    model = onnx.load(str(path))
    factor = next(tensor for tensor in model.graph.initializer if tensor.name == "pixels_factor")
    factor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(factor), factor.name))
    negative = Session(model.SerializeToString(), "cpu").run({"pixels": noise(1, 16, 16)})["unit_embedding"]
    assert np.isnan(negative).all()


@pytest.mark.parametrize("other", [{"normalize_first": True}, {"keep_ratio": True}, {"pad_stride": 32}])
def test_images_that_are_more_than_resized_are_left_to_the_runtime(folder: Path, other: dict[str, Any]) -> None:
    data = (folder / "model.onnx").read_bytes()
    assert not take_pixels(folder / "model.onnx", HOW | other, [{"image": normalised(noise(1, 16, 16))}])
    assert (folder / "model.onnx").read_bytes() == data


def test_a_graph_that_would_find_something_else_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (folder / "model.onnx").read_bytes()
    monkeypatch.setattr(ends, "_LEAST", np.float32(0.1))
    assert not take_pixels(folder / "model.onnx", HOW, [{"image": normalised(noise(1, 16, 16))}])
    assert (folder / "model.onnx").read_bytes() == data
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.yaml"]


def test_external_data_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = np.random.default_rng(0).normal(size=(768, 8)).astype(np.float32)
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 21]>
        g (float[batch,3,16,16] image) => (float[batch,8] embedding)
        { flat = Flatten (image) embedding = MatMul (flat, weights) }"""
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(graph, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    data = (tmp_path / "model.onnx.data").read_bytes()
    pixels = noise(3, 16, 16)
    expected = normalised(pixels).reshape(3, -1) @ weights
    assert take_pixels(path, HOW, [{"image": normalised(pixels)}])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").read_bytes() == data and path.stat().st_size < weights.nbytes
    found = Session(path, "cpu").run({"pixels": pixels})["unit_embedding"]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)

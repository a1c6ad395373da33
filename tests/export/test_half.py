"""Weights in half: folded without changing what a network computes, stored without loss or not at all."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason='needs the export extra: pip install "ovseg[export]"')
pytestmark = pytest.mark.export

from ovseg_export.half import NO_VARIANCE, fold_and_halve, restore_from_half, store_in_half  # noqa: E402


def normalised(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """A convolution of one pixel, and its normalisation as both frameworks compute it."""
    y = state["a.0.weight"][:, :, 0, 0] @ x
    y = (y - state["a.1.running_mean"]) / np.sqrt(state["a.1.running_var"] + np.float32(1e-5))
    return y * state["a.1.weight"] + state["a.1.bias"]


def test_folding_leaves_the_result() -> None:
    rng = np.random.default_rng(0)
    state = {
        "a.0.weight": rng.normal(size=(6, 5, 1, 1)).astype(np.float32),
        "a.1.weight": rng.uniform(0.5, 2, 6).astype(np.float32),
        "a.1.bias": rng.normal(size=6).astype(np.float32),
        "a.1.running_mean": rng.normal(size=6).astype(np.float32),
        "a.1.running_var": rng.uniform(0.1, 4, 6).astype(np.float32),
    }
    x = rng.normal(size=5).astype(np.float32)
    folded = fold_and_halve(state)
    np.testing.assert_allclose(normalised(folded, x), normalised(state, x), atol=5e-3)
    assert not np.array_equal(folded["a.0.weight"], state["a.0.weight"])
    # Folding once more multiplies by exactly 1.
    assert (np.float32(1) / np.sqrt(NO_VARIANCE + np.float32(1e-5)) == 1.0) and (folded["a.1.running_mean"] == 0).all()
    kernel = folded["a.0.weight"]
    assert np.array_equal(kernel, kernel.astype(np.float16).astype(np.float32))


def test_half_storage_is_lossless_or_not_used() -> None:
    exact = np.array([[0.5, -2.0]], np.float32)
    inexact = np.array([[0.1, 1e6]], np.float32)
    tensors = [onnx.numpy_helper.from_array(exact, "a"), onnx.numpy_helper.from_array(inexact, "b")]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"])]
    output = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1, 2])
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [output], tensors))
    store_in_half(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"a_half": onnx.TensorProto.FLOAT16, "b": onnx.TensorProto.FLOAT}
    assert [node.op_type for node in model.graph.node] == ["Cast", "Add"]
    restored = restore_from_half(model)
    assert [node.op_type for node in restored.graph.node] == ["Add"]
    for got, wanted in zip(restored.graph.initializer, tensors, strict=True):
        assert got.name == wanted.name and np.array_equal(*map(onnx.numpy_helper.to_array, (got, wanted)))

"""Conversion as a whole: names, dimensions, external data, refusals, both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ovseg_export import convert as convert_module
from ovseg_export.convert import convert
from ovseg_export.errors import ParameterError, ProgramError, UnsupportedOperators
from ovseg_export.translate import translate_program

from ovseg.errors import ModelError

pytestmark = pytest.mark.export
SPEC = [((-1, 3, 16, 16), "float32")]


@pytest.fixture
def net(save_paddle: Callable[..., Any], tmp_path: Path) -> Path:
    """A small network, saved to a folder."""
    import paddle

    paddle.seed(0)
    layers = paddle.nn
    save_paddle(
        layers.Sequential(
            layers.Conv2D(3, 40, 3),
            layers.BatchNorm2D(40),
            layers.ReLU(),
            layers.Flatten(),
            layers.Linear(7840, 5),
        ),
        SPEC,
    )
    return tmp_path


def run(model: Any, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(result)


X = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


def test_names_and_dimensions(net: Path) -> None:
    model = convert(net, output_names=["embedding"], dimensions={"x0": ["N", 3, 16, 16]}).to_model()
    (source,), (target,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim] == ["N", 3, 16, 16]
    assert target.name == "embedding"
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    with pytest.raises(ModelError, match="2 output names were given for 1"):
        convert(net, output_names=["a", "b"])
    with pytest.raises(ModelError, match="has 4 axes, not 1"):
        convert(net, dimensions={"x0": [1]})
    with pytest.raises(ModelError, match="Opset 11"):
        convert(net, opset=11)


@pytest.mark.parametrize("opset", convert_module.OPSETS)
def test_every_opset_gives_the_same(net: Path, opset: int) -> None:
    expected = run(convert(net).to_model().SerializeToString(), X)
    np.testing.assert_allclose(run(convert(net, opset=opset).to_model().SerializeToString(), X), expected, atol=1e-6)


def test_conversion_is_repeatable(net: Path) -> None:
    first = convert(net).to_model().SerializeToString(deterministic=True)
    assert all(convert(net).to_model().SerializeToString(deterministic=True) == first for _ in range(3))


def test_large_models_get_a_data_file(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(net)
    expected = run(whole.to_model().SerializeToString(), X)
    assert [path.name for path in whole.save(net / "small.onnx")] == ["small.onnx"]
    monkeypatch.setattr(convert_module, "_INLINE_LIMIT", 1000)
    with pytest.raises(ModelError, match="more than one ONNX message holds"):
        whole.to_model()
    paths = whole.save(net / "large.onnx")
    assert [path.name for path in paths] == ["large.onnx", "large.onnx.data"]
    assert paths[0].stat().st_size < 20_000
    np.testing.assert_array_equal(run(str(paths[0]), X), expected)


def test_refusal_names_every_operator(save_paddle: Callable[..., Any], tmp_path: Path) -> None:
    import paddle

    save_paddle(lambda x: [paddle.linalg.svd(x)[1], paddle.lgamma(x), paddle.lgamma(x * 2)], [((3, 3), "float32")])
    with pytest.raises(UnsupportedOperators) as caught:
        convert(tmp_path)
    assert "lgamma ×2" in caught.value.cause
    assert "svd ×1" in caught.value.cause


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda paddle, x: paddle.nn.functional.adaptive_avg_pool2d(x, 5), r"pool2d ×1 \(it is adaptive, and the size"),
        (lambda paddle, x: paddle.gather_nd(x, paddle.zeros([2, 0], "int64")), r"gather_nd ×1 \(its index is empty"),
    ],
)
def test_refusal_of_a_use_says_why(
    use: Callable[..., Any], reason: str, save_paddle: Callable[..., Any], tmp_path: Path
) -> None:
    import paddle

    save_paddle(lambda x: use(paddle, x), [((-1, 3, -1, -1), "float32")])
    with pytest.raises(UnsupportedOperators, match=reason):
        convert(tmp_path)


def test_incomplete_folders(net: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ProgramError, match="neither"):
        convert(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ProgramError, match="no file or folder"):
        convert(net / "other")
    (net / "inference.pdiparams").unlink()
    with pytest.raises(ParameterError, match="missing"):
        convert(net)


def test_the_older_format_is_translated(tmp_path: Path) -> None:
    import paddle

    with paddle.pir_utils.OldIrGuard():
        paddle.enable_static()
        try:
            program, startup = paddle.static.Program(), paddle.static.Program()
            with paddle.static.program_guard(program, startup):
                x = paddle.static.data("x", [-1, 3, 8, 8], "float32")
                norm = paddle.nn.BatchNorm2D(4)
                norm.eval()
                # Translated, the second use reads the statistics that the first gives back.
                y = norm(norm(paddle.nn.functional.relu(paddle.nn.Conv2D(3, 4, 3)(x))))
            executor = paddle.static.Executor(paddle.CPUPlace())
            executor.run(startup)
            paddle.static.save_inference_model(str(tmp_path / "inference"), [x], [y], executor, program=program)
            array = X[:, :, :8, :8]
            (expected,) = executor.run(program, feed={"x": array}, fetch_list=[y])
        finally:
            paddle.disable_static()
    assert (tmp_path / "inference.pdmodel").is_file()
    np.testing.assert_allclose(run(convert(tmp_path).to_model().SerializeToString(), array), expected, atol=1e-5)


def test_a_broken_older_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inference.pdmodel").write_bytes(b"nothing")
    with pytest.raises(ProgramError, match="failed while translating"):
        translate_program(tmp_path / "inference.pdmodel", tmp_path / "inference.json")
    assert [path.name for path in tmp_path.iterdir()] == ["inference.pdmodel"]
    with pytest.raises(ProgramError, match="no program file"):
        translate_program(tmp_path / "other.pdmodel", tmp_path / "inference.json")

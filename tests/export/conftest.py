"""Save a Paddle function, convert it, run it in ONNX Runtime, and compare with Paddle."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "export"))

Spec = tuple[Sequence[int], str]
Runner = Callable[..., list[np.ndarray]]


@pytest.fixture
def save_paddle(tmp_path: Path) -> Callable[..., Runner]:
    """save_paddle(function, specs): write a model to tmp_path, return Paddle's own runner.

    The function is traced as it stands; with `script`, Paddle rewrites its source first, so that Python's
    `if` and `while` on tensors become operators. With `old`, it is saved as `.pdmodel`.
    """
    paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
    warnings.filterwarnings("ignore", category=UserWarning, module="paddle")

    def trace(function: Any, specs: Sequence[Spec]) -> Runner:
        paddle.enable_static()
        try:
            program, startup = paddle.static.Program(), paddle.static.Program()
            with paddle.static.program_guard(program, startup):
                inputs = [paddle.static.data(f"x{i}", list(s), dtype) for i, (s, dtype) in enumerate(specs)]
                outputs = function(*inputs)
                outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
            executor = paddle.static.Executor(paddle.CPUPlace())
            executor.run(startup)
            paddle.static.save_inference_model(str(tmp_path / "inference"), inputs, outputs, executor, program=program)
        finally:
            paddle.disable_static()

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            paddle.enable_static()
            try:
                feed = {f"x{i}": array for i, array in enumerate(arrays)}
                results = executor.run(program, feed=feed, fetch_list=outputs, return_numpy=False)
                return [np.array(item) for item in results]
            finally:
                paddle.disable_static()

        return run

    def rewrite(function: Any, specs: Sequence[Spec]) -> Runner:
        inputs = [paddle.static.InputSpec(list(shape), dtype, name=f"x{i}") for i, (shape, dtype) in enumerate(specs)]
        if isinstance(function, paddle.nn.Layer):
            function.eval()
        static = paddle.jit.to_static(function, input_spec=inputs, full_graph=True)
        paddle.jit.save(static, str(tmp_path / "inference"))
        loaded = paddle.jit.load(str(tmp_path / "inference"))

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            results = loaded(*[paddle.to_tensor(array) for array in arrays])
            return [item.numpy() for item in (results if isinstance(results, list | tuple) else [results])]

        return run

    def save(function: Any, specs: Sequence[Spec], *, script: bool = False, old: bool = False) -> Runner:
        if old:
            with paddle.pir_utils.OldIrGuard():
                run = trace(function, specs)

            def run_old(*arrays: np.ndarray) -> list[np.ndarray]:
                with paddle.pir_utils.OldIrGuard():
                    return run(*arrays)

            return run_old
        return rewrite(function, specs) if script or isinstance(function, paddle.nn.Layer) else trace(function, specs)

    return save


def _run(session: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run, and stop with an error after a minute: a loop whose condition is wrong never ends."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(60, setattr, (options, "terminate", True))
    timer.start()
    try:
        results: list[np.ndarray] = session.run(None, feed, options)
    finally:
        timer.cancel()
    return results


@pytest.fixture
def compare(tmp_path: Path, save_paddle: Callable[..., Runner]) -> Callable[..., None]:
    """compare(function, specs, feeds...): Paddle and ONNX Runtime must agree on every feed.

    `specs` are (shape, dtype), -1 for open sizes. Floats agree within `tolerance` (absolute and relative),
    the rest exactly; shapes and element types always.
    """
    import onnxruntime
    from ovseg_export.convert import convert

    def run(
        function: Any,
        specs: Sequence[Spec],
        *feeds: Sequence[np.ndarray],
        tolerance: float = 2e-6,
        opset: int = 17,
        script: bool = False,
        old: bool = False,
    ) -> None:
        paddle_run = save_paddle(function, specs, script=script, old=old)
        model = convert(tmp_path, opset=opset).to_model().SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        assert feeds
        for feed in feeds:
            arrays = [np.asarray(array, dtype) for array, (_, dtype) in zip(feed, specs, strict=True)]
            expected = paddle_run(*arrays)
            named = {f"x{i}": array for i, array in enumerate(arrays)}
            results = _run(session, {item.name: named[item.name] for item in session.get_inputs()})
            assert len(results) == len(expected)
            for i, (result, truth) in enumerate(zip(results, expected, strict=True)):
                assert (i, result.dtype, result.shape) == (i, truth.dtype, truth.shape)
                if truth.dtype.kind == "f":
                    np.testing.assert_allclose(result, truth, rtol=tolerance, atol=tolerance, err_msg=f"output {i}")
                else:
                    np.testing.assert_array_equal(result, truth, err_msg=f"output {i}")

    return run

"""Element-wise lowerings against the Paddle operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
F = paddle.nn.functional
pytestmark = pytest.mark.export

GRID = np.concatenate([np.linspace(-9, 9, 90), [0, -0.5, 0.5, 1.5, 2.5, 30]]).astype("float32").reshape(4, 24)
POSITIVE = np.abs(GRID) + 0.01
UNIT = np.linspace(-0.99, 0.99, 96).astype("float32").reshape(4, 24)

UNARY: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "activations": (
        lambda x: [
            F.relu(x),
            F.sigmoid(x),
            F.silu(x),
            F.swish(x),
            F.mish(x),
            F.relu6(x),
            F.softsign(x),
            F.tanh(x),
        ],
        GRID,
    ),
    "hard activations": (
        lambda x: [F.hardswish(x), F.hardsigmoid(x), F.hardsigmoid(x, 0.2, 0.4), F.hardtanh(x, -2.0, 3.0)],
        GRID,
    ),
    "leaky": (lambda x: [F.leaky_relu(x, 0.1), F.elu(x, 0.7), F.softplus(x), F.softplus(x, 2, 5)], GRID),
    "gelu": (lambda x: [F.gelu(x), F.gelu(x, approximate=True)], GRID),
    "softmax": (lambda x: [F.softmax(x), F.softmax(x, 0), F.log_softmax(x, 0)], GRID),
    "rounding": (lambda x: [x.floor(), x.ceil(), x.round(), x.abs(), x.sign(), x.square()], GRID),
    "trigonometry": (lambda x: [x.sin(), x.cos(), x.tan(), x.atan(), x.erf()], GRID),
    "inverse trigonometry": (lambda x: [x.asin(), x.acos(), x.sinh(), x.cosh()], UNIT),
    "logarithms": (
        lambda x: [x.log(), x.log2(), x.log10(), x.log1p(), x.sqrt(), x.rsqrt(), x.reciprocal(), (-x).exp()],
        POSITIVE,
    ),
    "powers": (lambda x: [x**2, x**0.5, x**-1.5, paddle.pow(x, 3.0)], POSITIVE),
    "scale": (
        lambda x: [
            x * 3 + 1,
            paddle.scale(x, 2.0, 1.5, bias_after_scale=False),
            1 - x,
            x / 4,
            -x,
            2 / (x + 40),
        ],
        GRID,
    ),
    "clip": (lambda x: [x.clip(-1, 2), x.clip(min=0.5), x.clip(max=0)], GRID),
    "cast": (
        lambda x: [x.astype("int32"), x.astype("bool"), x.astype("float64"), x.astype("uint8")],
        POSITIVE,
    ),
    "special": (lambda x: [paddle.isnan(x / x), paddle.isinf(1 / x), paddle.isfinite(1 / x)], GRID - 0.5),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, compare: Callable[..., None]) -> None:
    function, values = UNARY[name]
    tolerance = 2e-5 if name in ("trigonometry", "inverse trigonometry", "powers") else 3e-6
    compare(function, [((-1, 24), "float32")], [values], tolerance=tolerance)


def test_parametric_relu(compare: Callable[..., None]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    slopes = paddle.nn.PReLU(5)
    slopes.parameters()[0].set_value(np.array([0.1, 0.2, 0.3, -0.4, 0.5], "float32"))
    compare(slopes, [((-1, 5, -1, 4), "float32")], [x])
    compare(slopes, [((-1, 5, -1), "float32")], [x[..., 0]])
    compare(slopes, [((-1, 5), "float32")], [x[:, :, 0, 0]])
    compare(paddle.nn.PReLU(1, init=0.3), [((-1, 5, -1, 4), "float32")], [x])


def test_integers_scale_and_clip_as_integers(compare: Callable[..., None]) -> None:
    def function(x: Any) -> Any:
        return (
            x * 3 + 2,
            paddle.clip(x, -3, 4),
            x.astype("float32"),
            x.abs(),
            paddle.pow(x, 2),
            x.astype("bool"),
        )

    compare(function, [((-1,), "int64")], [np.arange(-6, 7)])
    compare(function, [((-1,), "int32")], [np.arange(-6, 7)])


def binary(x: Any, y: Any) -> Any:
    return [x + y, x - y, x * y, paddle.maximum(x, y), paddle.minimum(x, y), paddle.floor_divide(x, y), x % y]


def comparisons(x: Any, y: Any) -> Any:
    return [x == y, x != y, x < y, x <= y, x > y, x >= y]


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32"])
def test_binary_with_broadcasting(dtype: str, compare: Callable[..., None]) -> None:
    x, y = np.arange(-7, 8).reshape(3, 5, 1), np.array([-3, -2, 1, 4])
    specs = [((3, -1, 1), dtype), ((-1,), dtype)]
    compare(binary, specs, [x, y])
    compare(comparisons, specs, [x, y])


def test_float_division_and_power(compare: Callable[..., None]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0.1, 4, (3, 1, 5)), rng.uniform(-2, 2, (4, 5))
    specs = [((3, 1, 5), "float32"), ((4, 5), "float32")]
    compare(lambda x, y: [x / y, x**y, x % y, paddle.floor_divide(x, y)], specs, [x, y], tolerance=1e-5)


def test_logic(compare: Callable[..., None]) -> None:
    def function(x: Any, y: Any) -> Any:
        a, b = x > 0, y > 0
        return [
            paddle.logical_and(a, b),
            paddle.logical_or(x, y),
            paddle.logical_xor(a, b),
            paddle.logical_not(x),
            a & b,
            a | b,
            a ^ b,
            ~a,
            a == b,
            paddle.where(a, x, y),
            paddle.where(a, a, b),
        ]

    x, y = np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1])
    compare(function, [((3, 3), "float32"), ((3, 3), "float32")], [x, y])


def test_add_n_and_dropout(compare: Callable[..., None]) -> None:
    class Net(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = paddle.nn.Dropout(0.3)
            self.second = paddle.nn.Dropout(0.3, mode="downscale_in_infer")

        def forward(self, x: Any) -> Any:
            return paddle.add_n([self.first(x), self.second(x), x]), paddle.assign(x)

    compare(Net(), [((-1, 24), "float32")], [GRID])


def test_sigmoid_of_boxes_is_exact_far_from_zero(compare: Any) -> None:
    values = np.linspace(-80, 20, 300, dtype=np.float32).reshape(1, 75, 4)
    compare(lambda x: paddle.log(F.sigmoid(x)), [((1, 75, 4), "float32")], [values], tolerance=1e-5)

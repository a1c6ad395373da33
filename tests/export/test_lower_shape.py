"""Lowerings that move and cut tensors, against the Paddle operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
pytestmark = pytest.mark.export

X = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
OPEN = [((-1, 3, -1, 6), "float32")]


def batch(x: Any) -> Any:
    return paddle.shape(x)[0]


CASES: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: [x.reshape([0, -1, 2]), x.reshape([batch(x), 3, -1]), x.flatten(), x.flatten(1, 2)],
    "transpose": lambda x: [x.transpose([0, 2, 3, 1]), x.transpose([-1, 1, 0, 2]), paddle.t(x[0, 0])],
    "concat": lambda x: [
        paddle.concat([x, x * 2], 1),
        paddle.concat([x, x], -1),
        paddle.stack([x, x + 1], 2),
    ],
    "split": lambda x: [*paddle.split(x, 3, 1), *paddle.split(x, [1, 2, -1], 3), *paddle.unbind(x, 1)],
    "chunk of an open axis": lambda x: [*paddle.chunk(x, 2, 0), *paddle.chunk(x, 2, 2)],
    "slice": lambda x: [x[:, 1], x[0], x[-1], x[..., 1:-1], x[:, :, 1:, 2:100], x[:, -2:], x[0, -1, 0]],
    "strided slice": lambda x: [x[..., ::2], x[:, ::-1], x[:, :, 3:0:-2], paddle.flip(x, [2, -1])],
    "slice at run time": lambda x: [x[: batch(x) - 1], x[:, :, batch(x) :], x[:, batch(x)]],
    "expand": lambda x: [
        x[:, :1].expand([-1, 5, -1, -1]),
        x[:1].expand([batch(x) + 1, 3, -1, 6]),
        x[:, :1].expand_as(x),
        x[:1].expand_as(x),
        x[0].unsqueeze(0).expand([batch(x), -1, -1, -1]),
    ],
    "tile": lambda x: [x.tile([2, 1]), x.tile([1, 2, 1, 1, 3]), x.tile([batch(x), 1, 1, 1])],
    "squeeze": lambda x: [x.unsqueeze([0, -1]).squeeze([0]), x.unsqueeze(1).squeeze(1), x.unsqueeze([1, 2])],
    "full": lambda x: [
        paddle.full_like(x, 2.5),
        paddle.zeros([batch(x), 2]),
        paddle.ones_like(x, dtype="int64"),
        paddle.full([2, 2], float("inf")),
        paddle.full([batch(x)], 7, "int32"),
        x + paddle.to_tensor([1.0, 2, 3, 4, 5, float("-inf")]),
    ],
    "arange": lambda x: [
        paddle.arange(5),
        paddle.arange(1, 9, 2),
        paddle.arange(0, batch(x)),
        paddle.arange(0, 1, 0.3),
    ],
    "linspace": lambda x: [
        paddle.linspace(-1, 1, 7),
        paddle.linspace(0, 1, batch(x) + 3),
        paddle.linspace(2, 5, 1),
    ],
    "meshgrid": lambda x: [*paddle.meshgrid(paddle.arange(3), paddle.arange(0, batch(x)))],
    "triangle": lambda x: [x.triu(), x.tril(-1), (x > 0).astype("int32").triu(1), (x > 0).triu(0)],
    "shape": lambda x: [paddle.shape(x), x.numel(), paddle.shape(x)[2] * 2, paddle.shape(x[0, 0, 0, 0])],
    "one hot": lambda x: [paddle.nn.functional.one_hot((x > 0).astype("int64"), 5)],
    "roll": lambda x: [x.roll(1, 0), x.roll([2, -1], [2, 3]), x.roll(3)],
    "broadcast": lambda x: [*paddle.broadcast_tensors([x[:, :1], x[:1]])],
    "repeat": lambda x: [
        x.repeat_interleave(3, 3),
        x.repeat_interleave(2, 1),
        paddle.eye(3),
        paddle.eye(2, 4),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_shape_operators(name: str, compare: Callable[..., None]) -> None:
    static = name in ("repeat",)
    specs = [((-1, 3, 4, 6), "float32")] if static else OPEN
    feeds = [[X], [X[:, :, :2]]] if not static and name not in ("strided slice", "chunk of an open axis") else [[X]]
    compare(CASES[name], specs, *feeds)


def test_squeeze_without_axes(compare: Callable[..., None]) -> None:
    compare(lambda x: [x.squeeze(), x.squeeze([1, 2])], [((2, 1, 3, 1), "float32")], [X[:, :1, :3, :1]])


def test_linspace_and_broadcast_of_run_time_limits(compare: Callable[..., None]) -> None:
    compare(
        lambda x: [
            paddle.linspace(x.min(), x.max(), 9),
            paddle.linspace(x.min(), x.max(), paddle.shape(x)[0]),
        ],
        [((-1,), "float32")],
        [np.array([0.3, -2, 5])],
        [np.array([1.5])],
    )

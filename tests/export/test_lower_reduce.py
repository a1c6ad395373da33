"""Reductions and running sums against the Paddle operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
pytestmark = pytest.mark.export

X = np.random.default_rng(0).normal(size=(2, 3, 4))


def reductions(x: Any) -> Any:
    return [
        x.sum(),
        x.sum(-1),
        x.sum([0, 2], keepdim=True),
        x.mean([1, 2]),
        x.mean(),
        x.prod(1),
        x.max(1),
        x.min(),
        x.max([0, 1], keepdim=True),
        paddle.amax(x, 2),
        paddle.amin(x, 0),
        paddle.logsumexp(x, 1),
        paddle.logsumexp(x),
        (x > 0).any(1),
        (x > -1).all([0, 2]),
        (x > 0).any(),
        (x[0, 0] > 0).any(),
        (x.sum() > 0).all(),
        (x > 0).sum(1),
    ]


def norms(x: Any) -> Any:
    return [
        x.norm(2, -1, keepdim=True),
        x.norm(1, 1),
        x.norm(float("inf"), 0),
        x.norm(3, 1),
        x.norm(0.5, 1),
        x.norm(2),
        paddle.nn.functional.normalize(x, axis=1),
    ]


def running(x: Any) -> Any:
    return [x.cumsum(1), x.cumsum(-1), x.cumsum(), (x > 0).astype("int64").cumsum(0), (x > 0).astype("int32").cumsum(0)]


def places(x: Any) -> Any:
    ties = x.round()
    return [
        ties.argmax(1),
        ties.argmin(-1),
        ties.argmax(),
        ties.argmax(1, keepdim=True),
        ties.argmin(keepdim=True),
        ties.argmax(0, dtype="int32"),
        ties.astype("int64").argmax(2),
    ]


@pytest.mark.parametrize("function", [reductions, norms, running, places])
def test_reduce(function: Callable[[Any], Any], compare: Callable[..., None]) -> None:
    compare(function, [((-1, 3, -1), "float32")], [X], [X[:1, :, :2]], tolerance=5e-6)


def test_integers(compare: Callable[..., None]) -> None:
    compare(
        lambda x: [x.sum(1), x.max(), x.min(0), x.prod(1)],
        [((-1, 3), "int64")],
        [np.arange(12).reshape(4, 3)],
    )
    compare(lambda x: [x.max(), x.sum(0)], [((-1, 3), "int32")], [np.arange(12).reshape(4, 3)])


def test_a_row_and_a_number(compare: Callable[..., None]) -> None:
    """The axis of a number is 0 or -1 in Paddle, and none in ONNX."""

    def function(x: Any) -> Any:
        number = x.sum()
        return [
            *(x.max(), x.sum(0, keepdim=True), (x > 0).any(), (x > 0).all(-1)),
            *(number.mean(-1), number.max(0), (number > 0).any(0), (number > 0).all(-1)),
        ]

    compare(function, [((-1,), "float32")], [X[0, 0]], [X[0, 0, :1]], tolerance=5e-6)


def test_nothing_to_add_up(compare: Callable[..., None]) -> None:
    compare(lambda x: [x.sum(0), x.sum()], [((-1, 3), "float32")], [np.zeros((0, 3))])

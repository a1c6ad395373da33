"""Branches, loops and tensor arrays against Paddle, and writes into slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
pytestmark = pytest.mark.export

Compare = Callable[..., None]
X = np.random.default_rng(0).normal(size=(4, 3))
ROWS = ((-1, 3), "float32")
COUNT = ((1,), "int64")


# Paddle turns `if` statements on tensors into operators, not conditional expressions: so no SIM108 here.
# ruff: noqa: SIM108


def branch(x: Any, n: Any) -> Any:
    if n > 1:
        y = x * 2
        z = x.sum()
    else:
        y = x[:1] - 1
        z = x.max()
    return y, z


def known_branch(x: Any, n: Any) -> Any:
    if paddle.full([1], 3.0) > 2:
        y = x * 2
    else:
        y = x - 1
    if paddle.full([1], 3.0) > 4:
        z = x + n.astype("float32")
    else:
        z = x * 3
    return y, z


def nested_branch(x: Any, n: Any) -> Any:
    y = x
    if n > 0:
        if n > 2:
            y = x + 1
        else:
            y = x - 1
    return y * 2


def loop(x: Any, n: Any) -> Any:
    i = paddle.zeros([1], "int64")
    total = paddle.zeros_like(x)
    while i < n:
        total = total + x * i.astype("float32")
        i += 1
    return total, i


def growing_list(x: Any, n: Any) -> Any:
    parts = [x]
    i = paddle.zeros([1], "int64")
    while i < n:
        parts.append(x * i.astype("float32"))
        i += 1
    return paddle.concat(parts, 0), paddle.concat([x, x[:1]], 0)


def list_written_in_a_branch(x: Any, n: Any) -> Any:
    parts = [x]
    i = paddle.zeros([1], "int64")
    while i < n:
        if i % 2 == 0:
            part = x - 1
        else:
            part = x * 2
        parts.append(part)
        i += 1
    return paddle.concat(parts, 0)


def rows_written_in_a_loop(x: Any, n: Any) -> Any:
    out = paddle.zeros([6, 3])
    start = paddle.zeros([], "int64")
    for i in range(n):
        out[start : start + 2, 1:] = x[i, 1:] + i.astype("float32")
        start = start + 2
    return out


CASES = {
    "branch": branch,
    "known branch": known_branch,
    "nested branch": nested_branch,
    "loop": loop,
    "growing list": growing_list,
    "list written in a branch": list_written_in_a_branch,
    "rows written in a loop": rows_written_in_a_loop,
}


@pytest.mark.parametrize("name", CASES)
def test_control_flow(name: str, compare: Compare) -> None:
    counts = (0, 1, 3) if name != "growing list" else (1, 3)
    compare(CASES[name], [ROWS, COUNT], *[[X, [n]] for n in counts], script=True)


def writes(x: Any, y: Any) -> Any:
    def write(key: Any, value: Any) -> Any:
        return paddle.static.setitem(x * 1.5, key, value)

    rows = slice(None)
    return [
        write(1, y[0]),
        write((rows, slice(1, 3)), y[:, 1:3]),
        write((rows, -1), 7.0),
        write((slice(0, 3, 2), rows), y[:1]),
        write((rows, slice(None, None, 2)), y[0, 0]),
        write((slice(1, 2), slice(0, 100)), y[1:2]),
        write(slice(-2, None), 3.5),
        write(x > 0, 0.0),
        write(..., y[0]),
    ]


def test_writes_into_slices(compare: Compare) -> None:
    compare(writes, [ROWS, ROWS], [X, X[::-1] * 10], [X[:3], X[:3] + 5])


def selections(x: Any, i: Any) -> Any:
    rows = paddle.unsqueeze(i, 1)
    pairs = paddle.stack([i, paddle.zeros_like(i)], 1)
    return [
        paddle.gather(x, i),
        paddle.gather(x, i[:2], axis=1),
        paddle.gather(x, rows),
        paddle.gather_nd(x, pairs),
        paddle.gather_nd(x, rows),
        paddle.index_select(x, i, 0),
        paddle.index_sample(x, paddle.zeros_like(x).astype("int64")),
        paddle.scatter(x, i, x[:3] * 2),
        paddle.scatter(x, i, x[:3] * 2, overwrite=False),
        paddle.scatter_nd_add(x, pairs, x[:3, 0]),
        paddle.take_along_axis(x, rows, 0, broadcast=False),
        paddle.put_along_axis(x[:3], rows, x[:3, :1], 1, broadcast=False),
        paddle.masked_select(x, x > 0),
        paddle.masked_select(x, x[:, :1] > 0),
        paddle.nonzero(x > 0),
        paddle.nonzero(x[0] > 0),
        paddle.index_put(x, [i], x[0]),
        paddle.index_put(x, [x[:, 0] > 0], x[0]),
        paddle.index_put(x, [x > 0], x[0, :1], accumulate=True),
        paddle.index_put(x, [i, i % 3], x[:3, 1], accumulate=True),
        paddle.repeat_interleave(x[:3], i + 1, axis=0),
    ]


@pytest.mark.parametrize("index", ["int64", "int32"])
def test_select(index: str, compare: Compare) -> None:
    compare(selections, [ROWS, ((-1,), index)], [X, [2, 0, 1]])


def sorting(x: Any) -> Any:
    ties = x.round()
    return [
        *paddle.topk(x, 2),
        *paddle.topk(x, 2, axis=0, largest=False),
        *paddle.topk(x, paddle.shape(x)[0] - 2, axis=0),
        x.sort(0),
        x.sort(1, descending=True),
        x.argsort(0),
        x.argsort(1, descending=True),
        ties.argsort(0, stable=True),
        x.sum().argsort(),
        x.astype("int64").sort(0),
    ]


def test_sort(compare: Compare) -> None:
    compare(sorting, [ROWS], [X], [X[:3]])
    compare(lambda x: [x.argsort(0), x.sort(0)], [ROWS], [X], [X[:1]], [X[:0]])


def arrays(x: Any, n: Any) -> Any:
    zero, one = paddle.zeros([1], "int64"), paddle.ones([1], "int64")
    array = paddle.tensor.create_array("float32")
    for factor, index in ((1.0, zero), (2.0, one), (3.0, n)):  # the last one replaces, or appends
        array = paddle.tensor.array_write(x * factor, index, array)
    read = paddle.tensor.array_read
    element = paddle._C_ops.slice_array_dense(array, n)
    return [read(array, zero), read(array, one), read(array, n), element, paddle.tensor.array_length(array) + n]


def test_arrays(compare: Compare) -> None:
    compare(arrays, [ROWS, COUNT], *[[X, [n]] for n in (0, 1, 2)])


def written_twice(x: Any) -> Any:
    """The length that was measured before the first write is the place of an element at the second."""
    array = paddle.tensor.array_write(x, paddle.zeros([1], "int64"))
    length = paddle.tensor.array_length(array)
    for factor in (2.0, 3.0):
        array = paddle.tensor.array_write(x * factor, length, array)
    return [paddle.tensor.array_read(array, length), paddle.tensor.array_length(array)]


def test_an_array_is_written_twice_at_its_former_end(compare: Compare) -> None:
    compare(written_twice, [ROWS], [X])


def chosen_input(x: Any, n: Any) -> Any:
    """What two conditional blocks of an old program end with."""
    select = paddle.static.nn.control_flow.select_input
    return [select([x * 2, x[:1] - 1], n), select([x - 3, x * 5], 1 - n)]


def test_select_input(compare: Compare) -> None:
    compare(chosen_input, [ROWS, ((1,), "int32")], *[[X, [n]] for n in (0, 1)], old=True)


def in_place(x: Any) -> Any:
    """After a write in place, the old name and the new one both stand for what was written."""
    one = x + 1
    added = paddle._C_ops.add_(one, x * 2)
    again = paddle._C_ops.add_(added, x * 3)
    return paddle.concat([one, added, again])


def normalised(x: Any) -> Any:
    """The name of this operation ends in `_`, but it changes its statistics only, and here not even these."""
    statistics = [paddle.full([3], value) for value in (0.5, 4.0, 2.0, 1.0)]
    first = paddle._C_ops.batch_norm_(x, *statistics, True, 0.9, 1e-5, "NCHW", False, False)[0]
    return paddle.concat([x, first])


def test_writes_in_place(compare: Compare) -> None:
    compare(in_place, [ROWS], [X])
    compare(normalised, [ROWS], [X])


def written_in_a_branch(x: Any, n: Any) -> Any:
    """Writes into what the branch did not make, one of them in a branch within; and into what it made."""
    out = x + 1
    y = x
    if n > 0:
        own = x * 2
        own[0] = 5.0
        out[1:] = own[1:] * 3
        if n > 1:
            out[0, 1] = 7.0
            y = own + out
        else:
            y = own - out
    return y, out * 2


def test_writes_in_branches(compare: Compare) -> None:
    compare(written_in_a_branch, [ROWS, COUNT], *[[X, [n]] for n in (0, 1, 2)], script=True)

"""Lets Paddle 3.2 write the old program format (`.pdmodel`) again.

Since Paddle 3.2, thirty functions (`paddle.sigmoid`, `paddle.matmul`, …) accept PIR values only, so tracing
with PIR switched off stops at the first of them. Those that the builders use are given back here:
on a variable of the old representation they append the operator that earlier releases appended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.base.framework import Variable
from paddle.base.layer_helper import LayerHelper

_UNARY = {name: name for name in ("cos", "floor", "log", "logical_not", "rsqrt", "sigmoid", "sin", "sqrt")}
_ELEMENTWISE = {"multiply": "elementwise_mul", "maximum": "elementwise_max", "minimum": "elementwise_min"}
_BOOLEAN = ("greater_than", "logical_and", "logical_or", "logical_xor")
_REDUCED = {"all": "reduce_all", "any": "reduce_any"}


def _append(operator: str, inputs: dict[str, Any], attributes: dict[str, Any], dtype: Any) -> Any:
    helper = LayerHelper(operator)
    out = helper.create_variable_for_type_inference(dtype)
    helper.append_op(type=operator, inputs=inputs, outputs={"Out": out}, attrs=attributes)
    return out


def _unary(operator: str) -> Callable[..., Any]:
    return lambda x, name=None: _append(operator, {"X": x}, {}, x.dtype)


def _elementwise(operator: str) -> Callable[..., Any]:
    return lambda x, y, name=None: _append(operator, {"X": x, "Y": y}, {"axis": -1}, x.dtype)


def _boolean(operator: str) -> Callable[..., Any]:
    return lambda x, y, name=None: _append(operator, {"X": x, "Y": y}, {}, "bool")


def _reduced(operator: str) -> Callable[..., Any]:
    def call(x: Any, axis: Any = None, keepdim: bool = False, name: Any = None) -> Any:
        axes = [] if axis is None else [axis] if isinstance(axis, int) else list(axis)
        attributes = {"dim": axes or [0], "keep_dim": keepdim, "reduce_all": not axes}
        return _append(operator, {"X": x}, attributes, "bool")

    return call


def _matmul(x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, name: Any = None) -> Any:
    return _append("matmul_v2", {"X": x, "Y": y}, {"trans_x": transpose_x, "trans_y": transpose_y}, x.dtype)


def _bmm(x: Any, y: Any, name: Any = None) -> Any:
    return _append("bmm", {"X": x, "Y": y}, {}, x.dtype)


def _triangle(lower: bool) -> Callable[..., Any]:
    return lambda x, diagonal=0, name=None: _append(
        "tril_triu", {"X": x}, {"diagonal": diagonal, "lower": lower}, x.dtype
    )


def _either(old: Callable[..., Any], new: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        return (new if paddle.in_dynamic_mode() else old)(x, *args, **kwargs)

    return call


def restore_old_functions() -> None:
    """Make the affected functions take old variables; a process that writes `.pdmodel` calls this once."""
    functions: dict[str, Callable[..., Any]] = {
        "bmm": _bmm,
        "matmul": _matmul,
        "tril": _triangle(True),
        "triu": _triangle(False),
    }
    functions |= {name: _unary(operator) for name, operator in _UNARY.items()}
    functions |= {name: _elementwise(operator) for name, operator in _ELEMENTWISE.items()}
    functions |= {name: _boolean(name) for name in _BOOLEAN}
    functions |= {name: _reduced(operator) for name, operator in _REDUCED.items()}
    for name, old in functions.items():
        both = _either(old, getattr(paddle, name))
        setattr(paddle, name, both)
        setattr(paddle.tensor, name, both)
        setattr(Variable, name, both)
    paddle.nn.functional.sigmoid = paddle.sigmoid

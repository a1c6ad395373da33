"""Operators that work element by element: arithmetic, comparison, activation, cast."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.graph import Graph
from ovseg_export.program import Op

Lowering = Callable[[Graph, Op], "str | tuple[str, ...]"]


def is_float(dtype: str) -> bool:
    return "float" in dtype


def unary(kind: str) -> Lowering:
    """An operator that is one ONNX node of one input."""
    return lambda g, op: g.op(kind, g[op.inputs[0]])


_OF_BOOLEANS = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}


def binary(kind: str) -> Lowering:
    """An operator that is one ONNX node of two inputs that broadcast; of booleans, another node."""

    def lower(g: Graph, op: Op) -> str:
        return g.op(_OF_BOOLEANS[kind] if op.outputs[0].dtype == "bool" else kind, *operands(g, op))

    return lower


def operands(g: Graph, op: Op) -> tuple[str, str]:
    """Both inputs; the second one is aligned to `axis` where an old program names one."""
    left, right = op.inputs[0], op.inputs[1]
    x, y = g[left], g[right]
    axis = op.attributes.get("axis", -1)
    if axis != -1 and left is not None and right is not None and left.rank > right.rank:
        missing = left.rank - axis - right.rank
        y = g.unsqueeze(y, *range(right.rank, right.rank + missing))
    return x, y


def compare(kind: str, negate: bool = False) -> Lowering:
    """A comparison; booleans are compared as int32, which ONNX's order relations need."""

    def lower(g: Graph, op: Op) -> str:
        x, y = operands(g, op)
        if op.inputs[0] is not None and op.inputs[0].dtype == "bool" and kind != "Equal":
            x, y = g.cast(x, "int32"), g.cast(y, "int32")
        result = g.op(kind, x, y)
        return g.op("Not", result) if negate else result

    return lower


def logical(kind: str) -> Lowering:
    """And, Or, Xor: Paddle takes any type and reads it as not zero."""

    def lower(g: Graph, op: Op) -> str:
        names = [
            g[value] if value is not None and value.dtype == "bool" else g.cast(g[value], "bool") for value in op.inputs
        ]
        return g.op(kind, *names)

    return lower


def floor_divide(g: Graph, op: Op) -> str:
    """Rounds towards minus infinity: (x - x mod y) / y for integers, floor(x / y) for floats."""
    x, y = operands(g, op)
    if is_float(op.outputs[0].dtype):
        return g.op("Floor", g.op("Div", x, y))
    return g.op("Div", g.op("Sub", x, g.op("Mod", x, y)), y)


def remainder(g: Graph, op: Op) -> str:
    """The remainder has the sign of the divisor; ONNX has that for integers only."""
    x, y = operands(g, op)
    if not is_float(op.outputs[0].dtype):
        return g.op("Mod", x, y)
    rest = g.op("Mod", x, y, fmod=1)
    zero = g.const(0, op.outputs[0].dtype)
    differs = g.op("Less", g.op("Mul", rest, y), zero)
    return g.op("Where", differs, g.op("Add", rest, y), rest)


def power(g: Graph, op: Op) -> str:
    """X ** y with y in the attribute."""
    exponent, x = op.attributes["y"], g[op.inputs[0]]
    if exponent == 2:
        return g.op("Mul", x, x)
    return g.op("Pow", x, g.const(exponent, op.outputs[0].dtype))


def scale(g: Graph, op: Op) -> str:
    """X * scale + bias, or (x + bias) * scale; both numbers take the type of x first, as Paddle does."""
    dtype, x = op.outputs[0].dtype, g[op.inputs[0]]
    bias = op.attributes["bias"]
    if len(op.inputs) > 1 and op.inputs[1] is not None:
        factor, factor_name = g.number(op.inputs[1]), g.scalar(op.inputs[1])
        if factor is not None:
            factor_name = g.const(factor, dtype)
        elif op.inputs[1].dtype != dtype:
            factor_name = g.cast(factor_name, dtype)
    else:
        factor = op.attributes["scale"]
        factor_name = g.const(factor, dtype)

    def shift(name: str) -> str:
        return name if bias == 0 else g.op("Add", name, g.const(bias, dtype))

    def stretch(name: str) -> str:
        return name if factor == 1 else g.op("Mul", name, factor_name)

    return shift(stretch(x)) if op.attributes["bias_after_scale"] else stretch(shift(x))


def clip(g: Graph, op: Op) -> str:
    """Limits come as one-element tensors."""
    dtype = op.outputs[0].dtype
    limits = []
    for value in op.inputs[1:]:
        number = g.number(value)
        if number is not None and not is_float(dtype):
            number = min(max(number, float(np.iinfo(dtype).min)), float(np.iinfo(dtype).max))
            number = (
                int(number) if abs(number) < 2**63 else (np.iinfo(dtype).max if number > 0 else np.iinfo(dtype).min)
            )
        limits.append(g.cast(g.scalar(value), dtype) if number is None else g.const(number, dtype))
    return g.op("Clip", g[op.inputs[0]], *limits)


def cast(g: Graph, op: Op) -> str:
    source, target = op.inputs[0], op.outputs[0].dtype
    name = g[source]
    return name if source is not None and source.dtype == target else g.cast(name, target)


def round_half_even(g: Graph, op: Op) -> str:
    """Paddle 3 rounds halves to even, as ONNX does; decimals shift the point first."""
    decimals = op.attributes.get("decimals", 0)
    x = g[op.inputs[0]]
    if not decimals:
        return g.op("Round", x)
    shift = g.const(10.0**decimals, op.outputs[0].dtype)
    return g.op("Div", g.op("Round", g.op("Mul", x, shift)), shift)


def hardswish(g: Graph, op: Op) -> str:
    """X * min(max(x + 3, 0), 6) / 6, which is ONNX's definition too."""
    return g.op("HardSwish", g[op.inputs[0]])


def hardsigmoid(g: Graph, op: Op) -> str:
    return g.op("HardSigmoid", g[op.inputs[0]], alpha=op.attributes["slope"], beta=op.attributes["offset"])


def sigmoid(g: Graph, op: Op) -> str:
    """1 / (1 + exp(-x)) spelled out, except for feature maps, where one node is faster.

    ONNX Runtime's own is exact to 1e-8 of 1, not of its result: 7 % of sigmoid(-14) are lost. The decoder of
    RT-DETR takes the logarithm of such boxes, and a pixel goes with it.
    """
    x, dtype = g[op.inputs[0]], op.outputs[0].dtype
    if op.outputs[0].rank > 3:
        return g.op("Sigmoid", x)
    one = g.const(1.0, dtype)
    return g.op("Div", one, g.op("Add", one, g.op("Exp", g.op("Neg", x))))


def swish(g: Graph, op: Op) -> str:
    x = g[op.inputs[0]]
    return g.op("Mul", x, g.op("Sigmoid", x))


def gelu(g: Graph, op: Op) -> str:
    """X / 2 (1 + erf(x / sqrt 2)), written so that ONNX Runtime fuses it; or the tanh approximation."""
    x, dtype = g[op.inputs[0]], op.outputs[0].dtype
    half, one = g.const(0.5, dtype), g.const(1.0, dtype)
    if op.attributes.get("approximate"):
        cube = g.op("Mul", g.op("Mul", x, x), x)
        inner = g.op("Add", x, g.op("Mul", cube, g.const(0.044715, dtype)))
        gate = g.op("Tanh", g.op("Mul", inner, g.const(math.sqrt(2 / math.pi), dtype)))
        return g.op("Mul", g.op("Mul", x, g.op("Add", gate, one)), half)
    error = g.op("Erf", g.op("Div", x, g.const(math.sqrt(2), dtype)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", error, one)), half)


def softplus(g: Graph, op: Op) -> str:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above the threshold."""
    x, dtype = g[op.inputs[0]], op.outputs[0].dtype
    beta, threshold = op.attributes.get("beta", 1.0), op.attributes.get("threshold", 20.0)
    scaled = x if beta == 1 else g.op("Mul", x, g.const(beta, dtype))
    soft = g.op("Softplus", scaled)
    soft = soft if beta == 1 else g.op("Div", soft, g.const(beta, dtype))
    return g.op("Where", g.op("Greater", scaled, g.const(threshold, dtype)), x, soft)


def mish(g: Graph, op: Op) -> str:
    """X tanh(log(1 + exp x))."""
    x = g[op.inputs[0]]
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


def relu6(g: Graph, op: Op) -> str:
    dtype = op.outputs[0].dtype
    return g.op("Clip", g[op.inputs[0]], g.const(0, dtype), g.const(6, dtype))


def hardtanh(g: Graph, op: Op) -> str:
    dtype = op.outputs[0].dtype
    return g.op(
        "Clip",
        g[op.inputs[0]],
        g.const(op.attributes["t_min"], dtype),
        g.const(op.attributes["t_max"], dtype),
    )


def leaky_relu(g: Graph, op: Op) -> str:
    return g.op("LeakyRelu", g[op.inputs[0]], alpha=op.attributes["negative_slope"])


def elu(g: Graph, op: Op) -> str:
    return g.op("Elu", g[op.inputs[0]], alpha=op.attributes["alpha"])


def prelu(g: Graph, op: Op) -> str:
    """One slope, or one for each channel."""
    slope, x = g[op.inputs[1]], op.inputs[0]
    if op.attributes["mode"] == "channel" and x is not None and x.rank > 2:
        if op.attributes["data_format"] != "NCHW":
            raise UnsupportedCase("channels come last")
        slope = g.reshape(slope, -1, *[1] * (x.rank - 2))
    elif op.attributes["mode"] == "element":
        raise UnsupportedCase("it has one slope for each element")
    return g.op("PRelu", g[x], slope)


def softmax(g: Graph, op: Op) -> str:
    return g.op("Softmax", g[op.inputs[0]], axis=op.attributes["axis"])


def log_softmax(g: Graph, op: Op) -> str:
    return g.op("LogSoftmax", g[op.inputs[0]], axis=op.attributes["axis"])


def rsqrt(g: Graph, op: Op) -> str:
    return g.op("Reciprocal", g.op("Sqrt", g[op.inputs[0]]))


def square(g: Graph, op: Op) -> str:
    return g.op("Mul", g[op.inputs[0]], g[op.inputs[0]])


def logarithm(base: float) -> Lowering:
    def lower(g: Graph, op: Op) -> str:
        return g.op("Div", g.op("Log", g[op.inputs[0]]), g.const(math.log(base), op.outputs[0].dtype))

    return lower


def log1p(g: Graph, op: Op) -> str:
    return g.op("Log", g.op("Add", g[op.inputs[0]], g.const(1, op.outputs[0].dtype)))


def logical_not(g: Graph, op: Op) -> str:
    value = op.inputs[0]
    name = g[value]
    return g.op("Not", name if value is not None and value.dtype == "bool" else g.cast(name, "bool"))


def isfinite(g: Graph, op: Op) -> str:
    x = g[op.inputs[0]]
    return g.op("Not", g.op("Or", g.op("IsNaN", x), g.op("IsInf", x)))


def bitwise(kind: str) -> Lowering:
    """Bitwise operators on booleans only: that is how masks use them."""

    def lower(g: Graph, op: Op) -> str:
        if op.outputs[0].dtype != "bool":
            raise UnsupportedCase(f"it works on {op.outputs[0].dtype}; only booleans are known")
        return g.op(kind, *[g[value] for value in op.inputs])

    return lower


def add_n(g: Graph, op: Op) -> str:
    names = g.parts(op.inputs[0])
    return names[0] if len(names) == 1 else g.ops("Sum", names, 1)[0]


def identity(g: Graph, op: Op) -> str:
    """Operators that only move data between devices or give it another name."""
    return g[op.inputs[0]]


def dropout(g: Graph, op: Op) -> str:
    """At inference: nothing, or a constant factor in the older mode."""
    x, probability = g[op.inputs[0]], op.attributes.get("p")
    if op.attributes["mode"] == "upscale_in_train":
        return x
    if probability is None:
        probability = g.number(op.inputs[2])
    if probability is None:
        raise UnsupportedCase("its probability is known at run time only")
    return g.op("Mul", x, g.const(1.0 - probability, op.outputs[0].dtype))


TABLE: dict[str, Lowering] = {
    **{
        name: unary(kind)
        for name, kind in {
            "relu": "Relu",
            "tanh": "Tanh",
            "exp": "Exp",
            "log": "Log",
            "sqrt": "Sqrt",
            "abs": "Abs",
            "floor": "Floor",
            "ceil": "Ceil",
            "sin": "Sin",
            "cos": "Cos",
            "tan": "Tan",
            "asin": "Asin",
            "acos": "Acos",
            "atan": "Atan",
            "sinh": "Sinh",
            "cosh": "Cosh",
            "erf": "Erf",
            "sign": "Sign",
            "reciprocal": "Reciprocal",
            "isnan": "IsNaN",
            "isinf": "IsInf",
            "softsign": "Softsign",
        }.items()
    },
    **{
        name: binary(kind)
        for name, kind in {
            "add": "Add",
            "subtract": "Sub",
            "multiply": "Mul",
            "divide": "Div",
            "maximum": "Max",
            "minimum": "Min",
            "elementwise_pow": "Pow",
            "grad_add": "Add",
        }.items()
    },
    "equal": compare("Equal"),
    "not_equal": compare("Equal", negate=True),
    "less_than": compare("Less"),
    "less_equal": compare("LessOrEqual"),
    "greater_than": compare("Greater"),
    "greater_equal": compare("GreaterOrEqual"),
    "logical_and": logical("And"),
    "logical_or": logical("Or"),
    "logical_xor": logical("Xor"),
    "logical_not": logical_not,
    "bitwise_and": bitwise("And"),
    "bitwise_or": bitwise("Or"),
    "bitwise_xor": bitwise("Xor"),
    "bitwise_not": bitwise("Not"),
    "floor_divide": floor_divide,
    "remainder": remainder,
    "pow": power,
    "scale": scale,
    "clip": clip,
    "cast": cast,
    "round": round_half_even,
    "hardswish": hardswish,
    "sigmoid": sigmoid,
    "hardsigmoid": hardsigmoid,
    "swish": swish,
    "silu": swish,
    "gelu": gelu,
    "softplus": softplus,
    "mish": mish,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "prelu": prelu,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "rsqrt": rsqrt,
    "square": square,
    "log2": logarithm(2),
    "log10": logarithm(10),
    "log1p": log1p,
    "isfinite": isfinite,
    "add_n": add_n,
    "dropout": dropout,
    "assign": identity,
    "assign_out_": identity,
    "share_data": identity,
    "share_data_": identity,
    "memcpy_h2d": identity,
    "memcpy_d2h": identity,
}

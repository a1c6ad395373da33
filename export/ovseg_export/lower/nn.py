"""Network layers: convolution, normalisation, pooling, resizing, padding, matrix product, sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovseg_export.errors import UnsupportedCase
from ovseg_export.lower.elementwise import Lowering
from ovseg_export.lower.graph import Graph
from ovseg_export.program import Op, Value


def need_channels_first(op: Op) -> None:
    layout = op.attributes.get("data_format", op.attributes.get("data_layout", "NCHW"))
    if layout not in ("NCHW", "NCDHW", "NCL", "AnyLayout", "Undefined(AnyLayout)"):
        raise UnsupportedCase(f"its data format is {layout}")


def onnx_pads(paddings: Sequence[int], dims: int) -> list[int]:
    """Paddle's paddings, one a dimension or (before, after) pairs, as ONNX's befores, then afters."""
    if len(paddings) == dims:
        return [*paddings, *paddings]
    return [*paddings[0::2], *paddings[1::2]]


def padding(op: Op, dims: int) -> dict[str, object]:
    """The attributes `pads` or `auto_pad`."""
    algorithm = op.attributes.get("padding_algorithm", "EXPLICIT")
    if algorithm == "SAME":
        return {"auto_pad": "SAME_UPPER"}
    if algorithm == "VALID":
        return {"pads": [0] * (2 * dims)}
    return {"pads": onnx_pads(op.attributes["paddings"], dims)}


def shape_of(value: Value | None) -> tuple[int, ...]:
    if value is None:
        raise UnsupportedCase("an input that it needs is absent")
    return value.shape


def conv(g: Graph, op: Op) -> str:
    need_channels_first(op)
    weight = shape_of(op.inputs[1])
    dims = len(weight) - 2
    same = op.attributes.get("padding_algorithm") == "SAME"  # Paddle then ignores dilations
    return g.op(
        "Conv",
        g[op.inputs[0]],
        g[op.inputs[1]],
        kernel_shape=list(weight[2:]),
        strides=op.attributes["strides"],
        dilations=[1] * dims if same else op.attributes["dilations"],
        group=op.attributes["groups"],
        **padding(op, dims),
    )


def conv_transpose(g: Graph, op: Op) -> str:
    """`output_size`, where given, becomes the output padding that reaches it."""
    need_channels_first(op)
    weight = shape_of(op.inputs[1])
    kernel, dims = weight[2:], len(weight) - 2
    if op.attributes.get("padding_algorithm", "EXPLICIT") == "SAME":
        raise UnsupportedCase("its padding is SAME")
    pads = padding(op, dims)["pads"]
    assert isinstance(pads, list)
    strides, dilations = op.attributes["strides"], op.attributes["dilations"]
    extra = list(op.attributes.get("output_padding") or [0] * dims)
    size = op.attributes.get("output_size") or (
        g.need_ints(op.inputs[2], "output size") if len(op.inputs) > 2 and op.inputs[2] is not None else []
    )
    if size:
        source = shape_of(op.inputs[0])[2:]
        if any(length < 0 for length in source):
            raise UnsupportedCase("it has an output size, and the size of its input is known at run time only")
        plain = [
            (source[i] - 1) * strides[i] - pads[i] - pads[i + dims] + dilations[i] * (kernel[i] - 1) + 1
            for i in range(dims)
        ]
        extra = [size[i] - plain[i] for i in range(dims)]
    return g.op(
        "ConvTranspose",
        g[op.inputs[0]],
        g[op.inputs[1]],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        group=op.attributes["groups"],
        pads=pads,
        output_padding=extra if any(extra) else None,
    )


def batch_norm(g: Graph, op: Op) -> tuple[str, str, str]:
    """Inputs: x, mean, variance, scale, bias.

    The second and third result are the running statistics, as they were: a program translated from `.pdmodel`
    that normalises twice with the same ones reads them from the first time.
    """
    need_channels_first(op)
    if not (op.attributes["is_test"] or op.attributes["use_global_stats"]):
        raise UnsupportedCase("it is in training mode")
    x, mean, variance, weight, bias = op.inputs[:5]
    channels = shape_of(mean)[0]
    weight_name = g.const(np.ones(channels, np.float32)) if weight is None else g[weight]
    bias_name = g.const(np.zeros(channels, np.float32)) if bias is None else g[bias]
    statistics = g[mean], g[variance]
    made = g.op("BatchNormalization", g[x], weight_name, bias_name, *statistics, epsilon=op.attributes["epsilon"])
    return made, *statistics


def layer_norm(g: Graph, op: Op) -> str:
    """Scale and bias are flat in Paddle, over all normalised axes together."""
    x, weight, bias = op.inputs[:3]
    shape, axis = shape_of(x), op.attributes["begin_norm_axis"]
    inner = shape[axis:]
    dtype = op.outputs[0].dtype
    if weight is not None and len(inner) > 1 and min(inner) < 0:
        raise UnsupportedCase("it normalises several axes whose sizes are known at run time only")
    if weight is None:
        if min(inner) < 0:
            raise UnsupportedCase("it has no weight and a size known at run time only")
        names = [g[x], g.const(np.ones(inner, dtype))]
    else:
        names = [g[x], g[weight] if len(inner) == 1 else g.reshape(g[weight], *inner)]
    if bias is not None:
        names.append(g[bias] if len(inner) == 1 else g.reshape(g[bias], *inner))
    return g.op("LayerNormalization", *names, axis=axis, epsilon=op.attributes["epsilon"])


def group_norm(g: Graph, op: Op) -> str:
    """Normalise each group as one channel of an instance normalisation; then scale and shift by channel."""
    need_channels_first(op)
    x, weight, bias = op.inputs[:3]
    groups, rank, dtype = op.attributes["groups"], len(shape_of(x)), op.outputs[0].dtype
    flat = g.reshape(g[x], 0, groups, -1)
    ones, zeros = g.const(np.ones(groups, dtype)), g.const(np.zeros(groups, dtype))
    normal = g.op("InstanceNormalization", flat, ones, zeros, epsilon=op.attributes["epsilon"])
    result = g.op("Reshape", normal, g.shape(g[x]))
    if weight is not None:
        result = g.op("Mul", result, g.reshape(g[weight], -1, *[1] * (rank - 2)))
    if bias is not None:
        result = g.op("Add", result, g.reshape(g[bias], -1, *[1] * (rank - 2)))
    return result


def instance_norm(g: Graph, op: Op) -> str:
    x, weight, bias = op.inputs[:3]
    channels, dtype = shape_of(x)[1], op.outputs[0].dtype
    if channels < 0 and weight is None:
        raise UnsupportedCase("it has no weight and a channel count known at run time only")
    weight_name = g.const(np.ones(channels, dtype)) if weight is None else g[weight]
    bias_name = g.const(np.zeros(channels, dtype)) if bias is None else g[bias]
    return g.op("InstanceNormalization", g[x], weight_name, bias_name, epsilon=op.attributes["epsilon"])


def matmul(g: Graph, op: Op) -> str:
    names = []
    for value, key in zip(op.inputs[:2], ("transpose_x", "transpose_y"), strict=True):
        name, rank = g[value], len(shape_of(value))
        if op.attributes.get(key) and rank > 1:
            name = g.transpose(name, *range(rank - 2), rank - 1, rank - 2)
        names.append(name)
    return g.op("MatMul", *names)


def dot(g: Graph, op: Op) -> str:
    return g.reduce("ReduceSum", g.op("Mul", g[op.inputs[0]], g[op.inputs[1]]), [-1], False)


def addmm(g: Graph, op: Op) -> str:
    """Beta input + alpha x y."""
    dtype = op.outputs[0].dtype
    product = g.op("MatMul", g[op.inputs[1]], g[op.inputs[2]])
    product = g.op("Mul", product, g.const(op.attributes["alpha"], dtype))
    return g.op("Add", product, g.op("Mul", g[op.inputs[0]], g.const(op.attributes["beta"], dtype)))


def einsum(g: Graph, op: Op) -> str:
    names = g.parts(op.inputs[0])
    return g.ops("Einsum", names, 1, equation=op.attributes["equation"])[0]


def embedding(g: Graph, op: Op) -> str:
    """Rows of the weight; the row of `padding_idx`, if any, reads as zeros."""
    ids, weight = g[op.inputs[0]], g[op.inputs[1]]
    rows = g.gather(weight, ids)
    index = op.attributes.get("padding_idx", -1)
    if index == -1:
        return rows
    is_padding = g.op("Equal", ids, g.const(index, shape_dtype(op.inputs[0])))
    return g.op("Where", g.unsqueeze(is_padding, -1), g.const(0, op.outputs[0].dtype), rows)


def shape_dtype(value: Value | None) -> str:
    return value.dtype if value is not None else ""


def pool(g: Graph, op: Op) -> str:
    need_channels_first(op)
    source, x = shape_of(op.inputs[0]), g[op.inputs[0]]
    is_max = op.attributes["pooling_type"] == "max"
    kind = "MaxPool" if is_max else "AveragePool"
    if "kernel_size" in op.attributes:
        kernel = [int(size) for size in op.attributes["kernel_size"]]
    else:
        kernel = g.need_ints(op.inputs[1], "kernel size")
    if op.attributes["global_pooling"] or (op.attributes["adaptive"] and kernel == [1, 1]):
        return g.op("GlobalMaxPool" if is_max else "GlobalAveragePool", x)
    if op.attributes["adaptive"]:
        return _adaptive_pool(g, x, source[2:], kernel, kind)
    strides, ceil = list(op.attributes["strides"]), bool(op.attributes["ceil_mode"])
    pads = padding(op, 2)
    count_padding = not is_max and not op.attributes["exclusive"]
    return g.op(
        kind,
        x,
        kernel_shape=kernel,
        strides=strides,
        ceil_mode=int(ceil),
        count_include_pad=None if is_max else int(count_padding),
        **pads,
    )


def max_pool_with_index(g: Graph, op: Op) -> tuple[str, ...]:
    """The maxima only; where they stood has no ONNX counterpart here."""
    kernel = [int(size) for size in op.attributes["kernel_size"]]
    x = g[op.inputs[0]]
    if op.attributes["global_pooling"] or (op.attributes["adaptive"] and kernel == [1, 1]):
        return (g.op("GlobalMaxPool", x),)
    if op.attributes["adaptive"]:
        return (_adaptive_pool(g, x, shape_of(op.inputs[0])[2:], kernel, "MaxPool"),)
    pads = onnx_pads(op.attributes["paddings"], 2)
    ceil = int(op.attributes.get("ceil_mode", False))
    return (g.op("MaxPool", x, kernel_shape=kernel, strides=op.attributes["strides"], pads=pads, ceil_mode=ceil),)


def _adaptive_pool(g: Graph, x: str, size: Sequence[int], output: Sequence[int], kind: str) -> str:
    """Bins of equal size are a plain pooling; means of others, two products with averaging matrices."""
    if min(size) < 0:
        raise UnsupportedCase("it is adaptive, and the size of its input is known at run time only")
    if all(n % k == 0 for n, k in zip(size, output, strict=True)):
        steps = [n // k for n, k in zip(size, output, strict=True)]
        return g.op(kind, x, kernel_shape=steps, strides=steps)
    if kind == "MaxPool":
        raise UnsupportedCase(f"it takes adaptive maxima of {list(size)} to {list(output)}, in unequal bins")
    rows, columns = (_averaging(n, k) for n, k in zip(size, output, strict=True))
    return g.op("MatMul", g.op("MatMul", g.const(rows), x), g.const(columns.T))


def _averaging(size: int, bins: int) -> np.ndarray:
    """[bins, size]: row i averages floor(i size / bins) up to ceil((i + 1) size / bins)."""
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        start, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def interpolate(kind: str) -> Lowering:
    """Nearest, linear or cubic resizing to a size or by a factor, either of which may be a tensor."""
    dims = {"linear": 1, "trilinear": 3}.get(kind, 2)

    def lower(g: Graph, op: Op) -> str:
        need_channels_first(op)
        x = g[op.inputs[0]]
        out_size, size_list, scale_input = (*op.inputs[1:], None, None, None)[:3]
        known = [op.attributes[key] for key in ("out_d", "out_h", "out_w")[-dims:]]
        factors = [float(factor) for factor in op.attributes.get("scale") or ()]
        if len(factors) == 1:
            factors *= dims
        sizes = scales = ""
        if size_list is not None and g.parts(size_list):
            sizes = g.vector(size_list)
        elif out_size is not None:
            sizes = g.vector(out_size)
        elif scale_input is not None:
            scales = g.cast(g.reshape(g[scale_input], -1), "float32")
            if shape_of(scale_input) in ((), (1,)):
                scales = g.op("Tile", scales, g.i64(dims))
            scales = g.concat([g.const([1, 1], np.float32), scales])
        elif factors and min(factors) > 0:
            scales = g.const([1, 1, *factors], np.float32)
        elif min(known) > 0:
            sizes = g.i64(*known)
        else:
            raise UnsupportedCase("it has neither a size nor a factor")
        if sizes:
            sizes = g.concat([g.op("Shape", x, start=0, end=2), sizes])
        if op.attributes["align_corners"]:
            mode = "align_corners"
        elif kind == "nearest" or (op.attributes["align_mode"] == 1 and kind != "bicubic"):
            mode = "asymmetric"
        elif kind == "bicubic":
            mode = "half_pixel"
        else:
            # unlike half_pixel it takes an output of size 1 from position 0, as Paddle does
            mode = "pytorch_half_pixel"
        return g.op(
            "Resize",
            x,
            "",
            scales,
            *([sizes] if sizes else []),
            mode="nearest" if kind == "nearest" else "cubic" if kind == "bicubic" else "linear",
            coordinate_transformation_mode=mode,
            nearest_mode=("round_prefer_ceil" if op.attributes["align_corners"] else "floor")
            if kind == "nearest"
            else None,
            cubic_coeff_a=-0.75 if kind == "bicubic" else None,
        )

    return lower


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad3d(g: Graph, op: Op) -> str:
    """Paddings come as (left, right, top, bottom, front, back) of a 5-D tensor."""
    mode = _PAD_MODES[op.attributes["mode"]]
    if mode == "wrap" and g.opset < 19:
        raise UnsupportedCase("circular padding needs opset 19")
    amounts = g.vector(op.inputs[1]) if "paddings" not in op.attributes else g.i64(*op.attributes["paddings"])
    lead, trail = ((0, 0), ()) if op.attributes["data_format"] == "NCDHW" else ((0,), (0,))
    parts = []
    for side in (0, 1):  # what comes before each axis, then what comes after
        spatial = g.gather(amounts, g.i64(4 + side, 2 + side, side))
        parts += [g.i64(*lead), spatial, *([g.i64(*trail)] if trail else [])]
    order = g.concat(parts)
    value = [g.const(op.attributes["pad_value"], op.outputs[0].dtype)] if mode == "constant" else []
    return g.op("Pad", g[op.inputs[0]], order, *value, mode=mode)


def pad(g: Graph, op: Op) -> str:
    """Paddings come as (before, after) of each axis; the pad value is an input."""
    pairs = op.attributes["paddings"]
    value = g.number(op.inputs[1]) if len(op.inputs) > 1 else op.attributes["pad_value"]
    dtype = op.outputs[0].dtype
    filler = g.cast(g.scalar(op.inputs[1]), dtype) if value is None else g.const(value, dtype)
    return g.op("Pad", g[op.inputs[0]], g.i64(*pairs[0::2], *pairs[1::2]), filler)


def pixel_shuffle(g: Graph, op: Op) -> str:
    need_channels_first(op)
    return g.op("DepthToSpace", g[op.inputs[0]], blocksize=op.attributes["upscale_factor"], mode="CRD")


def grid_sample(g: Graph, op: Op) -> str:
    """A coordinate that is no finite number gives NaN in Paddle, and some pixel in ONNX Runtime.

    Such coordinates come up where a mask is pasted into a box without area, and no comparison holds for NaN: the
    mask stays empty.
    """
    mode, pads = op.attributes["mode"], op.attributes["padding_mode"]
    if len(shape_of(op.inputs[0])) != 4:
        raise UnsupportedCase("it samples volumes")
    finite = mode != "bilinear" or pads != "zeros"
    if g.opset >= 20 and mode == "bilinear":
        mode = "linear"
    grid = g[op.inputs[1]]
    sampled = g.op(
        "GridSample",
        g[op.inputs[0]],
        grid,
        mode=mode,
        padding_mode={"reflect": "reflection"}.get(pads, pads),
        align_corners=int(op.attributes["align_corners"]),
    )
    if finite:
        return sampled
    # Axis 3, not -1: of no rows at all, ONNX Runtime 1.31 reduces another one.
    nothing = g.op("Mul", g.reduce("ReduceSum", grid, [3], False), g.const(0, op.outputs[0].dtype))
    return g.op("Add", sampled, g.unsqueeze(nothing, 1))


TABLE: dict[str, Lowering] = {
    "conv2d": conv,
    "conv3d": conv,
    "depthwise_conv2d": conv,
    "conv2d_transpose": conv_transpose,
    "depthwise_conv2d_transpose": conv_transpose,
    "batch_norm_": batch_norm,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "matmul": matmul,
    "bmm": matmul,
    "mv": matmul,
    "dot": dot,
    "addmm": addmm,
    "einsum": einsum,
    "embedding": embedding,
    "pool2d": pool,
    "max_pool2d_with_index": max_pool_with_index,
    "nearest_interp": interpolate("nearest"),
    "linear_interp": interpolate("linear"),
    "bilinear_interp": interpolate("bilinear"),
    "bicubic_interp": interpolate("bicubic"),
    "trilinear_interp": interpolate("trilinear"),
    "pad3d": pad3d,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "grid_sample": grid_sample,
}

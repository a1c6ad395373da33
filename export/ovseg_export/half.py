"""Small files without loss: weights that float16 holds exactly, in the network that is compared and in the file."""

from __future__ import annotations

import numpy as np
import onnx

EPSILON = 1e-5  # of the normalisations, as Paddle and PyTorch have it
NO_VARIANCE = np.float32(1) - np.float32(EPSILON)  # the variance that a normalisation divides by 1 for


def in_half(array: np.ndarray) -> np.ndarray:
    """Float32 that float16 holds exactly."""
    return array.astype(np.float16).astype(np.float32)


def fold_and_halve(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Move batch normalisations into the convolutions before them; round matrices and kernels to float16.

    Args:
        state: PyTorch's names and arrays; `NAME.0` is a convolution without bias and `NAME.1` its normalisation.

    Returns:
        The same names. The normalisations left add their bias and do nothing else, so that whatever folds them once
        more leaves the kernels as they are.
    """
    state = {name: array.astype(np.float32) for name, array in state.items()}
    for mean in [name for name in state if name.endswith(".1.running_mean")]:
        norm = mean.removesuffix(".running_mean")
        kernel = f"{norm.removesuffix('.1')}.0.weight"
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + np.float32(EPSILON))
        state[kernel] = state[kernel] * scale.reshape(-1, *[1] * (state[kernel].ndim - 1))
        state[f"{norm}.bias"] = state[f"{norm}.bias"] - state[mean] * scale
        state[mean] = np.zeros_like(state[mean])
        state[f"{norm}.running_var"] = np.full_like(scale, NO_VARIANCE)
        state[f"{norm}.weight"] = np.ones_like(scale)
    return {name: in_half(array) if array.ndim > 1 else array for name, array in state.items()}


def store_in_half(model: onnx.ModelProto) -> None:
    """Store matrices and kernels that float16 holds without loss as float16; a Cast undoes it when the model loads."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim < 2:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if (half.astype(np.float32) == array).all():
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def restore_from_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as it was before `store_in_half`: weights in float32, without the Casts."""
    restored = onnx.ModelProto()
    restored.CopyFrom(model)
    graph = restored.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        to_float = any(item.name == "to" and item.i == onnx.TensorProto.FLOAT for item in node.attribute)
        if node.op_type == "Cast" and to_float and node.input[0] in stored:
            tensor = stored[node.input[0]]
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return restored

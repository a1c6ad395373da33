"""Tidy a list of ONNX nodes: drop what nothing reads, and fold biases and normalisation into convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto

from ovseg_export.lower.graph import node_graphs


def reads(node: NodeProto) -> set[str]:
    """Names that a node reads, those that its nested graphs take from outside included."""
    names = {name for name in node.input if name}
    for graph in node_graphs(node):
        names |= _outside(graph)
    return names


def _outside(graph: GraphProto) -> set[str]:
    made = {item.name for item in graph.input}
    needed: set[str] = set()
    for node in graph.node:
        needed |= reads(node) - made
        made |= set(node.output)
    return needed | ({item.name for item in graph.output} - made)


def prune(
    nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Keep the nodes and constants that the outputs depend on; nested graphs are pruned too."""
    needed = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            for graph in node_graphs(node):
                inner, _ = prune(graph.node, {}, [item.name for item in graph.output])
                del graph.node[:]
                graph.node.extend(inner)
            kept.append(node)
            needed |= reads(node)
    return kept[::-1], {name: array for name, array in constants.items() if name in needed}


def fuse_convolutions(
    nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Fold what follows a convolution by channel into it: an added constant, and BatchNormalization.

    y = s (W x + b - m) + t with s = scale / sqrt(variance + epsilon) is a convolution with the weight s W and
    the bias s (b - m) + t. Only where nothing else reads the convolution.
    """
    arrays = dict(constants)
    uses = Counter(name for node in nodes for name in reads(node))
    makers: dict[str, NodeProto] = {}
    kept: list[NodeProto] = []
    for node in nodes:
        conv = makers.get(node.input[0]) if node.input else None
        fused = None
        if conv is not None and uses[node.input[0]] == 1 and conv.input[1] in arrays:
            if node.op_type == "BatchNormalization" and all(name in arrays for name in node.input[1:]):
                fused = _with_batch_norm(conv, node, arrays)
            elif node.op_type == "Add" and node.input[1] in arrays:
                fused = _with_bias(conv, arrays[node.input[1]], arrays)
        if fused is not None and conv is not None:
            weight, bias = fused
            name = node.output[0]
            arrays[f"{name}_weight"], arrays[f"{name}_bias"] = weight, bias
            kept.remove(conv)
            source = conv.input[0]
            merged = NodeProto()
            merged.CopyFrom(conv)
            del merged.input[:], merged.output[:]
            merged.input.extend([source, f"{name}_weight", f"{name}_bias"])
            merged.output.append(name)
            node = merged
        if node.op_type in ("Conv", "ConvTranspose"):
            makers[node.output[0]] = node
        kept.append(node)
    return kept, arrays


def _channels(conv: NodeProto, weight: np.ndarray) -> int:
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    return int(weight.shape[0] if conv.op_type == "Conv" else weight.shape[1] * group)


def _bias(conv: NodeProto, arrays: Mapping[str, np.ndarray], channels: int) -> np.ndarray | None:
    if len(conv.input) < 3:
        return np.zeros(channels, np.float32)
    return arrays.get(conv.input[2])


def _with_bias(
    conv: NodeProto, added: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    weight = arrays[conv.input[1]]
    channels = _channels(conv, weight)
    bias = _bias(conv, arrays, channels)
    expected = (1, channels, *[1] * (weight.ndim - 2))
    if bias is None or added.shape not in (expected, expected[1:]) or added.dtype != weight.dtype:
        return None
    return weight, bias + added.reshape(-1)


def _with_batch_norm(
    conv: NodeProto, node: NodeProto, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    weight = arrays[conv.input[1]]
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    channels = _channels(conv, weight)
    bias = _bias(conv, arrays, channels)
    if bias is None or weight.dtype != np.float32:
        return None
    scale, shift, mean, variance = (arrays[name].astype(np.float64) for name in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    if conv.op_type == "Conv":
        fused = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # [in, out / group, …]: the inputs of group i lead to the outputs of group i
        per_group = factor.reshape(group, 1, channels // group, *[1] * (weight.ndim - 2))
        fused = (weight.reshape(group, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    return fused.astype(np.float32), (factor * (bias - mean) + shift).astype(np.float32)

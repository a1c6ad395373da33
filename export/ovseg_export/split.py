"""Cut a promptable segmentation graph in two: what depends on the image alone, and the rest.

The encoder runs once an image, the decoder once a batch of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ovseg.errors import ModelError
from ovseg_export.convert import Converted
from ovseg_export.lower.graph import node_graphs, onnx_type
from ovseg_export.tidy import reads


def split(model: ModelProto, image: str = "image", *, at_neck: bool = False) -> tuple[ModelProto, ModelProto]:
    """Cut `model` where tensors that depend on `image` alone meet those that depend on another input.

    Args:
        model: a graph with shapes inferred or inferable, nodes in topological order.
        image: name of the image input. Every other input belongs to the prompt.
        at_neck: cut at one tensor, the image encoder's own result, before it is copied for the prompts or
            added to: so the box and the point model of the same weights have the same encoder, though the
            point model, whose prompt count is fixed, could compute more of its decoder in advance.

    Returns:
        The encoder, from `image` to the cut, and the decoder, from the cut and the other inputs to the
        model's outputs. The tensors of the cut are called `embedding`, or `embedding_0`, `embedding_1`, ...
        in the order in which the graph computes them.

    Raises:
        ValueError: the graph has no such input, or no tensor to cut at.
    """
    graph = model.graph
    if image not in {value.name for value in graph.input}:
        raise ValueError(f"the graph has no input {image!r}")
    nodes = list(graph.node)
    from_image = _reached(nodes, {image})
    prompts = {value.name for value in graph.input} - {image}
    from_prompt = _reached(nodes, prompts)
    encoder_tensors = from_image - from_prompt
    late = [node for node in nodes if any(name in from_prompt for name in node.output)]
    read = {name for node in late for name in reads(node)} & encoder_tensors
    cut = [name for node in nodes for name in node.output if name in read]
    if not cut:
        raise ValueError("no tensor depends on the image alone and is read together with a prompt")
    if at_neck:
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        weights |= {value.name: _sizes(value) for value in graph.value_info}
        cut = [_neck(nodes, image, from_image, cut, weights)]
    names = {tensor: f"embedding_{i}" if len(cut) > 1 else "embedding" for i, tensor in enumerate(cut)}

    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in inferred.graph.value_info}
    boundary = []
    for tensor in cut:
        kind = known[tensor].type.tensor_type.elem_type
        boundary.append(helper.make_tensor_value_info(names[tensor], kind, _sizes(known[tensor])))
    renamed = [_rename(node, names) for node in nodes]
    inputs = {value.name: value for value in graph.input}
    encoder = _extract(model, renamed, [inputs[image]], boundary)
    decoder_inputs = [*boundary, *[value for value in graph.input if value.name != image]]
    return encoder, _extract(model, renamed, decoder_inputs, list(graph.output))


# What copies the image's tokens for the prompts, or lays them out for attention.
_LAYOUT = {"Unsqueeze", "Tile", "Expand", "Reshape", "Gather", "Transpose", "Flatten", "Concat"}


def _neck(
    nodes: Sequence[NodeProto],
    image: str,
    from_image: set[str],
    cut: Sequence[str],
    weights: Mapping[str, Sequence[int | str | None]],
) -> str:
    """The last tensor from the image's last convolution on that everything in `cut` is computed from.

    It ends before a change of layout, and before a constant map is added: those belong to the decoder.
    """
    last_use = dict.fromkeys(cut, len(nodes))
    needed = set(cut)
    for index in reversed(range(len(nodes))):
        if needed.intersection(nodes[index].output):
            for name in reads(nodes[index]) & from_image:
                needed.add(name)
                last_use.setdefault(name, index)
    path = [index for index, node in enumerate(nodes) if needed.intersection(node.output) and reads(node) & from_image]
    start = max((index for index in path if nodes[index].op_type == "Conv"), default=-1)
    live, found = {image}, None
    for index in path:
        node = nodes[index]
        adds_map = any(len(weights.get(name, ())) == 4 for name in node.input if node.op_type == "Add")
        if index > start >= 0 and found is not None and (node.op_type in _LAYOUT or adds_map):
            break
        live = {name for name in live.union(node.output) if last_use.get(name, -1) > index}
        if len(live) == 1 and index >= start:
            (found,) = live
    if found is None:
        raise ValueError("no single tensor separates the image from the prompt")
    return found


def _sizes(value: onnx.ValueInfoProto) -> list[int | str | None]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims]


def select(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """The part of a graph that computes some of its outputs, with all the inputs that the part reads."""
    kept = [value for value in model.graph.output if value.name in outputs]
    if len(kept) != len(set(outputs)):
        raise ValueError(f"the graph has not all of the outputs {list(outputs)}")
    return _extract(model, model.graph.node, list(model.graph.input), kept)


def _reached(nodes: Sequence[NodeProto], start: set[str]) -> set[str]:
    """Names of all tensors computed from `start`."""
    reached = set(start)
    for node in nodes:
        if not reached.isdisjoint(reads(node)):
            reached.update(node.output)
    return reached


def _rename(node: NodeProto, names: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for graph in node_graphs(copy):
        inner = [_rename(item, names) for item in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for value in graph.output:
            value.name = names.get(value.name, value.name)
    return copy


def _extract(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> ModelProto:
    """The part of a graph that computes `outputs` from `inputs`, with the weights that it reads."""
    given = {value.name for value in inputs}
    wanted = {value.name for value in outputs}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(name for name in node.output if name not in given):
            kept.append(node)
            wanted.update(reads(node))
    weights: list[TensorProto] = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    part = helper.make_graph(kept[::-1], model.graph.name, list(inputs), list(outputs), weights)
    made = helper.make_model(part, opset_imports=model.opset_import, producer_name="ovseg")
    made.ir_version = model.ir_version
    return made


def split_converted(whole: Converted, image: str = "image") -> tuple[Converted, Converted]:
    """Cut a converted model as `split` does, without copying its constants: they may take gigabytes.

    Encoder and decoder get names of their own by the order of their nodes and constants, so that models that
    share an encoder give the same bytes.

    Raises:
        ModelError: the graph has no tensor to cut at.

    """
    # Shape inference needs the values of small constants, and of large ones the sizes only.
    outline = ModelProto()
    outline.CopyFrom(whole.model)
    for name, array in whole.constants.items():
        if array.nbytes <= 4096:
            outline.graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            kind = onnx_type(array.dtype.name)
            outline.graph.value_info.append(helper.make_tensor_value_info(name, kind, array.shape))
    try:
        parts = split(outline, image, at_neck=True)
    except ValueError as failure:
        raise ModelError(
            f"The graph cannot be cut into encoder and decoder: {failure}.", "Report the model."
        ) from failure
    return _with_constants(parts[0], whole.constants), _with_constants(parts[1], whole.constants)


def _with_constants(part: ModelProto, constants: Mapping[str, np.ndarray]) -> Converted:
    """Take the constants that `part` reads, and name everything but inputs and outputs by its order."""
    del part.graph.initializer[:]
    kept = {value.name for value in (*part.graph.input, *part.graph.output)}
    names: dict[str, str] = {}
    used: dict[str, np.ndarray] = {}
    for node in part.graph.node:
        for name in (*node.input, *sorted(reads(node).difference(node.input))):
            if name in constants and name not in kept and name not in names:
                names[name] = f"constant_{len(used)}"
                used[names[name]] = constants[name]
        for name in node.output:
            if name and name not in kept:
                names[name] = f"tensor_{len(names)}"
    nodes = [_rename(node, names) for node in part.graph.node]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    return Converted(part, used)

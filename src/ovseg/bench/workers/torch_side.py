"""PyTorch on our ONNX files, by onnx2torch, and on what our sessions were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx2torch import convert


class Side:
    """The recorded runs of a batch, one after the other."""

    def __init__(self, request: dict[str, Any]) -> None:
        torch.set_num_threads(request["threads"])
        modules: dict[str, Any] = {}
        self._runs: dict[int, list[tuple[Any, list[torch.Tensor]]]] = {}
        for batch, runs in request["runs"].items():
            for run in runs:
                model = _with_float_weights(onnx.load(run["model"]))
                if run["model"] not in modules:
                    modules[run["model"]] = convert(model).eval()
                feeds = np.load(run["feeds"])
                step = modules[run["model"]], [torch.from_numpy(feeds[entry.name]) for entry in model.graph.input]
                self._runs.setdefault(int(batch), []).append(step)

    def call(self, batch: int) -> None:
        """Run them."""
        with torch.inference_mode():
            for module, feeds in self._runs[batch]:
                module(*feeds)


def _with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast the weights that are stored in another type, such as float16: onnx2torch takes no weights from a Cast."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for node in casts:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        array = onnx.numpy_helper.to_array(stored[node.input[0]]).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    return model


def load(request: dict[str, Any]) -> Side:
    """Convert the models."""
    return Side(request)

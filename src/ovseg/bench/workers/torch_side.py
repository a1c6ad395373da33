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
                graph = onnx.load(run["model"])
                if run["model"] not in modules:
                    modules[run["model"]] = convert(graph).eval()
                feeds = np.load(run["feeds"])
                step = modules[run["model"]], [torch.from_numpy(feeds[entry.name]) for entry in graph.graph.input]
                self._runs.setdefault(int(batch), []).append(step)

    def call(self, batch: int) -> None:
        """Run them."""
        with torch.inference_mode():
            for module, feeds in self._runs[batch]:
                module(*feeds)


def load(request: dict[str, Any]) -> Side:
    """Convert the models."""
    return Side(request)

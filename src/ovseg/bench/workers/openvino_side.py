"""OpenVINO on our ONNX files and on what our sessions were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino


class Side:
    """The recorded runs of a batch, one after the other."""

    def __init__(self, request: dict[str, Any]) -> None:
        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": request["threads"], "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        # The CPU plugin computes in bfloat16 where the processor can: the others compute in float32.
        options["INFERENCE_PRECISION_HINT"] = "f32"
        compiled: dict[str, Any] = {}
        self._runs: dict[int, list[tuple[Any, dict[str, np.ndarray]]]] = {}
        for batch, runs in request["runs"].items():
            for run in runs:
                if run["model"] not in compiled:
                    compiled[run["model"]] = core.compile_model(run["model"], "CPU", options).create_infer_request()
                step = compiled[run["model"]], dict(np.load(run["feeds"]))
                self._runs.setdefault(int(batch), []).append(step)

    def call(self, batch: int) -> None:
        """Run them."""
        for model, feeds in self._runs[batch]:
            model.infer(feeds)


def load(request: dict[str, Any]) -> Side:
    """Compile the models."""
    return Side(request)

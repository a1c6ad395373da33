"""The bare session: ONNX Runtime alone, on what our sessions were given, with as many threads and no other option."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime


class Side:
    """The recorded runs of a batch, one after the other."""

    def __init__(self, request: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.log_severity_level = 4
        sessions: dict[str, Any] = {}
        self._runs: dict[int, list[tuple[Any, list[str], dict[str, np.ndarray]]]] = {}
        for batch, runs in request["runs"].items():
            for run in runs:
                if run["model"] not in sessions:
                    providers = [tuple(provider) for provider in run["providers"]]
                    sessions[run["model"]] = onnxruntime.InferenceSession(run["model"], options, providers=providers)
                step = sessions[run["model"]], run["outputs"], dict(np.load(run["feeds"]))
                self._runs.setdefault(int(batch), []).append(step)

    def call(self, batch: int) -> None:
        """Run them."""
        for session, outputs, feeds in self._runs[batch]:
            session.run(outputs, feeds)


def load(request: dict[str, Any]) -> Side:
    """Load the models."""
    return Side(request)

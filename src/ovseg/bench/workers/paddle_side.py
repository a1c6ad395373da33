"""Paddle's own inference on the Paddle archive of the same weights, on what our sessions were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from paddle.inference import Config, create_predictor


class Side:
    """One program, run on the feeds that ours had."""

    def __init__(self, request: dict[str, Any]) -> None:
        folder = Path(request["subject"]["paddle"]["model"])
        program = next(path for path in (folder / "inference.json", folder / "inference.pdmodel") if path.is_file())
        config = Config(str(program), str(folder / "inference.pdiparams"))
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(request["threads"])
        config.disable_glog_info()
        self._predictor = create_predictor(config)
        self._preprocess = request["subject"]["preprocess"]["model"]
        self._feeds = {int(batch): self._inputs(runs) for batch, runs in request["runs"].items()}

    def _inputs(self, runs: list[dict[str, Any]]) -> list[list[np.ndarray]]:
        """The inputs of the program for each image: by name; a feature model has one, of another name than ours."""
        names, images = self._predictor.get_input_names(), []
        known: dict[str, np.ndarray] = {}
        for run in runs:
            feeds = dict(np.load(run["feeds"]))
            if "point_coords" in feeds:  # the corners of boxes
                feeds["prompt"] = feeds["point_coords"].reshape(-1, 4)
            known |= feeds
            if "pixels" in feeds:
                images.append([self._normalised(feeds["pixels"])])
            elif len(names) == 1 and len(feeds) == 1:
                images.append(list(feeds.values()))
            elif set(names) <= set(known):
                images.append([known.pop(name) for name in names])
        if not images:
            raise ValueError(f"the program takes {names}, and ours was given {sorted(known)}")
        return images

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        """What our graph makes of the bytes of images [N, H, W, 3], B, G, R; Paddle's has it done before."""
        mean, std = (np.array(self._preprocess[key], np.float32) for key in ("mean", "std"))
        return np.ascontiguousarray(((pixels[..., ::-1] - mean) / std).transpose(0, 3, 1, 2))

    def call(self, batch: int) -> None:
        """Run it."""
        for arrays in self._feeds[batch]:
            for name, array in zip(self._predictor.get_input_names(), arrays, strict=True):
                self._predictor.get_input_handle(name).copy_from_cpu(array)
            self._predictor.run()
            for name in self._predictor.get_output_names():
                self._predictor.get_output_handle(name).copy_to_cpu()


def load(request: dict[str, Any]) -> Side:
    """Load the program."""
    return Side(request)

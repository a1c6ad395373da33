"""Models of the families shitu_rec and clip_vit: an image becomes a vector that similar images have too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..device import Device
from ..errors import ModelError
from ..session import Session
from ..stages.detection import check_shape, network_input, read_preprocessing, resize_all
from ..stages.embedding import normalise
from ..zoo import ModelFolder


class Embedder:
    """A feature model on one device. Threads may share it.

    Its graph takes `pixels` [N, H, W, 3] uint8, B, G, R, and gives `unit_embedding` [N, D]; or it takes the normalised
    `image` [N, 3, H, W] and gives `embedding` [N, D] of any length.

    Args:
        folder: model folder of the family `shitu_rec` or `clip_vit`.
        device: where the session runs.
        batch_size: images that go through the model at once.
        session_options: passed to `Session`.

    Attributes:
        name: of the model.
        dim: D.

    Raises:
        ModelError: if the graph or the preprocessing is not that of the families.
        DeviceUnavailable: if the device was named and cannot be used.
    """

    def __init__(
        self, folder: ModelFolder, device: Device, *, batch_size: int, session_options: Mapping[str, Any]
    ) -> None:
        self.name = folder.name
        where = f"{folder.path / 'model.yaml'}: preprocess"
        self._preprocessing = read_preprocessing(folder.preprocess, where)
        if self._preprocessing.keep_ratio:
            raise ModelError(f"{where} keeps the ratio of images.", "Give a model that takes images of one size.")
        self._session = Session(folder.files["model"], device, **session_options)
        inputs, outputs = self._session.inputs, {tensor.name: tensor for tensor in self._session.outputs}
        ends = ("pixels", "unit_embedding") if "unit_embedding" in outputs else ("image", "embedding")
        self._input, self._output = ends
        shape = outputs[self._output].shape if self._output in outputs else ()
        if [tensor.name for tensor in inputs] != [self._input] or len(shape) != 2 or not isinstance(shape[1], int):
            raise ModelError(
                f"The model {folder.name} in {folder.path} has the inputs "
                f"{', '.join(tensor.name for tensor in inputs)} and the outputs {', '.join(outputs)}, which are not "
                "those of a feature model.",
                "Export the model again, or choose another.",
            )
        check_shape(self._preprocessing, inputs[0].shape, where, takes_bytes=self._input == "pixels")
        self.dim = shape[1]
        self._dtype = inputs[0].dtype
        self._batch_size = 1 if 1 in (inputs[0].shape[0], folder.proven_batch) else batch_size

    def embed(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of images, [N, D] float32 of unit length.

        Args:
            pixels: HxWx3 uint8 BGR, of any size each.

        Raises:
            ModelError: if the model does not give an embedding for each image.
        """
        embeddings = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self._batch_size):
            group = slice(start, start + self._batch_size)
            batch = self._batch(pixels[group])
            found = self._session.run({self._input: batch}, [self._output])[self._output]
            if len(found) != len(batch):
                raise ModelError(
                    f"The model {self.name} gives {len(found)} embeddings for {len(batch)} images.",
                    "Use batch_size=1, or export the model again.",
                )
            embeddings[group] = found
        return embeddings if self._input == "pixels" else normalise(embeddings)

    def _batch(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        how = self._preprocessing
        if self._input == "pixels":
            return resize_all(pixels, how)
        return network_input(pixels, how.size, how).astype(self._dtype, copy=False)

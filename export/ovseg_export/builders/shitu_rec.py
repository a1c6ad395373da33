"""PP-ShiTuV2_rec: a PPLCNetV2-like network that turns a picture into an embedding."""

from __future__ import annotations

from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, set_batch_norm_statistics
from .configs import feature_config
from .images import IMAGENET_MEAN, IMAGENET_STD, calibration_batch
from .layers import ConvNorm, SqueezeExcite

# Per stage: number of blocks, kernel, split pointwise convolution, shortcut, squeeze-and-excite.
STAGES = (
    (2, 3, False, False, False),
    (2, 3, False, False, False),
    (3, 5, True, True, False),
    (2, 5, False, True, True),
)
WIDTHS = {"small": 16, "base": 64}
EMBEDDING = 512


class SeparableBlock(nn.Layer):
    """Depthwise convolution, optional channel attention, pointwise convolution (one, or two narrow ones)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        kernel: int,
        *,
        split: bool,
        shortcut: bool,
        attention: bool,
    ) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels_in, channels_in, kernel, stride=stride, groups=channels_in)
        self.attention = SqueezeExcite(channels_in) if attention else None
        self.pointwise = (
            nn.Sequential(
                ConvNorm(channels_in, channels_in // 2, activation=None),
                ConvNorm(channels_in // 2, channels_out),
            )
            if split
            else ConvNorm(channels_in, channels_out)
        )
        self.shortcut = shortcut and stride == 1 and channels_in == channels_out

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.depthwise(x)
        if self.attention is not None:
            y = self.attention(y)
        y = self.pointwise(y)
        return y + x if self.shortcut else y


class ShituRec(nn.Layer):
    """[N, 3, S, S] → [N, 512]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2), ConvNorm(width // 2, width // 2, 3, groups=width // 2)
        )
        blocks, channels = [], width // 2
        for level, (count, kernel, split, shortcut, attention) in enumerate(STAGES):
            for i in range(count):
                blocks.append(
                    SeparableBlock(
                        channels,
                        width << level,
                        2 if i == 0 else 1,
                        kernel,
                        split=split,
                        shortcut=shortcut,
                        attention=attention,
                    )
                )
                channels = width << level
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2D(channels, 2 * channels, 1, bias_attr=False)
        self.embed = nn.Linear(2 * channels, EMBEDDING)
        self.neck = nn.BatchNorm1D(EMBEDDING)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.neck(self.embed(F.relu(self.last(x)).flatten(1)))


def make(*, seed: int, size: str, image_size: int) -> Blueprint:
    """Make the network; see `build`."""
    network = ShituRec(WIDTHS[size])
    network.eval()
    initialise(network, seed)
    batch = paddle.to_tensor(calibration_batch(image_size, image_size))
    set_batch_norm_statistics(network, lambda: network(batch))
    config = feature_config("PP-ShiTuV2_rec", image_size, IMAGENET_MEAN, IMAGENET_STD)
    return Blueprint(network, (InputSpec([None, 3, image_size, image_size], "float32", "x"),), config)


def build(out_dir: str | Path, *, seed: int = 0, fmt: str = "json", size: str = "small", image_size: int = 224) -> Path:
    """Write a PP-ShiTuV2_rec archive: input x [N, 3, S, S], output [N, 512], not normalised.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        size: `small` or `base`.
        image_size: S, 224 in the official model.

    Returns:
        `out_dir`.
    """
    options = {"size": size, "image_size": image_size}
    return write_archive("shitu_rec", out_dir, seed=seed, fmt=fmt, options=options)

"""Layers that several families share."""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn

Activation = Callable[[paddle.Tensor], paddle.Tensor]


class ConvNorm(nn.Layer):
    """Convolution without bias, BatchNorm, and an activation if one is given."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = F.relu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias_attr=False,
        )
        self.norm = nn.BatchNorm2D(channels_out)
        self.activation = activation

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Layer):
    """Channel attention: global average, two 1x1 convolutions, a gate."""

    def __init__(self, channels: int, *, gate: Activation = F.sigmoid, shrink: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv2D(channels, channels // shrink, 1)
        self.excite = nn.Conv2D(channels // shrink, channels, 1)
        self.gate = gate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        weights = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * self.gate(weights)


class ResidualBlock(nn.Layer):
    """Bottleneck of ResNet (He et al. 2015); `vd` halves the shortcut by average pooling first."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, *, vd: bool = False, groups: int = 1) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.reduce = ConvNorm(channels_in, width)
        self.middle = ConvNorm(width, width, 3, stride=stride, groups=groups)
        self.expand = ConvNorm(width, channels_out, activation=None)
        self.pool_first = vd and stride == 2
        self.shortcut = (
            ConvNorm(channels_in, channels_out, stride=1 if self.pool_first else stride, activation=None)
            if stride != 1 or channels_in != channels_out
            else None
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.expand(self.middle(self.reduce(x)))
        if self.pool_first:
            x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Layer):
    """A slim ResNet; gives the feature maps of strides 4, 8, 16, 32, one per entry of `blocks`."""

    def __init__(
        self, width: int, blocks: tuple[int, ...] = (1, 1, 1, 1), *, vd: bool = False, groups: int = 1
    ) -> None:
        super().__init__()
        self.stem = (
            nn.Sequential(ConvNorm(3, width // 2, 3, stride=2), ConvNorm(width // 2, width, 3))
            if vd
            else ConvNorm(3, width, 7, stride=2)
        )
        stages, channels = [], width
        self.channels: list[int] = []
        for level, count in enumerate(blocks):
            stage = []
            for i in range(count):
                stride = 2 if i == 0 and level > 0 else 1
                stage.append(ResidualBlock(channels, width << level, stride, vd=vd, groups=groups))
                channels = (width << level) * ResidualBlock.expansion
            stages.append(nn.Sequential(*stage))
            self.channels.append(channels)
        self.stages = nn.LayerList(stages)

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        x = F.max_pool2d(self.stem(image), 3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class FeaturePyramid(nn.Layer):
    """Top-down pyramid (Lin et al. 2017): a map of `width` channels per input, a coarser one if `extra`."""

    def __init__(self, channels: list[int], width: int, *, extra: bool) -> None:
        super().__init__()
        self.lateral = nn.LayerList([nn.Conv2D(c, width, 1) for c in channels])
        self.smooth = nn.LayerList([nn.Conv2D(width, width, 3, padding=1) for _ in channels])
        self.extra = extra

    def forward(self, features: list[paddle.Tensor]) -> list[paddle.Tensor]:
        maps = [self.lateral[i](x) for i, x in enumerate(features)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], scale_factor=2.0, mode="nearest")
        maps = [self.smooth[i](x) for i, x in enumerate(maps)]
        if self.extra:
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return maps

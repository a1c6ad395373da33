"""MaskSeg-tiny in torch, to train it; `network.py` is the same in Paddle, to ship it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ovseg_export.efficientnet_lite import CHANNELS
from ovseg_export.efficientnet_lite.twin import EfficientNetLite0

from . import BINS, LABELS, PROTOTYPE_WIDTH, PROTOTYPES, STRIDES, TOWER, WIDTH


class ConvNorm(nn.Module):
    """A convolution that levels share, each level with a normalisation of its own, and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, levels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(levels)])

    def forward(self, x: torch.Tensor, level: int = 0) -> torch.Tensor:
        return functional.relu(self.norms[level](self.conv(x)))


class Raw(NamedTuple):
    """What the network says of M cells.

    Attributes:
        logits: [N, M, C].
        bins: [N, M, 4, BINS], logits of the distances to left, top, right, bottom.
        coefficients: [N, M, PROTOTYPES].
        prototypes: [N, PROTOTYPES, H / 4, W / 4].
    """

    logits: torch.Tensor
    bins: torch.Tensor
    coefficients: torch.Tensor
    prototypes: torch.Tensor


class MaskSeg(nn.Module):
    """[N, 3, H, W], sides multiples of 32, to `Raw`."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(STRIDES)
        self.trunk = EfficientNetLite0()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS[1:]])
        self.smooth = nn.ModuleList([ConvNorm(WIDTH, WIDTH) for _ in self.laterals])
        self.class_tower = nn.ModuleList([ConvNorm(WIDTH, WIDTH, levels=levels) for _ in range(TOWER)])
        self.shape_tower = nn.ModuleList([ConvNorm(WIDTH, WIDTH, levels=levels) for _ in range(TOWER)])
        self.classify = nn.Conv2d(WIDTH, len(LABELS), 1)
        self.measure = nn.Conv2d(WIDTH, 4 * BINS, 1)
        self.weigh = nn.Conv2d(WIDTH, PROTOTYPES, 1)
        self.proto_in = ConvNorm(WIDTH, PROTOTYPE_WIDTH, 1)
        self.proto_skip = nn.Conv2d(CHANNELS[0], PROTOTYPE_WIDTH, 1)
        self.proto = ConvNorm(PROTOTYPE_WIDTH, PROTOTYPE_WIDTH)
        self.proto_out = nn.Conv2d(PROTOTYPE_WIDTH, PROTOTYPES, 1)
        with torch.no_grad():
            self.classify.weight.mul_(0.1)
            self.classify.bias.fill_(-5.0)

    def forward(self, image: torch.Tensor) -> Raw:
        fine, *maps = self.trunk(image)
        maps = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + functional.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]
        logits, bins, coefficients = [], [], []
        for level, x in enumerate(maps[-len(STRIDES) :]):
            kind = shape = x
            for a, b in zip(self.class_tower, self.shape_tower, strict=True):
                kind, shape = a(kind, level), b(shape, level)
            logits.append(self.classify(kind).flatten(2))
            bins.append(self.measure(shape).flatten(2))
            coefficients.append(self.weigh(shape).flatten(2))
        up = functional.interpolate(self.proto_in(maps[0]), scale_factor=2, mode="nearest")
        prototypes = self.proto_out(self.proto(up + self.proto_skip(fine)))
        joined = [torch.cat(parts, 2).transpose(1, 2).float() for parts in (logits, bins, coefficients)]
        return Raw(joined[0], joined[1].unflatten(2, (4, BINS)), joined[2], prototypes.float())


def cell_centres(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (x, y) [M, 2] and strides [M] of the cells of a picture's levels, in pixels, as `Raw` orders them."""
    centres, strides = [], []
    for stride in STRIDES:
        y = (torch.arange(rows // stride) + 0.5) * stride
        x = (torch.arange(columns // stride) + 0.5) * stride
        grid = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack([grid[1], grid[0]], -1).reshape(-1, 2))
        strides.append(torch.full((len(centres[-1]),), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def boxes_of(bins: torch.Tensor, centres: torch.Tensor, strides: torch.Tensor) -> torch.Tensor:
    """Boxes [N, M, 4] in pixels, from `Raw.bins`."""
    distances = (bins.softmax(-1) @ torch.arange(BINS, dtype=bins.dtype)) * strides[:, None]
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)

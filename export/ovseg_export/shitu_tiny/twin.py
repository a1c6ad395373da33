"""ShiTu-tiny in torch, to train it; `network.py` is the same in Paddle, to ship it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ovseg_export.efficientnet_lite import BLOCKS, pretrained, taps
from ovseg_export.efficientnet_lite.twin import EfficientNetLite0

from . import DET_BLOCKS, DET_FROZEN, DET_STRIDE, DET_WIDTH, EMBEDDING, REC_DEPTHS, REC_GRID, REC_WIDTHS


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(channels, channels), conv_bn(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Backbone(nn.Module):
    """[N, 3, S, S] to a map for each width: stride 4, 8, 16 and so on."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = conv_bn(3, widths[0], 4, 4, 0)
        self.downs = nn.ModuleList([conv_bn(a, b, 3, 2) for a, b in pairwise(widths)])
        self.stages = nn.ModuleList(
            [nn.Sequential(*[Residual(w) for _ in range(d)]) for w, d in zip(widths, depths, strict=True)]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stages[0](functional.relu(self.stem(x)))
        maps = [x]
        for down, stage in zip(self.downs, list(self.stages)[1:], strict=True):
            x = stage(functional.relu(down(x)))
            maps.append(x)
        return maps


class Rec(nn.Module):
    """[N, 3, S, S] to embeddings [N, 256], each of length one; S a multiple of 48."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(REC_WIDTHS, REC_DEPTHS)
        self.embed = nn.Linear(REC_GRID**2 * sum(REC_WIDTHS), EMBEDDING)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Every level in nine cells, [N, 3024]: where a part is says as much as what it is."""
        maps = self.backbone(x)
        return torch.cat([functional.avg_pool2d(m, m.shape[2] // REC_GRID).flatten(1) for m in maps], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.embed(self.features(x)).float(), dim=1)


class Det(nn.Module):
    """[N, 3, S, S] to logits [N, M] and boxes [N, M, 4] in pixels of the input, of M = (S / 8)^2 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0(DET_BLOCKS)
        inputs = [BLOCKS[tap].outputs for tap in taps(DET_BLOCKS)[1:]]
        self.laterals = nn.ModuleList([nn.Conv2d(channels, DET_WIDTH, 1) for channels in inputs])
        self.merges = nn.ModuleList([conv_bn(DET_WIDTH, DET_WIDTH) for _ in inputs])
        self.head = nn.Conv2d(DET_WIDTH, 5, 1)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([-4.0, 1.5, 1.5, 1.5, 1.5]))
            self.head.weight.mul_(0.1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.laterals, self.trunk(image)[1:], strict=True)]
        x = functional.relu(self.merges[2](maps[2]))
        for level in (1, 0):
            x = maps[level] + functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.relu(self.merges[level](x))
        x = self.head(x).float()
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        distances = torch.exp(x[..., 1:].clamp(-4.0, 4.0)) * DET_STRIDE
        centres = cell_centres(rows, columns)
        return x[..., 0], torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def det_to_train(weights: Path | None = None) -> Det:
    """A detector whose trunk knows ImageNet, or that of an earlier training; the first blocks are not to change."""
    network = Det()
    state = network.state_dict()
    arrays = dict(np.load(weights)) if weights else {f"trunk.{name}": array for name, array in pretrained().items()}
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items() if name in state}, False)
    for name, parameter in network.trunk.named_parameters():
        first = name.startswith("stem") or int(name.split(".")[1]) < DET_FROZEN
        if first:
            parameter.requires_grad_(False)
    return network


def cell_centres(rows: int, columns: int) -> torch.Tensor:
    """Centres (x, y) [M, 2] of the cells, row by row, in pixels."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * DET_STRIDE

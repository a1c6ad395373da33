"""ShiTu-tiny in torch, to train it; `network.py` is the same in Paddle, to ship it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from . import DET_DEPTHS, DET_STRIDE, DET_WIDTHS, EMBEDDING, REC_DEPTHS, REC_GRID, REC_WIDTHS


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
    """[N, 3, S, S] to logits [N, M] and boxes [N, M, 4] in pixels of the input, of M = (S / 16)^2 cells."""

    def __init__(self) -> None:
        super().__init__()
        width = DET_WIDTHS[2]
        self.backbone = Backbone(DET_WIDTHS, DET_DEPTHS)
        self.lateral = nn.Conv2d(DET_WIDTHS[3], width, 1)
        self.towers = nn.ModuleList([conv_bn(width, width), conv_bn(width, width)])
        self.head = nn.Conv2d(width, 5, 1)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([-4.0, 1.0, 1.0, 1.0, 1.0]))
            self.head.weight.mul_(0.1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone(image)
        x = maps[2] + functional.interpolate(self.lateral(maps[3]), scale_factor=2, mode="nearest")
        for tower in self.towers:
            x = functional.relu(tower(x))
        x = self.head(x).float()
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        distances = torch.exp(x[..., 1:].clamp(-4.0, 4.0)) * DET_STRIDE
        centres = cell_centres(rows, columns)
        return x[..., 0], torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def cell_centres(rows: int, columns: int) -> torch.Tensor:
    """Centres (x, y) [M, 2] of the cells, row by row, in pixels."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * DET_STRIDE

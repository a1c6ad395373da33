"""EfficientNet-Lite0 in torch, to train from; `network.py` is the same in Paddle."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from . import BLOCKS, STEM, TAPS, Block, padding


class Inverted(nn.Module):
    """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        wide = block.inputs * block.expand
        self.shortcut = block.stride == 1 and block.inputs == block.outputs
        self.ends = padding(block.kernel, block.stride)
        self.expand = nn.Conv2d(block.inputs, wide, 1) if block.expand > 1 else None
        inside = block.kernel // 2 if block.stride == 1 else 0
        self.depthwise = nn.Conv2d(wide, wide, block.kernel, block.stride, inside, groups=wide)
        self.project = nn.Conv2d(wide, block.outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        if self.depthwise.stride[0] > 1:
            y = functional.pad(y, (*self.ends, *self.ends))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """[N, 3, H, W], sides multiples of 32, to maps of stride 4, 8, 16 and 32 with 24, 40, 112 and 320 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2)
        self.blocks = nn.ModuleList([Inverted(block) for block in BLOCKS])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = functional.relu6(self.stem(functional.pad(image, (0, 1, 0, 1))))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps

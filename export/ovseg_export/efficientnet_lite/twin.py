"""EfficientNet-Lite0 in torch, to train from; `network.py` is the same in Paddle."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import BLOCKS, STEM, Block, padding, taps


class Depthwise(torch.autograd.Function):
    """Depthwise convolution with a fixed kernel, whose gradient is one as well: a CPU's own takes ten times as long."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, stride: int, inside: int
    ) -> torch.Tensor:
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.inside, ctx.size = stride, inside, x.shape
        return functional.conv2d(x, kernel.to(x.dtype), bias.to(x.dtype), stride, inside, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [kernel] = ctx.saved_tensors
        of_bias = gradient.sum((0, 2, 3), dtype=kernel.dtype)
        if ctx.stride > 1:
            batch, channels, height, width = ctx.size
            # One gradient for every pixel that a kernel of stride 1 would have had; zeros where it was not asked.
            size = [side + 2 * ctx.inside - kernel.shape[2] + 1 for side in (height, width)]
            spread = gradient.new_zeros(batch, channels, *size).contiguous(memory_format=torch.channels_last)
            spread[:, :, :: ctx.stride, :: ctx.stride] = gradient
            gradient = spread
        outside = kernel.shape[2] - 1 - ctx.inside
        turned = kernel.flip(2, 3).to(gradient.dtype)
        of_input = functional.conv2d(gradient, turned, None, 1, outside, groups=len(kernel))
        return of_input, None, of_bias, None, None


class Inverted(nn.Module):
    """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        wide = block.inputs * block.expand
        self.shortcut = block.stride == 1 and block.inputs == block.outputs
        self.ends = padding(block.kernel, block.stride)
        self.expand = nn.Conv2d(block.inputs, wide, 1) if block.expand > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, block.kernel, block.stride, groups=wide)
        self.depthwise.weight.requires_grad_(False)
        self.project = nn.Conv2d(wide, block.outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        kernel, bias, [stride, _] = self.depthwise.weight, self.depthwise.bias, self.depthwise.stride
        inside = self.ends[0] if stride == 1 else 0
        if stride > 1:
            y = functional.pad(y, (*self.ends, *self.ends))
        y = self.project(functional.relu6(Depthwise.apply(y, kernel, bias, stride, inside), inplace=True))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """[N, 3, H, W], sides multiples of 32, to maps of stride 4, 8, 16 and 32 with 24, 40, 112 and 320 channels.

    Args:
        blocks: of `BLOCKS`, from the first; the last map is that of the last one.
    """

    def __init__(self, blocks: int = len(BLOCKS)) -> None:
        super().__init__()
        self.taps = taps(blocks)
        self.stem = nn.Conv2d(3, STEM, 3, 2)
        self.blocks = nn.ModuleList([Inverted(block) for block in BLOCKS[:blocks]])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = functional.relu6(self.stem(functional.pad(image, (0, 1, 0, 1))), inplace=True)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps

"""EfficientNet-Lite0 in Paddle; `twin.py` is the same in torch."""

from __future__ import annotations

from paddle import nn
from paddle.nn import functional

from . import BLOCKS, STEM, Block, padding, taps


class Inverted(nn.Layer):
    """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        wide = block.inputs * block.expand
        self.shortcut = block.stride == 1 and block.inputs == block.outputs
        ends = [*padding(block.kernel, block.stride)] * 2
        self.expand = nn.Conv2D(block.inputs, wide, 1) if block.expand > 1 else None
        self.depthwise = nn.Conv2D(wide, wide, block.kernel, block.stride, ends, groups=wide)
        self.project = nn.Conv2D(wide, block.outputs, 1)

    def forward(self, x):
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Layer):
    """[N, 3, H, W], sides multiples of 32, to maps of stride 4, 8, 16 and 32 with 24, 40, 112 and 320 channels.

    Args:
        blocks: of `BLOCKS`, from the first; the last map is that of the last one.
    """

    def __init__(self, blocks: int = len(BLOCKS)) -> None:
        super().__init__()
        self.taps = taps(blocks)
        self.stem = nn.Conv2D(3, STEM, 3, 2, [0, 1, 0, 1])
        self.blocks = nn.LayerList([Inverted(block) for block in BLOCKS[:blocks]])

    def forward(self, image):
        x = functional.relu6(self.stem(image))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps

"""Mask-RT-DETR: HG-like backbone, hybrid encoder, deformable decoder whose queries also give masks.

RT-DETR: Zhao et al. 2023; deformable attention: Zhu et al. 2021; mask-enhanced boxes: Li et al. 2022
(Mask DINO).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics, smooth_kernels
from .configs import COCO_LABELS, detection_config, normalise_unit, resize
from .images import calibration_batch
from .layers import ConvNorm

CLASSES = len(COCO_LABELS)
STRIDES = (8, 16, 32)
POINTS = 4
DETECTIONS = 100


@dataclass(frozen=True)
class RtdetrSize:
    """Widths and depths of one member of the family.

    Attributes:
        backbone: Width of the stem; the stages have 2, 4, 8 and 16 times as many channels.
        blocks: Blocks of each stage of the backbone; all but the first of a stage add their input.
        chain: Convolutions of a block.
        width: Width of encoder and decoder.
        heads: Heads of every attention.
        encoder_layers: Transformer layers on the coarsest map.
        fusions: Convolutions of each fusion of two maps.
        layers: Decoder layers.
        queries: Queries of the decoder.
        prototypes: Masks that each query's mask is mixed from.
    """

    backbone: int
    blocks: tuple[int, int, int, int]
    chain: int
    width: int
    heads: int
    encoder_layers: int
    fusions: int
    layers: int
    queries: int
    prototypes: int


# L, X and H have the blocks and chains of PP-HGNetV2-L, -X and -H and RT-DETR's layers, S and M less; all are narrow.
# `large` is L with official widths.
SIZES = {
    "S": RtdetrSize(16, (1, 1, 1, 1), 3, 32, 4, 1, 1, 3, 50, 16),
    "M": RtdetrSize(16, (1, 1, 2, 1), 4, 32, 4, 1, 1, 4, 50, 16),
    "L": RtdetrSize(16, (1, 1, 3, 1), 6, 32, 4, 1, 3, 6, 50, 16),
    "X": RtdetrSize(16, (1, 2, 5, 2), 6, 48, 4, 1, 3, 6, 50, 16),
    "H": RtdetrSize(24, (2, 3, 6, 3), 6, 64, 4, 2, 3, 6, 50, 16),
    "large": RtdetrSize(48, (1, 1, 3, 1), 6, 256, 8, 1, 3, 6, 300, 32),
}

VARIANTS = {f"Mask-RT-DETR-{size}": size for size in "SMLXH"}
"""Names of the official models, and the size that stands for each."""


def inverse_sigmoid(x: paddle.Tensor) -> paddle.Tensor:
    """Logit of x in 0..1, kept finite at both ends."""
    x = x.clip(min=0.0, max=1.0)
    return paddle.log(x.clip(min=1e-5) / (1 - x).clip(min=1e-5))


class LightConv(nn.Layer):
    """Pointwise, then depthwise 5x5 (PP-HGNetV2's two coarsest stages)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.point = ConvNorm(channels_in, channels_out, activation=None)
        self.depth = ConvNorm(channels_out, channels_out, 5, groups=channels_out)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.depth(self.point(x))


class HgBlock(nn.Layer):
    """A chain of convolutions whose every step is concatenated and mixed (PP-HGNetV2)."""

    def __init__(self, channels_in: int, middle: int, channels_out: int, *, chain: int, light: bool) -> None:
        super().__init__()
        entries = [channels_in, *[middle] * (chain - 1)]
        self.chain = nn.LayerList([LightConv(c, middle) if light else ConvNorm(c, middle, 3) for c in entries])
        self.squeeze = ConvNorm(channels_in + chain * middle, channels_out // 2)
        self.excite = ConvNorm(channels_out // 2, channels_out)
        self.adds = channels_in == channels_out

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        steps = [x]
        for convolution in self.chain:
            steps.append(convolution(steps[-1]))
        mixed = self.excite(self.squeeze(paddle.concat(steps, axis=1)))
        return mixed + x if self.adds else mixed


class HgBackbone(nn.Layer):
    """Feature maps of strides 4, 8, 16, 32."""

    def __init__(self, width: int, blocks: tuple[int, int, int, int], chain: int) -> None:
        super().__init__()
        self.stem1 = ConvNorm(3, width, 3, stride=2)
        self.stem2 = ConvNorm(width, width, 3)
        self.stem3 = ConvNorm(2 * width, width, 3, stride=2)
        self.channels = [2 * width << i for i in range(4)]
        self.shrink = nn.LayerList([ConvNorm(c, c, 3, stride=2, groups=c, activation=None) for c in self.channels[:-1]])
        entries = [width, *self.channels[:-1]]
        stages = []
        for i, (out, count) in enumerate(zip(self.channels, blocks, strict=True)):
            inputs = [entries[i], *[out] * (count - 1)]
            stages.append(nn.Sequential(*[HgBlock(c, out // 2, out, chain=chain, light=i > 1) for c in inputs]))
        self.stages = nn.LayerList(stages)

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        x = self.stem1(image)
        x = self.stem3(paddle.concat([F.max_pool2d(x, 3, stride=1, padding=1), self.stem2(x)], axis=1))
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(self.shrink[i - 1](x) if i > 0 else x)
            features.append(x)
        return features


class Attention(nn.Layer):
    """Multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def _split(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.reshape([0, 0, self.heads, self.head_width]).transpose([0, 2, 1, 3])

    def forward(self, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor) -> paddle.Tensor:
        query, key, value = (
            self._split(self.query(query)),
            self._split(self.key(key)),
            self._split(self.value(value)),
        )
        weights = F.softmax(paddle.matmul(query, key, transpose_y=True) * float(self.head_width) ** -0.5)
        mixed = paddle.matmul(weights, value).transpose([0, 2, 1, 3])
        return self.out(mixed.reshape([0, 0, self.heads * self.head_width]))


class EncoderLayer(nn.Layer):
    """Post-norm transformer layer with GELU; positions go to queries and keys only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: paddle.Tensor, positions: paddle.Tensor) -> paddle.Tensor:
        placed = x + positions
        x = self.norm1(x + self.attention(placed, placed, x))
        return self.norm2(x + self.narrow(F.gelu(self.widen(x))))


def sine_positions(side: int, width: int) -> paddle.Tensor:
    """Sine and cosine of both coordinates at width/4 frequencies: [1, side*side, width]."""
    steps = paddle.arange(side, dtype="float32")
    across, down = paddle.meshgrid(steps, steps)
    omega = 1.0 / 10000.0 ** (paddle.arange(width // 4, dtype="float32") / (width // 4))
    first, second = across.flatten()[:, None] @ omega[None], down.flatten()[:, None] @ omega[None]
    parts = [paddle.sin(first), paddle.cos(first), paddle.sin(second), paddle.cos(second)]
    return paddle.concat(parts, axis=1)[None, :, :]


class RepBlock(nn.Layer):
    """A 3x3 and a 1x1 convolution side by side (RepVGG)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = ConvNorm(width, width, 3, activation=None)
        self.point = ConvNorm(width, width, activation=None)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.silu(self.wide(x) + self.point(x))


class CspBlock(nn.Layer):
    """Cross-stage-partial fusion of two maps with SiLU."""

    def __init__(self, channels_in: int, width: int, count: int) -> None:
        super().__init__()
        self.left, self.right = (ConvNorm(channels_in, width, activation=F.silu) for _ in range(2))
        self.blocks = nn.Sequential(*[RepBlock(width) for _ in range(count)])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.blocks(self.left(x)) + self.right(x)


class HybridEncoder(nn.Layer):
    """Attention on the coarsest map, then a pyramid down and up; and the mask prototypes at stride 4."""

    def __init__(self, channels: list[int], size: RtdetrSize, image_size: int) -> None:
        super().__init__()
        width = size.width
        self.width, self.side = width, image_size // 32
        self.register_buffer("positions", sine_positions(self.side, width))
        self.entry = nn.LayerList([ConvNorm(c, width, activation=None) for c in channels[1:]])
        self.layers = nn.LayerList([EncoderLayer(width, size.heads) for _ in range(size.encoder_layers)])
        self.lateral = nn.LayerList([ConvNorm(width, width, activation=F.silu) for _ in range(2)])
        self.top_down = nn.LayerList([CspBlock(2 * width, width, size.fusions) for _ in range(2)])
        self.shrink = nn.LayerList([ConvNorm(width, width, 3, stride=2, activation=F.silu) for _ in range(2)])
        self.bottom_up = nn.LayerList([CspBlock(2 * width, width, size.fusions) for _ in range(2)])
        self.mask_heads = nn.LayerList(
            [
                nn.LayerList([ConvNorm(width, width, 3, activation=F.silu) for _ in range(max(1, level))])
                for level in range(3)
            ]
        )
        self.mask_mix = ConvNorm(width, width, 3, activation=F.silu)
        self.mask_lateral = ConvNorm(channels[0], width, 3, activation=F.silu)
        self.mask_smooth = ConvNorm(width, width, 3, activation=F.silu)
        self.prototypes = nn.Conv2D(width, size.prototypes, 1)

    def forward(self, features: list[paddle.Tensor]) -> tuple[list[paddle.Tensor], paddle.Tensor]:
        finest = features[0]
        maps = [self.entry[i](x) for i, x in enumerate(features[1:])]
        tokens = maps[-1].flatten(2).transpose([0, 2, 1])
        for layer in self.layers:
            tokens = layer(tokens, self.positions)
        maps[-1] = tokens.transpose([0, 2, 1]).reshape([-1, self.width, self.side, self.side])
        for i in (2, 1):
            maps[i] = self.lateral[i - 1](maps[i])
            upsampled = F.interpolate(maps[i], scale_factor=2.0, mode="nearest")
            maps[i - 1] = self.top_down[i - 1](paddle.concat([upsampled, maps[i - 1]], axis=1))
        for i in (1, 2):
            maps[i] = self.bottom_up[i - 1](paddle.concat([self.shrink[i - 1](maps[i - 1]), maps[i]], axis=1))
        return maps, self._mask_features(maps, finest)

    def _mask_features(self, maps: list[paddle.Tensor], finest: paddle.Tensor) -> paddle.Tensor:
        total = self.mask_heads[0][0](maps[0])
        for level in (1, 2):
            x = maps[level]
            for convolution in self.mask_heads[level]:
                x = F.interpolate(convolution(x), scale_factor=2, mode="bilinear")
            total = total + F.interpolate(x, size=total.shape[2:], mode="bilinear")
        total = F.interpolate(self.mask_mix(total), scale_factor=2, mode="bilinear") + self.mask_lateral(finest)
        return self.prototypes(self.mask_smooth(total))


class DeformableAttention(nn.Layer):
    """Each query samples a few points of every level around its box."""

    def __init__(self, width: int, heads: int, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.heads, self.head_width, self.shapes = heads, width // heads, shapes
        samples = heads * len(shapes) * POINTS
        self.offsets, self.weights = nn.Linear(width, 2 * samples), nn.Linear(width, samples)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: paddle.Tensor, boxes: paddle.Tensor, memory: paddle.Tensor) -> paddle.Tensor:
        batch, queries = query.shape[:2]
        heads, levels = self.heads, len(self.shapes)
        value = self.value(memory).reshape([batch, memory.shape[1], heads, self.head_width])
        offsets = self.offsets(query).reshape([batch, queries, heads, levels, POINTS, 2])
        weights = F.softmax(self.weights(query).reshape([batch, queries, heads, levels * POINTS]))
        weights = weights.reshape([batch, queries, heads, levels, POINTS])
        places = boxes[:, :, None, :, None, :2] + offsets / POINTS * boxes[:, :, None, :, None, 2:] * 0.5
        grids = 2 * places - 1
        values = value.split([rows * columns for rows, columns in self.shapes], axis=1)
        sampled = []
        for level, (rows, columns) in enumerate(self.shapes):
            image = values[level].flatten(2).transpose([0, 2, 1])
            image = image.reshape([batch * heads, self.head_width, rows, columns])
            grid = grids[:, :, :, level].transpose([0, 2, 1, 3, 4]).flatten(0, 1)
            sampled.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
        weights = weights.transpose([0, 2, 1, 3, 4]).reshape([batch * heads, 1, queries, levels * POINTS])
        mixed = (paddle.stack(sampled, axis=-2).flatten(-2) * weights).sum(-1)
        return self.out(mixed.reshape([batch, heads * self.head_width, queries]).transpose([0, 2, 1]))


class DecoderLayer(nn.Layer):
    """Self-attention of the queries, deformable attention to the image, MLP."""

    def __init__(self, size: RtdetrSize, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.attention = Attention(size.width, size.heads)
        self.cross = DeformableAttention(size.width, size.heads, shapes)
        self.widen, self.narrow = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size.width) for _ in range(3))

    def forward(
        self, x: paddle.Tensor, boxes: paddle.Tensor, memory: paddle.Tensor, positions: paddle.Tensor
    ) -> paddle.Tensor:
        placed = x + positions
        x = self.norm1(x + self.attention(placed, placed, x))
        x = self.norm2(x + self.cross(x + positions, boxes, memory))
        return self.norm3(x + self.narrow(F.relu(self.widen(x))))


class Perceptron(nn.Layer):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.LayerList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    def hidden(self, x: paddle.Tensor) -> paddle.Tensor:
        """What the last layer reads."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return x

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layers[-1](self.hidden(x))


def enclosing_boxes(mask: paddle.Tensor) -> paddle.Tensor:
    """Boxes (centre and size, in 0..1) around boolean masks [N, Q, H, W]; zeros where a mask is empty."""
    rows, columns = mask.shape[-2:]
    y, x = paddle.meshgrid(paddle.arange(rows, dtype="float32"), paddle.arange(columns, dtype="float32"))
    edges = []
    for coordinate in (x, y):
        inside = coordinate * mask.astype("float32")
        outside_far = paddle.where(mask.astype(bool), inside, paddle.to_tensor(1e8))
        edges.append((outside_far.flatten(-2).min(-1), inside.flatten(-2).max(-1) + 1))
    (x0, x1), (y0, y1) = edges
    boxes = paddle.stack([x0, y0, x1, y1], axis=-1)
    boxes = boxes * mask.any(axis=[2, 3]).unsqueeze(2).astype("float32")
    boxes = boxes / paddle.to_tensor([columns, rows, columns, rows]).astype("float32")
    x0, y0, x1, y1 = boxes.split(4, axis=-1)
    return paddle.concat([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=-1)


def cell_mask(shapes: list[tuple[int, int]]) -> paddle.Tensor:
    """Which cells' default boxes lie well inside the picture: bool [1, cells, 1]."""
    anchors = []
    for level, (rows, columns) in enumerate(shapes):
        y, x = paddle.meshgrid(paddle.arange(rows, dtype="float32"), paddle.arange(columns, dtype="float32"))
        centres = (paddle.stack([x, y], -1).unsqueeze(0) + 0.5) / paddle.to_tensor([float(rows), float(columns)])
        sizes = paddle.ones_like(centres) * 0.05 * 2.0**level
        anchors.append(paddle.concat([centres, sizes], -1).reshape([-1, rows * columns, 4]))
    boxes = paddle.concat(anchors, 1)
    return ((boxes > 1e-2) * (boxes < 1 - 1e-2)).all(-1, keepdim=True)


class MaskRtdetr(nn.Layer):
    """im_shape, image, scale_factor → boxes [100, 6], count, masks [100, H, W]."""

    def __init__(self, size: RtdetrSize, image_size: int) -> None:
        super().__init__()
        width = size.width
        self.queries, self.width = size.queries, width
        self.shapes = [(image_size // s, image_size // s) for s in STRIDES]
        self.backbone = HgBackbone(size.backbone, size.blocks, size.chain)
        self.encoder = HybridEncoder(self.backbone.channels, size, image_size)
        self.entry = nn.LayerList([ConvNorm(width, width, activation=None) for _ in STRIDES])
        self.register_buffer("valid", cell_mask(self.shapes))
        self.memory_out = nn.Linear(width, width)
        self.memory_norm = nn.LayerNorm(width)
        self.layers = nn.LayerList([DecoderLayer(size, self.shapes) for _ in range(size.layers)])
        self.query_position = Perceptron(4, 2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.score_head = nn.Linear(width, CLASSES)
        self.box_head = Perceptron(width, width, width, 4)
        self.mask_head = Perceptron(width, width, width, size.prototypes)

    def encode(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Tokens of all levels [N, cells, C] and prototypes [N, P, S/4, S/4]."""
        maps, prototypes = self.encoder(self.backbone(image))
        tokens = [self.entry[i](x).flatten(2).transpose([0, 2, 1]) for i, x in enumerate(maps)]
        return paddle.concat(tokens, axis=1), prototypes

    def select(self, memory: paddle.Tensor) -> paddle.Tensor:
        """The most promising tokens, [N, Q, C]."""
        memory = paddle.where(self.valid, memory, paddle.to_tensor(0.0))
        memory = self.memory_norm(self.memory_out(memory))
        _, index = paddle.topk(self.score_head(memory).max(-1), self.queries, axis=1)
        rows = paddle.arange(end=memory.shape[0]).astype(index.dtype).unsqueeze(-1).tile([1, self.queries])
        return paddle.gather_nd(memory, paddle.stack([rows, index], axis=-1)).detach()

    def masks(self, x: paddle.Tensor, prototypes: paddle.Tensor) -> paddle.Tensor:
        """Mask logits [N, Q, S/4, S/4] of queries [N, Q, C]."""
        coefficients = self.mask_head(self.norm(x))
        batch, queries, _ = coefficients.shape
        _, _, rows, columns = prototypes.shape
        return paddle.bmm(coefficients, prototypes.flatten(2)).reshape([batch, queries, rows, columns])

    def decode(
        self, x: paddle.Tensor, memory: paddle.Tensor, prototypes: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Queries after the last layer and their boxes (centre, size, in 0..1)."""
        logits = inverse_sigmoid(enclosing_boxes(self.masks(x, prototypes) > 0)).detach()
        boxes = F.sigmoid(logits)
        for layer in self.layers:
            x = layer(x, boxes.unsqueeze(2), memory, self.query_position(boxes))
            boxes = F.sigmoid(self.box_head(x) + inverse_sigmoid(boxes))
        return x, boxes

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        memory, prototypes = self.encode(image)
        x, boxes = self.decode(self.select(memory), memory, prototypes)
        masks, logits = self.masks(x, prototypes), self.score_head(self.norm(x))

        centre, half = boxes.split(2, axis=-1)
        corners = paddle.concat([centre - 0.5 * half, centre + 0.5 * half], axis=-1)
        original = paddle.floor(im_shape / scale_factor + 0.5)
        height, width = paddle.split(original, 2, axis=-1)
        corners = corners * original.flip(1).tile([1, 2]).unsqueeze(1)
        scores, index = paddle.topk(F.sigmoid(logits).flatten(1), DETECTIONS, axis=-1)
        labels, index = index % CLASSES, index // CLASSES
        rows = paddle.arange(end=scores.shape[0]).unsqueeze(-1).tile([1, DETECTIONS])
        index = paddle.stack([rows, index], axis=-1)
        corners, masks = paddle.gather_nd(corners, index), paddle.gather_nd(masks, index)
        # As in the official graph all pictures of a batch take the size of the first.
        size = [height[0].astype("int32"), width[0].astype("int32")]
        masks = F.sigmoid(F.interpolate(masks, size=size, mode="bilinear", align_corners=False))
        masks = (masks > 0.5).astype(masks.dtype).flatten(0, 1).astype("int32")
        found = paddle.concat([labels.unsqueeze(-1).astype("float32"), scores.unsqueeze(-1), corners], axis=-1)
        count = paddle.to_tensor(DETECTIONS, dtype="int32").tile([found.shape[0]])
        return found.reshape([-1, 6]), count, masks


def _damp(network: MaskRtdetr) -> None:
    """Let deep networks change their input a little in each layer, as trained ones do.

    Random layers one after another make rounding grow by a factor each, and queries that attend to each other
    six times become alike, so that scores have to be stretched, and rounding with them.
    """
    share = 2 / len(network.layers)
    for layer in network.layers:
        # A sample's place changes what it reads by the slope of the map: without this, each decoder layer
        # makes the rounding of the boxes four times as large.
        for last, factor in ((layer.cross.out, 0.3), (layer.attention.out, 1.0), (layer.narrow, 1.0)):
            last.weight.set_value(last.weight * (share * factor))
    for stage in network.backbone.stages:
        for block in stage:
            if block.adds:
                block.excite.norm.weight.set_value(block.excite.norm.weight * 0.3)


def _shift_masks(network: MaskRtdetr, groups: list[tuple[paddle.Tensor, float]], prototypes: paddle.Tensor) -> None:
    """Move the mean logit of each query's mask to a wanted value by a ridge fit of the last linear layer.

    Args:
        network: The network.
        groups: Queries [N, Q, C] and the mean logit wanted for their masks.
        prototypes: [N, P, H, W].
    """
    mean = prototypes.mean([0, 2, 3]).numpy().astype(np.float64)
    last = network.mask_head.layers[-1]
    hidden, error = [], []
    for queries, wanted in groups:
        features = network.mask_head.hidden(network.norm(queries)).flatten(0, 1).numpy().astype(np.float64)
        hidden.append(np.concatenate([features, np.ones((len(features), 1))], axis=1))
        error.append(wanted - (features @ last.weight.numpy() + last.bias.numpy()) @ mean)
    inputs, targets = np.concatenate(hidden), np.concatenate(error)
    ridge = 1e-3 * len(inputs) * np.eye(inputs.shape[1])
    change = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    direction = mean / (mean @ mean)
    last.weight.set_value((last.weight.numpy() + np.outer(change[:-1], direction)).astype(np.float32))
    last.bias.set_value((last.bias.numpy() + change[-1] * direction).astype(np.float32))


def _calibrate(network: MaskRtdetr, batch: paddle.Tensor) -> None:
    """Spread scores, boxes and masks.

    The masks of the first queries become the boxes that the decoder starts from, so they have to be small:
    the box around a random mask that covers half of its pixels is always the whole picture.
    """
    with paddle.no_grad():
        memory, prototypes = network.encode(batch)
        first = network.select(memory)
        rescale_head(network.score_head, network.score_head(network.norm(first)), mean=-5.5, std=1.8, channel_axis=2)
        first = network.select(memory)
        last = network.mask_head.layers[-1]
        spread = float(network.masks(first, prototypes).std([2, 3]).mean())
        last.weight.set_value(last.weight * (2.0 / spread))
        last.bias.set_value(last.bias * (2.0 / spread))
        _shift_masks(network, [(first, -5.5)], prototypes)
        for _ in range(2):
            x, _ = network.decode(first, memory, prototypes)
            box_out = network.box_head.layers[-1]
            rescale_head(box_out, network.box_head(x), mean=0.0, std=1.6 / len(network.layers), channel_axis=2)
            x, _ = network.decode(first, memory, prototypes)
            _shift_masks(network, [(first, -5.5), (x, -1.0)], prototypes)
            x, _ = network.decode(first, memory, prototypes)
            rescale_head(network.score_head, network.score_head(network.norm(x)), mean=-5.5, std=1.8, channel_axis=2)
            first = network.select(memory)


def make(*, seed: int, model_name: str, size: str | None, image_size: int) -> Blueprint:
    """Make the network; see `build`."""
    if model_name not in VARIANTS:
        raise ValueError(f"model_name is {model_name!r}, not one of {', '.join(VARIANTS)}")
    network = MaskRtdetr(SIZES[size or VARIANTS[model_name]], image_size)
    network.eval()
    initialise(network, seed)
    smooth_kernels(network, 0.85)
    _damp(network)
    batch = paddle.to_tensor(calibration_batch(image_size, image_size, imagenet=False))
    set_batch_norm_statistics(network, lambda: network.encode(batch))
    _calibrate(network, batch)
    steps = [resize(image_size, image_size), normalise_unit(), {"type": "Permute"}]
    config = detection_config(model_name, "DETR", steps)
    inputs = (
        InputSpec([None, 2], "float32", "im_shape"),
        InputSpec([None, 3, image_size, image_size], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    )
    return Blueprint(network, inputs, config)


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    fmt: str = "json",
    model_name: str = "Mask-RT-DETR-S",
    size: str | None = None,
    image_size: int = 320,
) -> Path:
    """Write a Mask-RT-DETR archive.

    Inputs im_shape [N, 2], image [N, 3, S, S], scale_factor [N, 2]; outputs boxes [100 N, 6], count [N]
    and masks int32 [100 N, H, W] in the size of the original picture.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        model_name: One of `VARIANTS`.
        size: One of `SIZES`; that of the name if left out.
        image_size: S, 640 in the official model; a multiple of 32.

    Returns:
        `out_dir`.
    """
    options = {"model_name": model_name, "size": size, "image_size": image_size}
    return write_archive("mask_rtdetr", out_dir, seed=seed, fmt=fmt, options=options)

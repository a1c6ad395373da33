"""Segment Anything: windowed ViT encoder, prompt encoder and two-way mask decoder, as one static graph.

Architecture: Kirillov et al., "Segment Anything" (2023), sections 3 and A; decomposed relative positions:
Li et al., "MViTv2" (2022), section 4.1. Both graphs of one seed and size hold the same weights, as
the two official archives do.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise
from .images import calibration_batch

WINDOW = 14
PATCH = 16
MASK_TOKENS = 4


@dataclass(frozen=True)
class SamSize:
    """Widths and depths of one member of the family."""

    image: int
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    prompt_width: int
    decoder_heads: int
    decoder_mlp: int


SIZES = {
    "tiny": SamSize(256, 96, 4, 3, (1, 3), 64, 4, 128),
    "base": SamSize(1024, 768, 12, 12, (2, 5, 8, 11), 256, 8, 2048),
    "huge": SamSize(1024, 1280, 32, 16, (7, 15, 23, 31), 256, 8, 2048),
}


class ChannelNorm(nn.Layer):
    """LayerNorm over the channels of [N, C, H, W], spelled out in plain operators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([channels])
        self.bias = self.create_parameter([channels], is_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        x = centred / paddle.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Mlp(nn.Layer):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.LayerList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class WindowAttention(nn.Layer):
    """Multi-head attention over a [side, side] grid with decomposed relative positions."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = self.create_parameter([2 * side - 1, self.head_width])
        self.rel_pos_w = self.create_parameter([2 * side - 1, self.head_width])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        batch, rows, columns, width = x.shape
        tokens = rows * columns
        qkv = self.qkv(x).reshape([batch, tokens, 3, self.heads, self.head_width]).transpose([2, 0, 3, 1, 4])
        query, key, value = qkv.reshape([3, batch * self.heads, tokens, self.head_width]).unbind(axis=0)
        scores = (query * self.head_width**-0.5) @ key.transpose([0, 2, 1])
        grid = query.reshape([batch * self.heads, rows, columns, self.head_width])
        by_row = paddle.einsum("bhwc,hkc->bhwk", grid, _relative(self.rel_pos_h, rows))
        by_column = paddle.einsum("bhwc,wkc->bhwk", grid, _relative(self.rel_pos_w, columns))
        scores = scores.reshape([batch * self.heads, rows, columns, rows, columns])
        scores = scores + by_row[:, :, :, :, None] + by_column[:, :, :, None, :]
        weights = F.softmax(scores.reshape([batch * self.heads, tokens, tokens]), axis=-1)
        mixed = (weights @ value).reshape([batch, self.heads, rows, columns, self.head_width])
        return self.proj(mixed.transpose([0, 2, 3, 1, 4]).reshape([batch, rows, columns, width]))


def _relative(table: paddle.Tensor, side: int) -> paddle.Tensor:
    """Rows of `table` [2*side-1, C] for every (query, key) pair: [side, side, C]."""
    offsets = paddle.arange(side)[:, None] - paddle.arange(side)[None, :] + (side - 1)
    return paddle.index_select(table, offsets.cast("int64").flatten()).reshape([side, side, -1])


class EncoderBlock(nn.Layer):
    """Transformer block; attention within windows, or over the whole grid where `window` is 0."""

    def __init__(self, width: int, heads: int, grid: int, window: int, pad_operator: str) -> None:
        super().__init__()
        self.window, self.pad_operator = window, pad_operator
        self.norm1 = nn.LayerNorm(width, epsilon=1e-6)
        self.attention = WindowAttention(width, heads, window or grid)
        self.norm2 = nn.LayerNorm(width, epsilon=1e-6)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.norm1(x)
        y = self._attend_in_windows(y) if self.window else self.attention(y)
        x = x + y
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))

    def _attend_in_windows(self, x: paddle.Tensor) -> paddle.Tensor:
        batch, rows, columns, width = x.shape
        side = self.window
        down, right = -rows % side, -columns % side
        if down or right:
            if self.pad_operator == "pad3d":
                x = F.pad(x, [0, right, 0, down], data_format="NHWC")
            else:
                x = F.pad(x, [0, 0, 0, down, 0, right, 0, 0])
        tall, wide = (rows + down) // side, (columns + right) // side
        x = x.reshape([batch, tall, side, wide, side, width]).transpose([0, 1, 3, 2, 4, 5])
        x = self.attention(x.reshape([-1, side, side, width]))
        x = x.reshape([batch, tall, wide, side, side, width]).transpose([0, 1, 3, 2, 4, 5])
        x = x.reshape([batch, tall * side, wide * side, width])
        return x[:, :rows, :columns, :] if down or right else x


class ImageEncoder(nn.Layer):
    """[1, 3, S, S] → [1, C, S/16, S/16]."""

    def __init__(self, size: SamSize, pad_operator: str) -> None:
        super().__init__()
        grid = size.image // PATCH
        self.patches = nn.Conv2D(3, size.width, PATCH, stride=PATCH)
        self.position = self.create_parameter([1, grid, grid, size.width])
        self.blocks = nn.LayerList(
            [
                EncoderBlock(size.width, size.heads, grid, 0 if i in size.global_blocks else WINDOW, pad_operator)
                for i in range(size.depth)
            ]
        )
        self.neck = nn.Sequential(
            nn.Conv2D(size.width, size.prompt_width, 1, bias_attr=False),
            ChannelNorm(size.prompt_width),
            nn.Conv2D(size.prompt_width, size.prompt_width, 3, padding=1, bias_attr=False),
            ChannelNorm(size.prompt_width),
        )

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        x = self.patches(image).transpose([0, 2, 3, 1]) + self.position
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose([0, 3, 1, 2]))


class PromptEncoder(nn.Layer):
    """Points or boxes in pixels → sparse embeddings; the "no mask" embedding → dense embeddings."""

    def __init__(self, width: int, image: int) -> None:
        super().__init__()
        self.width, self.image, self.grid = width, image, image // PATCH
        self.register_buffer("frequencies", paddle.randn([2, width // 2]))
        # In this order: negative point, positive point, top-left corner, bottom-right corner.
        self.labels = nn.LayerList([nn.Embedding(1, width) for _ in range(4)])
        self.not_a_point = nn.Embedding(1, width)
        self.no_mask = nn.Embedding(1, width)

    def _encode(self, unit: paddle.Tensor) -> paddle.Tensor:
        angle = 2 * math.pi * ((2 * unit - 1) @ self.frequencies)
        return paddle.concat([paddle.sin(angle), paddle.cos(angle)], axis=-1)

    def _encode_pixels(self, coordinates: paddle.Tensor) -> paddle.Tensor:
        unit = coordinates.clone()
        unit[:, :, 0] = unit[:, :, 0] / self.image
        unit[:, :, 1] = unit[:, :, 1] / self.image
        return self._encode(unit)

    def dense_positions(self) -> paddle.Tensor:
        ones = paddle.ones([self.grid, self.grid])
        y = (ones.cumsum(axis=0) - 0.5) / self.grid
        x = (ones.cumsum(axis=1) - 0.5) / self.grid
        return self._encode(paddle.stack([x, y], axis=-1)).transpose([2, 0, 1]).unsqueeze(0)

    def encode_box(self, boxes: paddle.Tensor) -> paddle.Tensor:
        corners = self._encode_pixels((boxes + 0.5).reshape([-1, 2, 2]))
        corners[:, 0, :] += self.labels[2].weight
        corners[:, 1, :] += self.labels[3].weight
        return corners

    def encode_point(self, points: paddle.Tensor) -> paddle.Tensor:
        points = (points + 0.5).cast("float32")
        labels = paddle.ones([1, 1], dtype="int32")
        # Without a box the model expects one more, empty, point.
        points = paddle.concat([points, paddle.zeros([points.shape[0], 1, 2])], axis=1)
        labels = paddle.concat([labels.astype("float32"), -paddle.ones([labels.shape[0], 1])], axis=1)
        embedding = self._encode_pixels(points)
        embedding[labels == -1] = 0.0
        if embedding[labels == -1].shape[0] != 0:
            embedding[labels == -1] += self.not_a_point.weight
        if embedding[labels == 0].shape[0] != 0:
            embedding[labels == 0] += self.labels[0].weight
        if embedding[labels == 1].shape[0] != 0:
            embedding[labels == 1] += self.labels[1].weight
        return embedding

    def forward(self, prompt: paddle.Tensor, kind: str) -> tuple[paddle.Tensor, paddle.Tensor]:
        count = prompt.shape[0]
        empty = paddle.empty([count, 0, self.width])
        encoded = self.encode_box(prompt) if kind == "box" else self.encode_point(prompt)
        sparse = paddle.concat([empty, encoded], axis=1)
        dense = self.no_mask.weight.reshape([1, -1, 1, 1]).expand([count, -1, self.grid, self.grid])
        return sparse, dense


class DecoderAttention(nn.Layer):
    """Multi-head attention whose inner width is `width // shrink`."""

    def __init__(self, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        self.heads, inner = heads, width // shrink
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def _split(self, x: paddle.Tensor) -> paddle.Tensor:
        batch, tokens, width = x.shape
        return x.reshape([batch, tokens, self.heads, width // self.heads]).transpose([0, 2, 1, 3])

    def forward(self, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor) -> paddle.Tensor:
        query, key, value = (
            self._split(self.query(query)),
            self._split(self.key(key)),
            self._split(self.value(value)),
        )
        scores = query @ key.transpose([0, 1, 3, 2]) / math.sqrt(query.shape[-1])
        mixed = (F.softmax(scores, axis=-1) @ value).transpose([0, 2, 1, 3])
        batch, tokens, heads, head_width = mixed.shape
        return self.out(mixed.reshape([batch, tokens, heads * head_width]))


class TwoWayBlock(nn.Layer):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens."""

    def __init__(self, width: int, heads: int, mlp: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attention = DecoderAttention(width, heads)
        self.to_image = DecoderAttention(width, heads, 2)
        self.to_tokens = DecoderAttention(width, heads, 2)
        self.mlp = Mlp((width, mlp, width))
        self.norms = nn.LayerList([nn.LayerNorm(width) for _ in range(4)])

    def forward(
        self, tokens: paddle.Tensor, image: paddle.Tensor, token_pe: paddle.Tensor, image_pe: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        if self.first:
            tokens = self.self_attention(tokens, tokens, tokens)
        else:
            query = tokens + token_pe
            tokens = tokens + self.self_attention(query, query, tokens)
        tokens = self.norms[0](tokens)
        tokens = self.norms[1](tokens + self.to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.to_tokens(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class MaskDecoder(nn.Layer):
    """Embeddings → low-resolution mask logits of the first mask token."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        self.blocks = nn.LayerList([TwoWayBlock(width, heads, mlp, first=i == 0) for i in range(2)])
        self.last_attention = DecoderAttention(width, heads, 2)
        self.last_norm = nn.LayerNorm(width)
        self.upscale = nn.Sequential(
            nn.Conv2DTranspose(width, width // 4, 2, stride=2),
            ChannelNorm(width // 4),
            nn.GELU(),
            nn.Conv2DTranspose(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.hyper = nn.LayerList([Mlp((width, width, width, width // 8)) for _ in range(MASK_TOKENS)])
        self.iou_head = Mlp((width, 256, 256, MASK_TOKENS))

    def forward(
        self, image: paddle.Tensor, image_pe: paddle.Tensor, sparse: paddle.Tensor, dense: paddle.Tensor
    ) -> paddle.Tensor:
        hyper, upscaled = self.parts(image, image_pe, sparse, dense)
        batch, channels, rows, columns = upscaled.shape
        masks = (hyper @ upscaled.reshape([batch, channels, rows * columns])).reshape([batch, -1, rows, columns])
        return masks[:, 0:1, :, :]

    def parts(
        self, image: paddle.Tensor, image_pe: paddle.Tensor, sparse: paddle.Tensor, dense: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Mask coefficients [N, 4, C/8] and pixel features [N, C/8, S/4, S/4]."""
        output = paddle.concat([self.iou_token.weight, self.mask_tokens.weight], axis=0)
        output = output.unsqueeze(0).expand([sparse.shape[0], -1, -1])
        tokens = token_pe = paddle.concat([output, sparse], axis=1)
        image = paddle.repeat_interleave(image, tokens.shape[0], axis=0) + dense
        image_pe = paddle.repeat_interleave(image_pe, tokens.shape[0], axis=0)
        batch, channels, rows, columns = image.shape
        image = image.flatten(2).transpose([0, 2, 1])
        image_pe = image_pe.flatten(2).transpose([0, 2, 1])
        for block in self.blocks:
            tokens, image = block(tokens, image, token_pe, image_pe)
        tokens = self.last_norm(tokens + self.last_attention(tokens + token_pe, image + image_pe, image))
        self.iou_head(tokens[:, 0, :])
        upscaled = self.upscale(image.transpose([0, 2, 1]).reshape([batch, channels, rows, columns]))
        of_masks = tokens[:, 1 : 1 + MASK_TOKENS, :]
        hyper = paddle.stack([self.hyper[i](of_masks[:, i, :]) for i in range(MASK_TOKENS)], axis=1)
        return hyper, upscaled


class Sam(nn.Layer):
    """The whole model for one kind of prompt, `box` or `point`."""

    def __init__(self, size: SamSize, prompt: str, pad_operator: str) -> None:
        super().__init__()
        self.prompt = prompt
        self.image_encoder = ImageEncoder(size, pad_operator)
        self.prompt_encoder = PromptEncoder(size.prompt_width, size.image)
        self.mask_decoder = MaskDecoder(size.prompt_width, size.decoder_heads, size.decoder_mlp)

    def forward(self, image: paddle.Tensor, prompt: paddle.Tensor) -> paddle.Tensor:
        features = self.image_encoder(image)
        sparse, dense = self.prompt_encoder(prompt, self.prompt)
        return self.mask_decoder(features, self.prompt_encoder.dense_positions(), sparse, dense)


def _balance_masks(network: Sam, size: SamSize) -> None:
    """Centre the mask logits on zero and spread them, so that masks have an inside and an outside.

    The share of the hypernetwork's output that lies along the mean pixel feature shifts a whole mask; it is
    taken out of the last weights, and the rest is scaled to a standard deviation of 4.
    """
    image = paddle.to_tensor(calibration_batch(size.image, size.image, count=1))
    side = float(size.image)
    boxes = paddle.to_tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.5]]) * side
    with paddle.no_grad():
        sparse, dense = network.prompt_encoder(boxes, "box")
        features, positions = network.image_encoder(image), network.prompt_encoder.dense_positions()
        _, upscaled = network.mask_decoder.parts(features, positions, sparse, dense)
        mean = upscaled.mean([0, 2, 3])
        direction = mean / paddle.linalg.norm(mean)
        for mlp in network.mask_decoder.hyper:
            last = mlp.layers[-1]
            last.weight.set_value(last.weight - (last.weight @ direction)[:, None] * direction[None, :])
            last.bias.set_value(last.bias - (last.bias @ direction) * direction)
        hyper, upscaled = network.mask_decoder.parts(features, positions, sparse, dense)
        logits = hyper @ upscaled.flatten(2)
        for i, mlp in enumerate(network.mask_decoder.hyper):
            factor = 4.0 / float(logits[:, i].std())
            mlp.layers[-1].weight.set_value(mlp.layers[-1].weight * factor)
            mlp.layers[-1].bias.set_value(mlp.layers[-1].bias * factor)


def make(*, seed: int, prompt: str, size: str, pad_operator: str) -> Blueprint:
    """Make the network; see `build`."""
    if prompt not in ("box", "point"):
        raise ValueError(f"prompt is {prompt!r}, not 'box' or 'point'")
    if size not in SIZES:
        raise ValueError(f"size is {size!r}, not one of {', '.join(SIZES)}")
    shape = SIZES[size]
    network = Sam(shape, prompt, pad_operator)
    network.eval()
    initialise(network, seed)
    if size != "huge":
        _balance_masks(network, shape)
    config: dict[str, Any] = {
        "Global": {"model_name": f"SAM-H_{prompt}"},
        "Processor": {
            "type": "SAMProcessor",
            "size": shape.image,
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
        },
    }
    prompt_shape = [None, 4] if prompt == "box" else [1, 1, 2]
    inputs = (InputSpec([1, 3, shape.image, shape.image], "float32"), InputSpec(prompt_shape, "float32"))
    return Blueprint(network, inputs, config)


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    fmt: str = "json",
    prompt: str = "box",
    size: str = "tiny",
    pad_operator: str = "pad3d",
) -> Path:
    """Write a SAM archive.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight; both prompts of one seed share all weights.
        fmt: `json` or `pdmodel`.
        prompt: `box` (input [N, 4]) or `point` (input [1, 1, 2]).
        size: `tiny` (256 pixels), `base` (ViT-B, 1024 pixels) or `huge` (ViT-H, 641 M parameters).
        pad_operator: `pad3d` or `pad`: the operator that pads the grid to whole windows.

    Returns:
        `out_dir`.
    """
    options = {"prompt": prompt, "size": size, "pad_operator": pad_operator}
    return write_archive("sam", out_dir, seed=seed, fmt=fmt, options=options)

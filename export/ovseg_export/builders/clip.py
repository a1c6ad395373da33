"""PP-ShiTuV2_rec_CLIP_vit_*: the image tower of CLIP (Radford et al. 2021), a ViT with a class token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, set_batch_norm_statistics
from .configs import feature_config
from .images import calibration_batch

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipSize:
    """Widths and depths of one member of the family."""

    model_name: str
    width: int
    depth: int
    heads: int
    patch: int
    embedding: int


SIZES = {
    "small": ClipSize("PP-ShiTuV2_rec_CLIP_vit_base", 96, 3, 3, 16, 512),
    "small_large": ClipSize("PP-ShiTuV2_rec_CLIP_vit_large", 128, 4, 4, 14, 768),
    "base": ClipSize("PP-ShiTuV2_rec_CLIP_vit_base", 768, 12, 12, 16, 512),
    "large": ClipSize("PP-ShiTuV2_rec_CLIP_vit_large", 1024, 24, 16, 14, 768),
}


class Block(nn.Layer):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        tokens, width = x.shape[1:]
        qkv = self.qkv(self.norm1(x)).reshape([-1, tokens, 3, self.heads, width // self.heads])
        query, key, value = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
        weights = F.softmax(query.matmul(key.transpose([0, 1, 3, 2])) * (width // self.heads) ** -0.5, axis=-1)
        x = x + self.proj(weights.matmul(value).transpose([0, 2, 1, 3]).reshape([-1, tokens, width]))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class ClipTower(nn.Layer):
    """[N, 3, S, S] → [N, embedding]."""

    def __init__(self, size: ClipSize, image_size: int) -> None:
        super().__init__()
        self.width = size.width
        self.patches = nn.Conv2D(3, size.width, size.patch, stride=size.patch, bias_attr=False)
        self.class_token = self.create_parameter([1, 1, size.width])
        self.position = self.create_parameter([1, (image_size // size.patch) ** 2 + 1, size.width])
        self.norm_in = nn.LayerNorm(size.width)
        self.blocks = nn.LayerList([Block(size.width, size.heads) for _ in range(size.depth)])
        self.norm_out = nn.LayerNorm(size.width)
        self.embed = nn.Linear(size.width, size.embedding, bias_attr=False)
        self.neck = nn.BatchNorm1D(size.embedding)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.patches(x).flatten(2).transpose([0, 2, 1])
        token = self.class_token.expand([x.shape[0], 1, self.width]).astype(x.dtype)
        x = self.norm_in(paddle.concat([token, x], axis=1) + self.position)
        for block in self.blocks:
            x = block(x)
        return self.neck(self.embed(self.norm_out(x)[:, 0]))


def make(*, seed: int, size: str, image_size: int) -> Blueprint:
    """Make the network; see `build`."""
    shape = SIZES[size]
    network = ClipTower(shape, image_size)
    network.eval()
    initialise(network, seed)
    batch = paddle.to_tensor(calibration_batch(image_size, image_size))
    set_batch_norm_statistics(network, lambda: network(batch))
    config = feature_config(shape.model_name, image_size, MEAN, STD)
    return Blueprint(network, (InputSpec([None, 3, image_size, image_size], "float32", "x"),), config)


def build(out_dir: str | Path, *, seed: int = 0, fmt: str = "json", size: str = "small", image_size: int = 224) -> Path:
    """Write a CLIP image tower archive: input x [N, 3, S, S], output [N, 512] ([N, 768] for large).

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        size: `small` (of the base model), `small_large`, `base` or `large`.
        image_size: S, 224 in the official models.

    Returns:
        `out_dir`.
    """
    options = {"size": size, "image_size": image_size}
    return write_archive("clip", out_dir, seed=seed, fmt=fmt, options=options)

"""PP-ShiTuV2_det: PicoDet (Yu et al. 2021): LCNet, a light path-aggregation neck, distribution boxes, NMS."""

from __future__ import annotations

from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics
from .configs import detection_config, normalise_imagenet, resize
from .detection import box_scale, boxes_from_distances, cell_centres, multiclass_nms
from .images import calibration_batch
from .layers import ConvNorm, SqueezeExcite

STRIDES = (8, 16, 32, 64)
BINS = 8
CLASSES = 1
# Per block of the backbone: kernel, width in units, stride, squeeze-and-excite.
BACKBONE = (
    (3, 2, 1, False), (3, 4, 2, False), (3, 4, 1, False), (3, 8, 2, False), (3, 8, 1, False),
    (3, 16, 2, False), (5, 16, 1, False), (5, 16, 1, False), (5, 32, 2, True), (5, 32, 1, True),
)  # fmt: skip
WIDTHS = {"small": (4, 32), "large": (16, 128)}
"""Per size: channels of one unit of the backbone, channels of the neck."""


class Separable(nn.Layer):
    """Depthwise and pointwise convolution, each with hard-swish."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, attention: bool = False
    ) -> None:
        super().__init__()
        self.depthwise = ConvNorm(
            channels_in, channels_in, kernel, stride=stride, groups=channels_in, activation=F.hardswish
        )
        self.attention = SqueezeExcite(channels_in, gate=F.hardsigmoid) if attention else None
        self.pointwise = ConvNorm(channels_in, channels_out, activation=F.hardswish)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.depthwise(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.pointwise(x)


class Backbone(nn.Layer):
    """LCNet (Cui et al. 2021); feature maps of strides 8, 16, 32."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, unit, 3, stride=2, activation=F.hardswish)
        blocks, channels, self.taps, self.channels = [], unit, [], []
        for i, (kernel, units, stride, attention) in enumerate(BACKBONE):
            blocks.append(Separable(channels, unit * units, kernel, stride=stride, attention=attention))
            channels = unit * units
            if i + 1 == len(BACKBONE) or (BACKBONE[i + 1][2] == 2 and units >= 8):
                self.taps.append(i)
                self.channels.append(channels)
        self.blocks = nn.LayerList(blocks)

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        x, features = self.stem(image), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                features.append(x)
        return features


class Neck(nn.Layer):
    """Top-down, bottom-up, and one coarser map."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.entry = nn.LayerList([ConvNorm(c, width, activation=F.hardswish) for c in channels])
        self.down = nn.LayerList([self._mix(2 * width, width) for _ in channels[1:]])
        self.shrink = nn.LayerList([Separable(width, width, 5, stride=2) for _ in channels[1:]])
        self.up = nn.LayerList([self._mix(2 * width, width) for _ in channels[1:]])
        self.top_from_entry = Separable(width, width, 5, stride=2)
        self.top_from_last = Separable(width, width, 5, stride=2)

    @staticmethod
    def _mix(channels_in: int, channels_out: int) -> nn.Layer:
        return nn.Sequential(Separable(channels_in, channels_out, 5), Separable(channels_out, channels_out, 5))

    def forward(self, features: list[paddle.Tensor]) -> list[paddle.Tensor]:
        maps = [self.entry[i](x) for i, x in enumerate(features)]
        coarsest = maps[-1]
        for i in range(len(maps) - 1, 0, -1):
            upsampled = F.interpolate(maps[i], scale_factor=2, mode="nearest")
            maps[i - 1] = self.down[i - 1](paddle.concat([upsampled, maps[i - 1]], axis=1))
        for i in range(1, len(maps)):
            maps[i] = self.up[i - 1](paddle.concat([self.shrink[i - 1](maps[i - 1]), maps[i]], axis=1))
        maps.append(self.top_from_entry(coarsest) + self.top_from_last(maps[-1]))
        return maps


class PicoDet(nn.Layer):
    """image, scale_factor → boxes [N, 6], count."""

    def __init__(self, unit: int, width: int, image_size: int) -> None:
        super().__init__()
        self.backbone = Backbone(unit)
        self.neck = Neck(self.backbone.channels, width)
        self.towers = nn.LayerList(
            [nn.Sequential(Separable(width, width, 5), Separable(width, width, 5)) for _ in STRIDES]
        )
        self.heads = nn.LayerList([nn.Conv2D(width, CLASSES + 4 * BINS, 1) for _ in STRIDES])
        # The official graph stores the cell centres as constants too: its input size is fixed.
        sides = [(-(-image_size // s), -(-image_size // s), s) for s in STRIDES]
        centres, strides = cell_centres(sides, 0.5)
        self.register_buffer("centres", centres)
        self.register_buffer("cell_strides", strides)
        self.register_buffer("bin_values", paddle.arange(BINS, dtype="float32"))

    def raw(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        """What each head gives: class logits and distance logits [N, 1 + 4*8, H, W]."""
        maps = self.neck(self.backbone(image))
        return [self.heads[i](self.towers[i](x)) for i, x in enumerate(maps)]

    def forward(self, image: paddle.Tensor, scale_factor: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        scores, distances = [], []
        for raw in self.raw(image):
            logits, bins = paddle.split(raw, [CLASSES, 4 * BINS], axis=1)
            cells = raw.shape[2] * raw.shape[3]
            scores.append(F.sigmoid(logits.reshape([-1, CLASSES, cells])))
            shares = F.softmax(bins.transpose([0, 2, 3, 1]).reshape([-1, BINS]), axis=1)
            distances.append(F.linear(shares, self.bin_values.unsqueeze(1)).reshape([-1, cells, 4]))
        boxes = boxes_from_distances(self.centres, paddle.concat(distances, axis=1)) * self.cell_strides
        rows, count, _ = multiclass_nms(
            boxes / box_scale(scale_factor),
            paddle.concat(scores, axis=-1),
            score_threshold=0.025,
            nms_threshold=0.6,
            nms_top_k=1000,
            keep_top_k=100,
        )
        return rows, count


def _spread_heads(network: PicoDet, batch: paddle.Tensor) -> None:
    """Class logits -4.5 ± 1.8; distance logits ± 2, so that the four sides of a box differ."""
    with paddle.no_grad():
        for head, raw in zip(network.heads, network.raw(batch), strict=True):
            rescale_head(head, raw, mean=0.0, std=2.0)
            weight, bias = head.weight.numpy(), head.bias.numpy()
            weight[:CLASSES] *= 0.9
            bias[:CLASSES] = bias[:CLASSES] * 0.9 - 4.5
            head.weight.set_value(weight)
            head.bias.set_value(bias)


def make(*, seed: int, size: str, image_size: int) -> Blueprint:
    """Make the network; see `build`."""
    network = PicoDet(*WIDTHS[size], image_size)
    network.eval()
    initialise(network, seed)
    batch = paddle.to_tensor(calibration_batch(image_size, image_size))
    set_batch_norm_statistics(network, lambda: network.raw(batch))
    _spread_heads(network, batch)
    config = detection_config(
        "PP-ShiTuV2_det",
        "GFL",
        [resize(image_size, image_size), normalise_imagenet(), {"type": "Permute"}],
        labels=["foreground"],
        mask=False,
        extra={
            "NMS": {
                "keep_top_k": 100,
                "name": "MultiClassNMS",
                "nms_threshold": 0.6,
                "nms_top_k": 1000,
                "score_threshold": 0.025,
            },
            "fpn_stride": list(STRIDES),
        },
    )
    inputs = (
        InputSpec([None, 3, image_size, image_size], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    )
    return Blueprint(network, inputs, config)


def build(out_dir: str | Path, *, seed: int = 0, fmt: str = "json", size: str = "small", image_size: int = 320) -> Path:
    """Write a PP-ShiTuV2_det archive: inputs image, scale_factor; outputs boxes [K, 6], count [N].

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        size: `small` or `large`.
        image_size: Side of the input, 640 in the official model; a multiple of 64.

    Returns:
        `out_dir`.
    """
    options = {"size": size, "image_size": image_size}
    return write_archive("picodet", out_dir, seed=seed, fmt=fmt, options=options)

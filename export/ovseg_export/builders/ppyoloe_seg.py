"""PP-YOLOE_seg: CSP backbone and neck with effective channel attention, NMS, prototype masks.

PP-YOLOE: Xu et al. 2022; masks as sums of prototypes: Bolya et al. 2019 (YOLACT).
"""

from __future__ import annotations

from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics
from .configs import COCO_LABELS, detection_config, normalise_unit, resize
from .detection import boxes_from_distances, cell_centres, multiclass_nms
from .images import calibration_batch
from .layers import ConvNorm

CLASSES = len(COCO_LABELS)
STRIDES = (32, 16, 8)
BINS = 17
COEFFICIENTS = 32
WIDTHS = {"small": 12, "large": 32}


class RepBlock(nn.Layer):
    """3x3 and 1x1 convolution side by side, and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, activation=F.swish)
        self.wide = ConvNorm(channels, channels, 3, activation=None)
        self.point = ConvNorm(channels, channels, activation=None)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.first(x)
        return x + F.swish(self.wide(y) + self.point(y))


class ChannelGate(nn.Layer):
    """Effective squeeze-and-excite: mean over the picture, one 1x1 convolution, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2D(channels, channels, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x * F.hardsigmoid(self.mix(x.mean((2, 3), keepdim=True)))


class CspStage(nn.Layer):
    """Optional stride-2 convolution, two branches, one through a block, channel gate, mix."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, gate: bool) -> None:
        super().__init__()
        middle = channels_out // 2
        self.down = ConvNorm(channels_in, channels_in, 3, stride=2, activation=F.swish) if stride == 2 else None
        self.left = ConvNorm(channels_in, middle, activation=F.swish)
        self.right = ConvNorm(channels_in, middle, activation=F.swish)
        self.block = RepBlock(middle)
        self.gate = ChannelGate(2 * middle) if gate else None
        self.mix = ConvNorm(2 * middle, channels_out, activation=F.swish)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.down is not None:
            x = self.down(x)
        x = paddle.concat([self.left(x), self.block(self.right(x))], axis=1)
        if self.gate is not None:
            x = self.gate(x)
        return self.mix(x)


class PyramidPooling(nn.Layer):
    """Max pools of three sizes beside the map itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = ConvNorm(4 * channels, channels, activation=F.swish)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        pools = [F.max_pool2d(x, kernel, stride=1, padding=kernel // 2) for kernel in (5, 9, 13)]
        return self.mix(paddle.concat([x, *pools], axis=1))


class BackboneAndNeck(nn.Layer):
    """Feature maps of strides 32, 16, 8, all of the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2, activation=F.swish),
            ConvNorm(width // 2, width, 3, activation=F.swish),
        )
        channels = [width << i for i in range(5)]
        self.stages = nn.LayerList([CspStage(channels[i], channels[i + 1], stride=2, gate=True) for i in range(4)])
        out = 4 * width
        self.pool = PyramidPooling(channels[4])
        self.entry = nn.LayerList(
            [ConvNorm(c, out, activation=F.swish) for c in (channels[4], channels[3], channels[2])]
        )
        self.down = nn.LayerList([CspStage(2 * out, out, stride=1, gate=False) for _ in range(2)])
        self.shrink = nn.LayerList([ConvNorm(out, out, 3, stride=2, activation=F.swish) for _ in range(2)])
        self.up = nn.LayerList([CspStage(2 * out, out, stride=1, gate=False) for _ in range(2)])
        self.width = out

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        maps = [self.entry[0](self.pool(features[3])), self.entry[1](features[2]), self.entry[2](features[1])]
        for i in (1, 2):
            upsampled = F.interpolate(maps[i - 1], scale_factor=2.0)
            maps[i] = self.down[i - 1](paddle.concat([upsampled, maps[i]], axis=1))
        for i in (1, 0):
            maps[i] = self.up[i](paddle.concat([self.shrink[i](maps[i + 1]), maps[i]], axis=1))
        return maps


class TaskAttention(nn.Layer):
    """Gates a map by what its own mean says, then mixes (the "effective" attention of the head)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2D(channels, channels, 1)
        self.mix = ConvNorm(channels, channels, activation=F.swish)

    def forward(self, x: paddle.Tensor, mean: paddle.Tensor) -> paddle.Tensor:
        return self.mix(x * F.sigmoid(self.gate(mean)))


class LevelHead(nn.Layer):
    """Class logits, distance logits and mask coefficients of one level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.LayerList([TaskAttention(channels) for _ in range(3)])
        self.classify = nn.Conv2D(channels, CLASSES, 3, padding=1)
        self.regress = nn.Conv2D(channels, 4 * BINS, 3, padding=1)
        self.weigh = nn.Conv2D(channels, COEFFICIENTS, 3, padding=1)

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        mean = F.adaptive_avg_pool2d(x, (1, 1))
        logits = self.classify(self.attend[0](x, mean) + x)
        return logits, self.regress(self.attend[1](x, mean)), self.weigh(self.attend[2](x, mean) + x)


class Prototypes(nn.Layer):
    """Mask prototypes at twice the resolution of the finest map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, activation=F.swish)
        self.upsample = nn.Conv2DTranspose(channels, channels, 2, stride=2)
        self.second = ConvNorm(channels, channels, 3, activation=F.swish)
        self.last = ConvNorm(channels, COEFFICIENTS, activation=F.swish)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.last(self.second(self.upsample(self.first(x))))


def crop_to_boxes(masks: paddle.Tensor, boxes: paddle.Tensor) -> paddle.Tensor:
    """Zero masks [K, H, W] outside their boxes [K, 4]."""
    rows, columns = masks.shape[1:]
    x0, y0, x1, y1 = paddle.chunk(boxes[:, :, None], 4, axis=1)
    across = paddle.arange(columns, dtype=x0.dtype)[None, None, :]
    down = paddle.arange(rows, dtype=y0.dtype)[None, :, None]
    return masks * ((across >= x0) * (across < x1) * (down >= y0) * (down < y1)).astype(masks.dtype)


class PpyoloeSeg(nn.Layer):
    """im_shape, image, scale_factor → boxes [K, 6], count, masks [K, H, W] of the one picture."""

    def __init__(self, width: int, image_size: int, score_threshold: float) -> None:
        super().__init__()
        self.image_size, self.score_threshold = image_size, score_threshold
        self.body = BackboneAndNeck(width)
        self.heads = nn.LayerList([LevelHead(self.body.width) for _ in STRIDES])
        self.prototypes = Prototypes(self.body.width)
        self.bin_values = nn.Conv2D(BINS, 1, 1, bias_attr=False)
        centres, strides = cell_centres([(image_size // s, image_size // s, s) for s in STRIDES], 0.5)
        self.register_buffer("centres", centres)
        self.register_buffer("cell_strides", strides)

    def raw(
        self, image: paddle.Tensor
    ) -> tuple[paddle.Tensor, list[tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]]]:
        """Prototypes and what each head gives."""
        maps = self.body(image)
        prototypes = self.prototypes(maps[-1])
        return prototypes, [self.heads[i](x) for i, x in enumerate(maps)]

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        prototypes, levels = self.raw(image)
        scores, distances, coefficients = [], [], []
        for logits, bins, weights in levels:
            cells = logits.shape[2] * logits.shape[3]
            coefficients.append(weights.reshape([-1, COEFFICIENTS, cells]))
            bins = bins.reshape([-1, 4, BINS, cells]).transpose([0, 2, 3, 1])
            distances.append(self.bin_values(F.softmax(bins, axis=1)).squeeze(1))
            scores.append(F.sigmoid(logits).reshape([-1, CLASSES, cells]))
        weights = paddle.concat(coefficients, axis=-1)
        boxes = boxes_from_distances(self.centres, paddle.concat(distances, axis=1)) * self.cell_strides
        rows, count, index = multiclass_nms(
            boxes,
            paddle.concat(scores, axis=-1),
            score_threshold=self.score_threshold,
            nms_threshold=0.7,
            nms_top_k=1000,
            keep_top_k=300,
        )
        if count.sum() > 0:
            chosen = paddle.gather(weights.transpose([0, 2, 1]).reshape([-1, COEFFICIENTS]), index)
            channels, tall, wide = prototypes[0].shape
            masks = F.sigmoid(chosen @ prototypes[0].reshape([channels, -1])).reshape([-1, tall, wide])
            masks = F.interpolate(masks[None], [self.image_size] * 2, mode="bilinear", align_corners=False)[0]
            masks = crop_to_boxes(masks, rows[:, 2:6])
            height, width = im_shape[0] / scale_factor[0]
            size = [
                int(paddle.round(masks.shape[-2] / scale_factor[0][0])),
                int(paddle.round(masks.shape[-1] / scale_factor[0][1])),
            ]
            masks = F.interpolate(masks.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
            masks = masks[..., : int(height), : int(width)].squeeze(0)
            masks = paddle.to_tensor(masks > 0.5).cast("float32")
            rows[:, 2:6] /= scale_factor.flip(-1).tile([1, 2])
        else:
            # The official graph answers an empty picture with one box of zeros.
            height, width = im_shape[0] / scale_factor[0]
            count = paddle.to_tensor([1]).cast("int32")
            rows = paddle.zeros([count, 6])
            masks = paddle.zeros([count, int(height), int(width)])
        return rows, count, masks


def _calibrate(network: PpyoloeSeg, batch: paddle.Tensor) -> None:
    """Class logits -6 ± 2, distance logits ± 2.5, mask logits near zero with both signs."""
    values = paddle.arange(BINS, dtype="float32").reshape([1, BINS, 1, 1])
    network.bin_values.weight.set_value(values)
    with paddle.no_grad():
        prototypes, levels = network.raw(batch)
        deviation = prototypes.std([0, 2, 3])
        mean = prototypes.mean([0, 2, 3]) / deviation
        for head, (logits, bins, weights) in zip(network.heads, levels, strict=True):
            rescale_head(head.classify, logits, mean=-6.0, std=2.0)
            rescale_head(head.regress, bins, mean=0.0, std=2.5)
            rescale_head(head.weigh, weights, mean=0.0, std=1.0)
            # Without the part along the mean prototype a mask has as much inside as outside.
            direction = (mean / paddle.linalg.norm(mean))[:, None, None, None]
            weight = head.weigh.weight
            weight = weight - direction * (direction * weight).sum(0, keepdim=True)
            bias = head.weigh.bias - direction.flatten() * (direction.flatten() * head.weigh.bias).sum()
            head.weigh.weight.set_value(weight / deviation[:, None, None, None])
            head.weigh.bias.set_value(bias / deviation)


def make(*, seed: int, size: str, image_size: int, score_threshold: float) -> Blueprint:
    """Make the network; see `build`."""
    network = PpyoloeSeg(WIDTHS[size], image_size, score_threshold)
    network.eval()
    initialise(network, seed)
    batch = paddle.to_tensor(calibration_batch(image_size, image_size, imagenet=False))
    set_batch_norm_statistics(network, lambda: network.raw(batch))
    _calibrate(network, batch)
    steps = [resize(image_size, image_size), normalise_unit(), {"type": "Permute"}]
    config = detection_config("PP-YOLOE_seg-S", "PPYOLOE", steps)
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
    size: str = "small",
    image_size: int = 320,
    score_threshold: float = 0.01,
) -> Path:
    """Write a PP-YOLOE_seg archive; the graph takes one picture at a time.

    Inputs im_shape [1, 2], image [1, 3, S, S], scale_factor [1, 2]; outputs boxes [K, 6], count [1] and
    masks float32 [K, H, W], 0 or 1, in the size of the original picture. K is at most 300; a picture
    without a detection gives one box of zeros.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        size: `small` or `large`.
        image_size: S, 640 in the official model; a multiple of 32.
        score_threshold: Threshold inside the graph, 0.01 in the official model; above 1 nothing is found.

    Returns:
        `out_dir`.
    """
    options = {"size": size, "image_size": image_size, "score_threshold": score_threshold}
    return write_archive("ppyoloe_seg", out_dir, seed=seed, fmt=fmt, options=options)

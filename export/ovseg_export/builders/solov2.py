"""SOLOv2 (Wang et al. 2020): a mask kernel per grid cell, dynamic convolution, matrix NMS in plain ops."""

from __future__ import annotations

from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics
from .configs import COCO_LABELS, detection_config, normalise_imagenet, resize
from .images import calibration_batch
from .layers import FeaturePyramid, ResNet

CLASSES = len(COCO_LABELS)
GRIDS = (40, 36, 24, 16, 12)
STRIDES = (8, 8, 16, 32, 32)
SCORE_THRESHOLD, MASK_THRESHOLD, UPDATE_THRESHOLD = 0.1, 0.5, 0.05
BEFORE_NMS, AFTER_NMS, SIGMA = 500, 100, 2.0
WIDTHS = {"small": (8, 32, 32, 16, 8), "large": (64, 256, 512, 256, 32)}
"""Per size: backbone, pyramid, head, mask kernel, groups of GroupNorm."""


class ConvGroupNorm(nn.Layer):
    """Convolution without bias, GroupNorm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(channels_in, channels_out, kernel, padding=kernel // 2, bias_attr=False)
        self.norm = nn.GroupNorm(groups, channels_out)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.norm(self.conv(x))


def with_coordinates(x: paddle.Tensor) -> paddle.Tensor:
    """Append two channels with the x and y of each pixel, in -1..1 (CoordConv, Liu et al. 2018)."""
    across = paddle.linspace(-1, 1, x.shape[-1], dtype="float32")
    down = paddle.linspace(-1, 1, x.shape[-2], dtype="float32")
    down, across = paddle.meshgrid([down, across])
    down = paddle.expand(paddle.unsqueeze(down, [0, 1]), shape=[x.shape[0], 1, -1, -1])
    across = paddle.expand(paddle.unsqueeze(across, [0, 1]), shape=[x.shape[0], 1, -1, -1])
    return paddle.concat([x, paddle.concat([across, down], axis=1)], axis=1)


class MaskFeatures(nn.Layer):
    """Pyramid maps of strides 4 to 32 added up at stride 4."""

    def __init__(self, width: int, middle: int, out: int, groups: int) -> None:
        super().__init__()
        self.first = ConvGroupNorm(width, middle, 3, groups)
        self.towers = nn.LayerList()
        for level in (1, 2, 3):
            tower = []
            for step in range(level):
                channels = (width + 2 if level == 3 else width) if step == 0 else middle
                tower += [
                    ConvGroupNorm(channels, middle, 3, groups),
                    nn.ReLU(),
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                ]
            self.towers.append(nn.Sequential(*tower))
        self.last = ConvGroupNorm(middle, out, 1, groups)

    def forward(self, maps: list[paddle.Tensor]) -> paddle.Tensor:
        total = F.relu(self.first(maps[0]))
        for level in (1, 2, 3):
            x = with_coordinates(maps[level]) if level == 3 else maps[level]
            total = paddle.add(total, self.towers[level - 1](x))
        return F.relu(self.last(total))


class SoloHead(nn.Layer):
    """Class scores and mask kernels of each grid."""

    def __init__(self, width: int, hidden: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel_tower = nn.LayerList(
            [ConvGroupNorm(width + 2 if i == 0 else hidden, hidden, 3, groups) for i in range(4)]
        )
        self.class_tower = nn.LayerList(
            [ConvGroupNorm(width if i == 0 else hidden, hidden, 3, groups) for i in range(4)]
        )
        self.kernel = nn.Conv2D(hidden, kernel, 3, padding=1)
        self.classify = nn.Conv2D(hidden, CLASSES, 3, padding=1)

    def forward(self, x: paddle.Tensor, grid: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Class logits and kernels, [N, 80, grid, grid] and [N, K, grid, grid]."""
        x = F.interpolate(with_coordinates(x), size=[grid, grid], mode="bilinear", align_corners=False)
        classes = x[:, :-2, :, :]
        for layer in self.kernel_tower:
            x = F.relu(layer(x))
        for layer in self.class_tower:
            classes = F.relu(layer(classes))
        return self.classify(classes), self.kernel(x)


def keep_peaks(heat: paddle.Tensor) -> paddle.Tensor:
    """Zero every cell that is not the largest of its 2x2 neighbourhood."""
    largest = F.max_pool2d(heat, kernel_size=2, stride=1, padding=1)
    return heat * paddle.cast(largest[:, :, :-1, :-1] == heat, "float32")


def order(scores: paddle.Tensor, at_most: int) -> paddle.Tensor:
    """Indices of the best scores, best first."""
    if scores.shape[0] > at_most:  # noqa: SIM108 - Paddle traces the statement
        index = paddle.topk(scores, at_most)[1]
    else:
        index = paddle.argsort(scores, descending=True)
    return index


def matrix_nms(
    preds: paddle.Tensor,
    masks: paddle.Tensor,
    labels: paddle.Tensor,
    scores: paddle.Tensor,
    areas: paddle.Tensor,
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Decay the score of each mask by its overlap with better ones (SOLOv2, section 3.4, Gaussian)."""
    best = order(scores, BEFORE_NMS)
    masks, preds, areas = paddle.gather(masks, best), paddle.gather(preds, best), paddle.gather(areas, best)
    scores, labels = paddle.gather(scores, best), paddle.gather(labels, best)
    masks = paddle.flatten(masks, start_axis=1, stop_axis=-1)
    shared = paddle.mm(masks, paddle.transpose(masks, [1, 0]))
    count = paddle.to_tensor(labels.shape, dtype="int32")
    columns = paddle.expand(areas, shape=[count, count])
    overlap = paddle.triu(shared / (columns + paddle.transpose(columns, [1, 0]) - shared), diagonal=1)
    of_label = paddle.expand(labels, shape=[count, count])
    same = paddle.cast(of_label == paddle.transpose(of_label, [1, 0]), "float32")
    overlap = overlap * paddle.triu(same, diagonal=1)
    worst = paddle.transpose(paddle.expand(paddle.max(overlap, axis=0), shape=[count, count]), [1, 0])
    decay = paddle.exp(-1 * SIGMA * (overlap**2)) / paddle.exp(-1 * SIGMA * (worst**2))
    scores = scores * paddle.min(decay, axis=0)
    kept = paddle.where(scores >= UPDATE_THRESHOLD, scores, paddle.zeros(shape=scores.shape, dtype="float32"))
    index = paddle.squeeze(paddle.nonzero(kept), axis=[1])
    # The last mask is always kept: the operators that follow do not take an empty tensor.
    index = paddle.concat([index, paddle.cast(paddle.shape(scores)[0:1] - 1, "int64")])
    preds, scores, labels = (
        paddle.gather(preds, index),
        paddle.gather(scores, index),
        paddle.gather(labels, index),
    )
    best = order(scores, AFTER_NMS)
    return paddle.gather(preds, best), paddle.gather(scores, best), paddle.gather(labels, best)


class Solov2(nn.Layer):
    """im_shape, image, scale_factor → count, labels [K], scores [K], masks uint8 [K, H, W]."""

    def __init__(self, backbone: int, width: int, hidden: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel_width = kernel
        self.backbone = ResNet(backbone)
        self.neck = FeaturePyramid(self.backbone.channels, width, extra=True)
        self.mask_features = MaskFeatures(width, width, kernel, groups)
        self.head = SoloHead(width, hidden, kernel, groups)

    def raw(self, image: paddle.Tensor) -> tuple[paddle.Tensor, list[tuple[paddle.Tensor, paddle.Tensor]]]:
        """Mask features [N, K, H/4, W/4] and, per grid, class logits and kernels."""
        maps = self.neck(self.backbone(image))
        features = self.mask_features(maps)
        finest = F.interpolate(maps[0], scale_factor=0.5, align_corners=False, mode="bilinear")
        coarsest = F.interpolate(maps[4], size=maps[3].shape[-2:], mode="bilinear", align_corners=False)
        split = [finest, maps[1], maps[2], maps[3], coarsest]
        return features, [self.head(x, GRIDS[i]) for i, x in enumerate(split)]

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        features, grids = self.raw(image)
        heat, kernels = [], []
        for logits, kernel in grids:
            peaks = paddle.transpose(keep_peaks(F.sigmoid(logits)), [0, 2, 3, 1])
            heat.append(paddle.reshape(peaks[0], shape=(-1, CLASSES)))
            kernels.append(paddle.reshape(paddle.transpose(kernel[0], [1, 2, 0]), shape=(-1, self.kernel_width)))
        masks, labels, scores = self._instances(
            paddle.concat(heat), paddle.concat(kernels), features, im_shape[0], scale_factor[0][0]
        )
        return labels.shape[0:1], labels, scores, masks

    def _instances(
        self,
        heat: paddle.Tensor,
        kernels: paddle.Tensor,
        features: paddle.Tensor,
        im_shape: paddle.Tensor,
        scale: paddle.Tensor,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        height, width = paddle.cast(im_shape[0], "int32"), paddle.cast(im_shape[1], "int32")
        found = paddle.where(heat > SCORE_THRESHOLD, heat, paddle.zeros(shape=heat.shape, dtype="float32"))
        found = paddle.nonzero(found)
        # One made-up candidate with score 0 at the end keeps every tensor non-empty.
        spare = paddle.concat([paddle.cast(paddle.shape(kernels)[0:1], "int64"), paddle.zeros([1], dtype="int64")])
        found = paddle.concat([found, paddle.unsqueeze(spare, 0)])
        kernels = paddle.concat([kernels, paddle.ones([1, self.kernel_width], dtype="float32")])
        heat = paddle.concat([paddle.reshape(heat, shape=[-1]), paddle.zeros([1], dtype="float32")])
        cells, labels = found[:, 0], found[:, 1]
        scores = paddle.gather(heat, index=paddle.add(cells * CLASSES, labels))
        strides = [paddle.full([grid**2], stride, dtype="int32") for grid, stride in zip(GRIDS, STRIDES)]  # noqa: B905
        strides = paddle.concat([*strides, paddle.zeros([1], dtype="int32")])
        strides = paddle.gather(strides, index=cells)

        kernels = paddle.unsqueeze(paddle.gather(kernels, index=cells), [2, 3])
        preds = F.sigmoid(paddle.squeeze(F.conv2d(features, kernels), [0]))
        masks = paddle.cast(preds > MASK_THRESHOLD, "float32")
        areas = paddle.sum(masks, axis=[1, 2])
        nothing = paddle.zeros(shape=paddle.shape(areas), dtype="float32")
        large = paddle.nonzero(paddle.where(areas > strides.cast(areas.dtype), areas, nothing))
        large = paddle.squeeze(large, axis=[1])
        last = paddle.concat([large, paddle.cast(paddle.shape(areas)[0:1] - 1, "int64")])
        past = paddle.concat([large, paddle.cast(paddle.shape(areas)[0:1], "int64")])
        scores = paddle.gather(paddle.concat([scores, paddle.zeros([1], dtype="float32")]), index=past)
        masks, preds = paddle.gather(masks, index=last), paddle.gather(preds, index=last)
        areas, labels = paddle.gather(areas, index=last), paddle.gather(labels, index=last)
        scores = scores * (paddle.sum(preds * masks, axis=[1, 2]) / areas)
        preds, scores, labels = matrix_nms(preds, masks, labels, scores, areas)

        original = paddle.cast(im_shape[:2] / scale + 0.5, "int32")
        whole = [features.shape[-2] * 4, features.shape[-1] * 4]
        preds = F.interpolate(paddle.unsqueeze(preds, 0), size=whole, mode="bilinear", align_corners=False)
        preds = paddle.slice(preds, axes=[2, 3], starts=[0, 0], ends=[height, width])
        preds = F.interpolate(preds, size=original[:2], mode="bilinear", align_corners=False)
        return paddle.cast(paddle.squeeze(preds, axis=[0]) > MASK_THRESHOLD, "uint8"), labels, scores


def _calibrate(network: Solov2, batch: paddle.Tensor, class_logit: float) -> None:
    """Class logits around `class_logit` ± 2.2 (about 0.4 % pass the threshold), mask logits 0 ± 3."""
    with paddle.no_grad():
        features, grids = network.raw(batch)
        logits, kernels = grids[2]
        rescale_head(network.head.classify, logits, mean=class_logit, std=2.2)
        rescale_head(network.head.kernel, kernels, mean=0.0, std=1.0)
        mean = features.mean([0, 2, 3])
        direction = (mean / paddle.linalg.norm(mean))[:, None, None, None]
        weight, bias = network.head.kernel.weight, network.head.kernel.bias
        weight = weight - direction * (direction * weight).sum(0, keepdim=True)
        bias = bias - direction.flatten() * (direction.flatten() * bias).sum()
        factor = 3.0 / float(paddle.sqrt(features.var([0, 2, 3]).sum()))
        network.head.kernel.weight.set_value(weight * factor)
        network.head.kernel.bias.set_value(bias * factor)


def make(*, seed: int, size: str, image_size: list[int], class_logit: float) -> Blueprint:
    """Make the network; see `build`."""
    network = Solov2(*WIDTHS[size])
    network.eval()
    initialise(network, seed)
    batch = paddle.to_tensor(calibration_batch(*image_size))
    set_batch_norm_statistics(network.backbone, lambda: network.backbone(batch))
    _calibrate(network, batch, class_logit)
    steps = [
        normalise_imagenet(),
        resize(*image_size, keep_ratio=True, interpolation=1),
        {"type": "Permute"},
        {"stride": 32, "type": "PadStride"},
    ]
    inputs = (
        InputSpec([None, 2], "float32", "im_shape"),
        InputSpec([None, 3, None, None], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    )
    return Blueprint(network, inputs, detection_config("SOLOv2", "SOLOv2", steps, dynamic=True))


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    fmt: str = "json",
    size: str = "small",
    image_size: tuple[int, int] = (256, 320),
    class_logit: float = -8.0,
) -> Path:
    """Write a SOLOv2 archive; the graph reads the first picture of a batch only.

    Inputs im_shape [1, 2], image [1, 3, H, W] (multiples of 32), scale_factor [1, 2]; outputs count
    int64, labels int64 [K], scores float32 [K] and masks uint8 [K, H', W'] in the original size. K is 1 to
    100; where nothing is found it is one made-up mask with score 0.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        size: `small` or `large`.
        image_size: Target (short, long) side of the resize step, (800, 1333) in the official model.
        class_logit: Mean class logit; -60 finds nothing.

    Returns:
        `out_dir`.
    """
    options = {"size": size, "image_size": list(image_size), "class_logit": class_logit}
    return write_archive("solov2", out_dir, seed=seed, fmt=fmt, options=options)

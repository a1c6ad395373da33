"""What Mask R-CNN and Cascade Mask R-CNN share: proposals, box decoding, per-picture tails, mask head, paste.

The loops over the pictures of a batch become `while` with tensor arrays where the batch is free, and are
unrolled where it is fixed; Python lists and `range` in traced code are there for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec
from paddle.vision import ops

from .calibrate import rescale_head, set_batch_norm_statistics
from .configs import detection_config, normalise_imagenet, resize
from .detection import multiclass_nms
from .images import network_input, synthetic_image
from .layers import ResNet

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
FPN_STRIDES = (4, 8, 16, 32, 64)
MAX_LOG_GROWTH = math.log(1000.0 / 16)
"""A box grows by at most this much, as a logarithm (Ren et al. 2015, in its usual implementations)."""

PLAIN_MARGIN = 6.0
"""By how much the background's logit leads every other on a plain picture."""

Regions = list[paddle.Tensor]
"""float32 [R, 4] of each picture; a tensor array where the batch is free."""


@dataclass(frozen=True)
class Backbone:
    """Depth and kind of the ResNet behind a model name."""

    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    vd: bool = False
    groups: int = 1
    pyramid: bool = True


@dataclass(frozen=True)
class Limits:
    """Thresholds and counts of an export.

    Attributes:
        classes: Number of classes; the background comes after them.
        score_threshold: Detections at or below it are dropped.
        keep_top_k: Detections of one picture that are kept.
        proposals: Proposals of one level, and of one picture, that are kept.
    """

    classes: int
    score_threshold: float
    keep_top_k: int
    proposals: int


class ProposalHead(nn.Layer):
    """Region proposal network (Ren et al. 2015), one set of weights for every level."""

    def __init__(self, channels: int, strides: Sequence[int], sizes: Sequence[Sequence[float]], keep: int) -> None:
        super().__init__()
        self.strides = list(strides)
        self.keep = keep
        for level, level_sizes in enumerate(sizes):
            self.register_buffer(f"anchors{level}", paddle.to_tensor(_anchors(level_sizes)))
        self.shared = nn.Conv2D(channels, channels, 3, padding=1)
        self.score = nn.Conv2D(channels, len(ASPECT_RATIOS) * len(sizes[0]), 1)
        self.delta = nn.Conv2D(channels, 4 * len(ASPECT_RATIOS) * len(sizes[0]), 1)

    def raw(self, features: list[paddle.Tensor]) -> list[tuple[paddle.Tensor, paddle.Tensor]]:
        """Objectness logits [N, A, H, W] and box deltas [N, 4*A, H, W] of each level."""
        shared = [F.relu(self.shared(x)) for x in features]
        return [(self.score(x), self.delta(x)) for x in shared]

    def grid(self, feature: paddle.Tensor, level: int) -> paddle.Tensor:
        """Anchors of every cell, float32 [H*W*A, 4]."""
        stride = self.strides[level]
        rows, columns = feature.shape[-2:]
        x = paddle.arange(0, columns * stride, step=stride, dtype="float32")
        y = paddle.arange(0, rows * stride, step=stride, dtype="float32")
        y, x = paddle.meshgrid(y, x)
        x, y = x.reshape([-1]), y.reshape([-1])
        corners = paddle.stack([x, y, x, y], axis=1).reshape([-1, 1, 4])
        return (corners + getattr(self, f"anchors{level}").reshape([1, -1, 4])).reshape([-1, 4])

    def forward(self, features: list[paddle.Tensor], im_shape: paddle.Tensor) -> tuple[Regions, paddle.Tensor]:
        raw = self.raw(features)
        grids = [self.grid(x, level) for level, x in enumerate(features)]
        regions = []
        counts = []
        for i in range(im_shape.shape[0]):
            boxes = []
            scores = []
            for (score, delta), anchors in zip(raw, grids):
                level_boxes, level_scores, _ = ops.generate_proposals(
                    score[i : i + 1],
                    delta[i : i + 1],
                    im_shape[i : i + 1],
                    anchors,
                    paddle.ones_like(anchors),
                    pre_nms_top_n=self.keep,
                    post_nms_top_n=self.keep,
                    nms_thresh=0.7,
                    min_size=0.0,
                    return_rois_num=True,
                )
                boxes.append(level_boxes)
                scores.append(level_scores)
            if len(features) > 1:
                merged = paddle.concat(boxes)
                ranking = paddle.concat(scores).flatten()
                if paddle.shape(ranking)[0].cast("int32") > self.keep:
                    best = paddle.gather(merged, paddle.topk(ranking, self.keep)[1])
                else:
                    best = merged
            else:
                best = boxes[0]
            regions.append(best)
            counts.append(paddle.shape(best)[0:1])
        return regions, paddle.concat(counts)


def joined(rois: list[paddle.Tensor]) -> paddle.Tensor:
    """Boxes of all pictures; an array of one is not concatenated, as in the official graphs."""
    return paddle.concat(rois) if len(rois) > 1 else rois[0]


def pool_rois(
    features: list[paddle.Tensor],
    strides: tuple[int, ...],
    rois: paddle.Tensor,
    rois_num: paddle.Tensor,
    side: int,
) -> paddle.Tensor:
    """RoIAlign; with several maps each region is read from the map that its area suits (Lin et al. 2017).

    Args:
        features: Maps [N, C, H, W], finest first; the pyramid's extra level is left out.
        regions: Boxes of each picture, in pixels of the input.
        counts: int [N], boxes of each picture.
        size: Side of what is cut out.
        strides: Stride of each map.

    Returns:
        float32 [R, C, size, size], in the order of the boxes.
    """
    boxes = paddle.concat(regions) if len(regions) > 1 else regions[0]
    if len(features) == 1:
        return ops.roi_align(features[0], boxes, counts, size, 1.0 / strides[0], aligned=False)
    first = int(math.log2(strides[0]))
    by_level, restore, level_counts = ops.distribute_fpn_proposals(
        boxes, first, first + len(strides) - 1, 4, 224, rois_num=counts
    )
    pooled = [
        ops.roi_align(
            features[i], by_level[i], level_counts[i], size, 1.0 / stride, sampling_ratio=0, aligned=False
        )
        for i, stride in enumerate(strides)
    ]
    return paddle.gather(paddle.concat(pooled), restore)


def decode(deltas: paddle.Tensor, boxes: paddle.Tensor, weights: Sequence[float]) -> paddle.Tensor:
    """Boxes [R, C, 4] from deltas [R, 4*C] relative to boxes [R, 4]; `weights` divide dx, dy, dw, dh."""
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    middle_x = boxes[:, 0] + width * 0.5
    middle_y = boxes[:, 1] + height * 0.5
    x = deltas[:, 0::4] / weights[0] * width.unsqueeze(1) + middle_x.unsqueeze(1)
    y = deltas[:, 1::4] / weights[1] * height.unsqueeze(1) + middle_y.unsqueeze(1)
    half_width = paddle.exp((deltas[:, 2::4] / weights[2]).clip(max=MAX_LOG_GROWTH)) * width.unsqueeze(1) * 0.5
    half_height = paddle.exp((deltas[:, 3::4] / weights[3]).clip(max=MAX_LOG_GROWTH)) * height.unsqueeze(1) * 0.5
    return paddle.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def clip_to_pictures(boxes: paddle.Tensor, regions: Regions, counts: paddle.Tensor, im_shape: paddle.Tensor) -> paddle.Tensor:
    """Clip boxes [R, C, 4] of a whole batch, each to its own picture."""
    if isinstance(regions, list):
        pictures = len(regions)
    else:
        pictures = paddle.slice(paddle.shape(im_shape), [0], [0], [1])
    sizes = []
    for i in range(pictures):
        sizes.append(paddle.expand(im_shape[i, :], [counts[i], 2]))
    size = paddle.concat(sizes)
    height, width = paddle.unsqueeze(size[:, 0], axis=1), paddle.unsqueeze(size[:, 1], axis=1)
    least = paddle.zeros_like(height)
    sides = [
        paddle.maximum(paddle.minimum(boxes[:, :, side], limit), least)
        for side, limit in enumerate([width, height, width, height])
    ]
    return paddle.stack(sides, axis=-1)


def limit_of_rows(im_shape: paddle.Tensor, rois_num: paddle.Tensor) -> paddle.Tensor:
    """Height and width [R, 2] of the picture that each of the R proposals lies in."""
    limits = []
    for i in range(im_shape.shape[0]):
        limits.append(paddle.expand(im_shape[i, :], [rois_num[i], 2]))
    return paddle.concat(limits)


def detect(
    deltas: paddle.Tensor,
    probabilities: paddle.Tensor,
    rois: paddle.Tensor,
    rois_num: paddle.Tensor,
    limit: paddle.Tensor,
    weights: tuple[float, float, float, float],
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Decode, clip to the picture and suppress.

    Args:
        deltas: [R, 4 C] or, one box for all classes, [R, 4].
        probabilities: [R, C + 1], background last.
        rois: Boxes [R, 4] of all pictures.
        rois_num: int32 [N].
        limit: Height and width [R, 2] that each box is clipped to.
        weights: What the deltas are divided by.

    Returns:
        Rows [K, 6] in pixels of the input, count int32 [N].
    """
    boxes = decode_boxes(deltas, rois, weights)
    boxes = paddle.expand(boxes, [boxes.shape[0], CLASSES, 4])
    boxes = clip_columns(
        boxes[:, :, 0],
        boxes[:, :, 1],
        boxes[:, :, 2],
        boxes[:, :, 3],
        paddle.unsqueeze(limit[:, 0], axis=1),
        paddle.unsqueeze(limit[:, 1], axis=1),
    )
    rows, count, _ = multiclass_nms(
        boxes,
        probabilities[:, :-1],
        rois_num,
        score_threshold=0.05,
        nms_threshold=0.5,
        nms_top_k=-1,
        keep_top_k=100,
        background=CLASSES,
    )
    return rows, count


def fill_empty(rows: paddle.Tensor, count: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Give every picture without a detection one row (0, 0, 0, 0, 1, 1), as the official graphs do."""
    all_rows, all_counts = [], []
    start = 0
    for i in range(count.shape[0]):
        if count[i] == 0:
            rows_i = paddle.to_tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
            count_i = paddle.to_tensor([1], dtype="int32")
        else:
            picture_rows = rows[start : start + counts[i], :]
            picture_count = counts[i : i + 1]
            start += counts[i]
        all_rows.append(picture_rows)
        all_counts.append(picture_count)
    return paddle.concat(all_rows), paddle.concat(all_counts)


def to_original(
    rows: paddle.Tensor, counts: paddle.Tensor, im_shape: paddle.Tensor, scale_factor: paddle.Tensor
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Bring rows [K, 6] to pixels of the original pictures; the class of an empty box becomes -1.

    Returns:
        Rows [K, 6], and the size (height, width) of the picture that each row belongs to, float32 [K, 2].
    """
    original = paddle.floor(im_shape / scale_factor + 0.5)
    sizes = []
    scales = []
    for i in range(counts.shape[0]):
        sizes.append(paddle.expand(original[i : i + 1, :], [counts[i : i + 1], 2]))
        scale_y = paddle.unsqueeze(scale_factor[i, 0], 0)
        scale_x = paddle.unsqueeze(scale_factor[i, 1], 0)
        scale = paddle.concat([scale_x, scale_y, scale_x, scale_y])
        scales.append(paddle.expand(scale, [counts[i : i + 1], 4]))
    size = paddle.concat(sizes)
    boxes = rows[:, 2:] / paddle.concat(scales)
    least = paddle.zeros_like(size[:, 0])
    x0, y0, x1, y1 = [
        paddle.maximum(paddle.minimum(boxes[:, side], size[:, 1 - side % 2]), least) for side in range(4)
    ]
    solid = paddle.logical_and(y1 - y0 > 0, x1 - x0 > 0).unsqueeze([1])
    label = rows[:, 0:1]
    label = paddle.where(solid, label, paddle.ones_like(label) * -1)
    return paddle.concat([label, rows[:, 1:2], paddle.stack([x0, y0, x1, y1], axis=-1)], axis=1), size


def paste(masks: paddle.Tensor, boxes: paddle.Tensor, height: paddle.Tensor, width: paddle.Tensor) -> paddle.Tensor:
    """Spread masks [K, m, m] over a picture: [K, height, width], zero outside boxes [K, 4]."""
    x0, y0, x1, y1 = paddle.split(boxes, 4, axis=1)
    count = masks.shape[0]
    down = (paddle.arange(0, height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    across = (paddle.arange(0, width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    across_grid = across[:, None, :].expand([count, down.shape[1], across.shape[1]])
    down_grid = down[:, :, None].expand([count, down.shape[1], across.shape[1]])
    grid = paddle.stack([across_grid, down_grid], axis=3)
    return F.grid_sample(masks, grid, align_corners=False)[:, 0]


def paste_batch(
    masks: paddle.Tensor, rows: paddle.Tensor, count: paddle.Tensor, size_of_row: paddle.Tensor
) -> paddle.Tensor:
    """Paste the masks [K, h, w] of all pictures: int32 [K, H, W], -1 outside smaller pictures."""
    sizes = paddle.cast(size_of_row, "int32")
    result = paddle.zeros([masks.shape[0], paddle.max(sizes[:, 0]), paddle.max(sizes[:, 1])], dtype="int32") - 1
    start = 0
    for i in range(count.shape[0]):
        # `start + count[i]` stands there each time: held in a variable it is wrong in Paddle 3.2's PIR loops.
        rows_i = rows[start : start + count[i], :]
        masks_i = masks[start : start + count[i], :, :]
        height, width = sizes[i, 0], sizes[i, 1]
        pasted = paste(masks_i[:, None, :, :], rows_i[:, 2:], height, width)
        result[start : start + count[i], :height, :width] = paddle.cast(pasted >= MASK_THRESHOLD, "int32")
        start += count[i]
    return result


class MaskHead(nn.Layer):
    """Convolutions, one doubling of the resolution, one logit per class (He et al. 2017)."""

    def __init__(self, channels: int, classes: int, convolutions: int) -> None:
        super().__init__()
        self.convolutions = nn.LayerList([nn.Conv2D(channels, channels, 3, padding=1) for _ in range(convolutions)])
        self.double = nn.Conv2DTranspose(channels, min(channels, 32), 2, stride=2)
        self.logits = nn.Conv2D(min(channels, 32), classes, 1)

    def raw(self, x: paddle.Tensor) -> paddle.Tensor:
        """Mask logits [K, classes, 2*m, 2*m]."""
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return self.logits(F.relu(self.double(x)))

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        logits = self.raw(x)
        index = paddle.arange(logits.shape[0]).cast("int32")
        own = logits[index, labels]
        return F.sigmoid(paddle.reshape(own, index.shape + [own.shape[-2], own.shape[-1]]))


class RegionNetwork(nn.Layer):
    """im_shape, image, scale_factor → boxes [K, 6], count int32 [N], masks int32 [K, H, W].

    A member says what `boxes` gives and how a region is pooled for the mask head.
    """

    mask_size = 14

    def __init__(self, backbone: Backbone, width: int, limits: Limits) -> None:
        super().__init__()
        self.backbone = ResNet(
            width,
            backbone.blocks if backbone.pyramid else backbone.blocks[:3],
            vd=backbone.vd,
            groups=backbone.groups,
        )
        self.limits = limits
        self.final_weights = (10.0, 10.0, 5.0, 5.0)
        self.strides: list[int] = []

    def features(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        """Maps that the proposals come from."""
        raise NotImplementedError

    def boxes(
        self, features: list[paddle.Tensor], regions: Regions, counts: paddle.Tensor, im_shape: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, Regions]:
        """Deltas, class shares [R, classes + 1], and the regions that the deltas are relative to."""
        raise NotImplementedError

    def mask_features(self, features: list[paddle.Tensor], rows: paddle.Tensor, counts: paddle.Tensor) -> paddle.Tensor:
        """What the mask head reads, [K, C, m, m]."""
        return pool_regions(features, [rows[:, 2:]], counts, size=self.mask_size, strides=self.strides)

    def detect(
        self, features: list[paddle.Tensor], im_shape: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Rows [K, 6] in pixels of the input, count int32 [N]."""
        regions, counts = self.proposals(features, im_shape)
        deltas, shares, regions = self.boxes(features, regions, counts, im_shape)
        decoded = decode(deltas, paddle.concat(regions), self.final_weights)
        classes = self.limits.classes
        decoded = paddle.expand(decoded, [decoded.shape[0], classes, 4])
        rows, found, _ = multiclass_nms(
            clip_to_pictures(decoded, regions, counts, im_shape),
            shares[:, :-1],
            counts,
            score_threshold=self.limits.score_threshold,
            nms_threshold=0.5,
            nms_top_k=-1,
            keep_top_k=self.limits.keep_top_k,
            background=classes,
        )
        return rows, found

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        features = self.features(image)
        rows, counts = self.detect(features, im_shape)
        if rows.shape[0] == 0:
            masks = paddle.full([1, 1, 1], -1, dtype="float32")
        else:
            masks = self.mask_head(self.mask_features(features, rows, counts), rows[:, 0].cast("int32"))
        rows, counts = fill_empty(rows, counts)
        rows, size = to_original(rows, counts, im_shape, scale_factor)
        return rows, counts, paste_all(masks, rows, counts, size)


def region_inputs(batch: int | None) -> tuple[Any, ...]:
    """The official inputs; `batch` None leaves the number of pictures free."""
    return (
        InputSpec([batch, 2], "float32", "im_shape"),
        InputSpec([batch, 3, None, None], "float32", "image"),
        InputSpec([batch, 2], "float32", "scale_factor"),
    )


def region_config(
    model_name: str, arch: str, short_side: int, long_side: int, *, stride: int, labels: Sequence[str]
) -> dict[str, Any]:
    """What `inference.yml` of an R-CNN says; `stride` -1 means no padding."""
    steps = [
        resize(short_side, long_side, keep_ratio=True),
        normalise_imagenet(),
        {"type": "Permute"},
        {"stride": stride, "type": "PadStride"},
    ]
    return detection_config(model_name, arch, steps, labels=labels, dynamic=True) | {"min_subgraph_size": 40}


@dataclass(frozen=True)
class Calibration:
    """A batch for calibration: pictures with things in them, then plain ones.

    Attributes:
        image: float32 [N, 3, H, W].
        im_shape: float32 [N, 2].
        plain: How many pictures at the end are of one colour.
    """

    image: paddle.Tensor
    im_shape: paddle.Tensor
    plain: int


def calibration_pictures(short_side: int) -> Calibration:
    """Eight synthetic pictures, and six of one colour each, 4 by 3 and padded to multiples of 32."""
    height, width = short_side, round(short_side * 4 / 3)
    images = [synthetic_image(height, width, seed=1000 + i) for i in range(8)]
    colours = ([0] * 3, [128] * 3, [255] * 3, [200, 60, 60], [60, 200, 60], [60, 60, 200])
    images += [np.full((height, width, 3), colour, np.uint8) for colour in colours]
    padded = np.pad(network_input(images), ((0, 0), (0, 0), (0, -height % 32), (0, -width % 32)))
    return Calibration(
        paddle.to_tensor(padded),
        paddle.to_tensor([[height, width]] * len(images), dtype="float32"),
        len(colours),
    )


def spread_proposals(network: RegionNetwork, pictures: Calibration) -> list[paddle.Tensor]:
    """Set the backbone's statistics, then objectness ± 2 and deltas ± 0.4. Returns the maps."""
    busy = pictures.image[: -pictures.plain]
    with paddle.no_grad():
        set_batch_norm_statistics(network.backbone, lambda: network.features(busy))
        raw = network.proposals.raw(network.features(busy))
        for head, which, std in ((network.proposals.score, 0, 2.0), (network.proposals.delta, 1, 0.4)):
            flat = [level[which].flatten(2) for level in raw]
            rescale_head(head, paddle.concat(flat, axis=2), mean=0.0, std=std)
        return network.features(pictures.image)


def spread_boxes(
    scores: Sequence[nn.Linear],
    deltas: Sequence[nn.Linear],
    vectors: Sequence[paddle.Tensor],
    plain: int,
    *,
    found: float,
) -> None:
    """Spread the class logits (± 2.5) and box deltas (± 0.8) of each stage; most regions are background.

    The background's logit rises where a region looks like one of a plain picture, so that a plain grey
    picture gives no detection; the direction is that of a ridge regression between the two kinds.

    Args:
        scores: Linear layers of the class logits, the background's last.
        deltas: Linear layers of the box deltas.
        vectors: What each stage reads on calibration pictures, [R, C].
        plain: How many of the last rows of `vectors` are of plain pictures.
        found: Share of the regions of the other pictures whose best class beats the background.
    """
    for score, delta, seen in zip(scores, deltas, vectors, strict=True):
        rescale_head(score, score(seen[:-plain]), mean=0.0, std=2.5)
        rescale_head(delta, delta(seen[:-plain]), mean=0.0, std=0.8)
        logits = score(seen).numpy().astype(np.float64)
        lead = logits[:, :-1].max(axis=1) - logits[:, -1]
        x = np.concatenate([seen.numpy(), np.ones((len(lead), 1))], axis=1).astype(np.float64)
        is_plain = np.arange(len(x)) >= len(x) - plain
        share = np.where(is_plain, 0.5 / plain, 0.5 / (len(x) - plain))[:, None]
        gram = x.T @ (share * x)
        ridge = 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
        direction = np.linalg.solve(gram + ridge, x.T @ (share * is_plain[:, None]))[:, 0]
        plainness, steepness, offset = x @ direction, 0.0, 0.0
        for _ in range(6):
            needed = (lead - offset + PLAIN_MARGIN)[is_plain] / plainness[is_plain].clip(0.3)
            steepness = max(0.0, needed.max())
            offset = np.quantile((lead - steepness * plainness)[~is_plain], 1 - found)
        weight, bias = score.weight.numpy(), score.bias.numpy()
        weight[:, -1] += steepness * direction[:-1]
        bias[-1] += steepness * direction[-1] + offset
        score.weight.set_value(weight)
        score.bias.set_value(bias)


def spread_masks(network: RegionNetwork, features: list[paddle.Tensor], im_shape: paddle.Tensor) -> None:
    """Mask logits ± 2 over what is detected on the calibration pictures."""
    rows, counts = network.detect(features, im_shape)
    observed = network.mask_head.raw(network.mask_features(features, rows, counts))
    rescale_head(network.mask_head.logits, observed, mean=0.0, std=2.0)

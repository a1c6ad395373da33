"""What Mask R-CNN and Cascade Mask R-CNN share: proposals, RoI features, box decoding, mask pasting.

Faster R-CNN: Ren et al. 2015; FPN: Lin et al. 2017; Mask R-CNN: He et al. 2017. The number of pictures is
free, so the loops over a batch become `while` operators with tensor arrays, as in the official graphs.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.vision.ops import distribute_fpn_proposals, generate_proposals, roi_align

from .calibrate import rescale_head
from .configs import COCO_LABELS, detection_config, normalise_imagenet, resize
from .detection import multiclass_nms
from .layers import FeaturePyramid, ResidualBlock, ResNet

CLASSES = len(COCO_LABELS)
RATIOS = (0.5, 1.0, 2.0)
ANCHOR_SIZES = (32, 64, 128, 256, 512)
MASK_THRESHOLD = 0.5
LOG_MAX = math.log(1000.0 / 16)


class Body(nn.Layer):
    """Backbone, with a feature pyramid (strides 4 to 64) or without (stride 16 only)."""

    def __init__(self, width: int, fpn_width: int, *, fpn: bool, vd: bool, groups: int) -> None:
        super().__init__()
        self.backbone = ResNet(width, (1, 1, 1, 1) if fpn else (1, 1, 1), vd=vd, groups=groups)
        self.neck = FeaturePyramid(self.backbone.channels, fpn_width, extra=True) if fpn else None
        self.width = fpn_width if fpn else self.backbone.channels[-1]
        self.strides = (4, 8, 16, 32, 64) if fpn else (16,)

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        features = self.backbone(image)
        return features[-1:] if self.neck is None else self.neck(features)


class Proposals(nn.Layer):
    """Region proposal network: feature maps → boxes of each picture that may hold an object."""

    def __init__(self, width: int, strides: tuple[int, ...], keep: int) -> None:
        super().__init__()
        self.strides, self.keep = strides, keep
        self.before_nms = 1000 if len(strides) > 1 else 6000
        sizes = [(size,) for size in ANCHOR_SIZES] if len(strides) > 1 else [ANCHOR_SIZES]
        for level, of_level in enumerate(sizes):
            shapes = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in of_level for ratio in RATIOS]
            cells = [[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes]
            self.register_buffer(f"cells{level}", paddle.to_tensor(cells, dtype="float32"), persistable=False)
        anchors = len(sizes[0]) * len(RATIOS)
        self.shared = nn.Conv2D(width, width, 3, padding=1)
        self.score = nn.Conv2D(width, anchors, 1)
        self.delta = nn.Conv2D(width, 4 * anchors, 1)

    def raw(self, features: list[paddle.Tensor]) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
        """Objectness and box deltas of each level."""
        hidden = [F.relu(self.shared(x)) for x in features]
        return [self.score(x) for x in hidden], [self.delta(x) for x in hidden]

    def _anchors(self, feature: paddle.Tensor, level: int) -> paddle.Tensor:
        rows, columns = feature.shape[-2:]
        stride = self.strides[level]
        across = paddle.arange(0, columns * stride, step=stride, dtype="float32")
        down = paddle.arange(0, rows * stride, step=stride, dtype="float32")
        down, across = paddle.meshgrid(down, across)
        down, across = down.reshape([-1]), across.reshape([-1])
        shifts = paddle.stack([across, down, across, down], axis=1).reshape([-1, 1, 4])
        return (shifts + getattr(self, f"cells{level}").reshape([1, -1, 4])).reshape([-1, 4])

    def _pick(
        self,
        scores: list[paddle.Tensor],
        deltas: list[paddle.Tensor],
        anchors: list[paddle.Tensor],
        im_shape: paddle.Tensor,
        i: paddle.Tensor,
    ) -> paddle.Tensor:
        """Proposals [R, 4] of picture `i`."""
        boxes, objectness = [], []
        for level in range(len(self.strides)):
            rois, roi_scores, _ = generate_proposals(
                scores[level][i : i + 1],
                deltas[level][i : i + 1],
                im_shape[i : i + 1],
                anchors[level],
                paddle.ones_like(anchors[level]),
                pre_nms_top_n=self.before_nms,
                post_nms_top_n=self.keep,
                nms_thresh=0.7,
                min_size=0.0,
                eta=1.0,
                return_rois_num=True,
            )
            boxes.append(rois)
            objectness.append(roi_scores)
        if len(self.strides) == 1:
            return boxes[0]
        every, order_by = paddle.concat(boxes), paddle.concat(objectness).flatten()
        if paddle.shape(order_by)[0].cast("int32") > self.keep:
            _, best = paddle.topk(order_by, self.keep)
            picked = paddle.gather(every, best)
        else:
            picked = every
        return picked

    def forward(
        self, features: list[paddle.Tensor], im_shape: paddle.Tensor
    ) -> tuple[list[paddle.Tensor], paddle.Tensor]:
        scores, deltas = self.raw(features)
        anchors = [self._anchors(x, level) for level, x in enumerate(features)]
        rois, counts = [], []
        for i in range(im_shape.shape[0]):
            picked = self._pick(scores, deltas, anchors, im_shape, i)
            rois.append(picked)
            counts.append(paddle.shape(picked)[0:1])
        return rois, paddle.concat(counts)


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
    """RoI features [R, C, side, side]; with several levels each box reads the level of its size."""
    if len(features) == 1:
        return roi_align(features[0], rois, rois_num, side, 1.0 / strides[0], sampling_ratio=-1, aligned=False)
    of_level, restore, num_of_level = distribute_fpn_proposals(rois, 2, 5, 4, 224, rois_num=rois_num)
    pooled = []
    for level in range(4):
        scale = 1.0 / strides[level]
        pooled.append(
            roi_align(
                features[level],
                of_level[level],
                num_of_level[level],
                side,
                scale,
                sampling_ratio=0,
                aligned=False,
            )
        )
    return paddle.gather(paddle.concat(pooled), restore)


def decode_boxes(
    deltas: paddle.Tensor, boxes: paddle.Tensor, weights: tuple[float, float, float, float]
) -> paddle.Tensor:
    """Apply deltas [R, 4 C] to boxes [R, 4]: [R, C, 4] (Girshick et al. 2014, appendix C)."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    centre_x, centre_y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
    dx, dy = deltas[:, 0::4] / weights[0], deltas[:, 1::4] / weights[1]
    dw = paddle.clip(deltas[:, 2::4] / weights[2], max=LOG_MAX)
    dh = paddle.clip(deltas[:, 3::4] / weights[3], max=LOG_MAX)
    x = dx * widths.unsqueeze(1) + centre_x.unsqueeze(1)
    y = dy * heights.unsqueeze(1) + centre_y.unsqueeze(1)
    half_w = 0.5 * (paddle.exp(dw) * widths.unsqueeze(1))
    half_h = 0.5 * (paddle.exp(dh) * heights.unsqueeze(1))
    return paddle.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def clip_columns(
    x0: paddle.Tensor,
    y0: paddle.Tensor,
    x1: paddle.Tensor,
    y1: paddle.Tensor,
    height: paddle.Tensor,
    width: paddle.Tensor,
) -> paddle.Tensor:
    """Coordinates kept within 0..width and 0..height, stacked along a new last axis."""
    zero = paddle.zeros_like(height)
    x0, x1 = paddle.maximum(paddle.minimum(x0, width), zero), paddle.maximum(paddle.minimum(x1, width), zero)
    y0, y1 = (
        paddle.maximum(paddle.minimum(y0, height), zero),
        paddle.maximum(paddle.minimum(y1, height), zero),
    )
    return paddle.stack([x0, y0, x1, y1], axis=-1)


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
            rows_i = rows[start : start + count[i], :]
            count_i = count[i : i + 1]
            start += count[i]
        all_rows.append(rows_i)
        all_counts.append(count_i)
    return paddle.concat(all_rows), paddle.concat(all_counts)


def to_original(
    rows: paddle.Tensor, count: paddle.Tensor, im_shape: paddle.Tensor, scale_factor: paddle.Tensor
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Rows in pixels of the original pictures, and the size (height, width) of each row's picture.

    A box that is empty after clipping gets class -1.
    """
    original = paddle.floor(im_shape / scale_factor + 0.5)
    sizes, scales = [], []
    for i in range(count.shape[0]):
        size = paddle.expand(original[i : i + 1, :], [count[i : i + 1], 2])
        scale_y, scale_x = paddle.unsqueeze(scale_factor[i, 0], 0), paddle.unsqueeze(scale_factor[i, 1], 0)
        scale = paddle.concat([scale_x, scale_y, scale_x, scale_y])
        sizes.append(size)
        scales.append(paddle.expand(scale, [count[i : i + 1], 4]))
    size_of_row = paddle.concat(sizes)
    boxes = rows[:, 2:] / paddle.concat(scales)
    boxes = clip_columns(boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3], size_of_row[:, 0], size_of_row[:, 1])
    full = paddle.logical_and(boxes[:, 3] - boxes[:, 1] > 0, boxes[:, 2] - boxes[:, 0] > 0).unsqueeze(1)
    labels = paddle.where(full, rows[:, 0:1], paddle.ones_like(rows[:, 0:1]) * -1)
    return paddle.concat([labels, rows[:, 1:2], boxes], axis=1), size_of_row


def paste(masks: paddle.Tensor, boxes: paddle.Tensor, height: paddle.Tensor, width: paddle.Tensor) -> paddle.Tensor:
    """Put masks [K, 1, h, w] into their boxes [K, 4] of pictures [height, width]: [K, height, width]."""
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


class BoxHead(nn.Layer):
    """Two wide linear layers on 7x7 features."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width * 49, hidden), nn.Linear(hidden, hidden)

    def forward(self, pooled: paddle.Tensor) -> paddle.Tensor:
        return F.relu(self.second(F.relu(self.first(paddle.flatten(pooled, 1)))))


class Res5(nn.Layer):
    """The last stage of the backbone, run on each 14x14 RoI."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.block = ResidualBlock(channels_in, width, 2)
        self.channels = width * ResidualBlock.expansion

    def forward(self, pooled: paddle.Tensor) -> paddle.Tensor:
        return self.block(pooled)


class MaskBranch(nn.Layer):
    """Convolutions, a transposed convolution and one mask per class."""

    def __init__(self, channels_in: int, width: int, convolutions: int) -> None:
        super().__init__()
        self.convs = nn.LayerList(
            [nn.Conv2D(channels_in if i == 0 else width, width, 3, padding=1) for i in range(convolutions)]
        )
        self.upsample = nn.Conv2DTranspose(width if convolutions else channels_in, width, 2, stride=2)
        self.logits = nn.Conv2D(width, CLASSES, 1)

    def hidden(self, pooled: paddle.Tensor) -> paddle.Tensor:
        """What the last convolution reads."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        return F.relu(self.upsample(pooled))

    def forward(self, pooled: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Mask probabilities [K, 2 s, 2 s] of the class of each row."""
        logits = self.logits(self.hidden(pooled))
        index = paddle.arange(logits.shape[0]).cast("int32")
        chosen = logits[index, labels.cast("int32")]
        return F.sigmoid(paddle.reshape(chosen, [-1, logits.shape[2], logits.shape[3]]))


def calibrate_proposals(proposals: Proposals, features: list[paddle.Tensor]) -> None:
    """Spread objectness and deltas; the head is shared, so the finest level with enough cells decides."""
    scores, deltas = proposals.raw(features)
    level = min(1, len(features) - 1)
    rescale_head(proposals.score, scores[level], mean=-1.0, std=2.0)
    rescale_head(proposals.delta, deltas[level], mean=0.0, std=0.3)


def calibrate_boxes(score: nn.Linear, delta: nn.Linear, hidden: paddle.Tensor, background: float) -> None:
    """Class logits ± 2.5 with a background logit around `background`; deltas ± 1.5."""
    rescale_head(score, score(hidden), mean=0.0, std=2.5, channel_axis=1)
    bias = score.bias.numpy()
    bias[-1] += background
    score.bias.set_value(bias)
    rescale_head(delta, delta(hidden), mean=0.0, std=1.5, channel_axis=1)


def rcnn_config(model_name: str, size: tuple[int, int]) -> dict[str, object]:
    """`inference.yml` of both families: resize keeping the ratio, normalise, pad to multiples of 32."""
    steps = [
        resize(*size, keep_ratio=True),
        normalise_imagenet(),
        {"type": "Permute"},
        {"stride": 32, "type": "PadStride"},
    ]
    return detection_config(model_name, "RCNN", steps, dynamic=True)

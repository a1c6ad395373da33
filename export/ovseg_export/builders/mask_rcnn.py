"""Mask R-CNN with a feature pyramid, and without one (MaskRCNN-ResNet50, "C4")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from paddle.static import InputSpec

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics, smooth_kernels
from .images import calibration_batch
from .rcnn import (
    CLASSES,
    Body,
    BoxHead,
    MaskBranch,
    Proposals,
    Res5,
    calibrate_boxes,
    calibrate_proposals,
    detect,
    fill_empty,
    joined,
    limit_of_rows,
    paste_batch,
    pool_rois,
    rcnn_config,
    to_original,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class Variant:
    """What tells the six official models apart, apart from depth."""

    fpn: bool = True
    vd: bool = False
    groups: int = 1


VARIANTS = {
    "MaskRCNN-ResNet50": Variant(fpn=False),
    "MaskRCNN-ResNet50-FPN": Variant(),
    "MaskRCNN-ResNet50-vd-FPN": Variant(vd=True),
    "MaskRCNN-ResNet101-FPN": Variant(),
    "MaskRCNN-ResNet101-vd-FPN": Variant(vd=True),
    "MaskRCNN-ResNeXt101-vd-FPN": Variant(vd=True, groups=4),
}
WIDTHS = {"small": (8, 32, 64), "large": (64, 256, 1024)}
"""Per size: width of the backbone, of the pyramid and of the box head."""


class MaskRcnn(nn.Layer):
    """im_shape, image, scale_factor → boxes [K, 6], count [N], masks int32 [K, H, W]."""

    def __init__(self, variant: Variant, width: int, fpn_width: int, hidden: int, proposals: int) -> None:
        super().__init__()
        self.body = Body(width, fpn_width, fpn=variant.fpn, vd=variant.vd, groups=variant.groups)
        self.strides, self.fpn = self.body.strides, variant.fpn
        channels = self.body.width
        self.proposals = Proposals(channels, self.strides, proposals)
        self.box_head = BoxHead(channels, hidden) if self.fpn else Res5(channels, width << 3)
        features = hidden if self.fpn else self.box_head.channels
        self.score = nn.Linear(features, CLASSES + 1)
        self.delta = nn.Linear(features, 4 * CLASSES)
        self.mask_branch = MaskBranch(channels if self.fpn else features, fpn_width, 4 if self.fpn else 0)

    def box_hidden(self, features: list[paddle.Tensor], rois: paddle.Tensor, rois_num: paddle.Tensor) -> paddle.Tensor:
        """What the score and delta layers read, [R, hidden]."""
        hidden = self.box_head(pool_rois(features, self.strides, rois, rois_num, 7 if self.fpn else 14))
        return hidden if self.fpn else paddle.squeeze(F.adaptive_avg_pool2d(hidden, 1), axis=[2, 3])

    def mask_pooled(self, features: list[paddle.Tensor], boxes: paddle.Tensor, count: paddle.Tensor) -> paddle.Tensor:
        """What the mask branch reads, [K, C, 14, 14] ([K, C, 7, 7] without a pyramid)."""
        pooled = pool_rois(features, self.strides, boxes, count, 14)
        return pooled if self.fpn else self.box_head(pooled)

    def detections(self, features: list[paddle.Tensor], im_shape: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Rows [K, 6] in pixels of the input and count [N]."""
        rois, rois_num = self.proposals(features, im_shape)
        hidden = self.box_hidden(features, joined(rois), rois_num)
        probabilities = F.softmax(self.score(hidden))
        limit = limit_of_rows(im_shape, rois_num)
        return detect(self.delta(hidden), probabilities, paddle.concat(rois), rois_num, limit, WEIGHTS)

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        features = self.body(image)
        rows, count = self.detections(features, im_shape)
        if rows.shape[0] == 0:
            masks = paddle.full([1, 1, 1], -1.0)
        else:
            masks = self.mask_branch(self.mask_pooled(features, rows[:, 2:], count), rows[:, 0])
        rows, count = fill_empty(rows, count)
        rows, sizes = to_original(rows, count, im_shape, scale_factor)
        return rows, count, paste_batch(masks, rows, count, sizes)


def _calibrate(network: MaskRcnn, batch: paddle.Tensor, background: float) -> None:
    im_shape = paddle.to_tensor([[float(batch.shape[2]), float(batch.shape[3])]] * batch.shape[0])
    with paddle.no_grad():
        features = network.body(batch)
        calibrate_proposals(network.proposals, features)
        rois, rois_num = network.proposals(features, im_shape)
        every = paddle.concat(rois)
        calibrate_boxes(network.score, network.delta, network.box_hidden(features, every, rois_num), background)
        some, some_num = paddle.concat([r[:16] for r in rois]), paddle.full([len(rois)], 16, dtype="int32")
        hidden = network.mask_branch.hidden(network.mask_pooled(features, some, some_num))
        rescale_head(network.mask_branch.logits, network.mask_branch.logits(hidden), mean=0.3, std=3.0)


def make(
    *, seed: int, model_name: str, size: str, image_size: list[int], proposals: int, background: float, smooth: float
) -> Blueprint:
    """Make the network; see `build`."""
    network = MaskRcnn(VARIANTS[model_name], *WIDTHS[size], proposals)
    network.eval()
    initialise(network, seed)
    if smooth:
        smooth_kernels(network, smooth)
    batch = paddle.to_tensor(calibration_batch(*image_size))
    _set_statistics(network, batch)
    _calibrate(network, batch, background)
    inputs = (
        InputSpec([None, 2], "float32", "im_shape"),
        InputSpec([None, 3, None, None], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    )
    return Blueprint(network, inputs, rcnn_config(model_name, (image_size[0], image_size[1])))


def _set_statistics(network: MaskRcnn, batch: paddle.Tensor) -> None:
    """Set BatchNorm statistics of the backbone and, without a pyramid, of the stage that runs on RoIs."""
    set_batch_norm_statistics(network.body, lambda: network.body(batch))
    if network.fpn:
        return
    side = float(batch.shape[2])
    boxes = paddle.to_tensor([[0.1, 0.1, 0.5, 0.6], [0.2, 0.4, 0.9, 0.8], [0.6, 0.0, 1.0, 0.5]]) * side
    count = paddle.full([batch.shape[0]], 3, dtype="int32")
    with paddle.no_grad():
        features = network.body(batch)
    rois = boxes.tile([batch.shape[0], 1])
    set_batch_norm_statistics(
        network.box_head, lambda: network.box_head(pool_rois(features, network.strides, rois, count, 14))
    )


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    fmt: str = "json",
    model_name: str = "MaskRCNN-ResNet50-FPN",
    size: str = "small",
    image_size: tuple[int, int] = (256, 320),
    proposals: int = 200,
    background: float = 8.0,
    smooth: float = 0.0,
) -> Path:
    """Write a Mask R-CNN archive.

    Inputs im_shape [N, 2], image [N, 3, H, W] (multiples of 32), scale_factor [N, 2]; outputs boxes
    [K, 6], count [N] and masks int32 [K, H', W'] in the largest original size of the batch. At most 100
    detections a picture; a picture without any gives one row (0, 0, 0, 0, 1, 1).

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        model_name: One of `VARIANTS`.
        size: `small` or `large`.
        image_size: Target (short, long) side of the resize step, (800, 1333) in the official models.
        proposals: Proposals of a picture, 1000 in the official models.
        background: Logit of the background class; 50 gives no detection, -50 the maximum.
        smooth: Share of averaging in the kernels, see `smooth_kernels`; masks have fewer and steeper edges.

    Returns:
        `out_dir`.
    """
    options = {
        "model_name": model_name,
        "size": size,
        "image_size": list(image_size),
        "proposals": proposals,
        "background": background,
        "smooth": smooth,
    }
    return write_archive("mask_rcnn", out_dir, seed=seed, fmt=fmt, options=options)

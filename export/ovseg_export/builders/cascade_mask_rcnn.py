"""Cascade Mask R-CNN (Cai and Vasconcelos 2018) with a feature pyramid: three box heads in a row.

As in the official graphs the refined boxes of a whole batch count as boxes of its first picture, so only a
batch of one gives meaningful results.
"""

from __future__ import annotations

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
    calibrate_boxes,
    calibrate_proposals,
    decode_boxes,
    detect,
    fill_empty,
    joined,
    paste_batch,
    pool_rois,
    rcnn_config,
    to_original,
)

WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
VARIANTS = {"Cascade-MaskRCNN-ResNet50-FPN": False, "Cascade-MaskRCNN-ResNet50-vd-SSLDv2-FPN": True}
"""Model name → whether the backbone is of the `vd` kind."""
WIDTHS = {"small": (8, 32, 64), "large": (64, 256, 1024)}


class Stage(nn.Layer):
    """One box head: class scores and one box for all classes."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.head = BoxHead(width, hidden)
        self.score = nn.Linear(hidden, CLASSES + 1)
        self.delta = nn.Linear(hidden, 4)

    def forward(self, pooled: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        hidden = self.head(pooled)
        return self.score(hidden), self.delta(hidden)


class CascadeMaskRcnn(nn.Layer):
    """im_shape, image, scale_factor → boxes [K, 6], count [N], masks int32 [K, H, W]."""

    def __init__(self, *, vd: bool, width: int, fpn_width: int, hidden: int, proposals: int) -> None:
        super().__init__()
        self.body = Body(width, fpn_width, fpn=True, vd=vd, groups=1)
        self.strides = self.body.strides
        self.proposals = Proposals(fpn_width, self.strides, proposals)
        self.stages = nn.LayerList([Stage(fpn_width, hidden) for _ in WEIGHTS])
        self.mask_branch = MaskBranch(fpn_width, fpn_width, 4)

    def refine(
        self, deltas: paddle.Tensor, rois: paddle.Tensor, im_shape: paddle.Tensor, index: int
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Boxes for the next stage, clipped to the first picture, and their count [1]."""
        boxes = paddle.reshape(decode_boxes(deltas, rois, WEIGHTS[index]), [-1, 4])
        height, width = im_shape[0][0], im_shape[0][1]
        clipped = paddle.stack(
            [
                boxes[:, 0].clip(0, width),
                boxes[:, 1].clip(0, height),
                boxes[:, 2].clip(0, width),
                boxes[:, 3].clip(0, height),
            ],
            axis=1,
        )
        return clipped, paddle.shape(clipped)[0:1]

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        features = self.body(image)
        of_picture, rois_num = self.proposals(features, im_shape)
        rois, count = joined(of_picture), rois_num
        probabilities = []
        for index, stage in enumerate(self.stages):
            if index > 0:
                rois, count = self.refine(deltas, rois, im_shape, index - 1)  # noqa: F821
            scores, deltas = stage(pool_rois(features, self.strides, rois, count, 7))
            probabilities.append(F.softmax(scores))
        mean = paddle.add_n(probabilities) / len(WEIGHTS)
        limit = paddle.expand(im_shape[0, :], [rois_num[0], 2])
        rows, count = detect(deltas, mean, rois, rois_num, limit, WEIGHTS[-1])
        rows, count = fill_empty(rows, count)
        found, sizes = to_original(rows, count, im_shape, scale_factor)
        if rows.shape[0] == 0:
            masks = paddle.full([1, 1, 1], -1.0)
        else:
            masks = self.mask_branch(pool_rois(features, self.strides, rows[:, 2:], count, 14), rows[:, 0])
        return found, count, paste_batch(masks, found, count, sizes)


def _relate_stages(network: CascadeMaskRcnn) -> None:
    """Make later stages resemble the first: the mean of unrelated scores would be low everywhere."""
    for stage in network.stages[1:]:
        for first, own in zip(network.stages[0].parameters(), stage.parameters(), strict=True):
            own.set_value(0.95 * first + 0.3 * own)


def _calibrate(network: CascadeMaskRcnn, batch: paddle.Tensor, background: float) -> None:
    """Calibrate on the first picture alone, stage after stage."""
    batch = batch[:1]
    im_shape = paddle.to_tensor([[float(batch.shape[2]), float(batch.shape[3])]])
    with paddle.no_grad():
        features = network.body(batch)
        calibrate_proposals(network.proposals, features)
        of_picture, count = network.proposals(features, im_shape)
        rois = of_picture[0]
        for index, stage in enumerate(network.stages):
            pooled = pool_rois(features, network.strides, rois, count, 7)
            calibrate_boxes(stage.score, stage.delta, stage.head(pooled), background)
            rois, count = network.refine(stage(pooled)[1], rois, im_shape, index)
        hidden = network.mask_branch.hidden(pool_rois(features, network.strides, rois, count, 14))
        rescale_head(network.mask_branch.logits, network.mask_branch.logits(hidden), mean=0.3, std=3.0)


def make(
    *, seed: int, model_name: str, size: str, image_size: list[int], proposals: int, background: float, smooth: float
) -> Blueprint:
    """Make the network; see `build`."""
    width, fpn_width, hidden = WIDTHS[size]
    network = CascadeMaskRcnn(
        vd=VARIANTS[model_name], width=width, fpn_width=fpn_width, hidden=hidden, proposals=proposals
    )
    network.eval()
    initialise(network, seed)
    if smooth:
        smooth_kernels(network, smooth)
    batch = paddle.to_tensor(calibration_batch(*image_size))
    set_batch_norm_statistics(network.body, lambda: network.body(batch))
    with paddle.no_grad():
        _relate_stages(network)
    _calibrate(network, batch, background)
    inputs = (
        InputSpec([None, 2], "float32", "im_shape"),
        InputSpec([None, 3, None, None], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    )
    return Blueprint(network, inputs, rcnn_config(model_name, (image_size[0], image_size[1])))


def build(
    out_dir: str | Path,
    *,
    seed: int = 0,
    fmt: str = "json",
    model_name: str = "Cascade-MaskRCNN-ResNet50-FPN",
    size: str = "small",
    image_size: tuple[int, int] = (256, 320),
    proposals: int = 200,
    background: float = 8.0,
    smooth: float = 0.0,
) -> Path:
    """Write a Cascade Mask R-CNN archive; inputs and outputs as `mask_rcnn.build`, one picture at a time.

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
    return write_archive("cascade_mask_rcnn", out_dir, seed=seed, fmt=fmt, options=options)

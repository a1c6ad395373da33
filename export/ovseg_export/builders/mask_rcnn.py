"""MaskRCNN-*: Mask R-CNN (He et al. 2017) on a feature pyramid, or on one map with a shared fifth stage (C4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import paddle
import paddle.nn.functional as F
from paddle import nn

from .archive import Blueprint, write_archive
from .calibrate import initialise, rescale_head, set_batch_norm_statistics
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

BACKBONES = {
    "MaskRCNN-ResNet50": Backbone(pyramid=False),
    "MaskRCNN-ResNet50-FPN": Backbone(),
    "MaskRCNN-ResNet50-vd-FPN": Backbone(vd=True),
    "MaskRCNN-ResNet101-FPN": Backbone(blocks=(1, 1, 3, 1)),
    "MaskRCNN-ResNet101-vd-FPN": Backbone(blocks=(1, 1, 3, 1), vd=True),
    "MaskRCNN-ResNeXt101-vd-FPN": Backbone(blocks=(1, 1, 3, 1), vd=True, groups=4),
}
"""Per model name; the official depths are (3, 4, 6, 3) and (3, 4, 23, 3), the official groups 64."""


class PyramidNetwork(RegionNetwork):
    """With a feature pyramid: boxes from two linear layers on 7x7 regions, masks from 14x14 regions."""

    def __init__(self, backbone: Backbone, width: int, limits: Limits) -> None:
        super().__init__(backbone, width, limits)
        neck = 2 * width
        self.neck = FeaturePyramid(self.backbone.channels, neck, extra=True)
        self.strides = list(FPN_STRIDES[:4])
        self.proposals = ProposalHead(neck, FPN_STRIDES, [[size] for size in ANCHOR_SIZES], limits.proposals)
        self.hidden = nn.LayerList([nn.Linear(neck * 49, 4 * neck), nn.Linear(4 * neck, 4 * neck)])
        self.score = nn.Linear(4 * neck, limits.classes + 1)
        self.delta = nn.Linear(4 * neck, 4 * limits.classes)
        self.mask_head = MaskHead(neck, limits.classes, 4)

    def features(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        return self.neck(self.backbone(image))

    def region_vectors(self, features: list[paddle.Tensor], regions: Regions, counts: paddle.Tensor) -> paddle.Tensor:
        """[R, C] that the box heads read."""
        x = pool_regions(features, regions, counts, size=7, strides=self.strides)
        x = paddle.flatten(x, start_axis=1, stop_axis=-1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x

    def detections(
        self, features: list[paddle.Tensor], im_shape: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
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


class SingleMapNetwork(RegionNetwork):
    """Without a pyramid: ResNet's fifth stage runs on each 14x14 region, for the boxes and again for the masks."""

    def __init__(self, backbone: Backbone, width: int, limits: Limits) -> None:
        super().__init__(backbone, width, limits)
        channels = self.backbone.channels[-1]
        self.strides = [16]
        self.proposals = ProposalHead(channels, self.strides, [ANCHOR_SIZES], limits.proposals)
        stage = [ResidualBlock(channels, 8 * width, 2)]
        channels = 8 * width * ResidualBlock.expansion
        stage += [ResidualBlock(channels, 8 * width, 1) for _ in range(backbone.blocks[3] - 1)]
        self.last_stage = nn.Sequential(*stage)
        self.score = nn.Linear(channels, limits.classes + 1)
        self.delta = nn.Linear(channels, 4 * limits.classes)
        self.mask_head = MaskHead(channels, limits.classes, 0)

    def features(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        return self.backbone(image)[-1:]

    def region_vectors(self, features: list[paddle.Tensor], regions: Regions, counts: paddle.Tensor) -> paddle.Tensor:
        """[R, C] that the box heads read."""
        x = self.last_stage(pool_regions(features, regions, counts, size=14, strides=self.strides))
        return paddle.squeeze(F.adaptive_avg_pool2d(x, output_size=1), axis=[2, 3])

    def boxes(
        self, features: list[paddle.Tensor], regions: Regions, counts: paddle.Tensor, im_shape: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, Regions]:
        vectors = self.region_vectors(features, regions, counts)
        return self.delta(vectors), F.softmax(self.score(vectors)), regions

    def mask_features(self, features: list[paddle.Tensor], rows: paddle.Tensor, counts: paddle.Tensor) -> paddle.Tensor:
        return self.last_stage(super().mask_features(features, rows, counts))


def _calibrate(network: PyramidNetwork | SingleMapNetwork, short_side: int, found: float) -> None:
    pictures = calibration_pictures(short_side)
    features = spread_proposals(network, pictures)
    with paddle.no_grad():
        if isinstance(network, SingleMapNetwork):
            # A residual stage on every region is slow, and the best regions are enough for statistics.
            keep, network.proposals.keep = network.proposals.keep, 150
        regions, counts = network.proposals(features, pictures.im_shape)
        if isinstance(network, SingleMapNetwork):
            set_batch_norm_statistics(
                network.last_stage, lambda: network.region_vectors(features, regions, counts)
            )
        vectors = network.region_vectors(features, regions, counts)
        plain = int(counts[-pictures.plain :].sum())
        spread_boxes([network.score], [network.delta], [vectors], plain, found=found)
        spread_masks(network, features, pictures.im_shape)
        if isinstance(network, SingleMapNetwork):
            network.proposals.keep = keep


def make(
    *,
    seed: int,
    model_name: str,
    width: int,
    short_side: int,
    long_side: int,
    batch: int | None,
    labels: Sequence[str],
    score_threshold: float,
    keep_top_k: int,
    proposals: int,
    found: float,
) -> Blueprint:
    """Make the network; see `build`."""
    backbone = BACKBONES[model_name]
    limits = Limits(len(labels), score_threshold, keep_top_k, proposals)
    network = (PyramidNetwork if backbone.pyramid else SingleMapNetwork)(backbone, width, limits)
    network.eval()
    initialise(network, seed)
    _calibrate(network, short_side, found)
    config = region_config(
        model_name, "RCNN", short_side, long_side, stride=32 if backbone.pyramid else -1, labels=labels
    )
    return Blueprint(network, region_inputs(batch), config)


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
) -> Path:
    """Write a Mask R-CNN archive: im_shape, image, scale_factor → boxes [K, 6], count [N], masks [K, H, W].

    A picture without a detection gives one row of score 0, as in the official models.

    Args:
        out_dir: Folder to create.
        seed: Decides every weight.
        fmt: `json` or `pdmodel`.
        model_name: One of `BACKBONES`.
        width: Channels of the stem; 64 in the official models.
        short_side: Wanted short side of the input, 800 officially.
        long_side: Largest long side of the input, 1333 officially.
        batch: Number of pictures; None leaves it free.
        labels: Class names.
        score_threshold: Detections at or below it are dropped; at 1 nothing is ever detected.
        keep_top_k: Detections of one picture that are kept.
        proposals: Proposals of one picture that are kept, 1000 officially.
        found: Share of proposals that beat the background; higher gives more detections.

    Returns:
        `out_dir`.
    """
    options = {
        "model_name": model_name,
        "width": width,
        "short_side": short_side,
        "long_side": long_side,
        "batch": batch,
        "labels": list(labels),
        "score_threshold": score_threshold,
        "keep_top_k": keep_top_k,
        "proposals": proposals,
        "found": found,
    }
    return write_archive("mask_rcnn", out_dir, seed=seed, fmt=fmt, options=options)

"""MaskSeg-tiny in Paddle, as it ships: each BatchNorm folded into its convolution. `twin.py` is what is trained.

Inputs and outputs are those of PP-YOLOE_seg.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from ovseg_export.builders.detection import box_scale, boxes_from_distances, cell_centres, multiclass_nms
from ovseg_export.efficientnet_lite import CHANNELS
from ovseg_export.efficientnet_lite.network import EfficientNetLite0
from ovseg_export.half import EPSILON, in_half

from . import BINS, LABELS, MASK_STRIDE, NMS, PROTOTYPE_WIDTH, PROTOTYPES, STRIDES, TOWER, WIDTH

OUTSIDE = -10.0  # logit of a mask outside of its box


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2D:
    return nn.Conv2D(inputs, outputs, kernel, padding=kernel // 2)


def tower() -> nn.LayerList:
    return nn.LayerList([conv(WIDTH, WIDTH) for _ in range(TOWER)])


class MaskSeg(nn.Layer):
    """im_shape [1, 2], image [1, 3, S, S], scale_factor [1, 2] → boxes [K, 6], count, masks [K, H, W]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.trunk = EfficientNetLite0()
        self.laterals = nn.LayerList([conv(channels, WIDTH, 1) for channels in CHANNELS[1:]])
        self.smooth = nn.LayerList([conv(WIDTH, WIDTH) for _ in CHANNELS[1:]])
        self.class_tower = nn.LayerList([tower() for _ in STRIDES])
        self.shape_tower = nn.LayerList([tower() for _ in STRIDES])
        self.classify = conv(WIDTH, len(LABELS), 1)
        self.measure = conv(WIDTH, 4 * BINS, 1)
        self.weigh = conv(WIDTH, PROTOTYPES, 1)
        self.proto_in = conv(WIDTH, PROTOTYPE_WIDTH, 1)
        self.proto_skip = conv(CHANNELS[0], PROTOTYPE_WIDTH, 1)
        self.proto = conv(PROTOTYPE_WIDTH, PROTOTYPE_WIDTH)
        self.proto_out = conv(PROTOTYPE_WIDTH, PROTOTYPES, 1)
        centres, strides = cell_centres([(size // s, size // s, s) for s in STRIDES], 0.5)
        self.register_buffer("centres", centres)
        self.register_buffer("cell_strides", strides)
        self.register_buffer("bin_values", paddle.arange(BINS, dtype="float32").reshape([1, 1, BINS, 1]))

    def raw(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Scores [N, C, M], boxes [N, M, 4] in pixels of the input, coefficients [N, P, M], prototypes [N, P, h, w]."""
        fine, *maps = self.trunk(image)
        maps = [self.laterals[i](x) for i, x in enumerate(maps)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [F.relu(self.smooth[i](x)) for i, x in enumerate(maps)]
        scores, distances, coefficients = [], [], []
        for level, x in enumerate(maps[-len(STRIDES) :]):
            cells = (self.size // STRIDES[level]) ** 2
            kind = shape = x
            for i in range(TOWER):
                kind = F.relu(self.class_tower[level][i](kind))
                shape = F.relu(self.shape_tower[level][i](shape))
            scores.append(F.sigmoid(self.classify(kind)).reshape([-1, len(LABELS), cells]))
            bins = F.softmax(self.measure(shape).reshape([-1, 4, BINS, cells]), axis=2)
            distances.append((bins * self.bin_values).sum(axis=2))
            coefficients.append(self.weigh(shape).reshape([-1, PROTOTYPES, cells]))
        up = F.interpolate(F.relu(self.proto_in(maps[0])), scale_factor=2, mode="nearest")
        prototypes = self.proto_out(F.relu(self.proto(up + self.proto_skip(fine))))
        sides = paddle.concat(distances, axis=-1).transpose([0, 2, 1])
        boxes = boxes_from_distances(self.centres, sides) * self.cell_strides
        return paddle.concat(scores, axis=-1), boxes, paddle.concat(coefficients, axis=-1), prototypes

    def forward(
        self, im_shape: paddle.Tensor, image: paddle.Tensor, scale_factor: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        scores, boxes, coefficients, prototypes = self.raw(image)
        rows, count, index = multiclass_nms(boxes, scores, **NMS)
        chosen = paddle.gather(coefficients.transpose([0, 2, 1]).reshape([-1, PROTOTYPES]), index)
        # A last row of zeros: no case apart for a picture in which nothing is found. Its score is above no threshold.
        rows = paddle.concat([rows, paddle.zeros([1, 6])])
        chosen = paddle.concat([chosen, paddle.zeros([1, PROTOTYPES])])
        side = self.size // MASK_STRIDE
        masks = (chosen @ prototypes[0].reshape([PROTOTYPES, -1])).reshape([-1, side, side])
        inside = within(rows[:, 2:6], side)
        masks = masks * inside + OUTSIDE * (1 - inside)
        height, width = paddle.split(paddle.round(im_shape[0] / scale_factor[0]).cast("int32"), 2)
        masks = F.interpolate(masks.unsqueeze(0), size=[height, width], mode="bilinear", align_corners=False)
        corners = rows[:, 2:6] / box_scale(scale_factor)[0]
        return paddle.concat([rows[:, :2], corners], axis=1), count + 1, (masks.squeeze(0) > 0.0).cast("float32")


def within(boxes: paddle.Tensor, side: int) -> paddle.Tensor:
    """1.0 for cells [K, side, side] whose middle is in a box [K, 4], or not farther from it than a cell."""
    x0, y0, x1, y1 = paddle.chunk(boxes[:, :, None], 4, axis=1)
    middles = (paddle.arange(side, dtype=x0.dtype) + 0.5) * MASK_STRIDE
    across, down = middles[None, None, :], middles[None, :, None]
    edge = float(MASK_STRIDE)
    inside = (across >= x0 - edge) * (across <= x1 + edge) * (down >= y0 - edge) * (down <= y1 + edge)
    return inside.astype(boxes.dtype)


def folded(saved: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the twin for the network here: BatchNorm folded, kernels rounded to what float16 holds."""
    state: dict[str, np.ndarray] = {}
    for name, array in saved.items():
        if ".norms." in name:
            continue
        if not name.endswith(".conv.weight"):
            state[name] = array
            continue
        stem = name.removesuffix(".conv.weight")
        levels = sum(key.startswith(f"{stem}.norms.") and key.endswith(".bias") for key in saved)
        for level in range(levels):
            norm = f"{stem}.norms.{level}"
            gain = saved[f"{norm}.weight"] / np.sqrt(saved[f"{norm}.running_var"] + np.float32(EPSILON))
            place = stem
            if stem.partition(".")[0] in ("class_tower", "shape_tower"):  # shared by the levels, until it is folded
                kind, number = stem.split(".")
                place = f"{kind}.{level}.{number}"
            state[f"{place}.weight"] = array * gain[:, None, None, None]
            state[f"{place}.bias"] = saved[f"{norm}.bias"] - saved[f"{norm}.running_mean"] * gain
    return {name: in_half(array) if array.ndim > 1 else array for name, array in state.items()}


def load(weights: Path, size: int) -> MaskSeg:
    """The network with the weights that its training wrote.

    Raises:
        ValueError: they are not of this network.
    """
    network = MaskSeg(size)
    state = folded(dict(np.load(weights)))
    buffers = dict(network.named_buffers())
    expected = {name: tensor for name, tensor in network.state_dict().items() if name not in buffers}
    wrong = set(state) ^ set(expected) or {n for n, a in state.items() if list(a.shape) != list(expected[n].shape)}
    if wrong:
        raise ValueError(f"{weights} does not fit the network: {sorted(wrong)}")
    network.set_state_dict(state | buffers)
    network.eval()
    return network

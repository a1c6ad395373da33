"""ShiTu-tiny in Paddle, as it ships: each BatchNorm folded into its convolution. `twin.py` is what is trained.

The embedding network is a patch convolution of stride 4, then stages of residual blocks, and looks at every level in
three by three cells. The detector is the first part of EfficientNet-Lite0 with a pyramid on top; it has one class and
one map of cells, of stride 8, with the inputs and outputs of PP-ShiTuV2_det.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from ovseg_export.builders.detection import box_scale, boxes_from_distances, cell_centres, multiclass_nms
from ovseg_export.efficientnet_lite import BLOCKS, taps
from ovseg_export.efficientnet_lite.network import EfficientNetLite0

from . import DET_BLOCKS, DET_STRIDE, DET_WIDTH, EMBEDDING, NMS, REC_DEPTHS, REC_GRID, REC_WIDTHS


class Residual(nn.Layer):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2D(channels, channels, 3, padding=1)
        self.second = nn.Conv2D(channels, channels, 3, padding=1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Backbone(nn.Layer):
    """[N, 3, S, S] to a map for each width: stride 4, 8, 16 and so on."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2D(3, widths[0], 4, stride=4)
        self.downs = nn.LayerList([nn.Conv2D(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)])
        self.stages = nn.LayerList(
            [nn.Sequential(*[Residual(w) for _ in range(d)]) for w, d in zip(widths, depths, strict=True)]
        )

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        x = F.relu(self.stem(x))
        maps = []
        for i, stage in enumerate(self.stages):
            if i:
                x = F.relu(self.downs[i - 1](x))
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps


class Rec(nn.Layer):
    """x [N, 3, S, S] → [N, 256], each row of length one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.backbone = Backbone(REC_WIDTHS, REC_DEPTHS)
        self.embed = nn.Linear(REC_GRID**2 * sum(REC_WIDTHS), EMBEDDING)
        self.cells = [size // (4 * REC_GRID) >> level for level in range(len(REC_WIDTHS))]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        maps = self.backbone(x)
        x = self.embed(paddle.concat([F.avg_pool2d(maps[i], cell).flatten(1) for i, cell in enumerate(self.cells)], 1))
        return x / paddle.sqrt((x * x).sum(axis=1, keepdim=True) + 1e-12)


class Det(nn.Layer):
    """image [N, 3, S, S], scale_factor [N, 2] → boxes [K, 6], count [N]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0(DET_BLOCKS)
        inputs = [BLOCKS[tap].outputs for tap in taps(DET_BLOCKS)[1:]]
        self.laterals = nn.LayerList([nn.Conv2D(channels, DET_WIDTH, 1) for channels in inputs])
        self.merges = nn.LayerList([nn.Conv2D(DET_WIDTH, DET_WIDTH, 3, padding=1) for _ in inputs])
        self.head = nn.Conv2D(DET_WIDTH, 5, 1)
        side = size // DET_STRIDE
        self.cells = side * side
        centres, _ = cell_centres([(side, side, DET_STRIDE)], 0.5)
        self.register_buffer("centres", centres)

    def forward(self, image: paddle.Tensor, scale_factor: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        maps = self.trunk(image)
        x = F.relu(self.merges[2](self.laterals[2](maps[3])))
        for level in (1, 0):
            x = self.laterals[level](maps[level + 1]) + F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.relu(self.merges[level](x))
        logits, sides = paddle.split(self.head(x), [1, 4], axis=1)
        distances = paddle.exp(sides.clip(-4.0, 4.0)).reshape([-1, 4, self.cells]).transpose([0, 2, 1])
        boxes = boxes_from_distances(self.centres, distances) * float(DET_STRIDE)
        scores = F.sigmoid(logits).reshape([-1, 1, self.cells])
        rows, count, _ = multiclass_nms(boxes / box_scale(scale_factor), scores, **NMS)
        return rows, count


def folded(weights: Path) -> dict[str, np.ndarray]:
    """Weights of the twin for the network here: BatchNorm folded, matrices rounded to what float16 holds."""
    saved = dict(np.load(weights))
    state: dict[str, np.ndarray] = {}
    for name, array in saved.items():
        stem, index, kind = [*name.rsplit(".", 2)][-3:] if name.count(".") > 1 else ("", *name.split("."))
        if index == "1" and f"{stem}.1.running_mean" in saved:
            continue  # of a BatchNorm: used with its convolution
        if index == "0" and f"{stem}.1.running_mean" in saved:
            norm = {part: saved[f"{stem}.1.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
            gain = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
            state[f"{stem}.weight"] = array * gain[:, None, None, None]
            state[f"{stem}.bias"] = norm["bias"] - norm["running_mean"] * gain
        else:
            # Paddle keeps a linear layer's matrix the other way round.
            state[name] = array.T if array.ndim == 2 and kind == "weight" else array
    return {n: a.astype(np.float16).astype(np.float32) if a.ndim > 1 else a for n, a in state.items()}


def load(network: nn.Layer, weights: Path) -> nn.Layer:
    """Give a network the weights that its training wrote.

    Raises:
        ValueError: they are not of this network.
    """
    state = folded(weights)
    expected = {name: tensor for name, tensor in network.state_dict().items() if name != "centres"}
    wrong = set(state) ^ set(expected) or {n for n, a in state.items() if list(a.shape) != list(expected[n].shape)}
    if wrong:
        raise ValueError(f"{weights} does not fit the network: {sorted(wrong)}")
    network.set_state_dict(state | {"centres": network.centres} if hasattr(network, "centres") else state)
    network.eval()
    return network

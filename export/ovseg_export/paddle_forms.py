"""A bundled model as a Paddle inference archive that PaddleX takes, for comparisons on the same weights (`ovs bench`).

python -m ovseg_export.paddle_forms SAM-tiny work/SAM-tiny

The weights are those of the ONNX files that ship. A network of the same class with random weights is converted once,
so that each parameter is recognised among the initializers by its values, and gets what the shipped file has there.
SAM-tiny, whose conversion folds products of parameters, is made of its `weights.npz`, which only a checkout has.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddle
import yaml
from paddle import nn
from paddle.static import InputSpec

from ovseg.zoo import find_model

from . import sam_tiny, shitu_tiny
from .builders.configs import detection_config, feature_config, normalise_imagenet, resize
from .convert import convert
from .half import restore_from_half


class BoxSam(nn.Layer):
    """SAM-tiny with the inputs of PaddleX's SAM-H_box: a frame [1, 3, S, S] and boxes [N, 4]; masks [N, 1, L, L]."""

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: paddle.Tensor, boxes: paddle.Tensor) -> paddle.Tensor:
        corners = boxes.reshape([-1, 2, 2])
        # A point of label 2 or 3 is a corner of a box.
        labels = paddle.ones_like(corners[:, :, 0]) * paddle.to_tensor([2.0, 3.0])
        no_mask = paddle.zeros([1, 1, sam_tiny.SIZE // 4, sam_tiny.SIZE // 4])
        return self.network(image, corners, labels, no_mask, paddle.zeros([1]))[0]


def save(network: nn.Layer, inputs: list[InputSpec], config: dict[str, Any], out: Path) -> None:
    """Write a network as `inference.json`, its parameters and `inference.yml`."""
    out.mkdir(parents=True, exist_ok=True)
    network.eval()
    paddle.jit.save(paddle.jit.to_static(network, input_spec=inputs, full_graph=True), str(out / "inference"))
    (out / "inference.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def recovered(network: nn.Layer, inputs: list[InputSpec], shipped: onnx.ModelProto) -> nn.Layer:
    """Give a network the weights of a shipped graph of its own.

    Raises:
        ValueError: a parameter is not found, since the conversion folds it or the graph is of another network.
    """
    buffers = {name for name, _ in network.named_buffers()}
    rng = np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        if name not in buffers:
            tensor.set_value(rng.normal(0, 0.1, tensor.shape).astype(np.float32))
    with tempfile.TemporaryDirectory() as scratch:
        save(network, inputs, {}, Path(scratch))
        reference = convert(scratch).to_model()
    names = {values.tobytes(): name for name, values in initializers(reference).items()}
    found = initializers(restore_from_half(shipped))
    state = {}
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        place = names.get(values.tobytes(), "")
        if name in buffers:
            state[name] = values
        elif place in found and found[place].shape == values.shape:
            state[name] = found[place]
        else:
            raise ValueError(f"{name} is not found in the graph that ships")
    network.set_state_dict(state)
    return network


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the initializers of a graph by name."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def save_sam(name: str, out: Path) -> None:
    """Write SAM-tiny as PaddleX's SAM-H_box."""
    from .sam_tiny.ship import load_network

    weights = Path(sam_tiny.__file__).with_name("weights.npz")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: it is part of a checkout, not of an install")
    inputs = [
        InputSpec([1, 3, sam_tiny.SIZE, sam_tiny.SIZE], "float32", "image"),
        # PaddleX hands over image and boxes in this order, and a program sorts its inputs by name.
        InputSpec([None, 4], "float32", "prompt"),
    ]
    config = {"Global": {"model_name": "SAM-H_box"}, "Processor": dict(find_model(name).preprocess)}
    save(BoxSam(load_network(weights)), inputs, config, out)


def save_rec(name: str, out: Path) -> None:
    """Write ShiTu-tiny-rec as PaddleX's PP-ShiTuV2_rec."""
    from .shitu_tiny.network import Rec

    size = shitu_tiny.REC_SIZE
    inputs = [InputSpec([None, 3, size, size], "float32", "x")]
    network = recovered(Rec(size), inputs, onnx.load(str(find_model(name).files["model"])))
    save(network, inputs, feature_config("PP-ShiTuV2_rec", size, shitu_tiny.MEAN, shitu_tiny.STD), out)


def save_det(name: str, out: Path) -> None:
    """Write ShiTu-tiny-det as PaddleX's PP-ShiTuV2_det."""
    from .shitu_tiny.network import Det

    size = shitu_tiny.DET_SIZE
    inputs = [
        InputSpec([None, 3, size, size], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    ]
    network = recovered(Det(size), inputs, onnx.load(str(find_model(name).files["model"])))
    steps = [resize(size, size), normalise_imagenet(), {"type": "Permute"}]
    extra = {"NMS": {"name": "MultiClassNMS", **shitu_tiny.NMS}, "fpn_stride": [shitu_tiny.DET_STRIDE]}
    config = detection_config("PP-ShiTuV2_det", "PicoDet", steps, labels=["foreground"], mask=False, extra=extra)
    save(network, inputs, config, out)


def save_maskseg(name: str, out: Path) -> None:
    """Write MaskSeg-tiny as PaddleX's PP-YOLOE_seg-S."""
    from .maskseg_tiny import SIZE
    from .maskseg_tiny.network import MaskSeg
    from .maskseg_tiny.ship import config, inputs

    network = recovered(MaskSeg(SIZE), inputs(), onnx.load(str(find_model(name).files["model"])))
    save(network, inputs(), config("PP-YOLOE_seg-S"), out)


FORMS: dict[str, Callable[[str, Path], None]] = {
    "MaskSeg-tiny": save_maskseg,
    "SAM-tiny": save_sam,
    "ShiTu-tiny-det": save_det,
    "ShiTu-tiny-rec": save_rec,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FORMS)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    FORMS[given.name](given.name, given.out)


if __name__ == "__main__":
    main()

"""Turn trained weights into the model folders that ship: Paddle, its saved program, ONNX, proven, weights in half.

python -m ovseg_export.shitu_tiny.ship --rec work/shitu-rec/weights.npz --det work/shitu-det/weights.npz --out DIR

DIR is `src/ovseg/models`; `ShiTu-tiny-rec` and `ShiTu-tiny-det` in it must not exist yet, but for their cards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import paddle
import yaml
from paddle.static import InputSpec

from ovseg.download import file_sha256
from ovseg_export.builders.configs import detection_config, feature_config, normalise_imagenet, resize
from ovseg_export.export import export_model
from ovseg_export.half import store_in_half
from ovseg_export.scenes.pregenerate import write as write_whole

from . import DET_SIZE, DET_STRIDE, MEAN, NMS, REC_SIZE, STD
from .network import Det, Rec, load

SOURCE = "Trained for ovseg on composite pictures; see README.md in this folder."


def save_rec(weights: Path, folder: Path) -> None:
    """Save the embedding network as a Paddle inference model with its `inference.yml`."""
    spec = [InputSpec([None, 3, REC_SIZE, REC_SIZE], "float32", "x")]
    save(load(Rec(REC_SIZE), weights), spec, feature_config("ShiTu-tiny-rec", REC_SIZE, MEAN, STD), folder)


def save_det(weights: Path, folder: Path) -> None:
    """Save the detector as a Paddle inference model with its `inference.yml`."""
    spec = [
        InputSpec([None, 3, DET_SIZE, DET_SIZE], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    ]
    steps = [resize(DET_SIZE, DET_SIZE), normalise_imagenet(), {"type": "Permute"}]
    extra = {"NMS": {"name": "MultiClassNMS", **NMS}, "fpn_stride": [DET_STRIDE]}
    config = detection_config("ShiTu-tiny-det", "FCOS", steps, labels=["foreground"], mask=False, extra=extra)
    save(load(Det(DET_SIZE), weights), spec, config, folder)


def save(network: Any, spec: list[InputSpec], config: dict[str, Any], folder: Path) -> None:
    """Save a network as a Paddle inference model with its `inference.yml`."""
    static = paddle.jit.to_static(network, input_spec=spec, full_graph=True)
    paddle.jit.save(static, str(folder / "inference"))
    (folder / "inference.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def ship(program: Path, out: Path, images: list[Path]) -> dict[str, Any]:
    """Export a saved program, proven against Paddle; store its weights in half; put the files into `out`.

    The weights are what float16 holds exactly, so the graph computes the same as the one that was proven.
    """
    with tempfile.TemporaryDirectory() as scratch:
        made = export_model(program, Path(scratch) / "model", images=images or None)
        facts = yaml.safe_load((made / "model.yaml").read_text("utf-8"))
        report = json.loads((made / "parity.json").read_text("utf-8"))
        model = onnx.load(str(made / "model.onnx"))
    store_in_half(model)
    onnx.checker.check_model(model)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    write_whole(path, model.SerializeToString())
    facts["files"] = {"model": {"path": path.name, "sha256": file_sha256(path), "size": path.stat().st_size}}
    facts["source"], facts["licence"] = SOURCE, "Apache-2.0"
    facts["parity"].pop("file")
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    write_whole(out / "model.yaml", text.encode())
    return {"size": path.stat().st_size, "passed": report["passed"], "worst": report["worst"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, help="weights of the embedding network")
    parser.add_argument("--det", type=Path, help="weights of the detector")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="pictures to compare on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model folders")
    args = parser.parse_args()
    for name, weights, make in (("ShiTu-tiny-rec", args.rec, save_rec), ("ShiTu-tiny-det", args.det, save_det)):
        if weights is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            make(weights, Path(scratch))
            print(name, json.dumps(ship(Path(scratch), args.out / name, args.images), indent=2))


if __name__ == "__main__":
    main()

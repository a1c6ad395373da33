"""Turn trained weights into the model folder that ships: Paddle, its saved program, ONNX, cut in two, proven.

python -m ovseg_export.sam_tiny.ship --weights work/sam-tiny/weights.npz --out src/ovseg/models/SAM-tiny
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import paddle
import yaml

from ovseg.download import file_sha256
from ovseg.images import read_images
from ovseg.samples import samples
from ovseg.session import Session
from ovseg.stages.resize import normalise_and_pad, resize_long_side
from ovseg_export.convert import convert
from ovseg_export.half import fold_and_halve, store_in_half
from ovseg_export.scenes.pregenerate import write as write_whole
from ovseg_export.split import select, split

from . import MEAN, SIZE, STD
from .network import SamTiny

NAME = "SAM-tiny"
OUTPUTS = ("low_res_masks", "iou_predictions", "multi_masks", "multi_iou_predictions")
LOW = SIZE // 4  # side of a low-resolution mask
TOLERANCE = 1e-3  # of mask logits
EVERYTHING = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.8}  # it is less sure of itself than large models


def load_network(weights: Path) -> SamTiny:
    """SAM-tiny in Paddle with the weights that train.py wrote."""
    network = SamTiny()
    expected = network.state_dict()
    embeddings = ("label.weight", "tokens.weight", "no_mask.weight")
    state = {}
    for name, array in fold_and_halve(dict(np.load(weights))).items():
        target = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        # Paddle keeps a linear layer's matrix the other way round; an embedding is the same in both.
        if array.ndim == 2 and name.endswith(".weight") and not name.endswith(embeddings):
            array = array.T
        if target not in expected or list(expected[target].shape) != list(array.shape):
            raise ValueError(f"{weights}: {name} {array.shape} does not fit the network")
        state[target] = array
    missing = set(expected) - set(state)
    if missing:
        raise ValueError(f"{weights}: {sorted(missing)} are missing")
    network.set_state_dict(state)
    network.eval()
    return network


def save_program(network: SamTiny, folder: Path) -> Path:
    """Save the network as a Paddle inference model; return its folder."""
    spec = paddle.static.InputSpec
    inputs = [
        spec([1, 3, SIZE, SIZE], "float32", "image"),
        spec([-1, -1, 2], "float32", "point_coords"),
        spec([-1, -1], "float32", "point_labels"),
        spec([-1, 1, LOW, LOW], "float32", "mask_input"),
        spec([-1], "float32", "has_mask_input"),
    ]
    paddle.jit.save(paddle.jit.to_static(network, input_spec=inputs, full_graph=True), str(folder / "inference"))
    return folder


def to_onnx(program: Path) -> dict[str, onnx.ModelProto]:
    """The graphs of a saved program by role: encoder, decoder for one mask, decoder for several."""
    sizes = {
        "point_coords": ("prompts", "points", 2),
        "point_labels": ("prompts", "points"),
        "mask_input": ("masks", 1, LOW, LOW),
        "has_mask_input": ("masks",),
    }
    encoder, decoder = split(convert(program, output_names=OUTPUTS, dimensions=sizes).to_model())
    # Two graphs, since ONNX Runtime computes all outputs of a graph, whatever is fetched.
    parts = {
        "encoder": encoder,
        "decoder": select(decoder, OUTPUTS[:2]),
        "multimask": select(decoder, OUTPUTS[2:]),
    }
    for part in parts.values():
        store_in_half(part)
    return parts


def frame_of(pixels: np.ndarray) -> np.ndarray:
    """A picture's frame [1, 3, S, S] as the pipeline makes it."""
    return normalise_and_pad(resize_long_side(pixels, SIZE), SIZE, MEAN, STD)


def prompts_of(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Random prompts of every kind: a click, two clicks, a box, a box with a click, each with and without a mask."""
    corner = rng.uniform(20, SIZE - 220, (count, 2))
    far = corner + rng.uniform(60, 200, (count, 2))
    click = (corner + far) / 2
    coords = np.stack([corner, far, click], 1)
    labels = np.tile(np.array([[2, 3, -1], [2, 3, 1], [-1, 0, 1], [-1, -1, 1]]), (count, 1))[:count]
    return {
        "point_coords": coords.astype(np.float32),
        "point_labels": labels.astype(np.float32),
        "mask_input": rng.normal(0, 4, (count, 1, LOW, LOW)).astype(np.float32),
        "has_mask_input": (np.arange(count) % 3 == 0).astype(np.float32),
    }


def compare(network: SamTiny, folder: Path, pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Run both on every picture; return the largest difference of logits and the least share of equal pixels."""
    encode, *decoders = (Session(folder / f"{role}.onnx", "cpu") for role in ("encoder", "decoder", "multimask"))
    rng = np.random.default_rng(0)
    worst, equal, iou = 0.0, 1.0, 0.0
    for pixels in pictures:
        frame, prompt = frame_of(pixels), prompts_of(rng, 8)
        with paddle.no_grad():
            expected = [t.numpy() for t in network(*map(paddle.to_tensor, (frame, *prompt.values())))]
        feeds = {**encode.run({"image": frame}), **prompt}
        got = {name: array for decoder in decoders for name, array in decoder.run(feeds).items()}
        for name, value in zip(OUTPUTS, expected, strict=True):
            difference = float(np.abs(got[name] - value).max())
            if name.endswith("masks"):
                worst = max(worst, difference)
                equal = min(equal, float(((got[name] > 0) == (value > 0)).mean()))
            else:
                iou = max(iou, difference)
    return {"mask_logits_max_difference": worst, "mask_pixels_equal": equal, "iou_max_difference": iou}


def ship(weights: Path, out: Path) -> dict[str, float]:
    """Export, prove, and only then write the folder."""
    network = load_network(weights)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        parts = to_onnx(save_program(network, work))
        for role, model in parts.items():
            onnx.checker.check_model(model)
            onnx.save(model, str(work / f"{role}.onnx"))
        pictures = [image.pixels for sample in samples() for image in read_images(str(sample.path))]
        pictures += [np.ascontiguousarray(p[:, ::-1][: p.shape[0] // 2]) for p in pictures]
        figures = compare(network, work, pictures)
        if figures["mask_logits_max_difference"] > TOLERANCE:
            raise ValueError(f"ONNX and Paddle differ: {figures}")
        files = {}
        out.mkdir(parents=True, exist_ok=True)
        for role in parts:
            path = work / f"{role}.onnx"
            files[role] = {"path": path.name, "sha256": file_sha256(path), "size": path.stat().st_size}
            write_whole(out / path.name, path.read_bytes())
    facts = {
        "format": 1,
        "name": NAME,
        "family": "sam",
        "task": "open_vocabulary_segmentation",
        "files": files,
        "preprocess": {"type": "SAMProcessor", "size": SIZE, "mean": list(MEAN), "std": list(STD)},
        "prompts": ["box", "point"],
        "postprocess": {"everything": EVERYTHING},
        "labels": [],
        "opset": 17,
        "licence": "Apache-2.0",
        "source": "Trained for ovseg on composite scenes; see README.md in this folder.",
        "parity": {"against": f"paddlepaddle {paddle.__version__}", "pictures": len(pictures), **figures},
    }
    write_whole(out / "model.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).encode())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps(ship(args.weights, args.out), indent=2))


if __name__ == "__main__":
    main()

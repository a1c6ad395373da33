"""Turn trained weights into the model folder that ships: Paddle, its saved program, ONNX, proven, weights in half.

python -m ovseg_export.maskseg_tiny.ship --weights export/work/maskseg/weights.npz --out src/ovseg/models/MaskSeg-tiny
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from paddle.static import InputSpec

from ovseg_export.builders.configs import detection_config, normalise_imagenet, resize
from ovseg_export.shitu_tiny.ship import save, ship

from . import LABELS, NMS, SIZE, STRIDES
from .network import load


def inputs(size: int = SIZE) -> list[InputSpec]:
    """What the program takes."""
    return [
        InputSpec([None, 2], "float32", "im_shape"),
        InputSpec([None, 3, size, size], "float32", "image"),
        InputSpec([None, 2], "float32", "scale_factor"),
    ]


def config(name: str = "MaskSeg-tiny", size: int = SIZE) -> dict[str, Any]:
    """What `inference.yml` says, of a model of this name."""
    steps = [resize(size, size), normalise_imagenet(), {"type": "Permute"}]
    extra = {"NMS": {"name": "MultiClassNMS", **NMS}, "fpn_stride": list(STRIDES)}
    return detection_config(name, "PPYOLOE", steps, labels=LABELS, extra=extra)


def save_program(weights: Path, folder: Path, size: int = SIZE) -> None:
    """Save the network as a Paddle inference model with its `inference.yml`."""
    save(load(weights, size), inputs(size), config(size=size), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="what the training wrote")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="pictures to compare on")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    parser.add_argument("--program", type=Path, help="keep the saved Paddle program in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        program = args.program or Path(scratch)
        save_program(args.weights, program)
        print(json.dumps(ship(program, args.out, args.images), indent=2))


if __name__ == "__main__":
    main()

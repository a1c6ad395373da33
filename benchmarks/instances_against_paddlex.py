"""Instance segmentation end to end over PaddleX's, in turns: Mask-RT-DETR-S's builder, a picture of 1080p.

Both read the file, run the same weights with the same number of threads and hand over a result with the same threshold,
chosen so that 20 instances are kept. `make parity` makes the interpreter that --paddlex asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAME = "Mask-RT-DETR-S"
INSTANCES = 20
LIMIT, SHARE = 0.6, 0.2


def clock() -> float:
    """Seconds of processor time: other work on the machine does not count. Wall time with --wall."""
    return time.perf_counter() if "--wall" in sys.argv else time.process_time()


def serve_paddlex(folder: str) -> None:
    """Run PaddleX's pipeline: a request (path and threshold, JSON) on each line in, seconds on each line out."""
    from paddlex import create_pipeline

    module = {"module_name": "instance_segmentation", "model_name": NAME, "model_dir": folder, "threshold": 0.5}
    config = {"pipeline_name": "instance_segmentation", "SubModules": {"InstanceSegmentation": module}}
    pipeline = create_pipeline(config=config, device="cpu")
    for line in sys.stdin:
        path, threshold = json.loads(line)
        start = clock()
        (result,) = pipeline.predict(path, threshold=threshold)
        print("seconds", clock() - start, len(result["boxes"]), flush=True)


def main() -> int:
    """Print the ratio of medians and the share of what is not the network; return 1 above the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paddlex", required=True, help="Python interpreter that has paddlex and paddlepaddle.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("small", "large"), default="large", help="Width of the builder's network.")
    parser.add_argument("--wall", action="store_true", help="Wall time rather than processor time.")
    parser.add_argument("--keep", type=Path, help="Folder for the model, which is used again from there.")
    options = parser.parse_args()
    if options.keep is not None:
        return measure(options.keep.resolve(), options)
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), options)


def measure(base: Path, options: argparse.Namespace) -> int:
    """Build what is missing in `base`, measure, and print."""
    import cv2

    from ovseg import create_pipeline
    from ovseg.samples import samples
    from ovseg.session import Session

    paddle, onnx, picture = base / NAME / "paddle", base / NAME / "onnx", base / "1080p.jpg"
    if not onnx.exists():
        sys.path.insert(0, str(ROOT / "export"))
        from ovseg_export import export_model
        from ovseg_export.builders import mask_rtdetr

        mask_rtdetr.build(paddle, size=options.size, image_size=640 if options.size == "large" else 320)
        export_model(paddle, onnx)
    cv2.imwrite(
        str(picture), cv2.resize(cv2.imread(str(samples()[0].path)), (1920, 1080), interpolation=cv2.INTER_CUBIC)
    )

    pipeline: Any = create_pipeline("instance_segmentation", model_dir=onnx, device="cpu", threads=options.threads)
    (found,) = pipeline.predict(str(picture), threshold=0.0)
    scores = sorted((box["score"] for box in found["boxes"]), reverse=True)
    threshold = (scores[INSTANCES - 1] + scores[INSTANCES]) / 2

    network = 0.0
    run = Session.run

    def timed(self: Session, *arguments: Any) -> Any:
        nonlocal network
        start = clock()
        outputs = run(self, *arguments)
        network += clock() - start
        return outputs

    Session.run = timed  # type: ignore[method-assign]
    environment = os.environ | {
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",
        "PADDLE_PDX_CPU_NUM_THREADS": str(options.threads),
        "OMP_NUM_THREADS": str(options.threads),
    }
    command = [options.paddlex, __file__, "--serve", str(paddle), *(["--wall"] if options.wall else [])]
    ours, theirs, shares = [], [], []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as paddlex:
        assert paddlex.stdin is not None and paddlex.stdout is not None
        for number in range(options.rounds + 1):
            print(json.dumps([str(picture), threshold]), file=paddlex.stdin, flush=True)
            answer = next((line for line in paddlex.stdout if line.startswith("seconds ")), None)
            if answer is None:
                print("PaddleX failed: run the same command with its interpreter to see why.", file=sys.stderr)
                return 1
            _, seconds, count = answer.split()
            network = 0.0
            start = clock()
            (found,) = pipeline.predict(str(picture), threshold=threshold)
            taken = clock() - start
            if number:  # the first of both is a warm-up
                ours.append(taken)
                theirs.append(float(seconds))
                shares.append(1 - network / taken)
        paddlex.stdin.close()
    ratio, share = statistics.median(ours) / statistics.median(theirs), statistics.median(shares)
    print(
        f"{NAME} ({options.size}), 1920x1080, {len(found['boxes'])} instances (PaddleX {count}), {options.threads} "
        f"threads, {options.rounds} rounds of {'wall' if options.wall else 'processor'} time: "
        f"{1000 * statistics.median(ours):.0f} ms over PaddleX's {1000 * statistics.median(theirs):.0f} ms: "
        f"{ratio:.2f} (limit {LIMIT}); reading, preprocessing and postprocessing {100 * share:.0f} % of ours "
        f"(limit {100 * SHARE:.0f} %)"
    )
    return 0 if ratio <= LIMIT and share <= SHARE else 1


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve_paddlex(sys.argv[sys.argv.index("--serve") + 1])
    else:
        sys.exit(main())

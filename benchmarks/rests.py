"""What a rest between two runs costs a small session: ONNX Runtime alone on ShiTu-tiny-rec, one thread, one input.

A core drops its licence for heavy vector instructions (AVX-512) when it has used none for some 0.2 ms, and takes about
as long to get it back. A loop without rests never pays for that; a program that does anything between runs does. A
small matrix product in the middle of a rest, which keeps the licence, shows that it is this and not the time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
import onnxruntime

from ovseg.zoo import bundled_dir

RESTS = (0, 60, 120, 180, 240, 300, 600)


def wait(microseconds: float) -> None:
    """Spin: a core that sleeps is slower for other reasons."""
    end = time.perf_counter() + microseconds * 1e-6
    while time.perf_counter() < end:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="times that each rest is measured, in random order")
    options = parser.parse_args()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    model = str(bundled_dir("ShiTu-tiny-rec") / "model.onnx")
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 48, 48, 3), np.uint8)
    matrix = rng.normal(size=(32, 32)).astype(np.float32)
    product = np.empty_like(matrix)

    def run(rest: float, *, awake: bool) -> float:
        wait(rest / 2)
        if awake:
            np.dot(matrix, matrix, out=product)
        wait(rest / 2)
        start = time.perf_counter()
        session.run(["unit_embedding"], {"pixels": image})
        return time.perf_counter() - start

    kinds = [(rest, awake) for rest in RESTS for awake in (False, True)]
    taken: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for rest, awake in random.sample(kinds, len(kinds)):
            taken[rest, awake].append(statistics.median(run(rest, awake=awake) for _ in range(12)))
    base = statistics.median(taken[0, False])
    print(f"without a rest {1e6 * base:.0f} us; over it:")
    for rest in RESTS[1:]:
        alone, kept = (statistics.median(taken[rest, awake]) / base for awake in (False, True))
        print(f"after {rest} us {alone:.2f}, with a matrix product in the middle of them {kept:.2f}")


if __name__ == "__main__":
    main()

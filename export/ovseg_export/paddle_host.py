"""Paddle in a process of its own: its memory goes away with it, and its crash is an error like others.

`python -m ovseg_export.paddle_host` reads one JSON request a line and answers each with one line. `Host` is
the other end; `require_paddle` says beforehand whether the Paddle that is installed can do the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

OLDEST, TOO_NEW = (3, 0), (3, 3)
"""Versions of Paddle that can host: 3.3 fails in oneDNN inference, before 3.0 there is no PIR program."""
INSTALL = 'Run `pip install "ovseg[export]"`.'
_BLOCKS = {"conditional_block", "while"}
"""Operators that Paddle translates although it calls them unknown."""
_WRONG_PASS = "matmul_v2_scale_fuse_pass"
"""An optimisation of `.pdmodel` programs that multiplies a weight once for each product that reads it."""


def paddle_version() -> str | None:
    """The version of Paddle that is installed, found without importing it; None if there is none."""
    for package in ("paddlepaddle", "paddlepaddle-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def require_paddle(find_version: Callable[[], str | None] = paddle_version) -> str:
    """Return the version of Paddle that is installed.

    Raises:
        MissingExtra: there is none, or one that cannot host the export.

    """
    from ovseg.errors import MissingExtra

    version = find_version()
    if version is None:
        raise MissingExtra("The export needs Paddle to compare with, and Paddle is not installed.", INSTALL)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < TOO_NEW:
        raise MissingExtra(
            f"Paddle {version} cannot host the export; 3.0 to 3.2 can.",
            'Run `pip install "paddlepaddle>=3.0,<3.3"`.',
        )
    return version


def _is_amd() -> bool:
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


class Host:
    """A Paddle process.

    Args:
        scratch: folder for what is exchanged; the caller removes it.
        threads: threads of Paddle's mathematics.
        hurry: let Paddle's mathematics library (MKL) take its fast way on AMD processors too, where it does not
            by itself: 2.5 times as fast for products of large matrices. Not what Paddle does for its users, so
            not to time it by.

    """

    def __init__(self, scratch: Path, threads: int = 1, *, hurry: bool = False) -> None:
        self._scratch = scratch
        self._log: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by __exit__
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        if hurry and _is_amd():
            environment["MKL_DEBUG_CPU_TYPE"] = "5"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
        )
        self._threads = threads

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # such as Ctrl-C: nobody waits for what it computes
            self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    @property
    def alive(self) -> bool:
        """Whether the process still answers."""
        return self._process.poll() is None

    def translate(self, program: Path, target: Path) -> None:
        """Write the `.pdmodel` file `program` as `target`, an `inference.json`.

        Raises:
            UnsupportedOperators: Paddle does not know operators of it; all are named.

        """
        answer = self._ask(f"translating {program}", action="translate", program=str(program), target=str(target))
        if answer:
            from ovseg_export.lower import Unsupported, refusal

            raise refusal([Unsupported(name, "unknown to Paddle", tuple(at)) for name, at in answer["unknown"].items()])

    def load(self, program: Path, parameters: Path, *, optimise: bool, onednn: bool) -> None:
        """Load a model into Paddle Inference, on the CPU.

        Args:
            program: `.json` or `.pdmodel`.
            parameters: `.pdiparams`.
            optimise: let Paddle rewrite the program first, as it does by default; without the one rewriting
                that is wrong.
            onednn: compute with oneDNN.

        """
        self._ask(
            f"loading {program}",
            action="load",
            program=str(program),
            parameters=str(parameters),
            optimise=optimise,
            onednn=onednn,
            threads=self._threads,
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Run the loaded model; return its outputs in Paddle's order, and the seconds that the run took."""
        given, made = self._scratch / "feeds.npz", self._scratch / "outputs.npz"
        np.savez(given, **feeds)
        answer = self._ask("running the model", action="run", feeds=str(given), outputs=str(made))
        with np.load(made) as arrays:
            outputs = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
        return outputs, float(answer["seconds"])

    def _ask(self, doing: str, **request: Any) -> dict[str, Any]:
        from ovseg_export.errors import NO_ROOM, PaddleFailure

        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        cure = "Use paddlepaddle 3.2.2, and report this with the name of the model if it stays."
        if not line:
            status = self._process.wait()
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
            raise PaddleFailure(f"Paddle ended with {how} while {doing}:{self._tail()}.", cure)
        answer: dict[str, Any] = json.loads(line)
        if answer.get("errno") in NO_ROOM:
            raise OSError(answer["errno"], answer["error"])
        if "error" in answer:
            raise PaddleFailure(f"Paddle failed while {doing}: {answer['error']}.", cure)
        return answer

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " " + " | ".join(line.strip() for line in lines[-6:])


class _Worker:
    """What the process does."""

    def __init__(self) -> None:
        self._predictor: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request.pop("action")
        if action == "translate":
            return self._translate(**request)
        if action == "load":
            return self._load(**request)
        return self._run(**request)

    def _translate(self, program: str, target: str) -> dict[str, Any]:
        import paddle
        from paddle.base import core

        old = core.ProgramDesc(Path(program).read_bytes())
        blocks = [old.block(index) for index in range(old.num_blocks())]
        unknown = {name: _places(blocks, name) for name in core.pir.check_unregistered_ops(old) if name not in _BLOCKS}
        for block in blocks:
            _align_shape_lists(block)
        try:
            program = paddle.pir.translate_to_pir(old)
        except Exception:
            if unknown:
                return {"unknown": unknown}
            raise
        core.serialize_pir_program(program, target)
        with Path(target).open("ab") as stream:  # Paddle keeps silent when the disk is full
            stream.write(b"\n")
        return {}

    def _load(self, program: str, parameters: str, onednn: bool, threads: int, optimise: bool = True) -> dict[str, Any]:
        from paddle.inference import Config, create_predictor

        config = Config(program, parameters)
        config.disable_gpu()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(threads)
        config.switch_ir_optim(optimise)
        if onednn:
            config.enable_mkldnn()
        else:
            config.disable_mkldnn()
        config.delete_pass(_WRONG_PASS)
        self._predictor = create_predictor(config)
        return {}

    def _run(self, feeds: str, outputs: str) -> dict[str, Any]:
        # A `.pdmodel` predictor keeps its tensors, and `index_put` leaves one that it finds as it was: the next
        # run would answer for the first one's prompt.
        self._predictor.clear_intermediate_tensor()
        with np.load(feeds) as arrays:
            for name in self._predictor.get_input_names():
                self._predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(arrays[name]))
        start = time.perf_counter()
        self._predictor.run()
        names = self._predictor.get_output_names()
        made = [self._predictor.get_output_handle(name).copy_to_cpu() for name in names]
        seconds = time.perf_counter() - start
        np.savez(outputs, *made)
        return {"seconds": seconds}


def _places(blocks: Sequence[Any], name: str) -> list[str]:
    """Where an operator stands in a program of the old format."""
    return [
        f"{name} #{index}" + (f" of block {number}" if number else "")
        for number, block in enumerate(blocks)
        for index in range(block.op_size())
        if block.op(index).type() == name
    ]


def _align_shape_lists(block: Any) -> None:
    """Give the sizes that an operator takes as a list of tensors one rank.

    The old executor takes scalars and vectors of one number in one list (`ShapeTensorList` and the like); the
    translator concatenates them and needs vectors. So scalars pass through an `unsqueeze2` first.
    """
    index = 0
    while index < block.op_size():
        op = block.op(index)
        for slot in op.input_names():
            names = op.input(slot)
            if not slot.endswith("TensorList"):
                continue
            found = [block.find_var_recursive(name.encode()) for name in names]
            ranks = [len(variable.shape()) for variable in found]
            if len(set(ranks)) < 2:
                continue
            aligned = list(names)
            for place, (name, variable, rank) in enumerate(zip(names, found, ranks, strict=True)):
                if rank == 0:
                    aligned[place] = f"{name}_as_vector_{index}"
                    _insert_unsqueeze(block, index, name, aligned[place], variable)
                    index += 1
            block.op(index).set_input(slot, aligned)
        index += 1


def _insert_unsqueeze(block: Any, index: int, source: str, target: str, like: Any) -> None:
    for name, shape in ((target, [1]), (f"{target}_shape", [0])):
        variable = block.var(name.encode())
        variable.set_type(like.type())
        variable.set_dtype(like.dtype())
        variable.set_shape(shape)
    op = block._insert_op(index)
    op.set_type("unsqueeze2")
    op.set_input("X", [source])
    op.set_output("Out", [target])
    op.set_output("XShape", [f"{target}_shape"])
    op._set_attr("axes", [0])


def _main() -> None:
    # Paddle prints to standard output: keep it for the answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as failure:
            traceback.print_exc()
            text = " ".join(str(failure).split())
            answer = {"error": f"{type(failure).__name__}: …{text[-700:]}" if len(text) > 700 else text}
            if isinstance(failure, OSError) and failure.errno:
                answer = {"error": failure.strerror, "errno": failure.errno}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main()

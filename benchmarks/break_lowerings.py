"""Break the lowerings one place at a time, and name the breaks that no test notices.

    OMP_NUM_THREADS=1 python benchmarks/break_lowerings.py control select
    python benchmarks/break_lowerings.py detection --sample 20

A break is one of: an ONNX operator or a comparison replaced by its opposite, a number changed by one, two
arguments of an operator exchanged, a statement left out. The tests run on a copy, each time in a fork of a process
that has loaded Paddle. A break that survives is a line without a test, or one that changes nothing. Needs the
export extra, and a system that can fork.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The others have a test file of their own name.
TESTS = {"select": ("control", "elementwise"), "graph": ("shape", "control")}
SECONDS = 300
OPPOSITES = {
    "Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "Less": "GreaterOrEqual", "Greater": "LessOrEqual",
    "GreaterOrEqual": "Less", "LessOrEqual": "Greater", "Min": "Max", "Max": "Min", "And": "Or", "Or": "And",
    "ReduceMax": "ReduceMin", "ReduceMin": "ReduceMax", "Ceil": "Floor", "Floor": "Ceil", "Sin": "Cos", "Cos": "Sin",
    "Exp": "Log", "then": "else", "else": "then",
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def breaks(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what is done there, and the broken source."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for what in _possible(node):
            broken = copy.deepcopy(tree)
            twin = next(item for i, item in enumerate(ast.walk(broken)) if i == number)
            if _apply(twin, what):
                yield getattr(node, "lineno", 0), what, ast.unparse(broken)


def _possible(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value in OPPOSITES:
            return [f"{node.value} → {OPPOSITES[node.value]}"]
        return ["plus one"] if type(node.value) in (int, float) else []
    if isinstance(node, ast.Compare):
        return ["opposite comparison"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "op":
        return ["arguments exchanged"] if len(node.args) == 3 else []
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With):
        left_out = [i for i, line in enumerate(node.body) if isinstance(line, ast.Expr | ast.AugAssign)]
        return [
            f"statement {i} left out"
            for i in left_out
            if not isinstance(getattr(node.body[i], "value", 0), ast.Constant)
        ]
    return []


def _apply(node: ast.AST, what: str) -> bool:
    if isinstance(node, ast.Constant):
        node.value = OPPOSITES[node.value] if isinstance(node.value, str) else node.value + 1  # type: ignore[operator]
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.Call):
        node.args[1], node.args[2] = node.args[2], node.args[1]
        return ast.dump(node.args[1]) != ast.dump(node.args[2])
    elif isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With):
        node.body[int(what.split()[1])] = ast.Pass()
    return True


def survives(tests: list[str]) -> bool:
    """Whether the tests pass, in a fork of this process."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Print each break, and the survivors again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files of ovseg_export/lower, without .py")
    parser.add_argument("--sample", type=int, help="breaks of each file, drawn at random; all if left out")
    parser.add_argument("--lines", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only these lines")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    # What the tests do not use costs more than they do: the plugins of others, and loading the same again in each fork.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import paddle  # noqa: F401
    import pytest  # noqa: F401

    alive = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("export", "tests"):
            shutil.copytree(ROOT / part, Path(scratch) / part, ignore=shutil.ignore_patterns("__pycache__", "data"))
        shutil.copy(ROOT / "pyproject.toml", scratch)
        os.chdir(scratch)
        for name in arguments.files:
            place = Path("export/ovseg_export/lower") / f"{name}.py"
            tests = [f"tests/export/test_lower_{part}.py" for part in TESTS.get(name, (name,))]
            source = place.read_text(encoding="utf-8")
            if not survives(tests):
                sys.exit(f"{', '.join(tests)}: fails with {name}.py unbroken")
            chosen = list(breaks(source))
            if arguments.lines:
                chosen = [item for item in chosen if arguments.lines[0] <= item[0] <= arguments.lines[1]]
            if arguments.sample and arguments.sample < len(chosen):
                chosen = sorted(random.Random(0).sample(chosen, arguments.sample))
            for line, what, broken in chosen:
                place.write_text(broken, encoding="utf-8")
                lives = survives(tests)
                report = f"{name}.py:{line}: {what}: {source.splitlines()[line - 1].strip()}"
                print("survives" if lives else "noticed", report, flush=True)
                alive += [report] * lives
            place.write_text(source, encoding="utf-8")
    print(f"{len(alive)} survive", *alive, sep="\n")


if __name__ == "__main__":
    main()

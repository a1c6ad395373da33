"""Who may import whom: each room sees only the rooms below it, and heavy packages only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ovseg"

# From the bottom up. A room may import the rooms of the lines above its own, and those of its own line.
LAYERS = (
    ("errors",),
    ("schema", "cache", "runtime", "_decoding", "samples"),
    ("archives", "download", "device", "images"),
    ("engines", "model_folder"),
    ("zoo",),
    ("pull", "session"),
    ("stages",),
    ("index", "results"),
    ("pipelines",),
    ("bench", "doctor", "evaluation"),
    ("serve", "cli"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# What a room may use besides the standard library and the rooms below it.
STAGES_SEE = {"numpy", "cv2", "PIL", "pycocotools"}
EXPORT_ONLY = {"paddle", "paddle2onnx", "onnx", "torch"}
# Scripts for the interpreters of the alternatives: they import what they measure, and nothing imports them.
WORKERS = PACKAGE / "bench" / "workers"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names of all modules that a file imports, and whether at import time."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = ("ovseg", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "ovseg" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[here], f"{here} imports {parts[1]}, which is above it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    found = {name.split(".")[0] for name, _ in imports(path)}
    if path.parent != WORKERS:
        assert not found & EXPORT_ONLY, "only the export stage may import these"
        assert not any(name.startswith("ovseg.bench.workers") for name, _ in imports(path)), "these are scripts"
    if room(path) == "stages":
        others = found - set(sys.stdlib_module_names) - STAGES_SEE - {"ovseg"}
        assert not others, "stages are functions on arrays"


def test_every_room_has_a_layer() -> None:
    rooms = {room(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= set(LEVEL)


def test_import_is_light() -> None:
    code = "import sys, ovseg; print(*sorted({'onnxruntime', 'cv2', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

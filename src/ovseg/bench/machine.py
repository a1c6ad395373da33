"""The machine and the packages that figures are of."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..runtime import import_onnxruntime, usable_cpus


def facts() -> dict[str, str]:
    """Return what there is to know of this machine, as short texts."""
    found = {
        "processor": f"{_processor()}, {usable_cpus()} CPUs usable",
        "system": platform.platform(terse=True),
        "versions": f"ovseg {__version__}, ONNX Runtime {import_onnxruntime().__version__}, numpy "
        f"{metadata.version('numpy')}, OpenCV {metadata.version('opencv-python-headless')}, Python "
        f"{platform.python_version()}",
    }
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f} processes wanted a CPU when it began"
    if gpus := gpu_query("name"):
        found["GPU"] = ", ".join(gpus)
    return found


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def gpu_query(what: str) -> list[str]:
    """Return what NVIDIA's own tool says of each GPU; nothing where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run(
        [tool, f"--query-gpu={what}", "--format=csv,noheader,nounits"], capture_output=True, text=True
    )
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def device_memory() -> float | None:
    """Return the MB in use on all GPUs; None where there is none, or one that does not tell."""
    used = gpu_query("memory.used")
    try:
        return sum(float(text) for text in used) if used else None
    except ValueError:  # [N/A], of one that shares the memory of the processor
        return None

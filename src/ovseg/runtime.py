"""The ONNX Runtime that is installed, and what this machine gives it.

`import ovseg.runtime` does not import onnxruntime; the functions that need it do.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
import math
import os
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .errors import MissingExtra

CPU_REQUIREMENT = '"ovseg[cpu]"'

# Distributions that all install the module `onnxruntime`, over each other's files, to what pip is given for them.
_RUNTIMES = {
    "onnxruntime": CPU_REQUIREMENT,
    "onnxruntime-gpu": '"ovseg[gpu]"',
    "onnxruntime-cann": '"ovseg[cann]"',
    "onnxruntime-openvino": "onnxruntime-openvino",
    "onnxruntime-directml": "onnxruntime-directml",
}

# What the loader says of a sound library for which there is no address space, or that lies where nothing may run.
UNMAPPED = "failed to map segment"
UNMAPPED_CURE = "Raise the limit of memory (ulimit -v, that of a container), and mount its folder without noexec"


def import_onnxruntime() -> Any:
    """Import and return the module `onnxruntime`.

    Raises:
        MissingExtra: it is not installed, or the installation is broken.
    """
    cure = 'Install one: pip install "ovseg[cpu]", or on a machine with an NVIDIA GPU: pip install "ovseg[gpu]".'
    try:
        import onnxruntime
    except ImportError as error:
        if not installed_runtimes():
            raise MissingExtra("ONNX Runtime is not installed.", cure) from error
        fix = UNMAPPED_CURE if UNMAPPED in str(error) else f"Run: {reinstall_command(_same_requirement())}"
        raise MissingExtra(f"ONNX Runtime is installed and cannot be imported: {error}.", f"{fix}.") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # the empty folder left when one of two runtimes goes
        raise MissingExtra(
            "ONNX Runtime is installed without its files.", f"Run: {reinstall_command(_same_requirement())}."
        )
    return onnxruntime


def installed_runtimes() -> tuple[str, ...]:
    """Names of the installed distributions that provide the module `onnxruntime`."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in _RUNTIMES:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def _same_requirement() -> str:
    """What to give to pip for the ONNX Runtime that is installed, or for the CPU's if there are several."""
    found = installed_runtimes()
    return _RUNTIMES[found[0]] if len(found) == 1 else CPU_REQUIREMENT


def runtime_conflict() -> str | None:
    """Clause naming the distributions of ONNX Runtime that overwrite each other here, or None."""
    found = installed_runtimes()
    if len(found) < 2:
        return None
    return f"{' and '.join(found)} are installed together and overwrite each other's files"


def reinstall_command(requirement: str) -> str:
    """Shell command that replaces the installed ONNX Runtime by the one that `requirement` brings."""
    found = installed_runtimes()
    uninstall = f"pip uninstall -y {' '.join(found)} && " if found else ""
    return f"{uninstall}pip install {requirement}"


@cache
def preload_libraries(ort: Any) -> None:
    """Load the libraries of the pip packages `nvidia-*` and `tensorrt`, which no loader path names."""
    if hasattr(ort, "preload_dlls"):  # ONNX Runtime 1.21
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):  # it prints what it does not find
            ort.preload_dlls()
        logging.getLogger("ovseg").debug("preload_dlls: %s", printed.getvalue())
    with contextlib.suppress(ImportError, OSError):  # absent, or for another CUDA
        importlib.import_module("tensorrt_libs")


@dataclass(frozen=True)
class LoadFailure:
    """Why the shared library of a provider does not load.

    Attributes:
        reason: a clause without a full stop.
        missing: name of a library that it needs and that is not found, "" if that is not the reason.
        faulty: path of a library that it needs, of another package, and that does not load; "" if there is none.
    """

    reason: str
    missing: str = ""
    faulty: str = ""


def load_failure(provider: str, folder: Path | None = None) -> LoadFailure | None:
    """Find out why the shared library of a provider does not load; None if it does, or there is none.

    Call it only after ONNX Runtime has tried: a provider's library that is loaded first by someone else
    does not find its host and crashes later.

    Args:
        provider: name of the execution provider.
        folder: where the library is; None for ONNX Runtime's own.
    """
    for library in libraries(provider, folder):
        if is_cut_off(library):
            return LoadFailure(f"its library {library.name} is cut off")
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            text = one_line(error)
            if missing := re.match(r"(\S+): cannot open shared object file", text):
                return LoadFailure(f"its library {library.name} needs {missing[1]}, which is not found", missing[1])
            path = Path(text.partition(": ")[0])
            faulty = str(path) if path.is_absolute() and path.parent != library.parent else ""
            return LoadFailure(f"its library {library.name} cannot be loaded ({text})", faulty=faulty)
    return None


def is_cut_off(library: Path) -> bool:
    """Whether a shared library is shorter than its own table says: the loader of Linux would end the process."""
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian; see elf(5)
        return False
    (start,), (size, count) = struct.unpack_from("<Q", head, 0x28), struct.unpack_from("<HH", head, 0x3A)
    return library.stat().st_size < int(start + size * count)


def libraries(provider: str, folder: Path | None = None) -> list[Path]:
    """The shared libraries of a provider; none, if it is part of ONNX Runtime's own or was taken away.

    Args:
        provider: name of the execution provider.
        folder: where they are; None for ONNX Runtime's own.
    """
    short = provider.removesuffix("ExecutionProvider").lower()
    return sorted((folder or provider_folder()).glob(f"*onnxruntime_providers_{short}.*"))


def provider_folder() -> Path:
    """The folder where ONNX Runtime looks for the shared libraries of its providers."""
    return Path(import_onnxruntime().__file__).parent / "capi"


@cache
def cuda_devices() -> tuple[str, ...] | None:
    """Names of the CUDA devices that this process may use, in the order of their indexes; None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    if not hasattr(driver, "cuInit"):  # something else of that name
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    names = []
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return tuple(names)


def debugging() -> bool:
    """Whether `OVSEG_DEBUG` is set: ONNX Runtime's log is shown, and the command line's errors with tracebacks."""
    return os.environ.get("OVSEG_DEBUG", "") not in ("", "0")


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of CPUs that this process may use: its affinity mask, and a container's quota, rounded up.

    Args:
        cgroup: where the control group of the process is mounted, version 1 or 2.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    v1 = cgroup / "cpu"
    for files in ([cgroup / "cpu.max"], [v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join(file.read_text() for file in files).split()
        except (OSError, ValueError):  # not this version of cgroup, or not Linux
            continue
        if quota not in ("max", "-1"):
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def one_line(error: BaseException) -> str:
    """Message of an exception as a clause: on one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".")

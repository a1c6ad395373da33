from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovseg import runtime
from ovseg.device import CUDA, unavailable

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF libraries, affinity and cgroups")


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that finds modules and installed distributions in `path` first."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def install(folder: Path, name: str) -> None:
    """Write what pip leaves of a distribution so that importlib.metadata finds it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


PRINT_ERROR = """
from ovseg.errors import MissingExtra
from ovseg.runtime import import_onnxruntime
try:
    import_onnxruntime()
except MissingExtra as error:
    print(error)
"""


def test_not_installed(tmp_path):
    shadow = "import importlib.metadata as m; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
    source = Path(runtime.__file__).parents[1]
    message = run_python(shadow + PRINT_ERROR, source).stdout
    assert "not installed" in message
    assert 'pip install "ovseg[cpu]"' in message
    assert 'pip install "ovseg[gpu]"' in message


def test_installed_and_broken(tmp_path):
    install(tmp_path, "onnxruntime")
    (tmp_path / "onnxruntime").mkdir()
    module = tmp_path / "onnxruntime" / "__init__.py"
    module.write_text("raise ImportError('DLL load failed')")
    message = run_python(PRINT_ERROR, tmp_path).stdout
    assert "DLL load failed" in message
    assert "pip uninstall -y onnxruntime" in message
    module.write_text("")  # what is left when one of two runtimes is uninstalled
    assert "without its files" in run_python(PRINT_ERROR, tmp_path).stdout


def test_conflict_names_both_and_uninstalls_both(tmp_path):
    install(tmp_path, "onnxruntime")
    install(tmp_path, "onnxruntime-gpu")
    code = """
from ovseg.device import unavailable
from ovseg.runtime import runtime_conflict
print(runtime_conflict())
print(unavailable("CUDAExecutionProvider", "only CPU", reinstall=True))
"""
    conflict, message = run_python(code, tmp_path).stdout.splitlines()
    assert "onnxruntime and onnxruntime-gpu are installed together" in conflict
    assert conflict in message
    assert 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "ovseg[gpu]"' in message


def test_one_runtime_is_no_conflict():
    assert len(runtime.installed_runtimes()) == 1
    assert runtime.runtime_conflict() is None


def of_onnxruntime(name: str) -> bytes:
    import onnxruntime

    return (Path(onnxruntime.__file__).parent / "capi" / name).read_bytes()


@LINUX
def test_load_failure_names_the_missing_library(tmp_path):
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    sound = of_onnxruntime("libonnxruntime_providers_shared.so")
    assert runtime.load_failure(CUDA, tmp_path) is None
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / library.name).write_bytes(sound)
    assert runtime.load_failure(CUDA, tmp_path / "sound") is None
    library.write_bytes(sound.replace(b"libc.so.6\0", b"libq.so.6\0"))
    failure = runtime.load_failure(CUDA, tmp_path)
    assert (failure.missing, failure.faulty) == ("libq.so.6", "")
    assert "libonnxruntime_providers_cuda.so needs libq.so.6" in failure.reason
    library.write_bytes(b"not a library at all")
    failure = runtime.load_failure(CUDA, tmp_path)
    assert (failure.missing, failure.faulty) == ("", "")
    assert "cannot be loaded" in failure.reason
    for length in (100, len(sound) // 2, len(sound) - 1):  # the loader would end this process
        library.write_bytes(sound[:length])
        assert runtime.load_failure(CUDA, tmp_path) == runtime.LoadFailure(f"its library {library.name} is cut off")


@LINUX
def test_the_library_that_is_at_fault_is_told(tmp_path):
    sound = of_onnxruntime("libonnxruntime_providers_shared.so")
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(sound.replace(b"libc.so.6\0", b"libq.so.6\0"))
    other = tmp_path / "other" / "libq.so.6"
    other.parent.mkdir()
    other.write_bytes(b"not a library at all")
    code = "from pathlib import Path\nfrom ovseg.runtime import load_failure\n"
    code += f"print(load_failure({CUDA!r}, Path({str(tmp_path)!r})).faulty)"
    environment = os.environ | {"LD_LIBRARY_PATH": str(other.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(other)


@LINUX
def test_a_driver_that_is_none(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: ctypes.PyDLL(None))
    assert runtime.cuda_devices.__wrapped__() is None


def test_cure_fits_what_is_at_fault():
    error = unavailable(CUDA, "why", faulty="/usr/lib/libcublasLt.so.13")
    assert "package of /usr/lib/libcublasLt.so.13 again" in error.cure
    assert "pip" not in error.cure  # ONNX Runtime is sound
    error = unavailable(CUDA, "cannot be loaded (a.so: failed to map segment from shared object)", reinstall=True)
    assert "ulimit -v" in error.cure and "pip" not in error.cure


def test_the_same_runtime_is_installed_again(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    module = tmp_path / "onnxruntime" / "__init__.py"
    module.write_text("raise ImportError('DLL load failed')")
    hide = "from ovseg import runtime; runtime.installed_runtimes = lambda: ('onnxruntime-gpu',)\n"
    assert 'pip install "ovseg[gpu]"' in run_python(hide + PRINT_ERROR, tmp_path).stdout
    module.write_text("raise ImportError('x.so: failed to map segment from shared object')")
    message = run_python(hide + PRINT_ERROR, tmp_path).stdout
    assert "ulimit -v" in message and "pip" not in message


@pytest.mark.parametrize(
    ("provider", "missing", "cure"),
    [
        (CUDA, "libcublasLt.so.13", 'pip install "ovseg[gpu]"'),
        (CUDA, "libcuda.so.1", "NVIDIA driver"),
        ("TensorrtExecutionProvider", "libnvinfer.so.10", 'pip install "tensorrt==10.*"'),
        ("CANNExecutionProvider", "", "Check that the device exists"),
    ],
)
def test_cure_fits_what_is_missing(provider, missing, cure):
    error = unavailable(provider, "why", missing=missing)
    assert provider in error.cause
    assert cure in error.cure
    assert "--device cpu" in error.cure


@LINUX
def test_usable_cpus_follows_affinity_and_quota(tmp_path):
    allowed = len(os.sched_getaffinity(0))
    assert runtime.usable_cpus(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert runtime.usable_cpus(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert runtime.usable_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text(f"{allowed * 100000 + 1} 100000\n")
    assert runtime.usable_cpus(tmp_path) == allowed
    code = """
import os
from pathlib import Path
from ovseg.runtime import usable_cpus
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(usable_cpus(Path("/nowhere")))
"""
    assert run_python(code).stdout.strip() == "1"


@LINUX
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to see the quota bite")
def test_usable_cpus_reads_cgroup_version_1(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert runtime.usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert runtime.usable_cpus(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    assert runtime.usable_cpus(tmp_path) == 2

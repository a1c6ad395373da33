"""What works on this machine: ONNX Runtime's providers, tried for real, the cache, and the models that are here.

Each provider is tried in a process of its own: one that crashes is a line of the report, and the libraries that one
loads do not help or harm the next.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__
from .cache import archives_dir, cache_dir, engines_dir, models_dir, tuned_dir
from .device import is_elsewhere, known_providers, resolve_device
from .errors import DeviceUnavailable, MissingExtra, OvsError
from .runtime import (
    CPU_REQUIREMENT,
    import_onnxruntime,
    installed_runtimes,
    load_failure,
    reinstall_command,
    runtime_conflict,
    usable_cpus,
)

OK, WARNING, FAILURE, ABSENT = "ok", "warning", "failure", "absent"

PROBE_SECONDS = 120.0  # the first start of a provider may compile kernels

# Packages that decide what ovseg can do, beside its own requirements.
_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pycocotools", "faiss-cpu", "pymilvus", "fastapi")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        topic: `versions`, `devices`, `cache` or `models`.
        name: what was looked at.
        state: `ok`, `warning`, `failure` (installed or asked for, and does not work) or `absent` (not installed).
        text: what was found.
        cure: what to do, "" where nothing needs to be done.
    """

    topic: str
    name: str
    state: str
    text: str
    cure: str = ""


def examine() -> list[Check]:
    """Look at the installation, the devices, the cache and the models that are on this machine."""
    return [*_versions(), *_devices(), *_cache(), *_models()]


def device_check(device: str | None) -> Check:
    """Try what a device string stands for.

    Raises:
        ConfigError: the string has no meaning.
        MissingExtra: ONNX Runtime is not installed.
    """
    wanted = resolve_device(device)
    main = wanted.providers[0]
    return _tried(f"{wanted.kind}:{wanted.index}" if wanted.index else wanted.kind, main.name, str(device or "auto"))


def _versions() -> list[Check]:
    system = f"Python {platform.python_version()}, {platform.platform()}, {usable_cpus()} CPUs usable"
    checks = [Check("versions", "ovseg", OK, f"{__version__}, {system}")]
    try:
        ort = import_onnxruntime()
    except MissingExtra as error:
        checks.append(Check("versions", "onnxruntime", FAILURE, error.cause, error.cure))
    else:
        names = " and ".join(installed_runtimes()) or "a build of your own"
        conflict = runtime_conflict()
        cure = f"Run: {reinstall_command(CPU_REQUIREMENT)} (or gpu, cann)." if conflict else ""
        text = f"{ort.__version__}, from {names}" + (f": {conflict}" if conflict else "")
        checks.append(Check("versions", "onnxruntime", FAILURE if conflict else OK, text, cure))
    for package in _PACKAGES:
        try:
            checks.append(Check("versions", package, OK, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check("versions", package, ABSENT, "not installed"))
    return checks


def _devices() -> list[Check]:
    try:
        compiled = import_onnxruntime().get_available_providers()
    except MissingExtra:
        return []  # said under versions
    checks = []
    known = known_providers()
    for provider, (kind, requirement) in known.items():
        if provider in compiled:
            check = _tried(kind, provider, kind)
            # Beside the CPU, what is compiled in and does not work is no fault where nobody asked for it.
            mild = check.state == FAILURE and kind != "cpu"
            checks.append(replace(check, state=WARNING) if mild else check)
        elif not is_elsewhere(provider):
            cure = f"To have it: {reinstall_command(requirement)}"
            checks.append(Check("devices", kind, ABSENT, f"{provider} is not in this ONNX Runtime", cure))
    others = [provider for provider in compiled if provider not in known]
    if others:
        checks.append(Check("devices", "others", OK, f"compiled in, not tried: {', '.join(others)}"))
    return checks


def _tried(name: str, provider: str, device: str) -> Check:
    """Run the tiny model on a device, in another process."""
    command = [sys.executable, "-c", "import sys; from ovseg.doctor import probe; probe(sys.argv[1])", device]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        cure = "Look at the driver's own tool (for NVIDIA: nvidia-smi)."
        return Check("devices", name, FAILURE, f"{provider}: no answer in {PROBE_SECONDS:g} s", cure)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = " ".join(done.stderr.split()[-40:])
        text = f"{provider}: the process that tried it ended with status {done.returncode}. {last}".rstrip()
        return Check("devices", name, FAILURE, text, "Report it with this line, and use another device.")
    return Check("devices", name, answer["state"], f"{provider}: {answer['text']}", answer["cure"])


def probe(device: str) -> None:
    """Run the tiny model on a device and print what came of it as one line of JSON."""
    print(json.dumps(_probe(device)))


def _probe(device: str) -> dict[str, str]:
    import numpy as np

    from .session import PROBE, Session

    wanted = resolve_device(device)
    x = np.array([[1, 2, 3], [-1, 0, 1]], np.float32)
    expected = np.array([[0, 12], [0, 5]], np.float32)
    started = time.perf_counter()
    try:
        session = Session(PROBE, wanted)
        got = session.run({"x": x})["y"]
    except DeviceUnavailable as error:
        provider = wanted.providers[0].name
        failure = load_failure(provider)
        missing = failure.missing if failure else ""
        text = f"compiled in, not loadable: {missing} missing" if missing else error.cause.removeprefix(f"{provider} ")
        if provider not in import_onnxruntime().get_available_providers():
            text = "not in this ONNX Runtime"
        return {"state": FAILURE, "text": text, "cure": error.cure}
    except OvsError as error:
        return {"state": FAILURE, "text": error.cause, "cure": error.cure}
    if not np.allclose(got, expected, atol=1e-2):  # TF32 and half are meant to pass
        return {"state": FAILURE, "text": f"computes wrong results: {got.tolist()}", "cure": "Update its driver."}
    milliseconds = 1000 * (time.perf_counter() - started)
    took = f"works, first run after {milliseconds:.0f} ms"
    if session.device.kind == wanted.kind:
        return {"state": OK, "text": took, "cure": ""}
    reason = _probe(f"{wanted.kind}:{wanted.index}")
    return {**reason, "state": WARNING, "text": f"{reason['text']}; {session.device.kind} {took}"}


def _cache() -> list[Check]:
    folder = cache_dir()
    cure = "Set OVSEG_HOME to a folder that you may read and write."
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        # The environments of `ovs bench` are the largest by far.
        parts = (models_dir(), archives_dir(), engines_dir(), tuned_dir(), folder / "bench")
        sizes = {part.name: _size(part) for part in parts if part.exists()}
        free = shutil.disk_usage(there).free
    except OSError as error:
        return [Check("cache", str(folder), FAILURE, f"cannot be read: {error.strerror}", cure)]
    held = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) or "empty"
    try:
        with tempfile.TemporaryFile(dir=there):
            return [Check("cache", str(folder), OK, f"{held}; {free / 1e9:.1f} GB free")]
    except OSError:
        return [Check("cache", str(folder), WARNING, f"{held}; it may not be written", cure)]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _models() -> list[Check]:
    """Compare the files of each model that is here with the checksums that came with them."""
    from .model_folder import open_model_folder
    from .zoo import installed_dir, load_zoo

    checks, trouble = [], None
    for name in load_zoo():
        try:
            folder = installed_dir(name)
        except OvsError as error:  # the cache's: those that ship are elsewhere
            folder, trouble = None, error
        if folder is None:
            continue
        try:
            opened = open_model_folder(folder, verify=True)
        except OvsError as error:
            checks.append(Check("models", name, FAILURE, error.cause, error.cure))
        else:
            size = sum(path.stat().st_size for path in opened.files.values())
            text = f"{len(opened.files)} files, {size / 1e6:.1f} MB, checksums right"
            checks.append(Check("models", name, OK, text))
    if trouble is not None:
        checks.append(Check("models", "others", FAILURE, trouble.cause, trouble.cure))
    return checks


def node_counts(folder: Path) -> dict[str, Counter[str]]:
    """Count the graph nodes that ran, by model file and execution provider.

    Args:
        folder: of ONNX Runtime's profiles, as `Session(profile=...)` writes them.

    Returns:
        Name of the profile's model to provider to nodes. Nodes that were fused count once.
    """
    found: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("*.json")):
        seen: dict[str, str] = {}
        for event in json.loads(path.read_text("utf-8")):
            arguments: dict[str, Any] = event.get("args") or {}
            if event.get("cat") == "Node" and "provider" in arguments:
                seen[event["name"].removesuffix("_kernel_time")] = arguments["provider"]
        found.setdefault(path.name.split(".profile")[0], Counter()).update(seen.values())
    return found


def model_check(name: str | None, model_dir: str | None, device: str | None) -> list[Check]:
    """Run a model on a sample image and count the nodes that each provider took.

    Raises:
        OvsError: the model or the device cannot be used, or the run fails.
    """
    from .pipelines.workloads import load_workload
    from .zoo import find_model

    folder, used = find_model(name, model_dir), resolve_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        work = load_workload(folder, used, {"profile": scratch})
        started = time.perf_counter()
        work.run(0)
        seconds = time.perf_counter() - started
        del work  # its sessions write their profiles as they go
        counts = node_counts(Path(scratch))
    main = used.providers[0].name
    if not used.named and not any(main in nodes for nodes in counts.values()):
        used = resolve_device("cpu")  # where `auto` ends if what it would rather have does not load
    checks = []
    for model, nodes in ((model, nodes) for model, nodes in counts.items() if nodes):  # others were loaded only
        total, away = sum(nodes.values()), nodes.total() - nodes[used.providers[0].name]
        text = ", ".join(f"{count} nodes on {provider}" for provider, count in nodes.most_common())
        fell = bool(away) and used.kind != "cpu"
        text += f" ({away} of {total} are not on {used.kind})" if fell else ""
        checks.append(Check("models", model, WARNING if fell else OK, text))
    return [*checks, Check("models", folder.name, OK, f"first image after {1000 * seconds:.0f} ms on {used.kind}")]


def as_facts(checks: list[Check]) -> list[dict[str, str]]:
    """Return the checks as JSON takes them."""
    return [asdict(check) for check in checks]

"""The fastest correct setting for a model on this machine: `ovs tune`, and `use_hpip`.

Each setting is timed in turns with the default (A B, B A), and only ratios count, so that a machine that does other
work as well misleads little. The default stays unless another setting is clearly faster twice: when all are tried, and
again in sessions of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..cache import locked, make_folder, tuned_dir
from ..device import CUDA, OPENVINO, TENSORRT, Device, device_text, resolve_device
from ..errors import DeviceUnavailable, ModelError, OvsError
from ..model_folder import ModelFolder, open_model_folder
from ..runtime import cuda_devices, import_onnxruntime, installed_runtimes, usable_cpus
from ..session import PROBE, Session, allowed_threads
from .hpi import PRECISIONS, HpiConfig
from .workloads import Workload, load_workload

logger = logging.getLogger("ovseg")

CLEARLY = 0.97
"""Another setting is taken if it needs less than this share of the default's time."""

_UNAVAILABLE = "unavailable: "
_SECONDS = 6.0  # for the turns of one setting
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 60


@dataclass(frozen=True)
class Setting:
    """How a model runs.

    Attributes:
        device: device string; None for `auto`.
        threads: threads of an operator on the CPU; None for ONNX Runtime's choice.
        provider_options: of the main provider, over those of the device.
        precision: `fp32`, or that of the folder `<folder>-<precision>` beside the model's.
    """

    device: str | None
    threads: int | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"

    def __str__(self) -> str:
        words = [self.device or "auto"]
        words += [f"{self.threads} thread{'s' if self.threads > 1 else ''}"] if self.threads else []
        words += [f"{name}={value}" for name, value in self.provider_options.items()]
        words += [self.precision] if self.precision != "fp32" else []
        return ", ".join(words)

    def apply(self, folder: ModelFolder, options: Mapping[str, Any]) -> tuple[ModelFolder, Device, dict[str, Any]]:
        """Return the folder, the device and the options of sessions that the setting stands for.

        Raises:
            ModelError: the model is not there in the precision.
        """
        device = resolve_device(self.device, provider_options=dict(self.provider_options) or None)
        if self.precision != "fp32":
            path = _sibling(folder, self.precision)
            if not path.is_dir():
                raise ModelError(
                    f"The model {folder.name} is not there in {self.precision}: there is no folder {path}.",
                    f"Make it with `ovs export --precision {self.precision}`, or leave the precision out.",
                )
            folder = open_model_folder(path)
        return folder, device, {**options, "threads": self.threads}


@dataclass(frozen=True)
class Trial:
    """What came of a setting.

    Attributes:
        setting: what was tried.
        seconds: median time of one sample image; None if it could not be used.
        ratio: median of its time over the default's, in turns; None if it could not be used.
        agreement: the least agreement with the default's results (IoU or cosine); None if it could not be used.
        verdict: `default`, `slower`, `as fast`, `faster`, `other results`, or `unavailable: ` (the device) or
            `cannot be used: ` (the setting) and why.
    """

    setting: Setting
    seconds: float | None = None
    ratio: float | None = None
    agreement: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Tuned:
    """The setting for a model, and what it was chosen among.

    Attributes:
        model: name of the model.
        setting: the choice.
        ratio: its time over the default's in sessions of their own; 1.0 for the default.
        trials: what was tried, the default first.
        facts: what the answer holds for: model, versions, machine.
    """

    model: str
    setting: Setting
    ratio: float
    trials: tuple[Trial, ...]
    facts: Mapping[str, Any]


def tuned(folder: ModelFolder, device: Device, config: HpiConfig) -> Tuned:
    """Return the setting that is remembered for a model; tune it, and say so, if there is none.

    Raises:
        OvsError: the default cannot be used.
    """
    if not config.tries:
        setting = Setting(device_text(device), config.threads, {}, config.precision or "fp32")
        return Tuned(folder.name, setting, 1.0, (), {})
    found = remembered(folder, device, config)
    if found is not None:
        return found
    logger.warning("%s is tuned for this machine, once; that takes a while.", folder.name)
    found = tune(folder, device, config)
    logger.warning("%s runs with: %s.", folder.name, found.setting)
    return found


def remembered(folder: ModelFolder, device: Device, config: HpiConfig) -> Tuned | None:
    """Return what an earlier `tune` found for this model, machine and ONNX Runtime, or None."""
    path = _path(_facts(folder, device, config))
    try:
        data = json.loads(path.read_text("utf-8"))
        trials = tuple(Trial(**{**trial, "setting": _setting(trial["setting"])}) for trial in data["trials"])
        numbers = [number for trial in trials for number in (trial.seconds, trial.ratio, trial.agreement)]
        for number in (data["ratio"], *(number for number in numbers if number is not None)):
            if not isinstance(number, float):
                raise TypeError(f"{number!r} is no number")
        if not 0 < data["ratio"] < math.inf:
            raise ValueError(f"the ratio {data['ratio']} has no meaning")
        for trial in trials:
            if not isinstance(trial.verdict, str):
                raise TypeError(f"the verdict {trial.verdict!r} is no text")
        setting = _setting(data["setting"])
        if setting not in [trial.setting for trial in trials]:
            raise ValueError("its setting is none of those that were tried")
        if any(trial.verdict.startswith(_UNAVAILABLE) and _is_there(trial.setting.device) for trial in trials):
            return None  # such as libraries that were installed since
        return Tuned(folder.name, setting, data["ratio"], trials, data["facts"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OvsError) as error:
        logger.warning("%s cannot be read (%s): the model is tuned again.", path, error)
        return None


def _setting(data: Mapping[str, Any]) -> Setting:
    """Return a setting that was kept, if all of it has a meaning."""
    setting = Setting(**data)
    resolve_device(setting.device, provider_options=setting.provider_options)
    whole = type(setting.threads) is int and setting.threads >= 1
    if not (setting.threads is None or whole) or setting.precision not in PRECISIONS:
        raise ValueError(f"{setting.threads!r} threads and the precision {setting.precision!r} have no meaning")
    return setting


def tune(
    folder: ModelFolder,
    device: Device,
    config: HpiConfig | None = None,
    *,
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuned:
    """Try the settings for a model and remember the fastest whose results agree with the default's.

    Args:
        folder: of the model.
        device: named, its kind is kept; not named, every kind that is here is tried.
        config: what is tried.
        on_trial: called after each setting.

    Returns:
        The answer. Where the cache cannot be written it is not remembered, and a warning says so.

    Raises:
        OvsError: the default cannot be used.
    """
    config = HpiConfig() if config is None else config
    facts = _facts(folder, device, config)
    default = Setting(device_text(device), config.threads, {}, config.precision or "fp32")
    reference = _load(folder, default)
    results = [reference.run(i) for i in range(reference.count)]
    seconds = statistics.median(_timed(reference) for _ in range(3))
    trials = [Trial(default, seconds, 1.0, 1.0, "default")]
    if on_trial:
        on_trial(trials[0])
    unavailable: set[str | None] = set()
    for setting in candidates(folder, device, config):
        if setting.device in unavailable:
            continue
        trials.append(_try(folder, setting, reference, results))
        if trials[-1].verdict.startswith(_UNAVAILABLE):
            unavailable.add(setting.device)
        if on_trial:
            on_trial(trials[-1])
    del reference
    chosen, ratio = default, 1.0
    for trial in sorted((t for t in trials if t.verdict == "faster"), key=lambda t: t.ratio or 1.0):
        again = measure(_load(folder, default), _load(folder, trial.setting))
        if again.verdict == "faster":
            chosen, ratio = trial.setting, again.ratio
            break
    answer = Tuned(folder.name, chosen, ratio, tuple(trials), facts)
    try:
        _remember(answer)
    except (OSError, OvsError) as error:  # no reason to lose what took a while
        logger.warning("The setting for %s cannot be kept for the next time. %s", folder.name, error)
    return answer


def candidates(folder: ModelFolder, device: Device, config: HpiConfig) -> list[Setting]:
    """Return the settings to try beside the default."""
    here = import_onnxruntime().get_available_providers()
    text = device_text(device)
    precisions = [p for p in PRECISIONS if p == "fp32" or (_sibling(folder, p) / "model.yaml").is_file()]
    if config.precision:
        precisions = [config.precision]
    found: list[Setting] = []
    for kind, provider in (("cpu", None), ("openvino", OPENVINO), ("gpu", CUDA), ("tensorrt", TENSORRT)):
        others = text is None and config.backend in (None, "onnxruntime" if kind in ("cpu", "gpu") else kind)
        if (device.kind == kind and text is not None) or (others and (provider is None or provider in here)):
            name = text or kind
            for precision in precisions:
                found += [Setting(name, t, o, precision) for t, o in _variants(kind, config)]
    default = Setting(text, config.threads, {}, config.precision or "fp32")
    return [setting for setting in found if setting != default]


def _variants(kind: str, config: HpiConfig) -> list[tuple[int | None, dict[str, str]]]:
    """Return threads and options to try on a kind of device."""
    if kind in ("cpu", "openvino"):
        cores = allowed_threads()
        counts = {1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores}
        return [(count, {}) for count in ([config.threads] if config.threads else sorted(counts))] or [(None, {})]
    if kind == "gpu":
        options: list[dict[str, str]] = [
            {},
            {"use_tf32": "1"},
            {"cudnn_conv_algo_search": "EXHAUSTIVE"},
            {"enable_cuda_graph": "1"},
            {"enable_cuda_graph": "1", "use_tf32": "1"},
        ]
    else:
        options = [{}, {"trt_fp16_enable": "1"}]
    return [(config.threads, each) for each in options]


@dataclass(frozen=True)
class Comparison:
    """Two workloads, timed in turns.

    Attributes:
        ratio: median of the second's time over the first's.
        upper: upper quartile of the same.
        seconds: median time of the second.
    """

    ratio: float
    upper: float
    seconds: float

    @property
    def verdict(self) -> str:
        """`faster` if clearly so, and in three turns of four; `slower` likewise; else `as fast`."""
        if self.ratio < CLEARLY and self.upper < 1:
            return "faster"
        return "slower" if self.ratio > 1 / CLEARLY else "as fast"


def measure(reference: Workload, other: Workload) -> Comparison:
    """Run two workloads in turns."""
    for workload in (reference, other):
        _timed(workload)
    once = _timed(reference) + _timed(other)
    rounds = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, int(_SECONDS / once)))
    ratios, seconds = [], []
    for turn in range(rounds):
        if turn % 2:
            theirs, ours = _timed(other), _timed(reference)
        else:
            ours, theirs = _timed(reference), _timed(other)
        ratios.append(theirs / ours)
        seconds.append(theirs)
    return Comparison(statistics.median(ratios), statistics.quantiles(ratios)[2], statistics.median(seconds))


def _timed(workload: Workload) -> float:
    started = time.perf_counter()
    workload.run(0)
    return time.perf_counter() - started


def _load(folder: ModelFolder, setting: Setting) -> Workload:
    return load_workload(*setting.apply(folder, {}))


def _try(folder: ModelFolder, setting: Setting, reference: Workload, results: list[Any]) -> Trial:
    try:
        workload = _load(folder, setting)
        agreement = min(workload.agree(results[i], workload.run(i)) for i in range(workload.count))
    except DeviceUnavailable as error:
        return Trial(setting, verdict=f"{_UNAVAILABLE}{error.cause}")
    except OvsError as error:
        return Trial(setting, verdict=f"cannot be used: {error.cause}")
    if agreement < workload.least:
        return Trial(setting, agreement=agreement, verdict="other results")
    found = measure(reference, workload)
    return Trial(setting, found.seconds, found.ratio, agreement, found.verdict)


def _is_there(device: str | None) -> bool:
    """Whether a device can be used now."""
    try:
        Session(PROBE, device)
    except OvsError:
        return False
    return True


def _sibling(folder: ModelFolder, precision: str) -> Path:
    """Return where `ovs export --precision` puts a model of another precision: beside the one of fp32."""
    return folder.path.with_name(f"{folder.path.name}-{precision}")


def _facts(folder: ModelFolder, device: Device, config: HpiConfig) -> dict[str, Any]:
    """Return all that an answer depends on."""
    folders = [folder]
    folders += [open_model_folder(path) for p in PRECISIONS if ((path := _sibling(folder, p)) / "model.yaml").is_file()]
    ort = import_onnxruntime()
    return {
        "model": {f.path.name: {role: entry["sha256"] for role, entry in f.facts["files"].items()} for f in folders},
        "ovseg": __version__,
        "onnxruntime": [ort.__version__, *installed_runtimes(), *ort.get_available_providers()],
        "machine": [platform.machine(), _processor(), usable_cpus(), allowed_threads(), *(cuda_devices() or ())],
        "asked": [device_text(device), asdict(config)],
    }


def _processor() -> str:
    """Name of the processor; platform.processor() gives none on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _path(facts: Mapping[str, Any]) -> Path:
    text = json.dumps(facts, sort_keys=True)
    return tuned_dir() / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _remember(answer: Tuned) -> None:
    path = _path(answer.facts)
    make_folder(path.parent)
    with locked(".tuned"):
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(answer), indent=1), encoding="utf-8")
        unfinished.replace(path)

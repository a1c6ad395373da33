"""Device strings such as `gpu:0` and the ONNX Runtime execution providers they stand for.

`import ovseg.device` does not import onnxruntime; the functions that need it do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, DeviceUnavailable
from .runtime import UNMAPPED, UNMAPPED_CURE, cuda_devices, import_onnxruntime, reinstall_command, runtime_conflict
from .schema import shown

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

OUT_OF_MEMORY = re.compile("(?i)allocate memory|bad_alloc|out of memory|alloc_failed")
"""What ONNX Runtime and its providers say when memory is short."""

ProviderRequests = Sequence["str | tuple[str, Mapping[str, object]]"]


@dataclass(frozen=True)
class Provider:
    """An ONNX Runtime execution provider and its options.

    Attributes:
        name: ONNX Runtime's name, such as `CUDAExecutionProvider`.
        options: option name to value, as the provider's page in ONNX Runtime's documentation lists them.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)

    def is_on(self, option: str) -> bool:
        """Whether an option is set to what ONNX Runtime reads as true."""
        return self.options.get(option) in ("1", "true", "True")


@dataclass(frozen=True)
class Device:
    """What a session is asked to run on.

    Attributes:
        kind: first part of the device string, such as `cpu` or `gpu`.
        index: which device of that kind, from 0.
        providers: execution providers in order of preference. The last is the CPU, which takes the graph
            nodes that the others do not support.
        named: True if the user named the device or its providers, so that not getting it is an error;
            False if ovseg chose it (`auto`), so that the CPU may take over.
    """

    kind: str
    index: int
    providers: tuple[Provider, ...]
    named: bool


@dataclass(frozen=True)
class _Kind:
    providers: tuple[Provider, ...]
    requirement: str  # what `pip install` takes to bring the provider
    indexed: bool = True  # takes `:n`, which becomes the option `device_id`
    parts: tuple[str, ...] = ()  # takes `:name` instead, which becomes the option `device_type`
    system: str = ""  # the only `sys.platform` that has it


_ON_CUDA = Provider(
    CUDA,
    {
        # The default doubles the arena each time: after one large image it holds up to twice what is needed.
        "arena_extend_strategy": "kSameAsRequested",
        # The default, EXHAUSTIVE, times every algorithm again for each new input shape (prompt counts vary).
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps 10 bits of the mantissa: results would not be those of the CPU. `ovs tune` tries it.
        "use_tf32": "0",
    },
)

_DEVICES: dict[str, _Kind] = {
    "cpu": _Kind((), '"ovseg[cpu]"', indexed=False),
    "gpu": _Kind((_ON_CUDA,), '"ovseg[gpu]"'),
    # The precision is CANN's own choice: its option has had two names.
    "npu": _Kind(
        (
            Provider(
                "CANNExecutionProvider",
                {"arena_extend_strategy": "kSameAsRequested", "dump_graphs": "0", "dump_om_model": "0"},
            ),
        ),
        '"ovseg[cann]"',
    ),
    # ovseg.engines adds the folder of the caches and the profiles, which depend on the model.
    "tensorrt": _Kind(
        (
            Provider(
                TENSORRT, {"trt_engine_cache_enable": "1", "trt_fp16_enable": "0", "trt_timing_cache_enable": "1"}
            ),
            _ON_CUDA,
        ),
        '"ovseg[gpu]"',
    ),
    "openvino": _Kind(
        (Provider(OPENVINO, {"device_type": "CPU"}),),
        "onnxruntime-openvino",
        indexed=False,
        parts=("CPU", "GPU", "NPU", "AUTO"),
    ),
    "dml": _Kind((Provider("DmlExecutionProvider"),), "onnxruntime-directml", system="win32"),
    "coreml": _Kind(
        (Provider("CoreMLExecutionProvider", {"MLComputeUnits": "ALL", "ModelFormat": "MLProgram"}),),
        '"ovseg[cpu]"',
        indexed=False,
        system="darwin",
    ),
}

# Devices that PaddleX runs on and for which ONNX Runtime has no provider that ovseg supports.
_PADDLE_ONLY = ("xpu", "mlu", "dcu", "gcu", "iluvatar_gpu", "metax_gpu")

_INDEX = "[0-9]{1,9}"  # int() refuses thousands of digits

_SYSTEMS = {"win32": "Windows", "darwin": "macOS"}

_FORMS = "Use one of: auto, " + ", ".join(
    f"{kind} or {kind}:<index>" if row.indexed else f"{kind}:{'|'.join(row.parts)}" if row.parts else kind
    for kind, row in _DEVICES.items()
)

# Main provider -> its row: tells of a provider given by name what brings it and whether it has an index.
_BY_PROVIDER = {row.providers[0].name: (kind, row) for kind, row in _DEVICES.items() if row.providers}


def resolve_device(
    device: str | None = None,
    *,
    providers: ProviderRequests | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> Device:
    """Turn a device string into an ordered list of execution providers.

    Whether the providers really work is known only once a session exists: `ovseg.session.Session` checks.

    Args:
        device: `cpu`, `gpu`, `gpu:1`, `npu:0`, `tensorrt:0`, `openvino`, `openvino:gpu`, `dml:0`, `coreml`, in
            any case; None or `auto` for the GPU where the installed ONNX Runtime has CUDA, else the CPU. A list
            of devices, `gpu:0,1` in PaddleX, is refused: a session runs on one device.
        providers: names or (name, options) pairs as in ONNX Runtime, with no options of ours; they replace those of
            `device`, which then gives the index only.
        provider_options: options of the main (first) provider, or provider name to options; they are laid
            over the defaults.

    Raises:
        ConfigError: a string, a provider or an option that has no meaning, or two that contradict each other.
        DeviceUnavailable: a device of PaddleX's that ONNX Runtime cannot run on.
        MissingExtra: `auto`, and ONNX Runtime is not installed.
    """
    kind, index, part = _parse(device)
    named = kind != "auto" or providers is not None
    if providers is not None:
        chosen = [_requested_provider(item) for item in _as_list(providers)]
        _check_order([provider.name for provider in chosen])
        _check_same(device, kind, chosen[0].name)
        kind = _kind_of(chosen[0].name)
    else:
        if kind == "auto":
            kind = "gpu" if CUDA in import_onnxruntime().get_available_providers() else "cpu"
        chosen = [Provider(p.name, dict(p.options)) for p in _DEVICES[kind].providers]
        if part is not None:
            chosen[0].options["device_type"] = part
    if CPU not in (provider.name for provider in chosen):
        chosen.append(Provider(CPU))
    _lay_over(chosen, {} if provider_options is None else provider_options, named)
    if options := next((provider.options for provider in chosen if provider.name == CPU), None):
        raise ConfigError(f"{CPU} is given {options}, and has no options.", "Leave them out.")
    for provider in chosen:
        if provider.name in _BY_PROVIDER and _BY_PROVIDER[provider.name][1].indexed:
            provider.options.setdefault("device_id", str(index))
    main_id = chosen[0].options.get("device_id", str(index))
    if not re.fullmatch(_INDEX, main_id):
        raise ConfigError(f"The provider option device_id is {main_id!r}, not a device index.", "Use 0, 1 and so on.")
    if isinstance(device, str) and ":" in device and int(main_id) != index:
        raise ConfigError(
            f"The device is {device!r} and the provider option device_id is {main_id}.", "Leave one of them out."
        )
    return Device(kind, int(main_id), tuple(chosen), named)


def device_text(device: Device) -> str | None:
    """Return the device string that a device of `resolve_device` stands for; None for `auto`."""
    if not device.named:
        return None
    row = _DEVICES.get(device.kind)
    if row is not None and row.parts:
        return f"{device.kind}:{device.providers[0].options.get('device_type', row.parts[0]).lower()}"
    return f"{device.kind}:{device.index}" if row is not None and row.indexed else device.kind


def known_providers() -> dict[str, tuple[str, str]]:
    """Each provider that has a device string, with that string and what `pip install` takes to bring it."""
    return {CPU: ("cpu", _DEVICES["cpu"].requirement)} | {
        name: (kind, row.requirement) for name, (kind, row) in _BY_PROVIDER.items()
    }


def is_elsewhere(provider: str) -> bool:
    """Whether a provider is of another operating system than this one."""
    system = _BY_PROVIDER[provider][1].system if provider in _BY_PROVIDER else ""
    return system not in ("", sys.platform)


def unavailable(
    provider: str, reason: str, *, missing: str = "", faulty: str = "", reinstall: bool = False
) -> DeviceUnavailable:
    """Build the error for a provider that was asked for and cannot be used.

    Args:
        provider: name of the execution provider.
        reason: why not, a clause without a full stop.
        missing: the shared library that the provider needs and that is not found, if that is the reason.
        faulty: path of a library of another package that is found and does not load, if that is the reason.
        reinstall: True if another installation of ONNX Runtime is the cure.
    """
    requirement = _BY_PROVIDER[provider][1].requirement if provider in _BY_PROVIDER else None
    conflict = runtime_conflict() if reinstall else None
    if UNMAPPED in reason:
        fix = UNMAPPED_CURE
    elif faulty:
        fix = f"Install the package of {faulty} again, in a version that fits, or take it off LD_LIBRARY_PATH"
    elif missing.startswith("libcuda.so"):
        fix = "Install the NVIDIA driver (a container needs the host's: docker run --gpus all)"
    elif tensorrt := re.fullmatch(r"libnv(?:infer\w*|onnxparser)\.so\.([0-9]+).*", missing):
        fix = f'Run: pip install "tensorrt=={tensorrt[1]}.*"'
    elif missing and requirement:
        fix = f"Run: pip install {requirement}"
    elif reinstall and is_elsewhere(provider):
        fix = f"It needs {_SYSTEMS[_BY_PROVIDER[provider][1].system]}"
    elif reinstall and requirement:
        fix = f"Run: {reinstall_command(requirement)}"
    elif reinstall:
        fix = f"Install an ONNX Runtime that has {provider}"
    elif OUT_OF_MEMORY.search(reason):
        fix = "The model does not fit into what is free of its memory: end what else uses it (for NVIDIA: nvidia-smi)"
    else:
        fix = "Check that the device exists, is free and has a driver that fits (for NVIDIA: nvidia-smi)"
    cause = f"{provider} cannot be used: {conflict or reason}."
    return DeviceUnavailable(cause, f'{fix}; or use device="cpu" (--device cpu).')


def no_such_index(device: Device) -> DeviceUnavailable | None:
    """Return the error for an index that no CUDA device has; None if it has one, or nothing can be counted."""
    present = cuda_devices() if any(provider.name == CUDA for provider in device.providers) else None
    if not present or device.index < len(present):
        return None
    return DeviceUnavailable(
        f"There is no {device.kind}:{device.index}: the CUDA devices here are "
        f"{', '.join(f'{index} ({name})' for index, name in enumerate(present))}.",
        f"Use {device.kind}:0 or another of these, and look at CUDA_VISIBLE_DEVICES.",
    )


def _parse(device: str | None) -> tuple[str, int, str | None]:
    """Split a device string into kind (`auto` included), index, and the part of a kind that has parts."""
    if device is None:
        return "auto", 0, None
    if not isinstance(device, str):
        raise ConfigError(f"The device is {shown(device)}, not a string.", f"{_FORMS}.")
    kind, colon, rest = device.strip().lower().partition(":")
    if kind in _PADDLE_ONLY:
        raise DeviceUnavailable(
            f"ONNX Runtime has no execution provider that ovseg supports for the device {shown(device)}.",
            f"{_FORMS}.",
        )
    if kind != "auto" and kind not in _DEVICES:
        raise ConfigError(f"The device {shown(device)} is not known.", f"{_FORMS}.")
    if not colon:
        return kind, 0, None
    row = _DEVICES.get(kind)
    if row is not None and row.parts:
        name, _, number = rest.partition(".")
        if name.upper() not in row.parts or (rest != name and not re.fullmatch("[0-9]+", number)):
            raise ConfigError(f"The device {shown(device)} is not known.", f"{_FORMS}.")
        return kind, 0, rest.upper()
    if row is None or not row.indexed:
        raise ConfigError(f"The device {shown(device)} has an index, which {kind} does not take.", f"{_FORMS}.")
    if not re.fullmatch(f"{_INDEX}(,{_INDEX})*", rest):
        raise ConfigError(f"The device {shown(device)} is not known.", f"{_FORMS}.")
    if "," in rest:
        first = f"{kind}:{rest.split(',')[0]}"
        raise ConfigError(
            f"The device {shown(device)} is a list, and a session runs on one device.",
            f"Use {first!r}, and one process for each further device.",
        )
    return kind, int(rest), None


def _check_same(device: str | None, kind: str, provider: str) -> None:
    """Refuse a first provider that contradicts the device beside it; one with an index lends only that."""
    if kind == "auto":
        return
    row = _DEVICES[kind]
    main = row.providers[0].name if row.providers else CPU
    if provider != main and (provider == CPU or not row.indexed):
        raise ConfigError(f"The device is {device!r} and the first provider {provider}.", "Leave one of them out.")


def _check_order(names: Sequence[str]) -> None:
    """Refuse providers of which one would not be used: ONNX Runtime leaves out the second of a name, and the CPU takes
    all nodes that those before it left.
    """
    if len(set(names)) < len(names) or CPU in names[:-1]:
        raise ConfigError(f"The providers are {', '.join(names)}.", f"Name each once, and {CPU} last.")


def _as_list(providers: object) -> list[object]:
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ConfigError(
            f"providers is {providers!r}, not a list of execution providers.",
            f"Give names or (name, options) pairs, such as [{CUDA!r}].",
        )
    return list(providers)


def _requested_provider(item: object) -> Provider:
    match item:
        case str(name) if name:
            return Provider(name)
        case (str(name), Mapping() as options) if name:
            return Provider(name, _as_options(name, options))
    raise ConfigError(f"The provider {item!r} is not a name or a (name, options) pair.", f"Use {CUDA!r}, say.")


def _as_options(name: str, options: Mapping[Any, object]) -> dict[str, str]:
    for key, value in options.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float):
            raise ConfigError(
                f"The option {key!r}: {value!r} of {name} is not a name with a string or a number.",
                "Use the option names of the provider's page in ONNX Runtime's documentation.",
            )
    return {key: str(value) for key, value in options.items()}


def _kind_of(provider: str) -> str:
    if provider in _BY_PROVIDER:
        return _BY_PROVIDER[provider][0]
    return provider.removesuffix("ExecutionProvider").lower()


def _lay_over(chosen: list[Provider], options: Mapping[str, object], named: bool) -> None:
    """Update the options of the chosen providers in place with the user's."""
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"provider_options is {options!r}, not a mapping.",
            "Give the options of the main provider, or {provider name: options}.",
        )
    if not options:
        return
    if not any(isinstance(value, Mapping) for value in options.values()):
        if not named:
            raise ConfigError(
                "provider_options are given for the device auto, which may be one provider or another.",
                'Name the device (device="gpu"), or give provider_options as {provider name: options}.',
            )
        options = {chosen[0].name: options}
    by_name = {provider.name: provider for provider in chosen}
    for name, values in options.items():
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"provider_options mixes the option {name!r} with options by provider name.",
                "Give the options of the main provider, or {provider name: options}.",
            )
        checked = _as_options(name, values)
        if name in by_name:
            by_name[name].options.update(checked)
        elif named or name not in _BY_PROVIDER:  # under auto, options may be for a provider this machine lacks
            raise ConfigError(
                f"provider_options names {name}, which is not asked for.",
                f"It may name {', '.join(by_name)}.",
            )

"""One ONNX model on one device: load it, check the provider really used, run it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .device import CPU, CUDA, Device, Provider, ProviderRequests, resolve_device, unavailable
from .errors import ConfigError, DeviceUnavailable, ModelError, OvsError
from .runtime import import_onnxruntime, load_failure, one_line, preload_libraries, usable_cpus

logger = logging.getLogger("ovseg")

_OPTIMIZATION = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# ONNX Runtime's names of the element types that numpy has.
_DTYPES = {"float": "float32", "double": "float64", "string": "object"} | {
    name: name for name in ("bool", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}

_LARGE = 1_000_000_000  # bytes of a model whose activations are gigabytes too
# Documented by ONNX Runtime as not safe to run from several threads at once.
_ONE_RUN_AT_A_TIME = frozenset({"DmlExecutionProvider"})

_said: set[int] = set()


class RunError(OvsError):
    """A model that was loaded and failed while running, such as for want of memory."""

    exit_code = 1


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        name: name in the graph.
        dtype: element type; `object` for strings.
        shape: one entry per axis: an int if fixed, the axis's name or None if free. Empty for a scalar and
            also where the model does not give the rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class Session:
    """An ONNX model loaded on a device. Safe to share: threads may call `run` at the same time.

    Attributes:
        inputs: inputs of the graph, in its order.
        outputs: outputs of the graph, in its order.
        device: the device really used; differs from the one asked for where `auto` ended on the CPU.
        providers: names of the execution providers really used, in order of preference.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        device: str | Device | None = None,
        *,
        threads: int | None = None,
        optimization: str = "all",
        providers: ProviderRequests | None = None,
        provider_options: Mapping[str, object] | None = None,
        profile: str | Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: path of an ONNX file, or its bytes.
            device: as in `ovseg.device.resolve_device`, or what that returned.
            threads: threads that one operator may use on the CPU; None leaves ONNX Runtime's choice (the
                physical cores), less where this process may use fewer.
            optimization: graph optimisation: `off`, `basic`, `extended` or `all`.
            providers: as in `ovseg.device.resolve_device`.
            provider_options: as in `ovseg.device.resolve_device`.
            profile: a folder for ONNX Runtime's profile, a JSON file that is written when the session goes; None
                for none.

        Raises:
            ModelError: the file is missing, or is not a model that ONNX Runtime can run.
            DeviceUnavailable: the device was named and its provider is not really used.
            ConfigError: an argument that has no meaning.
            MissingExtra: ONNX Runtime is not installed.
        """
        self._label = "the model given as bytes" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes):
            if not Path(model).is_file():
                raise ModelError(f"There is no model file {self._label}.", "Check the path.")
            model = str(model)
        if not isinstance(device, Device):
            device = resolve_device(device, providers=providers, provider_options=provider_options)
        elif providers is not None or provider_options is not None:
            raise ConfigError(
                "providers or provider_options are given next to a resolved Device.",
                "Give them to resolve_device.",
            )
        ort = import_onnxruntime()
        options = _session_options(ort, threads, optimization)
        if profile is not None:
            options.enable_profiling = True
            name = "model" if isinstance(model, bytes) else Path(model).stem
            options.profile_file_prefix = str(Path(profile) / f"{name}.profile")
        if not isinstance(model, bytes) and _size(Path(model)) > _LARGE:
            # A second run would set aside all activations in one piece, beside what the first has set aside.
            options.enable_mem_pattern = False
        self._session, self.device = self._open(ort, model, options, device)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.inputs = tuple(self._info(node) for node in self._session.get_inputs())
        self.outputs = tuple(self._info(node) for node in self._session.get_outputs())
        one_at_a_time = not _ONE_RUN_AT_A_TIME.isdisjoint(self.providers)
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if one_at_a_time else contextlib.nullcontext()
        )

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: input name to array; every input of the graph, with the dtype and shape of `inputs`.
            outputs: names of the outputs wanted; None for all.

        Returns:
            Output name to array, in the order of `outputs`.

        Raises:
            ConfigError: a name, dtype, rank or fixed dimension that the model does not have.
            RunError: the model failed, such as for want of memory.
        """
        self._check_feeds(feeds)
        known = [info.name for info in self.outputs]
        wanted = known if outputs is None else list(outputs)
        if unknown := [name for name in wanted if name not in known]:
            raise ConfigError(f"{self._label} has no output {unknown[0]!r}.", f"Its outputs are {', '.join(known)}.")
        if not wanted:  # ONNX Runtime takes an empty list for all
            return {}
        try:
            with self._turn:
                arrays = self._session.run(wanted, dict(feeds))
        except Exception as error:
            given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            short_of_memory = isinstance(error, MemoryError) or re.search(
                "(?i)allocate memory|bad_alloc|out of memory|alloc_failed", str(error)
            )
            raise RunError(
                f"{self._label} failed on {self.providers[0]} with {given}: {one_line(error)}.",
                "Give it smaller images or fewer prompts at once."
                if short_of_memory
                else "Set OVSEG_DEBUG=1 to see ONNX Runtime's log.",
            ) from error
        return dict(zip(wanted, arrays, strict=True))

    def warm_up(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        """Run once on zeros, so that the first real run does not pay for allocation and kernel choice.

        Args:
            shapes: input name to shape; inputs left out take their own shape, with 1 for each free axis.
        """
        sizes = {info.name: [n if isinstance(n, int) else 1 for n in info.shape] for info in self.inputs}
        dtypes = {info.name: info.dtype for info in self.inputs}
        sizes.update({name: list(shape) for name, shape in (shapes or {}).items()})
        self.run({name: np.zeros(size, dtypes.get(name)) for name, size in sizes.items()})

    def _open(self, ort: Any, model: str | bytes, options: Any, device: Device) -> tuple[Any, Device]:
        """Create the ONNX Runtime session, on the CPU if `device` cannot be used and was not named."""
        on_cpu = dataclasses.replace(device, kind="cpu", index=0, providers=(Provider(CPU),))
        if trouble := _not_compiled(ort, device):
            raise trouble
        try:
            session = _create(ort, model, options, device)
            trouble = _not_used(session, device)
        except Exception as error:
            # ONNX Runtime's exceptions do not tell a bad model from a bad device: the CPU does.
            try:
                session = _create(ort, model, options, on_cpu)
            except Exception as cpu_error:
                raise ModelError(
                    f"{self._label} cannot be loaded: {one_line(cpu_error)}.",
                    "Check that it is a whole ONNX file, and next to its external data if it has any.",
                ) from error
            trouble = _not_loaded(device.providers[0], one_line(error))
        if trouble is None:
            if not device.named:
                _say_once(logging.INFO, f"Device auto: running on {device.kind}.")
            return session, device
        if device.named:
            raise trouble
        _say_once(logging.WARNING, f"Device auto: running on cpu. {trouble}")
        return session, on_cpu

    def _info(self, node: Any) -> TensorInfo:
        element = node.type.removeprefix("tensor(").removesuffix(")")
        if element not in _DTYPES:
            raise ModelError(
                f"{node.name!r} of {self._label} has the type {node.type}, which numpy lacks.",
                "Export the model with float32 inputs and outputs.",
            )
        dtype = np.dtype(_DTYPES[element])
        return TensorInfo(node.name, dtype, tuple(node.shape))

    def _check_feeds(self, feeds: Mapping[str, np.ndarray]) -> None:
        expected = {info.name: info for info in self.inputs}
        if feeds.keys() != expected.keys():
            raise ConfigError(
                f"{self._label} was given the inputs {sorted(feeds)}.", f"Give exactly {sorted(expected)}."
            )
        for name, info in expected.items():
            array = feeds[name]
            if not isinstance(array, np.ndarray):
                raise ConfigError(
                    f"The input {name!r} of {self._label} is a {type(array).__name__}.", "Give a numpy array."
                )
            fits = not info.shape or (
                len(array.shape) == len(info.shape)
                and all(got == want for got, want in zip(array.shape, info.shape, strict=True) if isinstance(want, int))
            )
            if array.dtype != info.dtype or not fits:
                raise ConfigError(
                    f"The input {name!r} of {self._label} is {array.dtype} {list(array.shape)}.",
                    f"Give {info.dtype} [{', '.join('?' if n is None else str(n) for n in info.shape)}].",
                )


def _session_options(ort: Any, threads: int | None, optimization: str) -> Any:
    if optimization not in _OPTIMIZATION:
        raise ConfigError(f"The optimization {optimization!r} is not known.", f"Use one of {', '.join(_OPTIMIZATION)}.")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"The number of threads is {threads!r}.", "Use 1 or more, or None.")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMIZATION[optimization])
    options.inter_op_num_threads = 1
    # ONNX Runtime counts the cores of the machine, not those that a container or taskset leaves us.
    if threads is None and usable_cpus() < (os.cpu_count() or 1):
        threads = usable_cpus()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Errors are raised with their text, so there is no need to log them too.
    options.log_severity_level = 1 if _debug() else 4
    return options


def _size(model: Path) -> int:
    """Bytes of a model file and of its external data, which has the same name and more."""
    return sum(
        path.stat().st_size for path in model.parent.iterdir() if path.name.startswith(model.name) and path.is_file()
    )


def _debug() -> bool:
    return os.environ.get("OVSEG_DEBUG", "0") not in ("", "0")


def _create(ort: Any, model: str | bytes, options: Any, device: Device) -> Any:
    providers = [(provider.name, provider.options) for provider in device.providers]
    names = {provider.name for provider in device.providers}
    quiet = names != {CPU} and not _debug()
    if names & {CUDA, "TensorrtExecutionProvider"}:
        preload_libraries(ort)
    if quiet:  # a provider that cannot load is logged outside the session; we raise or log it ourselves
        ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    finally:
        if quiet:
            ort.set_default_logger_severity(2)  # ONNX Runtime's own default
    # Else a failing run would move to the CPU with no more than a print.
    session.disable_fallback()
    return session


def _not_compiled(ort: Any, device: Device) -> DeviceUnavailable | None:
    compiled = ort.get_available_providers()
    for provider in device.providers:
        if provider.name not in compiled:
            return unavailable(
                provider.name,
                f"the installed ONNX Runtime {ort.__version__} has only {', '.join(compiled)}",
                reinstall=True,
            )
    return None


def _not_used(session: Any, device: Device) -> DeviceUnavailable | None:
    """ONNX Runtime leaves out a provider that does not load and goes on: find out which and why."""
    used = session.get_providers()
    for provider in device.providers:
        if provider.name not in used:
            return _not_loaded(provider, "ONNX Runtime could not start it and went on without it")
    return None


def _not_loaded(provider: Provider, otherwise: str) -> DeviceUnavailable:
    reason, missing = load_failure(provider.name)
    return unavailable(provider.name, reason or otherwise, missing=missing)


def _say_once(level: int, message: str) -> None:
    if level not in _said:
        _said.add(level)
        logger.log(level, message)

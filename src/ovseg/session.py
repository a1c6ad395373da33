"""One ONNX model on one device: load it, check the provider really used, run it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .device import (
    CPU,
    CUDA,
    OPENVINO,
    OUT_OF_MEMORY,
    TENSORRT,
    Device,
    Provider,
    ProviderRequests,
    no_such_index,
    resolve_device,
    unavailable,
)
from .engines import give_up_engines, give_up_profiles, has_engines, kept_options, telling_of_build
from .errors import ConfigError, DeviceUnavailable, ModelError, OvsError
from .runtime import (
    debugging,
    import_onnxruntime,
    is_cut_off,
    libraries,
    load_failure,
    one_line,
    preload_libraries,
    provider_folder,
    usable_cpus,
)

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

PROBE = base64.b64decode(
    "CAgSADp3ChEKAXgKAXcSAW0iBk1hdE11bAoMCgFtEgF5IgRSZWx1EgVwcm9iZSojCAMIAhABQgF3ShgAAIA/AACAvwAAAEAAAAA/AABAwAAAgEBa"
    "EwoBeBIOCgwIARIICgIIAgoCCANiEwoBeRIOCgwIARIICgIIAgoCCAJCBAoAEA0="
)
"""A model that any device runs: y = Relu(x @ [[1, -1], [2, 0.5], [-3, 4]]), opset 13; x float32 [2, 3], y [2, 2]."""

_LARGE = 1_000_000_000  # bytes of a model whose activations are gigabytes too
_DML = "DmlExecutionProvider"
# Where a provider keeps tensors, as ONNX Runtime names it; the others keep them in the memory of the CPU.
_MEMORIES = {CUDA: "cuda", TENSORRT: "cuda", "CANNExecutionProvider": "cann", _DML: "dml"}
# Options that let a provider record a run as a CUDA graph, which reads and writes where the recorded run did.
_GRAPH_OPTIONS = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}
# Threads of a session that wait for work spin this long before they sleep. ONNX Runtime's own default is far longer:
# where another session, thread or process wants the core, it is lost to both.
_SPIN_MICROSECONDS = 20
_MOST_THREADS = 1024  # ONNX Runtime starts as many as it is told: a million takes minutes and gigabytes
_MOST_SAID = 300  # characters of a provider's message, which may have kilobytes
_SPINS_FOR_A_WHILE = (1, 26)  # the first ONNX Runtime that lets us set how long

_said: set[int] = set()

Tensor = Any
"""A numpy array, or an `OrtValue` of ONNX Runtime, which is not imported here."""


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
        threads: threads that one operator may use on the CPU.
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
            threads: threads that one operator may use on the CPU; None takes `OVSEG_THREADS`, or else leaves
                ONNX Runtime's choice (the physical cores), less where this process may use fewer.
            optimization: graph optimisation: `off`, `basic`, `extended` or `all`.
            providers: as in `ovseg.device.resolve_device`.
            provider_options: as in `ovseg.device.resolve_device`.
            profile: a folder for ONNX Runtime's profile, a JSON file that is written when the session goes; None
                for none.

        Raises:
            ModelError: the file is missing, or is not a model that ONNX Runtime can run.
            RunError: there is not enough memory to load it.
            DeviceUnavailable: the device was named and its provider is not really used.
            ConfigError: an argument that has no meaning.
            MissingExtra: ONNX Runtime is not installed.
        """
        if not isinstance(model, bytes | str | os.PathLike):
            raise ConfigError(f"The model is {model!r}.", "Give the path of a model, or its bytes.")
        self._label = "the model given as bytes" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes):
            if not os.path.isfile(model):  # noqa: PTH113 - Path.is_file raises on a name that is too long
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
        self.threads: int = options.intra_op_num_threads or usable_cpus()
        if threads is not None:
            device = _with_threads(device, threads)
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
        self._expected = {info.name: info for info in self.inputs}
        self._known = [info.name for info in self.outputs]
        self._memory = (_MEMORIES.get(self.providers[0], "cpu"), self.device.index)
        main = self.device.providers[0]
        graph = _GRAPH_OPTIONS.get(main.name, "")
        if replays := main.is_on(graph):
            check_fixed(self._label, (*self.inputs, *self.outputs), graph)
        self._replay = _Replay(self._session, self.outputs, self._memory) if replays else None
        # DirectML is documented as not safe to run from several threads at once.
        alone = replays or _DML in self.providers
        self._turns = _turns(1 if alone else 2 * usable_cpus() if self.providers == (CPU,) else 0)

    def run(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: input name to array, or to what `run_resident` returned; every input of the graph, with the dtype
                and shape of `inputs`.
            outputs: names of the outputs wanted; None for all.

        Returns:
            Output name to array, in the order of `outputs`.

        Raises:
            ConfigError: a name, dtype, rank or fixed dimension that the model does not have.
            RunError: the model failed, such as for want of memory.
        """
        arrays: dict[str, np.ndarray] = self._run(feeds, outputs, ("cpu", 0))
        return arrays

    def run_resident(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """As `run`, with outputs that stay in the memory of the device, where a session on it reads them.

        They are arrays where that is the memory of the CPU, or where runs are replayed as a CUDA graph; else ONNX
        Runtime's `OrtValue`, and `numpy()` of one copies it.
        """
        resident: dict[str, Tensor] = self._run(feeds, outputs, self._memory)
        return resident

    def _run(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None, memory: tuple[str, int]) -> Any:
        """Run with outputs in a memory: as arrays in that of the CPU. Small models run in a millisecond: no detours."""
        on_host = self._check_feeds(feeds)
        wanted = self._known if outputs is None else list(outputs)
        for name in wanted:
            if name not in self._known:
                raise ConfigError(
                    f"{self._label} has no output {name!r}.", f"Its outputs are {', '.join(self._known)}."
                )
        if not wanted:  # ONNX Runtime takes an empty list for all
            return {}
        to_host = memory[0] == "cpu"
        try:
            with next(self._turns):
                if self._replay is not None:  # what it leaves on the device the next writes over: it is copied
                    values = self._replay.run(feeds, wanted)
                elif to_host and on_host:
                    values = self._session.run(wanted, dict(feeds))
                else:
                    found = self._run_bound(feeds, wanted, memory)
                    values = [value.numpy() for value in found] if to_host else found
        except Exception as error:
            raise self._failed(feeds, error) from error
        return dict(zip(wanted, values, strict=True))

    def _run_bound(self, feeds: Mapping[str, Tensor], wanted: list[str], memory: tuple[str, int]) -> list[Any]:
        """Run with inputs where they are and outputs in a memory."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, _on_host(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in wanted:
            binding.bind_output(name, *memory)
        self._session.run_with_iobinding(binding)
        found: list[Any] = binding.get_outputs()
        return found

    def _failed(self, feeds: Mapping[str, Tensor], error: Exception) -> RunError:
        """Build the error of a run, which says what the model was given."""
        described = {name: _described(value) for name, value in feeds.items()}
        given = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in described.items())
        elsewhere = "" if self.device.kind == "cpu" else ', or use device="cpu" (--device cpu)'
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            return RunError(
                f"{self._label} failed on {self.providers[0]} with {given}: {one_line(error)}.",
                f"Set OVSEG_DEBUG=1 to see ONNX Runtime's log{elsewhere}.",
            )
        free = [info.name for info in self.inputs if info.shape and not isinstance(info.shape[0], int)]
        batch = max((described[name][1][0] for name in free), default=1)
        smaller = f"Use a batch of less than {batch} (batch_size, prompt_batch), or" if batch > 1 else "Give it"
        where = f"{self.providers[0]} with a batch of {batch}" if free else self.providers[0]
        return RunError(
            f"{self._label} ran out of memory on {where}, given {given}: {one_line(error)}.",
            f"{smaller} smaller images or fewer prompts at once{elsewhere}.",
        )

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
        if not {CUDA, TENSORRT}.isdisjoint(provider.name for provider in device.providers):
            preload_libraries(ort)
        if trouble := no_such_index(device):
            raise trouble
        try:
            accelerators = [provider.name for provider in device.providers if provider.name != CPU]
            for library in (path for name in accelerators for path in libraries(name)):
                if is_cut_off(library):  # the loader would end the process
                    raise OSError(f"{library} is cut off")
            session = _create(ort, model, options, device)
            trouble = _not_used(session, device)
        except Exception as error:
            # ONNX Runtime's exceptions do not tell a bad model from a bad device: the CPU does.
            try:
                session = _create(ort, model, options, on_cpu)
            except Exception as cpu_error:
                if isinstance(cpu_error, MemoryError) or OUT_OF_MEMORY.search(str(cpu_error)):
                    raise RunError(
                        f"There is not enough memory to load {self._label}: {one_line(cpu_error)}.",
                        "End what else uses it, raise its limit (ulimit -v, that of a container), or use a smaller "
                        "model.",
                    ) from error
                raise ModelError(
                    f"{self._label} cannot be loaded: {one_line(cpu_error)}.",
                    "Check that it is a whole ONNX file, and next to its external data if it has any.",
                ) from error
            trouble = _not_taken(ort, self._label, options, device, one_line(error))
        if trouble is None and not device.named and device.kind == "cpu" and libraries(CUDA):
            reason = f"its library is in {provider_folder()}, and the ONNX Runtime there was built without it"
            trouble = unavailable(CUDA, reason, reinstall=True)
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

    def _check_feeds(self, feeds: Mapping[str, Tensor]) -> bool:
        """Refuse what the graph does not take; return whether all inputs are arrays."""
        if feeds.keys() != self._expected.keys():
            raise ConfigError(
                f"{self._label} was given the inputs {sorted(feeds)}.", f"Give exactly {sorted(self._expected)}."
            )
        on_host = True
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                dtype, shape = value.dtype, value.shape
            elif hasattr(value, "data_ptr"):
                on_host, (dtype, shape) = False, _described(value)
            else:
                raise ConfigError(
                    f"The input {name!r} of {self._label} is a {type(value).__name__}.", "Give a numpy array."
                )
            info = self._expected[name]
            if dtype != info.dtype or not _fits(shape, info.shape):
                raise ConfigError(
                    f"The input {name!r} of {self._label} is {dtype} {list(shape)}.",
                    f"Give {info.dtype} [{', '.join('?' if n is None else str(n) for n in info.shape)}].",
                )
        return on_host


class _Replay:
    """A CUDA graph: the work of a first run, played again from the same memory. One run at a time."""

    def __init__(self, session: Any, outputs: Sequence[TensorInfo], memory: tuple[str, int]) -> None:
        self._session, self._outputs, self._memory = session, outputs, memory
        self._inputs: dict[str, Any] = {}

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> list[np.ndarray]:
        """Run with the inputs copied to where the graph reads them; return the outputs asked for."""
        if not self._inputs:
            self._bind(feeds)
        else:
            for name, value in feeds.items():
                self._inputs[name].update_inplace(_on_host(value))
        self._session.run_with_iobinding(self._binding)
        found = dict(zip((info.name for info in self._outputs), self._binding.copy_outputs_to_cpu(), strict=True))
        return [found[name] for name in wanted]

    def _bind(self, feeds: Mapping[str, Tensor]) -> None:
        value_class = import_onnxruntime().OrtValue
        self._binding = self._session.io_binding()
        for name, value in feeds.items():
            self._inputs[name] = value_class.ortvalue_from_numpy(_on_host(value), *self._memory)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for info in self._outputs:
            kept = value_class.ortvalue_from_shape_and_type(info.shape, info.dtype.type, *self._memory)
            self._binding.bind_ortvalue_output(info.name, kept)


def _turns(at_once: int) -> Iterator[contextlib.AbstractContextManager[Any]]:
    """Return what calls enter, one after the other, so that no more than so many are inside; all if 0.

    Each run has memory of its own, which ONNX Runtime keeps: 32 callers of SAM-tiny took 1.7 GB at once. A lock for
    each place loses none to Ctrl-C, as its own `with` is safe. A call waits for the lock whose turn it is, also while
    another is free; with two for each CPU that is rare, and small models run as fast as without a bound.
    """
    return itertools.cycle([threading.Lock() for _ in range(at_once)] or [contextlib.nullcontext()])


def check_fixed(label: str, tensors: Sequence[TensorInfo], option: str) -> None:
    """Refuse a CUDA graph of a model whose inputs and outputs are not all of one shape.

    Raises:
        ConfigError: naming the first that is not.
    """
    for info in tensors:
        if not info.shape or any(not isinstance(size, int) for size in info.shape):
            raise ConfigError(
                f"{option} is set, and {info.name!r} of {label} has no fixed shape.", "Leave the option out."
            )


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Whether a tensor has the rank and the fixed dimensions of an input, whose rank is free where it has none."""
    if len(shape) != len(wanted):
        return not wanted
    for got, want in zip(shape, wanted, strict=True):  # noqa: SIM110 - a generator takes longer than this
        if got != want and isinstance(want, int):
            return False
    return True


def _on_host(value: Tensor) -> np.ndarray:
    """Return an array whose elements follow each other, a copy if it has to be, as of a tensor on a device."""
    return np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())


def _described(value: Tensor) -> tuple[np.dtype[Any], Sequence[int]]:
    """Return dtype and shape of an array, or of a tensor that lies on a device."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    return np.dtype(_DTYPES[value.data_type()[7:-1]]), value.shape()


def _session_options(ort: Any, threads: int | None, optimization: str) -> Any:
    if not isinstance(optimization, str) or optimization not in _OPTIMIZATION:
        raise ConfigError(f"The optimization {optimization!r} is not known.", f"Use one of {', '.join(_OPTIMIZATION)}.")
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= _MOST_THREADS):
        raise ConfigError(f"The number of threads is {threads!r}.", f"Use 1 to {_MOST_THREADS}, or None.")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMIZATION[optimization])
    options.inter_op_num_threads = 1
    if threads is None:
        threads = _share()
    # ONNX Runtime counts the cores of the machine, not those that a container or taskset leaves us.
    if threads is None and usable_cpus() < (os.cpu_count() or 1):
        threads = usable_cpus()
    if threads is not None:
        options.intra_op_num_threads = threads
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) >= _SPINS_FOR_A_WHILE:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Errors are raised with their text, so there is no need to log them too.
    options.log_severity_level = 1 if debugging() else 4
    return options


def allowed_threads() -> int:
    """Return how many threads a session may have that is not told: `OVSEG_THREADS`, else the CPUs of this process.

    Raises:
        ConfigError: `OVSEG_THREADS` is no number of threads.
    """
    return _share() or usable_cpus()


def _share() -> int | None:
    """Return the threads that OVSEG_THREADS leaves to a session of this process; None where it is not set."""
    given = os.environ.get("OVSEG_THREADS", "").strip()
    if not given:
        return None
    if not given.isdecimal() or len(given) > len(str(_MOST_THREADS)) or not 1 <= int(given) <= _MOST_THREADS:
        raise ConfigError(f"OVSEG_THREADS is {given!r}.", f"Set it to 1 to {_MOST_THREADS}, or unset it.")
    return int(given)


def _size(model: Path) -> int:
    """Bytes of a model file and of its external data, which has the same name and more.

    0 where its folder may not be listed, which running it does not need.
    """
    try:
        beside = [path for path in model.parent.iterdir() if path.name.startswith(model.name)]
        return sum(path.stat().st_size for path in beside if path.is_file())
    except OSError:
        return 0


def _with_threads(device: Device, threads: int) -> Device:
    """Give the threads also to OpenVINO, which has threads of its own."""
    main, *others = device.providers
    if main.name != OPENVINO or "num_of_threads" in main.options:
        return device
    main = Provider(OPENVINO, {**main.options, "num_of_threads": str(threads)})
    return dataclasses.replace(device, providers=(main, *others))


def _create(ort: Any, model: str | bytes, options: Any, device: Device) -> Any:
    """Create a session. TensorRT gets a second try: without engines that do not load, or profiles that do not fit."""
    main = device.providers[0]
    if main.name == _DML:  # documented: it cannot plan its memory
        options.enable_mem_pattern = False
    kept = kept_options(main, model, _shapes(ort, model) if main.name == TENSORRT else {})
    had_engines = has_engines(kept)
    try:
        return _start(ort, model, options, device, kept)
    except Exception:
        if main.name != TENSORRT:
            raise
        if had_engines:
            logger.warning(
                "TensorRT cannot use the engines in %s and builds them again.", kept["trt_engine_cache_path"]
            )
            give_up_engines(kept)
        else:
            give_up_profiles(kept)
            kept = kept_options(main, model, _shapes(ort, model))
        return _start(ort, model, options, device, kept)


def _shapes(ort: Any, model: str | bytes) -> dict[str, tuple[int | str | None, ...]]:
    """Return the shape of each input of a graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=[CPU])
    return {node.name: tuple(node.shape) for node in session.get_inputs()}


def _start(ort: Any, model: str | bytes, options: Any, device: Device, kept: Mapping[str, str]) -> Any:
    main, *others = device.providers
    providers = [(main.name, {**main.options, **kept}), *((provider.name, provider.options) for provider in others)]
    quiet = main.name != CPU and not debugging()
    if quiet:  # a provider that cannot load is logged outside the session; we raise or log it ourselves
        ort.set_default_logger_severity(4)
    try:
        with (
            telling_of_build("the model given as bytes" if isinstance(model, bytes) else Path(model).stem, kept),
            # The libraries of accelerators start threads of their own, which are not ours to change.
            _threads_that_give_way() if main.name == CPU else contextlib.nullcontext(),
        ):
            session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    finally:
        if quiet:
            ort.set_default_logger_severity(2)  # ONNX Runtime's own default
    # Else a failing run would move to the CPU with no more than a print.
    session.disable_fallback()
    return session


@contextlib.contextmanager
def _threads_that_give_way() -> Iterator[None]:
    """Let the threads that are started in the body wait for a free CPU when they wake, on Linux.

    The caller and the session's threads take the blocks of an operator one by one, and it ends with the last of them.
    By default a thread that wakes may push another off its CPU, such as one in the middle of a block of another caller,
    session or process, which then waits for it. With SCHED_BATCH it does not, and where all CPUs are busy each caller
    does its blocks alone. Of a detector of 9 ms two callers get 1.15 of what one gets on two CPUs so, else 0.95; two
    processes 1.14, else 0.97. A caller that has the CPUs to itself sees no difference.
    """
    ours = False
    try:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                if ours := os.sched_getscheduler(0) == os.SCHED_OTHER:  # what it was given on purpose stays
                    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # of this thread, for those it starts
        yield
    finally:
        if ours:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


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


def _not_taken(ort: Any, label: str, options: Any, device: Device, reason: str) -> DeviceUnavailable:
    """Build the error for a device that did not load a model which the CPU did: for the one or for the other's sake."""
    main = device.providers[0]
    if OUT_OF_MEMORY.search(reason) or not _works(ort, options, device):
        return _not_loaded(main, reason)
    # A provider tells where it was first, and what happened last.
    end = reason if len(reason) <= _MOST_SAID else f"... {reason[-_MOST_SAID:].partition(' ')[2]}"
    return DeviceUnavailable(
        f"{main.name} works, but not with {label}: {end}.",
        'Use another device for this model, such as device="cpu" (--device cpu); OVSEG_DEBUG=1 shows all.',
    )


def _works(ort: Any, options: Any, device: Device) -> bool:
    """Whether a device loads a model that any does."""
    if load_failure(device.providers[0].name) is not None:  # its library may end the process when it is tried again
        return False
    try:
        return _not_used(_create(ort, PROBE, options, device), device) is None
    except Exception:
        return False


def _not_loaded(provider: Provider, otherwise: str) -> DeviceUnavailable:
    if provider.name in (CUDA, TENSORRT) and not libraries(provider.name):
        return unavailable(provider.name, f"its library is not in {provider_folder()}", reinstall=True)
    failure = load_failure(provider.name)
    if failure is None:
        return unavailable(provider.name, otherwise)
    # A library of ONNX Runtime's that does not load, and for no fault of another, is damaged or of another version.
    own = not failure.missing and not failure.faulty
    return unavailable(provider.name, failure.reason, missing=failure.missing, faulty=failure.faulty, reinstall=own)


def _say_once(level: int, message: str) -> None:
    if level not in _said:
        _said.add(level)
        logger.log(level, message)

"""`hpi_config`, PaddleX's settings of high-performance inference: what of them has a meaning here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..device import Device, resolve_device
from ..errors import ConfigError
from .config import check_keys, whole_number

PRECISIONS = ("fp32", "fp16", "int8")
_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
_KEYS = ("auto_config", "backend", "backend_config")
# What PaddleX needs to know and model folders say: whether to convert the model, and for what shapes.
_NEEDLESS = ("auto_paddle2onnx", "dynamic_shapes")


@dataclass(frozen=True)
class HpiConfig:
    """What `ovs tune` and `use_hpip` may choose among.

    Attributes:
        backend: `onnxruntime`, `openvino` or `tensorrt`; None for any.
        threads: the number of threads; None for the fastest.
        precision: `fp32`, `fp16` or `int8`; None for the fastest whose results agree.
        tries: whether settings are tried; if not, these are taken as they are.
    """

    backend: str | None = None
    threads: int | None = None
    precision: str | None = None
    tries: bool = True

    def device(self, device: Device) -> Device:
        """Return the device that a backend stands for, beside the one that was asked for.

        Raises:
            ConfigError: the two contradict each other.
        """
        if self.backend is None or self.backend == device.kind:
            return device
        others = {"openvino": "cpu", "tensorrt": "gpu"}  # backends that are devices too, and what they stand in for
        instead_of = others.get(self.backend)
        if device.named and (device.kind in others or instead_of not in (None, device.kind)):
            raise ConfigError(
                f"The device is {device.kind} and the backend of hpi_config {self.backend}.", "Leave one of them out."
            )
        if instead_of is None:
            return device
        index = f":{device.index}" if self.backend == "tensorrt" and device.index else ""
        return resolve_device(f"{self.backend}{index}")


def read_hpi_config(config: Any) -> HpiConfig:
    """Check `hpi_config`.

    Args:
        config: a mapping with PaddleX's keys `auto_config`, `backend` and `backend_config` (of that
            `cpu_num_threads` and `precision`), or None.

    Raises:
        ConfigError: a key or value that has no meaning here.
    """
    where = "hpi_config"
    given = check_keys(_without_needless({} if config is None else config), _KEYS, where)
    backend, tries = given.get("backend"), given.get("auto_config", True)
    if backend is not None and backend not in _BACKENDS:
        raise ConfigError(f"{where} has the backend {backend!r}, which is not here.", f"Use {', '.join(_BACKENDS)}.")
    if not isinstance(tries, bool):
        raise ConfigError(f"{where} has the auto_config {tries!r}.", "Use true or false.")
    details = _without_needless(given.get("backend_config", {}))
    details = check_keys(details, ("cpu_num_threads", "precision"), f"{where}: backend_config")
    threads, precision = details.get("cpu_num_threads"), details.get("precision")
    if threads is not None:
        whole_number(threads, "cpu_num_threads", 1)
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(f"{where} has the precision {precision!r}.", f"Use {', '.join(PRECISIONS)}.")
    return HpiConfig(backend, threads, precision, tries)


def _without_needless(mapping: Any) -> Any:
    if not isinstance(mapping, Mapping):
        return mapping
    return {key: value for key, value in mapping.items() if key not in _NEEDLESS}

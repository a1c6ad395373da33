"""What all pipelines have in common: devices, reading images, and going on after a bad one."""

from __future__ import annotations

import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..device import Device, ProviderRequests, resolve_device
from ..errors import ConfigError, ModelError, OvsError
from ..images import DEFAULT_MAX_PIXELS, Image, read_images
from ..results.base import Result
from ..zoo import ModelFolder
from .config import check_keys, whole_number
from .hpi import read_hpi_config

logger = logging.getLogger("ovseg")

Model = TypeVar("Model")

OnError = Callable[[OvsError], None]


class Pipeline(ABC):
    """A pipeline: images in, results out. Safe to use from several threads at once.

    Args:
        config: configuration; keys that the pipeline does not know are refused.
        where: how messages name the configuration.
        device: device of a `predict` that names none.
        providers: ONNX Runtime execution providers instead of those of the device.
        provider_options: options of the providers.
        threads: threads of one operator; None leaves it to ONNX Runtime.
        optimization: graph optimisation level.
        max_pixels: images with more pixels are refused; None is the default of `read_images`, 0 no limit.
        profile: a folder for ONNX Runtime's profiles, one for each session, written when it goes.
        use_hpip: run each model with its fastest setting on this machine, as `ovs tune` finds it: the one that is
            remembered, or it is looked for when the model is loaded.
        hpi_config: what is tried; see `ovseg.pipelines.hpi`. Without effect where `use_hpip` is false.
    """

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ("pipeline_name", "SubModules", "max_pixels")

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        where: str = "The configuration",
        device: str | Device | None = None,
        providers: ProviderRequests | None = None,
        provider_options: Mapping[str, object] | None = None,
        threads: int | None = None,
        optimization: str = "all",
        max_pixels: int | None = None,
        profile: str | None = None,
        use_hpip: bool = False,
        hpi_config: Any = None,
    ) -> None:
        if use_hpip and (threads is not None or providers is not None or provider_options is not None):
            raise ConfigError(
                "use_hpip chooses threads and providers, and some are given as well.",
                "Leave out use_hpip, or threads, providers and provider_options.",
            )
        self._hpi = read_hpi_config(hpi_config) if use_hpip else None
        self._settings = check_keys(config or {}, self.keys, where)
        if isinstance(device, Device):
            self.device = device
        else:
            self.device = resolve_device(device, providers=providers, provider_options=provider_options)
        self._session_options: dict[str, Any] = {"threads": threads, "optimization": optimization, "profile": profile}
        self._models: dict[tuple[Path, str], Any] = {}
        self._loading = threading.Lock()
        max_pixels = self._settings.get("max_pixels") if max_pixels is None else max_pixels
        self._max_pixels = DEFAULT_MAX_PIXELS if max_pixels is None else whole_number(max_pixels, "max_pixels", 0)

    @abstractmethod
    def predict(self, input: Any, *args: Any, **kwargs: Any) -> Iterator[Result]:
        """Return an iterator of results, one for each image of `input`, made as they are asked for."""

    def _sub_modules(self, known: Mapping[str, Collection[str]], where: str) -> dict[str, dict[str, Any]]:
        """Return the settings of each sub-module; `known` maps their names to the keys that they may have.

        Raises:
            ConfigError: a sub-module or a key that is not known.
        """
        modules = check_keys(self._settings.get("SubModules", {}), known, where)
        return {name: check_keys(modules.get(name, {}), keys, f"{where}: {name}") for name, keys in known.items()}

    def _loaded(
        self, folder: ModelFolder, device: Device, load: Callable[[ModelFolder, Device, Mapping[str, Any]], Model]
    ) -> Model:
        """Return the model of a folder on a device; `load` makes it the first time, with options of its sessions."""
        with self._loading:
            key = (folder.path, repr(device))  # a Device holds dicts, so it cannot be hashed
            if key not in self._models:
                self._models[key] = load(*self._tuned(folder, device))
            model: Model = self._models[key]
            return model

    def _tuned(self, folder: ModelFolder, device: Device) -> tuple[ModelFolder, Device, dict[str, Any]]:
        """Return folder, device and options of sessions: as asked for, or the fastest with `use_hpip`."""
        if self._hpi is None:
            return folder, device, self._session_options
        from .tuning import tuned

        return tuned(folder, self._hpi.device(device), self._hpi).setting.apply(folder, self._session_options)

    def _device(self, device: str | Device | None) -> Device:
        """Return the device of one call: the pipeline's own where none is named."""
        if device is None:
            return self.device
        return device if isinstance(device, Device) else resolve_device(device)

    def _results(
        self, source: Any, make_result: Callable[[Image], Result], on_error: OnError | None
    ) -> Iterator[Result]:
        """As `_batched_results`, with a function that makes one image's result."""
        return self._batched_results(source, lambda images: [make_result(images[0])], on_error, 1)

    def _batched_results(
        self,
        source: Any,
        make_results: Callable[[list[Image]], list[Result]],
        on_error: OnError | None,
        batch_size: int,
    ) -> Iterator[Result]:
        """Yield the result of each image in order; one that fails is reported and the rest goes on.

        Where the source is one image and no more, there is no rest: its error is raised. An error of the
        model is raised as well, since no image would do better.

        Args:
            source: what `read_images` takes.
            make_results: makes the results of up to `batch_size` images, or raises an OvsError; a batch that
                fails is tried again image by image.
            on_error: gets the error of each bad image, also of an only one; None logs a warning.
            batch_size: images that are read ahead and handed over together.
        """
        errors = _Errors(on_error)
        images = iter(read_images(source, on_error=errors.add, max_pixels=self._max_pixels))
        while batch := list(itertools.islice(images, batch_size)):
            results = deque(_attempt(batch, make_results, errors))
            # Nothing is kept here that the caller has let go of: memory stays flat.
            batch.clear()
            while results:
                yield results.popleft()
        errors.finish()


def _attempt(batch: list[Image], make_results: Callable[[list[Image]], list[Result]], errors: _Errors) -> list[Result]:
    """Return the results of a batch; without those that fail also when they are alone."""
    try:
        results = make_results(batch)
    except ModelError:
        raise
    except OvsError as error:
        if len(batch) == 1:
            errors.add(error)
            return []
    else:
        errors.not_alone()
        return results
    return [result for image in batch for result in _attempt([image], make_results, errors)]


class _Errors:
    """Reports the errors of a stream, holding the first back until it is known not to be the only item."""

    def __init__(self, on_error: OnError | None) -> None:
        self._report = _log if on_error is None else on_error
        self._only: OvsError | None = None
        self._may_be_only = on_error is None

    def add(self, error: OvsError) -> None:
        if self._may_be_only and self._only is None:
            self._only = error
        else:
            self.not_alone()
            self._report(error)

    def not_alone(self) -> None:
        self._may_be_only = False
        if self._only is not None:
            only, self._only = self._only, None
            self._report(only)

    def finish(self) -> None:
        if self._only is not None:
            raise self._only


def _log(error: OvsError) -> None:
    logger.warning("%s", error)


def origin(image: Image) -> dict[str, Any]:
    """Return the keys of a result that say where its image comes from; `frame_index` only of a video's frame."""
    found: dict[str, Any] = {"input_path": image.path, "page_index": image.page_index}
    return found if image.frame_index is None else found | {"frame_index": image.frame_index}

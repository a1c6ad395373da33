"""Ours: a pipeline's `predict`, or the code of a pipeline that runs one model, on pixels that are in memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from serve import CLOCKS, Clocks, now  # beside this file, which is a script

import ovseg.pipelines.base
from ovseg import create_pipeline
from ovseg.device import resolve_device
from ovseg.images import read_images
from ovseg.model_folder import open_model_folder
from ovseg.pipelines.detector import Detector
from ovseg.pipelines.embedder import Embedder
from ovseg.pipelines.sam import SamModel
from ovseg.pipelines.segmenter import Segmenter
from ovseg.stages.prompts import parse_boxes

Call = Callable[[int], Any]
Number = Callable[[Any], float]
Event = tuple[str, Clocks, Clocks]
Run = tuple[Any, list[str], dict[str, np.ndarray]]
INSTANCES = 20  # are kept of a model that finds nothing with its own threshold, such as one of random weights


class Watch:
    """Where the time of a call goes: it is told when an image is read and when a session runs."""

    def __init__(self) -> None:
        self.events: list[Event] | None = None
        self.runs: list[Run] | None = None

    def install(self) -> None:
        """Watch ONNX Runtime's sessions, by whichever way they are run, and the pipelines' reading."""
        session = onnxruntime.InferenceSession
        for way in ("run", "run_with_iobinding"):
            setattr(session, way, self._watched(getattr(session, way)))
        binding = onnxruntime.IOBinding
        for way in ("bind_cpu_input", "bind_ortvalue_input", "bind_output"):
            setattr(binding, way, self._noted(getattr(binding, way)))
        reading = read_images

        def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
            images = reading(*arguments, **options)
            while True:
                start = now()
                try:
                    image = next(images)
                except StopIteration:
                    return
                if self.events is not None:
                    self.events.append(("read", start, now()))
                yield image

        setattr(ovseg.pipelines.base, "read_images", watched)  # noqa: B010 - the name is not that module's own

    def _noted(self, bind: Any) -> Any:
        """While runs are recorded, keep on a binding what is bound to it: it does not tell."""

        @functools.wraps(bind)
        def noted(binding: Any, name: str, *value: Any) -> Any:
            if self.runs is not None:
                feeds, names = binding.__dict__.setdefault("noted", ({}, []))
                if bind.__name__ == "bind_output":
                    names.append(name)
                else:
                    feeds[name] = value[0]
            return bind(binding, name, *value)

        return noted

    def _watched(self, run: Any) -> Any:
        @functools.wraps(run)
        def watched(session: Any, *arguments: Any, **options: Any) -> Any:
            if self.runs is not None:
                if run.__name__ == "run":
                    names, feeds = arguments[:2]
                else:
                    feeds, names = arguments[0].noted
                arrays = {name: _array(value) for name, value in feeds.items()}
                self.runs.append((session, list(names), arrays))
            if self.events is None:
                return run(session, *arguments, **options)
            start = now()
            outputs = run(session, *arguments, **options)
            self.events.append(("session", start, now()))
            return outputs

        return watched


def _array(value: Any) -> np.ndarray:
    """A copy of an array, or of a tensor of ONNX Runtime."""
    return np.array(value) if isinstance(value, np.ndarray) else np.asarray(value.numpy())


class Side:
    """Something of ours.

    Attributes:
        call: runs it once with a batch; returns what it found.
        number: makes of that a number that tells whether others find the same.
        settings: what the other sides must use as well.
    """

    def __init__(self, call: Call, number: Number, watch: Watch, settings: dict[str, Any]) -> None:
        self._watch, self.settings = watch, settings
        self.call, self.number = call, number

    def stages(self, batch: int) -> dict[str, dict[str, float]]:
        """Seconds of a call by stage; what comes before the last run of a session is preprocessing."""
        events: list[Event] = []
        self._watch.events = events
        begin = now()
        self.call(batch)
        end = now()
        self._watch.events = None
        last = max((after for kind, _, after in events if kind == "session"), default=begin)
        found: dict[str, dict[str, float]] = {}
        for clock, name in enumerate(CLOCKS):
            spent = dict.fromkeys(("read", "session"), 0.0)
            late = 0.0
            for kind, start, after in events:
                spent[kind] += after[clock] - start[clock]
                late += (after[clock] - start[clock]) * (start >= last)
            spent["postprocess"] = end[clock] - last[clock] - late
            spent["preprocess"] = end[clock] - begin[clock] - sum(spent.values())
            for stage in ("read", "preprocess", "session", "postprocess"):
                found.setdefault(stage, {})[name] = spent[stage]
        return found

    def record(self, batch: int, folder: str) -> list[dict[str, Any]]:
        """Run once and write what the sessions are given; return model, outputs and file of each run."""
        runs: list[Run] = []
        self._watch.runs = runs
        self.call(batch)
        self._watch.runs = None
        found = []
        for number, (session, outputs, feeds) in enumerate(runs):
            path = Path(folder) / f"{batch}-{number}.npz"
            np.savez(path, **feeds)  # type: ignore[arg-type]
            options = session.get_provider_options()
            found.append(
                {
                    "model": session._model_path,
                    "outputs": outputs,
                    "feeds": str(path),
                    "providers": [[name, options[name]] for name in session.get_providers()],
                }
            )
        return found


def load(request: dict[str, Any]) -> Side:
    """Make what the request names."""
    cv2.setNumThreads(request["threads"])
    watch = Watch()
    watch.install()
    subject = request["subject"]
    makers = {
        "open_vocabulary_segmentation": _promptable,
        "instance_segmentation": _instances,
        "PP-ShiTuV2": _recognition,
        "sam encoder": _sam_encoder,
        "sam decoder": _sam_decoder,
        "picodet": _detector,
        "shitu_rec": _embedder,
        "clip_vit": _embedder,
    }
    settings: dict[str, Any] = {}
    maker = makers.get(subject["runs"], _segmenter)
    return Side(*maker(subject, request, settings), watch, settings)


def _boxes(results: list[Any]) -> float:
    return float(sum(len(result["boxes"]) for result in results))


def _area(masks: Iterable[np.ndarray]) -> float:
    return float(sum(np.count_nonzero(mask) for mask in masks))


def _pixels(subject: dict[str, Any]) -> np.ndarray:
    (image,) = read_images(subject["image"])
    return image.pixels


def _options(request: dict[str, Any]) -> dict[str, Any]:
    return {"device": request["device"], "threads": request["threads"]}


def _model(subject: dict[str, Any], request: dict[str, Any], make: Any, **options: Any) -> Any:
    folder = open_model_folder(subject["folders"]["model"])
    return make(folder, resolve_device(request["device"]), session_options={"threads": request["threads"]}, **options)


def _promptable(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    pipeline: Any = create_pipeline(
        subject["runs"], model_dir=subject["folders"]["model"], embedding_cache=0, **_options(request)
    )

    def call(batch: int) -> list[Any]:
        return list(pipeline.predict([subject["image"]] * batch, prompt=subject["boxes"], prompt_type="box"))

    return call, lambda results: _area(mask for result in results for mask in result["masks"])


def _instances(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    pipeline: Any = create_pipeline(subject["runs"], model_dir=subject["folders"]["model"], **_options(request))

    def call(batch: int) -> list[Any]:
        images = [subject["image"]] * batch
        return list(pipeline.predict(images, threshold=settings["threshold"], batch_size=batch))

    settings["threshold"] = 0.5
    if not _boxes(call(1)):
        settings["threshold"] = 0.0
        (result,) = call(1)
        settings["threshold"] = _between(sorted((box["score"] for box in result["boxes"]), reverse=True))
    return call, _boxes


def _between(scores: list[float]) -> float:
    """The threshold that keeps the first `INSTANCES` of falling scores."""
    pairs = list(itertools.pairwise([*scores, 0.0]))[:INSTANCES]
    return float(sum(pairs[-1]) / 2) if pairs else 0.5


def _recognition(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    folders = subject["folders"]
    pipeline: Any = create_pipeline(
        subject["runs"], det_model_dir=folders["detection"], model_dir=folders["recognition"], **_options(request)
    )
    index = pipeline.build_index(subject["gallery"], subject["labels"], index_type="Flat")

    def call(batch: int) -> list[Any]:
        return list(pipeline.predict([subject["image"]] * batch, index=index, batch_size=batch))

    return call, _boxes


def _sam_encoder(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    model, pixels = _model(subject, request, SamModel, batch=16), _pixels(subject)

    def call(batch: int) -> None:
        for _ in range(batch):
            model.embed(pixels)

    return call, lambda nothing: 0.0


def _sam_decoder(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    model, pixels = _model(subject, request, SamModel, batch=16), _pixels(subject)
    embedding = model.embed(pixels)
    prompts = {batch: parse_boxes([subject["boxes"][0]] * batch) for batch in subject["batches"]}
    return lambda batch: model.segment(embedding, prompts[batch]), _area


def _detector(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    model, pixels = _model(subject, request, Detector), _pixels(subject)
    thresholds = np.full(1, 0.5, np.float32)
    return (
        lambda batch: model.detect([pixels] * batch, thresholds),
        lambda found: float(sum(len(one.boxes) for one in found)),
    )


def _embedder(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    model, pixels = _model(subject, request, Embedder, batch_size=16), _pixels(subject)
    return lambda batch: model.embed([pixels] * batch), lambda found: float(np.abs(found).sum())


def _segmenter(subject: dict[str, Any], request: dict[str, Any], settings: dict[str, Any]) -> tuple[Call, Number]:
    model, pixels = _model(subject, request, Segmenter), _pixels(subject)
    count = len(open_model_folder(subject["folders"]["model"]).labels)

    def call(batch: int) -> list[Any]:
        thresholds = np.full(count, settings["threshold"], np.float32)
        if model.takes_batches:
            return list(model.segment([pixels] * batch, thresholds))
        return [model.segment([pixels], thresholds)[0] for _ in range(batch)]

    settings["threshold"] = 0.5
    if not len(call(1)[0].scores):
        settings["threshold"] = 0.0
        settings["threshold"] = _between(sorted(call(1)[0].scores.tolist(), reverse=True))
    return call, lambda found: float(sum(len(one.scores) for one in found))

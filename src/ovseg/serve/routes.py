"""The routes of each pipeline: from a body to a result, by way of its queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from fastapi import FastAPI, Request

from ..device import Device
from ..errors import ConfigError, GalleryError, ImageError, OvsError, PromptError
from ..index import Gallery, Index
from ..pipelines.image_recognition import ImageRecognitionPipeline
from ..pipelines.instance_segmentation import InstanceSegmentationPipeline
from ..pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ..results.instance_segmentation import InstanceSegmentationResult
from ..stages.detection import rounded_boxes
from .batching import Queue, in_groups, one_by_one
from .fetch import FetchError, fetch, is_url
from .images import encode_jpeg, encode_mask, read_image
from .indexes import IndexStore
from .metrics import Metrics
from .schemas import (
    AddRequest,
    BuildRequest,
    BuildResult,
    DetectedObject,
    Failure,
    ImageLabelPair,
    IndexResult,
    Instance,
    InstanceRequest,
    InstanceResult,
    MaskInfo,
    PromptRequest,
    PromptResult,
    Recognised,
    RecognitionRequest,
    RecognitionResult,
    RemoveRequest,
    Success,
)
from .settings import Settings

# Pictures for an index that are decoded at a time.
_IMAGES_AT_ONCE = 16

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": meaning}
    for status, meaning in {
        400: "The body is not JSON that can be read.",
        401: "The service wants a token.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        421: "The service listens on loopback only, and was asked by another name.",
        422: "The body is not as described here, or the image or the prompts cannot be used.",
        500: "The service failed.",
        503: "Too many requests are waiting; `Retry-After` says when to try again.",
        504: "There was no result in time.",
    }.items()
}


class Context:
    """What the routes of all pipelines share.

    Args:
        settings: what is allowed.
        metrics: gets the figures of the queues.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._queues: list[Queue[Any, Any]] = []
        self._downloads = asyncio.Semaphore(settings.max_downloads)

    def queue(
        self,
        name: str,
        run: Callable[[Sequence[JobT]], Sequence[ResultT | BaseException]],
        device: Device | None = None,
    ) -> Queue[JobT, ResultT]:
        """Return a queue for a pipeline, of batches where the `device` that runs them is given."""
        settings = self.settings
        max_batch, window = 1, 0.0
        if device is not None:
            max_batch = settings.max_batch or (1 if device.kind == "cpu" else 8)
            window = settings.batch_window
        queue = Queue(
            run,
            workers=settings.workers,
            limit=settings.queue,
            # A request that could only end in 504 is better told at once.
            patience=settings.deadline / 2,
            max_batch=max_batch,
            window=window,
            on_batch=lambda size: self._metrics.count_batch(name, size),
        )
        self._queues.append(queue)
        self._metrics.watch_queue(name, queue.__len__)
        return queue

    async def load(self, image: str, request: Request) -> str | bytes:
        """Return an image of a request: as Base64, as it is, or the file that its URL names.

        Raises:
            FetchError: URLs are not fetched, or this one could not be.
            Refused: the request has become too large.
        """
        if not is_url(image):
            return image
        if not self.settings.allow_url:
            raise FetchError("This service does not fetch URLs.", "Send the image itself, as Base64.")
        settings = self.settings
        async with self._downloads:
            data = await asyncio.to_thread(
                fetch,
                image,
                max_bytes=settings.max_body,
                timeout=settings.url_timeout,
                max_redirects=settings.max_redirects,
            )
        request.state.hold(len(data))
        return data

    def visualize(self, asked: bool | None) -> bool:
        """Whether a response has a picture."""
        return self.settings.visualize if asked is None else asked

    def close(self) -> None:
        """End the worker threads."""
        for queue in self._queues:
            queue.close()


# ---------------------------------------------------------------- open vocabulary segmentation


@dataclass(frozen=True, eq=False)
class _PromptJob:
    request: PromptRequest
    image: str | bytes
    visualize: bool


def add_open_vocabulary_segmentation(
    app: FastAPI, context: Context, pipeline: OpenVocabularySegmentationPipeline
) -> list[str]:
    """Add the route of the pipeline; return the paths added."""
    limits = context.settings
    path = "/open-vocabulary-segmentation"

    def segment(job: _PromptJob) -> PromptResult:
        request = job.request
        image = read_image(job.image, limits.max_pixels)
        pixels = len(request.prompt) * image.height * image.width
        if pixels > limits.max_mask_pixels:
            raise PromptError(
                f"{len(request.prompt)} masks of {image.width}x{image.height} pixels are more than is allowed.",
                "Send fewer prompts at a time, or a smaller image.",
            )
        if request.kind == "box" and request.pointLabels is not None:
            raise PromptError("pointLabels were given with boxes.", "Only points have labels.")
        with pipeline.open(image) as opened:
            if request.kind == "box":
                result = opened.segment(boxes=request.prompt)
            else:
                result = opened.segment(points=request.prompt, labels=_labels(request))
        scored = zip(result["mask_infos"], result.predicted_iou, strict=True)
        infos = [MaskInfo(**info, score=score) for info, score in scored]
        return PromptResult(
            masks=[encode_mask(mask, request.polygons) for mask in result["masks"]],
            mask_infos=infos,
            maskInfos=infos,
            image=encode_jpeg(result.draw()) if job.visualize else None,
        )

    queue: Queue[_PromptJob, PromptResult] = context.queue(pipeline.name, one_by_one(segment))

    @app.post(path, operation_id="segmentByPrompt", responses=FAILURES, response_model_exclude_none=True)
    async def infer(body: PromptRequest, request: Request) -> Success[PromptResult]:
        count = _count(body.prompt)
        if count > limits.max_prompts:
            raise PromptError(f"There are {count} prompts; the limit is {limits.max_prompts}.", "Send fewer at a time.")
        job = _PromptJob(body, await context.load(body.image, request), context.visualize(body.visualize))
        return Success(logId=request.state.log_id, result=await queue.submit(job))

    return [path]


def _count(prompts: Sequence[Sequence[object]]) -> int:
    """Return the number of boxes or points; a model's memory grows with the square of the points in a group."""
    return sum(sum(isinstance(one, list) for one in prompt) or 1 for prompt in prompts)


def _labels(request: PromptRequest) -> list[list[int]] | None:
    if request.pointLabels is None:
        return None
    if not all(isinstance(group[0], list) for group in request.prompt if group):
        raise PromptError("pointLabels were given with single points.", "Nest the points: [[[x, y], ...], ...].")
    return [list(labels) for labels in request.pointLabels]


# ---------------------------------------------------------------- instance segmentation


@dataclass(frozen=True, eq=False)
class _InstanceJob:
    request: InstanceRequest
    image: str | bytes
    visualize: bool

    @property
    def options(self) -> float | None:
        """What jobs of one batch must share."""
        return self.request.threshold


def add_instance_segmentation(app: FastAPI, context: Context, pipeline: InstanceSegmentationPipeline) -> list[str]:
    """Add the route of the pipeline; return the paths added."""
    path = "/instance-segmentation"

    def segment(jobs: Sequence[_InstanceJob], pixels: Sequence[Any]) -> Iterator[InstanceResult]:
        found = pipeline.predict(list(pixels), jobs[0].options, batch_size=len(jobs), on_error=_raise)
        for job, result in zip(jobs, found, strict=True):
            yield _instances(result, job)

    queue: Queue[_InstanceJob, InstanceResult] = context.queue(
        pipeline.name,
        in_groups(segment, lambda job: read_image(job.image, context.settings.max_pixels).pixels),
        pipeline.device,
    )

    @app.post(path, operation_id="segmentInstances", responses=FAILURES, response_model_exclude_none=True)
    async def infer(body: InstanceRequest, request: Request) -> Success[InstanceResult]:
        job = _InstanceJob(body, await context.load(body.image, request), context.visualize(body.visualize))
        return Success(logId=request.state.log_id, result=await queue.submit(job))

    return [path]


def _instances(result: InstanceSegmentationResult, job: _InstanceJob) -> InstanceResult:
    masks, corners = result["masks"], [(0, 0)] * len(result["boxes"])
    if result.crop_in_json and masks:
        masks = result.crop()
        rounded = rounded_boxes(np.array([box["coordinate"] for box in result["boxes"]]))
        corners = [(x1, y1) for x1, y1, _, _ in rounded.tolist()]
    return InstanceResult(
        instances=[
            Instance(
                bbox=tuple(box["coordinate"]),
                categoryId=box["cls_id"],
                categoryName=box["label"],
                score=box["score"],
                mask=encode_mask(mask, job.request.polygons, corner),
            )
            for box, mask, corner in zip(result["boxes"], masks, corners, strict=True)
        ],
        image=encode_jpeg(result.draw()) if job.visualize else None,
    )


# ---------------------------------------------------------------- image recognition


@dataclass(frozen=True, eq=False)
class _RecognitionJob:
    request: RecognitionRequest
    image: str | bytes
    visualize: bool

    @property
    def options(self) -> tuple[Any, ...]:
        """What jobs of one batch must share."""
        asked = self.request
        return asked.indexKey, asked.detThreshold, asked.recThreshold, asked.topk, asked.hammingRadius


@dataclass(frozen=True, eq=False)
class _IndexJob:
    """A change of an index; `given_up` ends it before it is made."""

    key: str | None
    images: Sequence[str | bytes] = ()
    labels: Sequence[str] = ()
    ids: Sequence[int] = ()
    given_up: threading.Event = field(default_factory=threading.Event)


def add_image_recognition(app: FastAPI, context: Context, pipeline: ImageRecognitionPipeline) -> list[str]:
    """Add the routes of the pipeline; return the paths added."""
    limits = context.settings
    store = IndexStore(limits.index_dir, limits.max_open_indexes)
    has_index = _names_an_index(pipeline)

    def recognise(jobs: Sequence[_RecognitionJob], pixels: Sequence[Any]) -> Iterator[RecognitionResult]:
        key, det_threshold, rec_threshold, topk, radius = jobs[0].options
        found = pipeline.predict(
            list(pixels),
            # It searches as an index does, and predict asks for no more.
            index=None if key is None else cast(Index, store.get(key)),
            det_threshold=det_threshold,
            rec_threshold=rec_threshold,
            rec_topk=topk,
            hamming_radius=radius,
            batch_size=len(jobs),
            on_error=_raise,
        )
        for job, result in zip(jobs, found, strict=True):
            yield RecognitionResult(
                detectedObjects=[_detected(box) for box in result["boxes"]],
                image=encode_jpeg(result.draw()) if job.visualize else None,
            )

    def change(job: _IndexJob) -> tuple[str, dict[str, str]]:
        index = None if job.key is None else store.get(job.key)
        if job.ids:
            assert index is not None
            return index.key, index.remove(job.ids)
        metric = "IP" if index is None else index.metric
        embeddings = []
        for start in range(0, len(job.images), _IMAGES_AT_ONCE):
            _check(job)
            pixels = []
            for i, image in enumerate(job.images[start : start + _IMAGES_AT_ONCE], start):
                try:
                    pixels.append(read_image(image, limits.max_pixels).pixels)
                except OvsError as error:
                    raise ImageError(f"Image {i}: {error.cause}", error.cure) from error
            embeddings.append(pipeline.embed(pixels, metric))
        _check(job)
        if index is not None:
            return index.key, index.add(np.concatenate(embeddings), job.labels)
        gallery = Gallery.of(pipeline.index_settings(metric, "auto"))
        gallery.add(np.concatenate(embeddings), job.labels)
        return store.create(gallery)

    queue: Queue[_RecognitionJob, RecognitionResult] = context.queue(
        pipeline.name,
        in_groups(recognise, lambda job: read_image(job.image, limits.max_pixels).pixels),
        pipeline.device,
    )
    # Of their own, so that a thousand pictures for an index do not stop the recognition of one.
    changes: Queue[_IndexJob, tuple[str, dict[str, str]]] = context.queue(
        f"{pipeline.name} indexes", one_by_one(change)
    )

    async def changed(job: _IndexJob) -> tuple[str, dict[str, str]]:
        try:
            return await changes.submit(job)
        finally:  # also when the client has gone or the time is up
            job.given_up.set()

    async def load_all(pairs: Sequence[ImageLabelPair], request: Request) -> list[str | bytes]:
        if len(pairs) > limits.max_pairs:
            raise ImageError(
                f"There are {len(pairs)} images; the limit is {limits.max_pairs}.", "Send fewer at a time."
            )
        try:
            async with asyncio.TaskGroup() as group:
                loads = [group.create_task(context.load(pair.image, request)) for pair in pairs]
        except ExceptionGroup as failed:  # the first one has ended the others
            raise failed.exceptions[0] from None
        return [load.result() for load in loads]

    failures = FAILURES | {404: {"model": Failure, "description": "There is no index of that key."}}
    options: dict[str, Any] = {"responses": failures, "response_model_exclude_none": True}

    @app.post("/shitu-index-build", operation_id="buildIndex", **options)
    async def build(body: BuildRequest, request: Request) -> Success[BuildResult]:
        images = await load_all(body.imageLabelPairs, request)
        key, ids = await changed(_IndexJob(None, images, [pair.label for pair in body.imageLabelPairs]))
        result = BuildResult(indexKey=key, idMap=ids, imageCount=len(ids))
        return Success(logId=request.state.log_id, result=result)

    @app.post("/shitu-index-add", operation_id="addImagesToIndex", **options)
    async def add(body: AddRequest, request: Request) -> Success[IndexResult]:
        images = await load_all(body.imageLabelPairs, request)
        _, ids = await changed(_IndexJob(body.indexKey, images, [pair.label for pair in body.imageLabelPairs]))
        return Success(logId=request.state.log_id, result=IndexResult(idMap=ids, imageCount=len(ids)))

    @app.post("/shitu-index-remove", operation_id="removeImagesFromIndex", **options)
    async def remove(body: RemoveRequest, request: Request) -> Success[IndexResult]:
        _, ids = await changed(_IndexJob(body.indexKey, ids=body.ids))
        return Success(logId=request.state.log_id, result=IndexResult(idMap=ids, imageCount=len(ids)))

    @app.post("/shitu-infer", operation_id="recognise", **options)
    async def infer(body: RecognitionRequest, request: Request) -> Success[RecognitionResult]:
        if body.indexKey is None and not has_index:
            raise GalleryError("indexKey is missing, and no index is configured.", "Send that of an index.")
        job = _RecognitionJob(body, await context.load(body.image, request), context.visualize(body.visualize))
        return Success(logId=request.state.log_id, result=await queue.submit(job))

    return ["/shitu-index-build", "/shitu-index-add", "/shitu-index-remove", "/shitu-infer"]


def _names_an_index(pipeline: ImageRecognitionPipeline) -> bool:
    """Whether the configuration has an index.

    Raises:
        GalleryError: it has one that cannot be opened.
    """
    try:
        pipeline.predict([])
    except ConfigError:
        return False
    return True


def _check(job: _IndexJob) -> None:
    """End a job that nobody waits for.

    Raises:
        ImageError: it was given up; nobody sees it.
    """
    if job.given_up.is_set():
        raise ImageError("The request was given up.")


def _detected(box: Mapping[str, Any]) -> DetectedObject:
    pairs = zip(box["labels"], box["rec_scores"], strict=True)
    recognised = [Recognised(label=label, score=score) for label, score in pairs if label is not None]
    return DetectedObject(bbox=tuple(box["coordinate"]), recResults=recognised, score=box["det_score"])


def _raise(error: OvsError) -> None:
    raise error

"""The routes of each pipeline: from a body to a result, by way of its queue."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import PIL.Image
from fastapi import FastAPI, Request

from .._decoding import Image, count_pages, decode_pages
from ..errors import ImageError, OvsError, PromptError
from ..pipelines.instance_segmentation import InstanceSegmentationPipeline
from ..pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ..results.instance_segmentation import InstanceSegmentationResult
from ..stages.detection import rounded_boxes
from ..stages.masks import encode_rle, mask_polygons
from .batching import Queue
from .fetch import FetchError, fetch, is_url
from .metrics import Metrics
from .schemas import (
    Failure,
    Instance,
    InstanceRequest,
    InstanceResult,
    Mask,
    MaskInfo,
    PromptRequest,
    PromptResult,
    Success,
)
from .settings import Settings

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": meaning}
    for status, meaning in {
        400: "The body is not JSON that can be read.",
        401: "The service wants a token.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
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
        self, name: str, run: Callable[[Sequence[JobT]], Sequence[ResultT | BaseException]], *, batches: bool = True
    ) -> Queue[JobT, ResultT]:
        """Return a queue for a pipeline; `batches` says whether several jobs may be taken at once."""
        settings = self.settings
        queue = Queue(
            run,
            workers=settings.workers,
            limit=settings.queue,
            max_batch=settings.max_batch if batches else 1,
            window=settings.batch_window if batches else 0.0,
            on_batch=lambda size: self._metrics.count_batch(name, size),
        )
        self._queues.append(queue)
        self._metrics.watch_queue(name, queue.__len__)
        return queue

    async def load(self, image: str) -> str | bytes:
        """Return an image of a request: as Base64, as it is, or the file that its URL names.

        Raises:
            FetchError: URLs are not fetched, or this one could not be.
        """
        if not is_url(image):
            return image
        if not self.settings.allow_url:
            raise FetchError("This service does not fetch URLs.", "Send the image itself, as Base64.")
        settings = self.settings
        async with self._downloads:
            return await asyncio.to_thread(
                fetch,
                image,
                max_bytes=settings.max_body,
                timeout=settings.url_timeout,
                max_redirects=settings.max_redirects,
            )

    def visualize(self, asked: bool | None) -> bool:
        """Whether a response has a picture."""
        return self.settings.visualize if asked is None else asked

    def close(self) -> None:
        """End the worker threads."""
        for queue in self._queues:
            queue.close()


def read_image(given: str | bytes, max_pixels: int) -> Image:
    """Decode an image of a request.

    Args:
        given: Base64, or the bytes of the file.
        max_pixels: the largest height x width that is decoded.

    Raises:
        ImageError: it is no Base64, no image, too large, or has several pages.
        MissingExtra: it is a PDF, and pypdfium2 is not installed.
    """
    data = given if isinstance(given, bytes) else _from_base64(given)
    pages = decode_pages(data, "The image", max_pixels)
    image = next(pages)
    if not isinstance(image, Image):
        raise image
    if image.page_index is not None and count_pages(data, "The image") > 1:
        raise ImageError("The image has several pages.", "Send one page at a time.")
    return Image(image.pixels)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:  # some encoders break lines
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "The image is neither Base64 nor a URL.", "Send the bytes of the file in the standard alphabet of Base64."
        ) from None


def _jpeg(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90)
    return base64.b64encode(file.getbuffer()).decode("ascii")


def _mask(rle: Mapping[str, Any], mask: Any, polygons: bool, offset: tuple[int, int] = (0, 0)) -> Mask:
    """Return a mask for a response; `mask` is the part of the image that begins at `offset`."""
    outlines = None
    if polygons:
        outlines = [[x + offset[i % 2] for i, x in enumerate(line)] for line in mask_polygons(mask)]
    height, width = rle["size"]
    counts = rle["counts"]
    return Mask(rleResult=counts, counts=counts, size=(height, width), offset=offset, polygons=outlines)


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
        infos = [
            MaskInfo(**info, score=score)
            for info, score in zip(
                result["mask_infos"], result.scores or [None] * len(result["mask_infos"]), strict=True
            )
        ]
        rles = zip(encode_rle(result["masks"]), result["masks"], strict=True)
        return PromptResult(
            masks=[_mask(rle, mask, request.polygons) for rle, mask in rles],
            mask_infos=infos,
            maskInfos=infos,
            image=_jpeg(result.draw()) if job.visualize else None,
        )

    queue: Queue[_PromptJob, PromptResult] = context.queue(pipeline.name, one_by_one(segment), batches=False)

    @app.post(path, operation_id="segmentByPrompt", responses=FAILURES, response_model_exclude_none=True)
    async def infer(body: PromptRequest, request: Request) -> Success[PromptResult]:
        if len(body.prompt) > limits.max_prompts:
            raise PromptError(
                f"There are {len(body.prompt)} prompts; the limit is {limits.max_prompts}.", "Send fewer at a time."
            )
        job = _PromptJob(body, await context.load(body.image), context.visualize(body.visualize))
        return Success(logId=request.state.log_id, result=await queue.submit(job))

    return [path]


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


def add_instance_segmentation(app: FastAPI, context: Context, pipeline: InstanceSegmentationPipeline) -> list[str]:
    """Add the route of the pipeline; return the paths added."""
    path = "/instance-segmentation"

    def segment(jobs: Sequence[_InstanceJob]) -> list[InstanceResult | BaseException]:
        results: list[InstanceResult | BaseException] = [RuntimeError("no result")] * len(jobs)
        groups: dict[float | None, list[tuple[int, Any]]] = {}
        for i, job in enumerate(jobs):
            try:
                image = read_image(job.image, context.settings.max_pixels)
            except OvsError as error:
                results[i] = error
            else:
                groups.setdefault(job.request.threshold, []).append((i, image.pixels))
        for threshold, members in groups.items():
            numbers = [i for i, _ in members]
            try:
                found = pipeline.predict(
                    [pixels for _, pixels in members], threshold, batch_size=len(members), on_error=_raise
                )
                for i, result in zip(numbers, found, strict=True):
                    results[i] = _instances(result, jobs[i])
            except Exception as error:
                for i in numbers:
                    if isinstance(results[i], RuntimeError):
                        results[i] = error
        return results

    queue: Queue[_InstanceJob, InstanceResult] = context.queue(pipeline.name, segment)

    @app.post(path, operation_id="segmentInstances", responses=FAILURES, response_model_exclude_none=True)
    async def infer(body: InstanceRequest, request: Request) -> Success[InstanceResult]:
        job = _InstanceJob(body, await context.load(body.image), context.visualize(body.visualize))
        return Success(logId=request.state.log_id, result=await queue.submit(job))

    return [path]


def _instances(result: InstanceSegmentationResult, job: _InstanceJob) -> InstanceResult:
    masks, corners = result["masks"], [(0, 0)] * len(result["boxes"])
    if result.crop_in_json and masks:
        masks = result.crop()
        rounded = rounded_boxes([box["coordinate"] for box in result["boxes"]])
        corners = [(x1, y1) for x1, y1, _, _ in rounded.tolist()]
    return InstanceResult(
        instances=[
            Instance(
                bbox=tuple(box["coordinate"]),
                categoryId=box["cls_id"],
                categoryName=box["label"],
                score=box["score"],
                mask=_mask(rle, mask, job.request.polygons, corner),
            )
            for box, rle, mask, corner in zip(result["boxes"], encode_rle(masks), masks, corners, strict=True)
        ],
        image=_jpeg(result.draw()) if job.visualize else None,
    )


# ---------------------------------------------------------------- queues


def one_by_one(run: Callable[[JobT], ResultT]) -> Callable[[Sequence[JobT]], list[ResultT | BaseException]]:
    """Return the function of a queue that does each job alone, so that one's failure is its own."""

    def run_all(jobs: Sequence[JobT]) -> list[ResultT | BaseException]:
        results: list[ResultT | BaseException] = []
        for job in jobs:
            try:
                results.append(run(job))
            except Exception as error:
                results.append(error)
        return results

    return run_all


def _raise(error: OvsError) -> None:
    raise error

"""The ASGI application: PaddleX's routes, health, metrics, and the page."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import ConfigError, GalleryError, ImageError, OvsError, PromptError
from ..pipelines.base import Pipeline
from ..pipelines.image_recognition import ImageRecognitionPipeline
from ..pipelines.instance_segmentation import InstanceSegmentationPipeline
from ..pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ..samples import samples
from .batching import Busy
from .guard import App, Guard, Refused, envelope
from .indexes import UnknownIndex
from .metrics import Metrics
from .routes import Context, add_image_recognition, add_instance_segmentation, add_open_vocabulary_segmentation
from .schemas import Healthy, Info, Served
from .settings import Settings

logger = logging.getLogger("ovseg")

_PAGE = Path(__file__).parent / "page"
# The page needs nothing from elsewhere, and nothing else may put it in a frame.
_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# Errors that tell of what the request holds. Others tell of this machine: they go to the log.
_OF_THE_REQUEST = (PromptError, ImageError, ConfigError, GalleryError)
_MOST_ERRORS = 20

_ROUTES: dict[type[Pipeline], Callable[[FastAPI, Context, Any], list[str]]] = {
    OpenVocabularySegmentationPipeline: add_open_vocabulary_segmentation,
    InstanceSegmentationPipeline: add_instance_segmentation,
    ImageRecognitionPipeline: add_image_recognition,
}


def create_app(pipelines: Mapping[str, Pipeline], settings: Settings | None = None) -> App:
    """Return the application that serves pipelines.

    Args:
        pipelines: by name.
        settings: what is allowed; None for the defaults.

    Raises:
        ConfigError: a pipeline that has no routes.
    """
    settings = settings or Settings()
    metrics = Metrics()
    context = Context(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.close()

    app = FastAPIOffline(
        redoc_url=None,
        title="ovseg",
        version=__version__,
        description="PaddleX's vision pipelines on ONNX Runtime.",
        lifespan=lifespan,
    )
    served = []
    for name, pipeline in pipelines.items():
        add_routes = _ROUTES.get(type(pipeline))
        if add_routes is None:
            raise ConfigError(f"The pipeline {name!r} has no routes.", "Serve another.")
        labels = list(pipeline.labels) if isinstance(pipeline, InstanceSegmentationPipeline) else None
        served.append(Served(name=name, routes=add_routes(app, context, pipeline), labels=labels))
    info = Info(
        version=__version__,
        pipelines=served,
        samples=[sample.path.name for sample in samples()],
        limits={
            "maxBody": settings.max_body,
            "maxPixels": settings.max_pixels,
            "maxPrompts": settings.max_prompts,
            "allowUrl": settings.allow_url,
            "token": settings.token is not None,
        },
    )
    _add_health(app, metrics)
    _add_page(app, info)
    _add_errors(app)
    return Guard(app, settings, metrics)


def _add_health(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health", operation_id="checkHealth")
    @app.get("/health/live", operation_id="checkLive")
    @app.get("/health/ready", operation_id="checkReady")
    async def healthy(request: Request) -> Healthy:
        """Tell that the service answers: models are loaded before it begins to listen."""
        return Healthy(logId=request.state.log_id)

    @app.get("/metrics", operation_id="metrics", include_in_schema=False)
    async def figures() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)


def _add_page(app: FastAPI, info: Info) -> None:
    paths = {sample.path.name: sample.path for sample in samples()}

    @app.get("/info", operation_id="info")
    async def facts() -> Info:
        """Tell what is served."""
        return info

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
        return FileResponse(_PAGE / "index.html", headers=headers)

    @app.get("/samples/{name}", include_in_schema=False)
    async def sample(name: str) -> FileResponse:
        if name not in paths:
            raise HTTPException(404)
        return FileResponse(paths[name])

    app.mount("/page", StaticFiles(directory=_PAGE), name="page")


def _add_errors(app: FastAPI) -> None:
    def answer(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        body = json.dumps(envelope(request.state.log_id, status, message))
        return Response(body, status, headers, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        listed = [
            {"type": entry["type"], "loc": _path(entry["loc"]), "msg": entry["msg"][:300]}
            for entry in error.errors()[:_MOST_ERRORS]
        ]
        return answer(request, 422, json.dumps(listed))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(OvsError)
    async def ovs_error(request: Request, error: OvsError) -> Response:
        if isinstance(error, Busy):
            return answer(request, 503, str(error), {"retry-after": str(error.retry_after)})
        if isinstance(error, UnknownIndex):
            return answer(request, 404, str(error))
        if isinstance(error, _OF_THE_REQUEST):
            return answer(request, 422, str(error))
        logger.error("%s: %s", request.state.log_id, error, exc_info=error)
        return answer(request, 500, f"The request failed. The log of the service tells why, at {request.state.log_id}.")

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(request, error.status, error.message, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return answer(request, 500, "Internal server error")


def _path(places: tuple[int | str, ...]) -> str:
    """Return the place of a value as PaddleX writes it: `body.prompt[0][1]`."""
    text = ""
    for place in places:
        text += f"[{place}]" if isinstance(place, int) else f".{place[:100]}" if text else place[:100]
    return text

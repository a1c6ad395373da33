"""PaddleX's HTTP routes over the pipelines, and a web page to try them on.

>>> from ovseg.serve import Settings, create_app  # doctest: +SKIP
>>> app = create_app({"open_vocabulary_segmentation": pipeline}, Settings())  # doctest: +SKIP

`create_app` gives an ASGI application; `run` serves it until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

from ..errors import MissingExtra

try:
    from .app import create_app
    from .indexes import check_folder
    from .server import check_address, run
except ModuleNotFoundError as error:  # FastAPI, uvicorn, prometheus_client or fastapi-offline
    if (error.name or "").startswith("ovseg"):
        raise
    raise MissingExtra(
        f"The HTTP service needs {error.name}, which is not installed.", 'Install it: pip install "ovseg[serve]".'
    ) from error
from .settings import Settings

__all__ = ["Settings", "check_address", "check_folder", "create_app", "run"]

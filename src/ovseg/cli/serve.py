"""`ovs serve`: the HTTP service and its page."""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ConfigError, ModelError
from .options import DEVICE, MODEL, MODEL_DIR, USE_HPIP

if TYPE_CHECKING:
    from ..pipelines.base import Pipeline

PIPELINE = typer.Option(
    None,
    "--pipeline",
    metavar="NAME|YAML",
    help="Pipeline, or its YAML file; may be repeated. All, with the models that ship where need be, if not given.",
)
HOST = typer.Option("127.0.0.1", "--host", help="Address to listen on; 0.0.0.0 for all.")
PORT = typer.Option(8080, "--port", min=0, max=65535, help="Port; 0 for a free one.")
TOKEN = typer.Option(None, "--token", envvar="OVSEG_TOKEN", help="Bearer token that requests must carry.")
ALLOW_URL = typer.Option(False, "--allow-url", help="Fetch images that are given as URLs, from public addresses.")
INDEX_DIR = typer.Option(None, "--index-dir", help="Folder of the indexes; in the user's data folder, if not given.")
WORKERS = typer.Option(None, "--workers", help="Requests, or batches of them, that a pipeline does at a time.")
THREADS = typer.Option(None, "--threads", min=1, help="Threads of one run of a model.")
QUEUE = typer.Option(None, "--queue", help="Requests of a pipeline that may wait; more get 503.")
MAX_BATCH = typer.Option(None, "--max-batch", help="Requests that go through a model together.")
BATCH_WINDOW = typer.Option(None, "--batch-window", metavar="MS", help="Milliseconds that a request waits for others.")
MAX_BODY = typer.Option(None, "--max-body", metavar="MB", help="Largest body of a request.")
MAX_PIXELS = typer.Option(None, "--max-pixels", help="Largest height x width of an image.")
MAX_PROMPTS = typer.Option(None, "--max-prompts", help="Most prompts of a request.")
DEADLINE = typer.Option(None, "--deadline", metavar="S", help="Seconds after which a request is answered with 504.")
QUIET = typer.Option(False, "--quiet", "-q", help="No access log.")

# Models that ship, for pipelines that nobody named and whose model is not here: the page has something to show.
_SHIPPED = {"instance_segmentation": "MaskSeg-tiny"}


def register(app: typer.Typer) -> None:
    """Add `ovs serve` to `app`."""
    app.command("serve", epilog="Example: ovs serve --pipeline open_vocabulary_segmentation")(serve)


def serve(
    pipeline: list[str] = PIPELINE,
    host: str = HOST,
    port: int = PORT,
    device: str = DEVICE,
    use_hpip: bool = USE_HPIP,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
    token: str = TOKEN,
    allow_url: bool = ALLOW_URL,
    index_dir: Path = INDEX_DIR,
    workers: int = WORKERS,
    threads: int = THREADS,
    queue: int = QUEUE,
    max_batch: int = MAX_BATCH,
    batch_window: float = BATCH_WINDOW,
    max_body: float = MAX_BODY,
    max_pixels: int = MAX_PIXELS,
    max_prompts: int = MAX_PROMPTS,
    deadline: float = DEADLINE,
    quiet: bool = QUIET,
) -> None:
    """Serve pipelines with PaddleX's HTTP routes, and a page to try them in a browser.

    The address is printed once the service answers. The access log goes to standard error, a JSON object a line.
    """
    from ..serve import Settings, check_address, check_folder, create_app, run

    if (model is not None or model_dir is not None) and len(pipeline or []) != 1:
        raise ConfigError("--model and --model-dir are for one --pipeline.", "Name the models in YAML files.")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("ovseg.access").setLevel(logging.WARNING if quiet else logging.INFO)
    given: dict[str, Any] = {
        "token": token,
        "workers": workers,
        "queue": queue,
        "max_batch": max_batch,
        "batch_window": None if batch_window is None else _seconds(batch_window),
        "max_body": None if max_body is None else _bytes(max_body),
        "max_pixels": max_pixels,
        "max_prompts": max_prompts,
        "deadline": deadline,
    }
    settings = Settings(
        allow_url=allow_url,
        index_dir=index_dir or _data_dir() / "indexes",
        literal_hosts=_is_loopback(host),
        **{name: value for name, value in given.items() if value is not None},
    )
    # Before models are loaded, which may take long.
    check_address(host, port)
    if index_dir is not None:
        check_folder(index_dir)
    options = {"device": device, "model": model, "model_dir": model_dir, "threads": threads}
    pipelines, visualize = _pipelines(pipeline or [], use_hpip=use_hpip or None, **options)
    settings = replace(settings, visualize=visualize)
    run(create_app(pipelines, settings), settings, host, port)


def _pipelines(named: list[str], **options: Any) -> tuple[dict[str, Pipeline], bool]:
    """Make the pipelines; return them by name, and whether their files want pictures in responses.

    Raises:
        ConfigError: the same pipeline twice.
    """
    from ..pipelines import PIPELINES, config_file, create_pipeline
    from ..pipelines.config import load_config

    made: dict[str, Pipeline] = {}
    visualize = True
    for name in named or list(PIPELINES):
        config, where = load_config(config_file(name) if not name.lower().endswith((".yaml", ".yml")) else name)
        visualize &= _visualize(config.pop("Serving", None), where)
        try:
            pipeline = create_pipeline(config=config, **options)
        except ModelError as error:
            shipped = _SHIPPED.get(name)
            if named or shipped is None:
                raise
            logging.getLogger("ovseg").info("%s is served with %s: %s", name, shipped, error.cause)
            pipeline = create_pipeline(config=config, **options | {"model": shipped})
        if pipeline.name in made:
            raise ConfigError(f"The pipeline {pipeline.name} is named twice.", "Name it once.")
        made[pipeline.name] = pipeline
    return made, visualize


def _visualize(serving: Any, where: str) -> bool:
    """Return what PaddleX's key `Serving` says of pictures in responses.

    Raises:
        ConfigError: it says something else.
    """
    from ..pipelines.config import check_keys

    visualize = check_keys(serving or {}, ("visualize",), f"{where}: Serving").get("visualize", True)
    if not isinstance(visualize, bool):
        raise ConfigError(f"{where}: Serving: visualize is {visualize!r}.", "Give true or false.")
    return visualize


def _bytes(megabytes: float) -> int:
    """Return `--max-body` in bytes.

    Raises:
        ConfigError: it is no number of bytes.
    """
    if not (math.isfinite(megabytes) and megabytes * 2**20 >= 1):
        raise ConfigError(f"--max-body is {megabytes}.", "Give megabytes, above 0.")
    return int(megabytes * 2**20)


def _seconds(milliseconds: float) -> float:
    """Return `--batch-window` in seconds.

    Raises:
        ConfigError: it is no time.
    """
    if not 0 <= milliseconds < math.inf:
        raise ConfigError(f"--batch-window is {milliseconds}.", "Give milliseconds, 0 for no waiting.")
    return milliseconds / 1000


def _data_dir() -> Path:
    """Return the folder of what must not be lost: `OVSEG_HOME`, else `ovseg` in the data folder of the user."""
    import platformdirs

    from ..cache import expand

    home = os.environ.get("OVSEG_HOME")
    return expand(home).absolute() if home else platformdirs.user_data_path("ovseg", appauthor=False)


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""`ovs export`: Paddle models to ONNX, each proven against Paddle."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

GENERAL = "SAM-H"
"""What `general_sam` makes of the two official archives."""


def register(app: typer.Typer) -> None:
    """Add `ovs export` to `app`."""
    app.command("export", epilog="Example: ovs export SAM-H_box --from ./SAM-H_box_infer.tar --out SAM-H_box")(export)


MODEL = typer.Argument(help="Model name, as in `ovs models list`, or a Paddle model as --from takes it.")
SOURCE = typer.Option(
    "--from",
    help="Folder, .tar, .tar.gz or .zip, or address with inference.json or inference.pdmodel, "
    "inference.pdiparams and inference.yml. Left out: the official archive of MODEL.",
    metavar="DIR|ARCHIVE|URL",
)
POINT = typer.Option(
    help="With SAM-H: the model for a point, as --from takes the one for boxes.", metavar="DIR|ARCHIVE|URL"
)
OUT = typer.Option(help="Folder to make. Left out: the name, here.", metavar="DIR")
OPSET = typer.Option(help="ONNX operator set, 17 to 21.", metavar="N")
PRECISION = typer.Option(help="fp32, fp16 or int8.", metavar="NAME")
CALIBRATION = typer.Option(help="Images that int8 of convolutional models is calibrated on.", metavar="DIR")
IMAGES = typer.Option(help="Images to compare with Paddle on.", metavar="DIR")
DEVICE = typer.Option(help="cpu: where the comparison runs.", metavar="DEVICE")
MISMATCH = typer.Option("--allow-mismatch", help="Keep a model that differs from Paddle, as OUT-mismatch.")


def export(
    model: Annotated[str, MODEL],
    source: Annotated[str | None, SOURCE] = None,
    point: Annotated[str | None, POINT] = None,
    out: Annotated[Path | None, OUT] = None,
    opset: Annotated[int, OPSET] = 17,
    precision: Annotated[str, PRECISION] = "fp32",
    calibration: Annotated[Path | None, CALIBRATION] = None,
    images: Annotated[Path | None, IMAGES] = None,
    device: Annotated[str, DEVICE] = "cpu",
    allow_mismatch: Annotated[bool, MISMATCH] = False,
) -> None:
    """Turn a Paddle model into an ONNX model folder and prove that it computes the same; print the folder.

    The folder holds the ONNX files, model.yaml and parity.json, the report of the comparison with Paddle.
    SAM-H makes one model of both official archives, SAM-H_box and SAM-H_point, that takes boxes, points with labels
    and both together.

    Needs the export extra: pip install "ovseg[export]".
    """
    from ..cache import expand
    from ..errors import ConfigError
    from ..zoo import is_name

    if not model:
        raise ConfigError("The name of the model is empty.", "Give a name, or a Paddle model as --from takes it.")
    if device != "cpu":
        raise ConfigError(f"The export runs on the CPU, not on {device!r}.", "Leave --device out.")
    if model == GENERAL:
        if precision != "fp32" or calibration is not None or images is not None or allow_mismatch:
            raise ConfigError(f"{GENERAL} is made in fp32 and compared exactly.", "Leave the other options out.")
        if (source is None) != (point is None):
            raise ConfigError("Only one of the two archives is given.", "Give both, --from BOX and --point POINT.")
        with _progress() as (say, received):
            folder = _load_exporter("general_sam").export_general(
                source or f"{GENERAL}_box",
                point or f"{GENERAL}_point",
                out or Path(GENERAL),
                opset=opset,
                progress=say,
                received=received,
            )
        print(folder)
        return
    if point is not None:
        raise ConfigError(f"--point is for {GENERAL} only.", f"Leave it out, or name {GENERAL}.")
    export_model = _load_exporter().export_model
    where = source or model
    named = source is not None or (is_name(model) and not expand(model).exists())
    name = model if named else None
    if out is None:
        out = Path(name or _folder_name(model))
        # Of another precision, the folder has its place beside that of fp32, where `ovs tune` looks for it.
        out = out if precision == "fp32" else out.with_name(f"{out.name}-{precision}")
    with _progress() as (say, received):
        folder = export_model(
            where,
            out,
            name=name,
            opset=opset,
            precision=precision,
            calibration=calibration,
            allow_mismatch=allow_mismatch,
            images=images,
            progress=say,
            received=received,
        )
    print(folder)


def _load_exporter(module: str = "export") -> Any:
    from ..errors import MissingExtra

    try:
        return importlib.import_module(f"ovseg_export.{module}")
    except ImportError as failure:
        raise MissingExtra(
            f"The export stage cannot be loaded ({failure}).", 'Run `pip install "ovseg[export]"`.'
        ) from failure


def _folder_name(source: str) -> str:
    """A name for the folder: that of the archive or folder, without what stands for the format."""
    name = source.rstrip("/").rsplit("/", 1)[-1]
    if name in ("", ".", ".."):
        name = Path(source).resolve().name
    for ending in (".gz", ".tgz", ".tar", ".zip", "_infer"):
        name = name.removesuffix(ending)
    return f"{name}-onnx"


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """Give two callbacks for one line of progress on standard error: steps in words, and bytes received."""
    terminal = sys.stderr.isatty()

    def say(message: str) -> None:
        if terminal:
            print(
                "\r\033[K" + message[: shutil.get_terminal_size().columns - 1],
                end="",
                file=sys.stderr,
                flush=True,
            )
        else:
            print(message, file=sys.stderr, flush=True)

    def received(count: int, total: int | None) -> None:
        of = f" of {total / 1e6:.0f}" if total else ""
        say(f"downloaded {count / 1e6:.0f}{of} MB")

    try:
        yield say, received if terminal else None
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

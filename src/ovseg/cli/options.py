"""Options that several sub-commands share."""

from __future__ import annotations

import typer

DEVICE = typer.Option(None, "--device", help="cpu, gpu, gpu:1, npu:0, ... The best there is, if not given.")
MODEL = typer.Option(None, "--model", help="Name of the model; `ovs models list` shows them.")
MODEL_DIR = typer.Option(None, "--model-dir", help="Model folder, instead of a name.")

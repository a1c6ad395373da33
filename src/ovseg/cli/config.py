"""`ovs config`: write a pipeline's configuration to start from."""

from __future__ import annotations

from pathlib import Path

import typer

NAME = typer.Argument(help="Name of the pipeline, such as open_vocabulary_segmentation.", metavar="NAME")
SAVE_PATH = typer.Option(".", "--save-path", "-o", help="Folder, or path that ends in .yaml.")
FORCE = typer.Option(False, "--force", help="Write over a file that is there.")


def register(app: typer.Typer) -> None:
    """Add `ovs config` to `app`."""
    app.command("config", epilog="Example: ovs config open_vocabulary_segmentation")(config)


def config(name: str = NAME, save_path: str = SAVE_PATH, force: bool = FORCE) -> None:
    """Write the YAML of a pipeline, to edit and to give to `ovs run --pipeline`."""
    from ..errors import ConfigError
    from ..pipelines import config_file
    from ..results.saving import atomic_write

    shipped = config_file(name)
    path = Path(save_path)
    path = path if path.suffix in (".yaml", ".yml") else path / shipped.name
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already.", "Use --force to write over it, or another --save-path.")
    with atomic_write(path) as file:
        file.write(shipped.read_bytes())
    print(path)

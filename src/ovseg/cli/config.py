"""`ovs config`: write a pipeline's configuration to start from."""

from __future__ import annotations

from typing import Any


def register(app: Any) -> None:
    """Add the sub-command to `app`."""
    import typer

    @app.command()
    def config(
        name: str = typer.Argument(..., help="Name of the pipeline, such as open_vocabulary_segmentation."),
        save_path: str = typer.Option(".", "--save-path", help="Folder, or path that ends in .yaml."),
        force: bool = typer.Option(False, "--force", help="Write over a file that is there."),
    ) -> int:
        """Write the YAML of a pipeline, to edit and give to `ovs run --pipeline`."""
        from pathlib import Path

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
        return 0

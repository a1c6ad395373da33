"""`ovs demo`: the bundled model on the sample images."""

from __future__ import annotations

from typing import Any


def register(app: Any) -> None:
    """Add the sub-command to `app`."""
    import typer

    @app.command()
    def demo(
        save_path: str = typer.Option("./output", "--save-path", "-o", help="Folder for the pictures."),
        device: str = typer.Option(None, "--device", help="cpu, gpu:0, ... The best there is, if not given."),
        model: str = typer.Option(None, "--model", help="Name of another model than SAM-tiny."),
        model_dir: str = typer.Option(None, "--model-dir", help="Folder of another model."),
    ) -> int:
        """Segment the sample images with boxes and points, and save pictures."""
        import time
        from pathlib import Path

        from ..pipelines.open_vocabulary_segmentation import MODEL, OpenVocabularySegmentationPipeline
        from ..samples import samples

        pipeline = OpenVocabularySegmentationPipeline(device=device, model=model or MODEL, model_dir=model_dir)
        folder = Path(save_path)
        for sample in samples():
            started = time.perf_counter()
            with pipeline.open(sample.path) as image:
                found = {
                    "box": image.segment(boxes=list(sample.boxes.values())),
                    "point": image.segment(points=list(sample.points.values())),
                }
            milliseconds = 1000 * (time.perf_counter() - started)
            objects = ", ".join(sample.boxes)
            print(f"{sample.name}: {objects} by box, {', '.join(sample.points)} by point, in {milliseconds:.0f} ms")
            for kind, result in found.items():
                picture = folder / f"{sample.name}_{kind}_res.jpg"
                result.save_to_img(picture)
                print(f"  {picture}")
        return 0

"""`ovs demo`: the bundled model on the sample images."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from .options import DEVICE, MODEL, MODEL_DIR

SAVE_PATH = typer.Option("./output", "--save-path", "-o", help="Folder for the pictures.")


def register(app: typer.Typer) -> None:
    """Add `ovs demo` to `app`."""
    app.command("demo")(demo)


def demo(save_path: str = SAVE_PATH, device: str = DEVICE, model: str = MODEL, model_dir: str = MODEL_DIR) -> None:
    """Segment the sample images that ship with ovseg, by boxes and by points, and save pictures."""
    from ..pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
    from ..samples import samples

    pipeline = OpenVocabularySegmentationPipeline(device=device, model=model, model_dir=model_dir)
    for sample in samples():
        started = time.perf_counter()
        with pipeline.open(sample.path) as image:
            by_box = image.segment(boxes=list(sample.boxes.values()))
            by_point = image.segment(points=list(sample.points.values()))
        milliseconds = 1000 * (time.perf_counter() - started)
        print(f"{sample.name}: {len(sample.boxes)} boxes, {len(sample.points)} points, {milliseconds:.0f} ms")
        for prompt_type, names, result in (
            ("box", sample.boxes, by_box),
            ("point", sample.points, by_point),
        ):
            picture = Path(save_path) / f"{sample.name}_{prompt_type}_res.jpg"
            result.save_to_img(picture)
            print(f"  {picture}: {', '.join(names)}")

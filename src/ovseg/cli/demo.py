"""`ovs demo`: the models that ship, on the samples that ship."""

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
    """Run the models that ship on the samples that ship, and save pictures.

    Promptable segmentation by boxes and by points (--model and --model-dir choose another SAM), instance
    segmentation, then image recognition with a gallery of 36 things.
    """
    _segment(Path(save_path), device, model, model_dir)
    _find_instances(Path(save_path), device)
    _recognise(Path(save_path), device)


def _segment(folder: Path, device: str, model: str, model_dir: str) -> None:
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
            picture = folder / f"{sample.name}_{prompt_type}_res.jpg"
            result.save_to_img(picture)
            print(f"  {picture}: {', '.join(names)}")


def _find_instances(folder: Path, device: str) -> None:
    from ..pipelines.instance_segmentation import InstanceSegmentationPipeline
    from ..samples import gallery_path

    pipeline = InstanceSegmentationPipeline(device=device, model="MaskSeg-tiny")
    for scene in sorted((gallery_path() / "scenes").glob("*.jpg")):
        started = time.perf_counter()
        (result,) = pipeline.predict(str(scene))
        milliseconds = 1000 * (time.perf_counter() - started)
        print(
            f"{scene.stem}: {len(result['boxes'])} instances of {len(pipeline.labels)} classes, {milliseconds:.0f} ms"
        )
        picture = folder / f"{scene.stem}_instances_res.jpg"
        result.save_to_img(picture)
        print(f"  {picture}: {', '.join(box['label'] for box in result['boxes'])}")


def _recognise(folder: Path, device: str) -> None:
    from ..pipelines.image_recognition import ImageRecognitionPipeline
    from ..samples import gallery_path

    gallery = gallery_path()
    pipeline = ImageRecognitionPipeline(device=device)
    index = pipeline.build_index(gallery_imgs=gallery, gallery_label=gallery / "labels.txt", index_type="Flat")
    for scene in sorted((gallery / "scenes").glob("*.jpg")):
        started = time.perf_counter()
        (result,) = pipeline.predict(str(scene), index=index, rec_topk=1)
        milliseconds = 1000 * (time.perf_counter() - started)
        print(f"{scene.stem}: {len(result['boxes'])} objects among {len(index)} in the gallery, {milliseconds:.0f} ms")
        picture = folder / f"{scene.stem}_res.jpg"
        result.save_to_img(picture)
        print(f"  {picture}: {', '.join(str(label) for box in result['boxes'] for label in box['labels'])}")

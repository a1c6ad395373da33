"""`ovs eval`: average precision of a model on annotated images."""

from __future__ import annotations

import json
import logging

import typer

from ..errors import ConfigError
from .options import AS_JSON, BATCH_SIZE, DEVICE, MODEL, MODEL_DIR, THRESHOLD, literal
from .reporting import Failures, progress

NAME = typer.Argument(..., metavar="PIPELINE", help="instance_segmentation, or the path of its YAML file.")
ANNOTATIONS = typer.Option(..., "--annotations", help="JSON file in COCO's format of instances.")
IMAGES = typer.Option(..., "--images", help="Folder that the file names of the annotations are relative to.")
SAVE_PATH = typer.Option("./output", "--save-path", "-o", help="Folder for results.json and metrics.json.")
KNOWN_ONLY = typer.Option(False, "--known-only", help="Leave out categories that the model does not know.")


def register(app: typer.Typer) -> None:
    """Add `ovs eval` to `app`."""
    example = "ovs eval instance_segmentation --annotations instances_val2017.json --images val2017 -o output"
    app.command("eval", epilog=f"Example: {example}")(evaluate)


def evaluate(
    name: str = NAME,
    annotations: str = ANNOTATIONS,
    images: str = IMAGES,
    save_path: str = SAVE_PATH,
    threshold: str = THRESHOLD,
    batch_size: int = BATCH_SIZE,
    known_only: bool = KNOWN_ONLY,
    device: str = DEVICE,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
    as_json: bool = AS_JSON,
) -> int:
    """Compare a model with COCO annotations: average precision and recall of masks and boxes, by pycocotools.

    Categories are matched by name. What is found is written as it comes: the same command goes on where an
    interrupted one stopped. Nearly everything that the model finds counts, unless --threshold says otherwise.

    The exit status is 2 if an image was bad; the figures are those of the others.
    """
    from .. import evaluation
    from ..pipelines import create_pipeline
    from ..pipelines.instance_segmentation import InstanceSegmentationPipeline
    from ..stages.detection import THRESHOLD_FORM

    logging.basicConfig(format="ovs: %(message)s")
    least = literal("--threshold", threshold, ConfigError, THRESHOLD_FORM)
    truth = evaluation.read_annotations(annotations)
    pipeline = create_pipeline(name, device=device, model=model, model_dir=model_dir)
    if not isinstance(pipeline, InstanceSegmentationPipeline):
        raise ConfigError(f"{pipeline.name} cannot be evaluated.", "Only instance_segmentation can.")
    failures = Failures()
    with progress(len(truth.dataset["images"])) as advance:
        found = evaluation.evaluate(
            pipeline,
            truth,
            images,
            save_path,
            threshold=evaluation.THRESHOLD if least is None else least,
            batch_size=batch_size,
            known_only=known_only,
            on_error=failures.add,
            advance=advance,
        )
    if as_json:
        print(json.dumps(found.json, ensure_ascii=False))
    else:
        print(f"{found.images} images" + (f", {found.skipped} left out" if found.skipped else ""))
        print(found.table())
    return failures.exit_code

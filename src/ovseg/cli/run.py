"""`ovs run`: a pipeline over images."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ConfigError, PromptError, SaveError
from .options import AS_JSON, BATCH_SIZE, DEVICE, MODEL, MODEL_DIR, THRESHOLD, USE_HPIP, literal
from .reporting import Failures, progress

if TYPE_CHECKING:
    from ..pipelines.base import Pipeline
    from ..results.base import Result
    from ..results.saving import Stems

NAME = typer.Argument(None, metavar="[PIPELINE]", help="Name of a pipeline, or path of its YAML file.")
PIPELINE = typer.Option(None, "--pipeline", help="The same, as PaddleX has it.")
INPUT = typer.Option(..., "--input", "-i", help="Image, PDF, folder, URL, or - for standard input. May be repeated.")
PROMPT_TYPE = typer.Option(None, "--prompt-type", help="box (the default) or point.")
PROMPT = typer.Option(None, "--prompt", help='Such as "[[112.9, 118.4, 513.8, 382.1]]".')
SAVE_PATH = typer.Option(None, "--save-path", "-o", help="Folder for pictures and JSON.")
MASK_FORMAT = typer.Option(
    None, "--mask-format", help="Masks in JSON: rle (the default, whatever a YAML file says) or list."
)
INDEX = typer.Option(None, "--index", help="Folder of a gallery, or milvus://...")
DET_THRESHOLD = typer.Option(None, "--det-threshold", help="Least score of a detection, such as 0.5.")
REC_THRESHOLD = typer.Option(None, "--rec-threshold", help="Least similarity (IP), or largest distance (L2).")
REC_TOPK = typer.Option(None, "--rec-topk", help="Items of each object, at most.")
HAMMING_RADIUS = typer.Option(None, "--hamming-radius", help="Largest distance in bits.")
LABEL = typer.Option(None, "--label", help="Look only at items of this label; may be repeated.")
VOTE = typer.Option(None, "--vote", help="Give each label once, those of the most items first.")
DET_MODEL = typer.Option(None, "--det-model", help="Name of the detector, where there are two models.")
DET_MODEL_DIR = typer.Option(None, "--det-model-dir", help="Model folder of the detector.")
MULTIMASK = typer.Option(None, "--multimask", help="Take the best of three masks for each prompt.")
EVERYTHING = typer.Option(False, "--everything", help="Segment everything, without prompts.")
LIKE = typer.Option(None, "--like", help="Segment what looks like this picture, or like a box of the image itself.")
TOP = typer.Option(None, "--top", help="With --like: so many masks at most.")
POINTS_PER_SIDE = typer.Option(None, "--points-per-side", help="Everything: the grid has the square of it; 32.")
PRED_IOU_THRESH = typer.Option(
    None, "--pred-iou-thresh", help="Everything: least predicted IoU; the model's own, or 0.88."
)
STABILITY = typer.Option(
    None, "--stability-score-thresh", help="Everything: least stability; the model's own, or 0.95."
)
BOX_NMS_THRESH = typer.Option(None, "--box-nms-thresh", help="Everything: IoU of boxes that are the same; 0.7.")
CROPS = typer.Option(None, "--crops", help="Everything: layers of crops to look at as well; 0.")
MIN_AREA = typer.Option(None, "--min-area", help="Everything: smaller holes and parts go, in pixels; 0.")
ENCODER = typer.Option(None, "--encoder", help="ONNX image encoder of any SAM, with --decoder.")
DECODER = typer.Option(None, "--decoder", help="ONNX decoder of any SAM.")
EMBEDDING_MODEL = typer.Option(None, "--embedding-model", help="With --like: name of the model that compares.")
EMBEDDING_MODEL_DIR = typer.Option(None, "--embedding-model-dir", help="Its model folder, instead of a name.")
FORMAT = typer.Option(
    None, "--format", help="What to save instead of JSON and picture: coco, yolo, labelme, ...; may be repeated."
)
VIDEO = typer.Option(None, "--video", help="Save the pictures as a video, such as out.mp4.")
QUIET = typer.Option(False, "--quiet", "-q", help="Do not print the results.")

# Of options that are not given, where the pipeline has them: nested lists of masks are megabytes.
DEFAULTS = {"mask_format": "rle"}


def register(app: typer.Typer) -> None:
    """Add `ovs run` to `app`."""
    example = 'ovs run open_vocabulary_segmentation --input cat.jpg --prompt "[[30, 20, 410, 300]]" -o output'
    app.command("run", epilog=f"Example: {example}")(run)


def run(
    name: str = NAME,
    pipeline: str = PIPELINE,
    input: list[str] = INPUT,
    prompt_type: str = PROMPT_TYPE,
    prompt: str = PROMPT,
    threshold: str = THRESHOLD,
    batch_size: int = BATCH_SIZE,
    index: str = INDEX,
    det_threshold: float = DET_THRESHOLD,
    rec_threshold: float = REC_THRESHOLD,
    rec_topk: int = REC_TOPK,
    hamming_radius: float = HAMMING_RADIUS,
    label: list[str] = LABEL,
    vote: bool = VOTE,
    save_path: str = SAVE_PATH,
    device: str = DEVICE,
    use_hpip: bool = USE_HPIP,
    mask_format: str = MASK_FORMAT,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
    det_model: str = DET_MODEL,
    det_model_dir: str = DET_MODEL_DIR,
    multimask: bool = MULTIMASK,
    everything: bool = EVERYTHING,
    like: str = LIKE,
    top: int = TOP,
    points_per_side: int = POINTS_PER_SIDE,
    pred_iou_thresh: float = PRED_IOU_THRESH,
    stability_score_thresh: float = STABILITY,
    box_nms_thresh: float = BOX_NMS_THRESH,
    crops: int = CROPS,
    min_area: int = MIN_AREA,
    encoder: str = ENCODER,
    decoder: str = DECODER,
    embedding_model: str = EMBEDDING_MODEL,
    embedding_model_dir: str = EMBEDDING_MODEL_DIR,
    format: list[str] = FORMAT,
    video: str = VIDEO,
    quiet: bool = QUIET,
    as_json: bool = AS_JSON,
) -> int:
    """Run a pipeline over images, print the results and save them.

    Prompts, --everything and --like are for open_vocabulary_segmentation, --threshold for instance_segmentation, and
    --index with the options after it for PP-ShiTuV2.

    The exit status is 2 if an input was bad and 1 if something failed; the other inputs are done all the
    same.
    """
    from ..images import count_images
    from ..pipelines import create_pipeline
    from ..stages.detection import THRESHOLD_FORM
    from ..stages.prompts import BOX_FORM, POINT_FORM

    # What the library logs as a warning, such as a device that was not there, goes where errors go.
    logging.basicConfig(format="ovs: %(message)s")
    if pipeline is not None and name is not None and pipeline != name:
        raise ConfigError(f"Two pipelines are named: {name!r} and {pipeline!r}.", "Name the pipeline once.")
    named = pipeline if name is None else name
    if named is None:
        raise ConfigError("No pipeline was named.", "Name it first: ovs run open_vocabulary_segmentation --input ...")
    given = {
        # Words are no list: the pipeline says which prompts there are.
        "prompt": prompt
        if prompt_type == "text"
        else literal("--prompt", prompt, PromptError, f"{BOX_FORM} {POINT_FORM}"),
        "prompt_type": prompt_type,
        "threshold": literal("--threshold", threshold, ConfigError, THRESHOLD_FORM),
        "batch_size": batch_size,
        "mask_format": mask_format,
        "index": index,
        "det_threshold": det_threshold,
        "rec_threshold": rec_threshold,
        "rec_topk": rec_topk,
        "hamming_radius": hamming_radius,
        "label": label or None,
        "vote": vote,
        "multimask": multimask,
        "example": _example(like),
        "top": top,
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "box_nms_thresh": box_nms_thresh,
        "crops": crops,
        "min_area": min_area,
    }
    models = {
        "det_model": det_model,
        "det_model_dir": det_model_dir,
        "encoder": encoder,
        "decoder": decoder,
        "embedding_model": embedding_model,
        "embedding_model_dir": embedding_model_dir,
    }
    further: dict[str, Any] = {name: value for name, value in models.items() if value is not None}
    if format and save_path is None:
        raise ConfigError("--format was given without --save-path.", "Say where to save: --save-path ./output.")
    failures = Failures()
    hpip = use_hpip or None  # not given: what the configuration says
    made = create_pipeline(named, device=device, model=model, model_dir=model_dir, use_hpip=hpip, **further)
    method = _method(made, everything, like is not None)
    results = method(input, **_options(made, method, given), on_error=failures.add)
    prints = as_json or not quiet
    # Results that are printed to the same terminal are progress enough.
    with ExitStack() as stack:
        advance = stack.enter_context(progress(count_images(input), shown=not (prints and sys.stdout.isatty())))
        savers = _savers(stack, save_path, format, video, input)
        for result in _saved(results, savers, failures):
            if as_json:
                print(json.dumps(result.json["res"], ensure_ascii=False), flush=True)
            elif prints:
                result.print()
            advance(1)
    return failures.exit_code


def _savers(
    stack: ExitStack, save_path: str | None, formats: list[str] | None, video: str | None, input: list[str]
) -> list[Callable[[Result], None]]:
    """Return what saves a result: JSON and picture, or the formats asked for; and a video."""
    from ..images import frame_rate
    from ..results.formats import open_writer
    from ..results.saving import Stems
    from ..results.video import VideoOutput

    savers: list[Callable[[Result], None]] = []
    if formats and save_path is not None:
        # Two formats may have files of the same name.
        folders = [Path(save_path) / name if len(formats) > 1 else Path(save_path) for name in formats]
        pairs = zip(formats, folders, strict=True)
        savers += [stack.enter_context(open_writer(name, folder)).add for name, folder in pairs]
    elif save_path is not None:
        savers.append(partial(_save, folder=save_path, stems=Stems()))
    if video is not None:
        savers.append(stack.enter_context(VideoOutput(video, fps=frame_rate(input[0]) or 25.0)).add)
    return savers


def _save(result: Result, folder: str, stems: Stems) -> None:
    """Save JSON and picture, also of a second input of the same name, from another folder or of another type."""
    name = Path(result.input_name)
    result.input_name = stems.take(name.stem) + name.suffix
    result.save_all(folder)


def _saved(results: Iterable[Result], savers: list[Callable[[Result], None]], failures: Failures) -> Iterator[Result]:
    """Save each result and pass it on, saved or not: one that cannot be saved does not stop the others."""
    for result in results:
        for save in savers:
            try:
                save(result)
            except SaveError as error:
                failures.add(error)
        yield result


def _method(made: Pipeline, everything: bool, like: bool) -> Callable[..., Iterator[Result]]:
    """Return the method of the pipeline that was asked for.

    Raises:
        ConfigError: if the pipeline has no such method, or two were asked for.
    """
    if everything and like:
        raise ConfigError("--everything and --like were given.", "Leave one out: --like looks at everything.")
    name = "predict_everything" if everything else "predict_like" if like else "predict"
    method: Callable[..., Iterator[Result]] | None = getattr(made, name, None)
    if method is None:
        raise ConfigError(
            f"--{'everything' if everything else 'like'} is not an option of {made.name}.", "Leave it out."
        )
    return method


def _options(made: Pipeline, method: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave and the defaults of the command line, for a method of `made`.

    Raises:
        ConfigError: if the method has no such option.
    """
    import inspect

    known = set(inspect.signature(method).parameters)
    if "settings" in known:
        from ..pipelines.everything import Everything

        known |= {item.name for item in dataclasses.fields(Everything)}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in known:
            asked = method.__name__.removeprefix("predict").replace("_", " --")
            raise ConfigError(f"--{name.replace('_', '-')} is not an option of {made.name}{asked}.", "Leave it out.")
    return {name: value for name, value in DEFAULTS.items() if name in known} | options


def _example(text: str | None) -> Any:
    """Return the value of --like: a path, or a box if it looks like a list."""
    if text is None or not text.lstrip().startswith("["):
        return text
    from ..stages.prompts import BOX_FORM

    return literal("--like", text, PromptError, f"Give a picture, or a box such as [10, 20, 110, 90]. {BOX_FORM}")

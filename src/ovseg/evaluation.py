"""COCO evaluation of instance segmentation: results in COCO JSON, and average precision by pycocotools."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, ImageError, OvsError, SaveError
from .pipelines.instance_segmentation import InstanceSegmentationPipeline
from .results.base import Result
from .results.saving import atomic_write
from .schema import is_number, shown
from .stages.masks import encode_rle

RESULTS_FILE, METRICS_FILE, UNFINISHED_FILE = "results.json", "metrics.json", "unfinished.jsonl"
THRESHOLD = 0.001
"""Average precision is an area under a curve: nearly everything that the model finds belongs to it."""
METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium",
    "AR_large",
)  # fmt: skip
"""pycocotools' twelve figures, in its order."""

_IMAGE_KEYS = ("id", "file_name", "height", "width")
_ANNOTATION_KEYS = ("image_id", "category_id", "segmentation")

OnError = Callable[[OvsError], None]


@dataclass(frozen=True)
class Annotations:
    """Objects that somebody outlined, in COCO's format.

    Attributes:
        where: the file.
        sha256: of the file.
        dataset: its content; every annotation has an `id` from 1 up, `iscrowd`, `area` and `bbox`.
        categories: name to id.
    """

    where: Path
    sha256: str
    dataset: Mapping[str, Any]
    categories: Mapping[str, int]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        images: images that were evaluated.
        skipped: images that were reported and left out.
        mask: METRICS to figure in 0..1, None where there is nothing of that size to find.
        box: the same for boxes.
        categories: name of each category to its `mask` and `box` AP, None where there is none to find.
    """

    images: int
    skipped: int
    mask: Mapping[str, float | None]
    box: Mapping[str, float | None]
    categories: Mapping[str, Mapping[str, float | None]]

    @property
    def json(self) -> dict[str, Any]:
        """The same as plain dicts: what METRICS_FILE holds."""
        kinds = {"mask": dict(self.mask), "box": dict(self.box)}
        categories = {name: dict(figures) for name, figures in self.categories.items()}
        return {"images": self.images, "skipped": self.skipped, **kinds, "categories": categories}

    def table(self) -> str:
        """Return the figures as lines of text."""
        lines = [f"{'':10} {'mask':>7} {'box':>7}"]
        for name in METRICS:
            figures = ("-" if value is None else f"{value:.4f}" for value in (self.mask[name], self.box[name]))
            lines.append(f"{name:10} {next(figures):>7} {next(figures):>7}")
        return "\n".join(lines)


def read_annotations(path: str | Path) -> Annotations:
    """Read a file in COCO's format of instances.

    Args:
        path: JSON with `images` (`id`, `file_name`, `height`, `width`), `categories` (`id`, `name`) and
            `annotations` (`image_id`, `category_id`, `segmentation`: polygons or run lengths). What they lack of
            `area`, `bbox` and `iscrowd` is added.

    Raises:
        ConfigError: it cannot be read, a key is missing, something stands twice, or an annotation is of an image
            or a category that is not there.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        dataset = json.loads(data)
    except OSError as error:
        raise ConfigError(f"{path} could not be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.", "Give annotations in COCO's format.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(key), list) for key in lists):
        raise ConfigError(
            f"{path} has not the lists {', '.join(lists)}.", "Give annotations in COCO's format of instances."
        )
    for key, needed in zip(lists, (_IMAGE_KEYS, _ANNOTATION_KEYS, ("id", "name")), strict=True):
        for number, entry in enumerate(dataset[key]):
            if missing := [name for name in needed if not isinstance(entry, dict) or name not in entry]:
                raise ConfigError(f"{path}: {key}[{number}] has no {missing[0]}.", f"It needs {', '.join(needed)}.")
    for key, name in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        if wrong := [entry[name] for entry in dataset[key] if not isinstance(entry[name], str | int)]:
            raise ConfigError(f"{path}: {key} have the {name} {shown(wrong[0])}.", "Give a text or a whole number.")
        if name == "id" and len({isinstance(entry["id"], str) for entry in dataset[key]}) > 1:
            raise ConfigError(f"{path}: {key} have texts and numbers as ids.", "Give ids of one kind.")
        counted = Counter(entry[name] for entry in dataset[key])
        if twice := next((value for value, count in counted.items() if count > 1), None):
            raise ConfigError(f"{path}: two {key} have the {name} {twice!r}.", "Rename one of them.")
    for image in dataset["images"]:
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("height", "width")):
            raise ConfigError(
                f"{path}: the image {image['file_name']!r} has no size.", "Give height and width in pixels."
            )
    if not dataset["images"] or not dataset["annotations"]:
        raise ConfigError(f"{path} has no images or no annotations.", "There is nothing to evaluate.")
    images = {image["id"]: image for image in dataset["images"]}
    categories = {category["name"]: category["id"] for category in dataset["categories"]}
    known = set(categories.values())
    for number, annotation in enumerate(dataset["annotations"]):
        for key in ("image_id", "category_id"):
            if not isinstance(annotation[key], str | int):
                raise ConfigError(
                    f"{path}: annotations[{number}] has the {key} {shown(annotation[key])}.",
                    "Give a text or a whole number.",
                )
        if annotation["image_id"] not in images or annotation["category_id"] not in known:
            kind = "category_id" if annotation["image_id"] in images else "image_id"
            raise ConfigError(
                f"{path}: annotations[{number}] has the {kind} {annotation[kind]!r}, which is not in the file.",
                "Correct the file.",
            )
        # pycocotools takes a match with the annotation of id 0 for none.
        annotation |= {"id": number + 1, "iscrowd": annotation.get("iscrowd", 0)}
        _complete(annotation, images[annotation["image_id"]], f"{path}: annotations[{number}]")
    return Annotations(path, hashlib.sha256(data).hexdigest(), dataset, categories)


def _complete(annotation: dict[str, Any], image: Mapping[str, Any], where: str) -> None:
    """Turn the outline into run lengths; add area and box where they are missing."""
    from pycocotools import mask as coco_mask

    outline, size = annotation["segmentation"], (image["height"], image["width"])
    try:
        if isinstance(outline, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(outline, *size))
        elif isinstance(outline["counts"], list):
            rle = coco_mask.frPyObjects(outline, *size)
        else:
            rle = {"size": outline["size"], "counts": outline["counts"].encode("ascii")}
        if tuple(rle["size"]) != size:
            raise ValueError(f"its mask is of {rle['size'][0]}x{rle['size'][1]} pixels")
        area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    except Exception as error:  # pycocotools raises nearly anything
        raise ConfigError(
            f"{where} has a segmentation that cannot be used for an image of {size[0]}x{size[1]} pixels ({error}).",
            "Give polygons of at least 3 points, or run lengths of the size of the image.",
        ) from error
    annotation["segmentation"] = rle
    annotation.setdefault("area", area)
    annotation.setdefault("bbox", box)
    given = annotation["bbox"]
    right = {
        "iscrowd": annotation["iscrowd"] in (0, 1),
        "area": is_number(annotation["area"]),
        "bbox": isinstance(given, list) and len(given) == 4 and all(map(is_number, given)),
    }
    if wrong := [key for key, is_right in right.items() if not is_right]:
        raise ConfigError(
            f"{where} has the {wrong[0]} {shown(annotation[wrong[0]])}.",
            "Give iscrowd 0 or 1, the area in pixels, bbox as [x, y, width, height], or leave them out.",
        )


def evaluate(
    pipeline: InstanceSegmentationPipeline,
    annotations: Annotations,
    images: str | Path,
    save_path: str | Path,
    *,
    threshold: Any = THRESHOLD,
    batch_size: int | None = None,
    known_only: bool = False,
    on_error: OnError,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Segment the annotated images and compare with the annotations.

    What is found goes to disk image by image: a run that was interrupted goes on where it stopped when it is
    called again with the same pipeline, annotations, images and options. Classes and categories are matched by
    name; what the model finds of classes that are not annotated is left out.

    Args:
        pipeline: what finds the objects.
        annotations: what there is to find.
        images: the folder that the `file_name`s of the annotations are relative to.
        save_path: folder for RESULTS_FILE (COCO's results format, masks as run lengths) and METRICS_FILE.
        threshold: least score, as in the pipeline's `predict`.
        batch_size: as in the pipeline's `predict`.
        known_only: leave out annotated categories that the model does not know, instead of raising.
        on_error: told of each image that cannot be read, or has another size than annotated; it is left out.
        advance: told how many more images are done; those of an earlier run at once.

    Raises:
        ConfigError: images that are missing, categories that the model does not know, or an unfinished evaluation
            of something else in `save_path`.
        ImageError: not one image could be evaluated.
        SaveError: a file cannot be written.
    """
    category_of_class = _match_categories(pipeline.labels, annotations, known_only)
    folder, save_path = Path(images), Path(save_path)
    by_path: dict[str, Any] = {}
    for image in annotations.dataset["images"]:
        path = str(folder / str(image["file_name"]))
        if path in by_path:
            names = f"{by_path[path]['file_name']!r} and {image['file_name']!r}"
            raise ConfigError(f"{annotations.where}: the images {names} are one file.", "Rename one of them.")
        by_path[path] = image
    _check_files(by_path, folder, annotations.where)
    settings = {
        "annotations": annotations.sha256,
        "images": str(folder.resolve()),
        "model": pipeline.model.facts["files"],
        "threshold": threshold,
        "categories": [category_of_class.get(number) for number in range(len(pipeline.labels))],
    }
    unfinished = save_path / UNFINISHED_FILE
    lines = _open_unfinished(unfinished, settings)
    done = {line["image_id"]: line["results"] for line in lines}
    advance(len(done))
    left = [path for path, image in by_path.items() if image["id"] not in done]

    def report(error: OvsError) -> None:
        advance(1)
        on_error(error)

    predicted = pipeline.predict(left, threshold, batch_size=batch_size, on_error=report)
    try:
        with unfinished.open("a", encoding="utf-8") as file:
            for result in predicted:
                image = by_path[result["input_path"]]
                if error := _size_error(result, image):
                    report(error)
                    continue
                done[image["id"]] = _coco_results(result, image["id"], category_of_class)
                print(json.dumps({"image_id": image["id"], "results": done[image["id"]]}), file=file, flush=True)
                advance(1)
    except OSError as error:
        raise _unwritable(unfinished, error) from error
    if not done:
        raise ImageError(f"None of the {len(by_path)} images could be evaluated.", "See the messages above.")
    results = [entry for image in annotations.dataset["images"] for entry in done.get(image["id"], ())]
    found = judge(annotations, results, list(done), sorted(category_of_class.values()), len(by_path))
    for name, content in ((RESULTS_FILE, results), (METRICS_FILE, found.json)):
        with atomic_write(save_path / name) as out:
            out.write(json.dumps(content, indent=1 if name == METRICS_FILE else None).encode())
    unfinished.unlink()
    return found


def _match_categories(labels: Sequence[str], annotations: Annotations, known_only: bool) -> dict[int, int]:
    """Return class number to category id."""
    known = annotations.categories
    matched = {number: known[name] for number, name in enumerate(labels) if name in known}
    unknown = [name for name in known if name not in labels]
    if unknown and not (known_only and matched):
        names = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        classes = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise ConfigError(
            f"{annotations.where} has {len(unknown)} of {len(known)} categories that the model does not know: {names}.",
            f"The model's {len(labels)} classes are {classes}. Rename the categories"
            + ("." if not matched else ", or evaluate the known ones only (--known-only)."),
        )
    return matched


def _check_files(by_path: Mapping[str, Any], folder: Path, where: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.", "Give the folder of the annotated images.")
    if missing := [path for path in by_path if not Path(path).is_file()]:
        raise ConfigError(
            f"{len(missing)} of the {len(by_path)} images that {where} names are missing, such as {missing[0]}.",
            "Give the folder that their file_name is relative to, or remove them from the annotations.",
        )


def _open_unfinished(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an interrupted run left, or begin a new file.

    A kill may have cut the last line: it is removed.
    """
    first = json.dumps(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.decode("utf-8").splitlines()
        if len(lines) <= 1:  # nothing was done yet
            lines = [first]
            path.write_text(first + "\n", encoding="utf-8")
        elif len(whole) < len(data) and lines[0] == first:
            # Not written anew: what is done would be lost where the disk is full.
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise _unwritable(path, error) from error
    if lines[0] != first:
        raise ConfigError(
            f"{path} is of an evaluation of another model, other annotations, images or options that was interrupted.",
            "Repeat that command to finish it, remove the file, or give another folder.",
        )
    return [json.loads(line) for line in lines[1:]]


def _unwritable(path: Path, error: OSError) -> SaveError:
    return SaveError(f"{path} could not be written: {error.strerror}.", "Check that the disk has room and is writable.")


def _size_error(result: Result, image: Mapping[str, Any]) -> ImageError | None:
    height, width = result.pixels.shape[:2]
    if (height, width) == (image["height"], image["width"]):
        return None
    return ImageError(
        f"{result['input_path']} has {height}x{width} pixels, and its annotations are for "
        f"{image['height']}x{image['width']}.",
        "Give the images that were annotated.",
    )


def _coco_results(result: Result, image_id: Any, category_of_class: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return the objects of one image in COCO's results format."""
    chosen = [i for i, box in enumerate(result["boxes"]) if box["cls_id"] in category_of_class]
    outlines = encode_rle([result["masks"][i] for i in chosen])
    entries = []
    for i, outline in zip(chosen, outlines, strict=True):
        box = result["boxes"][i]
        x1, y1, x2, y2 = box["coordinate"]
        entries.append(
            {
                "image_id": image_id,
                "category_id": category_of_class[box["cls_id"]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": box["score"],
                "segmentation": outline,
            }
        )
    return entries


def judge(
    annotations: Annotations,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[Any],
    category_ids: Sequence[int],
    asked: int,
) -> Evaluation:
    """Compute average precision and recall by pycocotools.

    Args:
        annotations: what there is to find.
        results: what was found, in COCO's results format: `image_id`, `category_id`, `score`, `bbox`, `segmentation`
            as run lengths.
        image_ids: images that count.
        category_ids: categories that count.
        asked: number of images that were to be evaluated; the others were skipped.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    name_of = {number: name for name, number in annotations.categories.items()}
    figures: dict[str, dict[str, float | None]] = {}
    categories: dict[str, dict[str, float | None]] = {name_of[number]: {} for number in category_ids}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints all the way
        truth = COCO()
        truth.dataset = annotations.dataset
        truth.createIndex()
        for kind, name in (("segm", "mask"), ("bbox", "box")):
            found = COCO()
            found.dataset = {**annotations.dataset, "annotations": list(_as_annotations(results, kind))}
            found.createIndex()
            coco = COCOeval(truth, found, kind)
            coco.params.imgIds = sorted(image_ids)
            coco.params.catIds = list(category_ids)
            coco.evaluate()
            coco.accumulate()
            coco.summarize()
            figures[name] = {key: _figure(value) for key, value in zip(METRICS, coco.stats, strict=True)}
            # precision: IoU x recall x category x area x most detections; -1 where there is nothing to find
            precision = coco.eval["precision"][:, :, :, 0, -1]
            for place, number in enumerate(category_ids):
                of_category = precision[:, :, place]
                categories[name_of[number]][name] = _figure(of_category.mean() if (of_category > -1).all() else -1)
    return Evaluation(len(image_ids), asked - len(image_ids), figures["mask"], figures["box"], categories)


def _as_annotations(results: Sequence[Mapping[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """Yield results as pycocotools needs them; its `loadRes` takes the area of the box for that of the mask."""
    from pycocotools import mask as coco_mask

    for number, result in enumerate(results):
        _, _, width, height = result["bbox"]
        area = float(coco_mask.area(result["segmentation"])) if kind == "segm" else width * height
        yield {**result, "id": number + 1, "iscrowd": 0, "area": area}


def _figure(value: float | np.floating[Any]) -> float | None:
    return None if value < 0 else round(float(value), 6)

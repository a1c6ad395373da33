"""COCO evaluation, on pictures whose objects are known to the pixel."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from instance_graphs import LABELS, write_folder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovseg import create_pipeline
from ovseg.cli import main
from ovseg.errors import ConfigError, OvsError
from ovseg.evaluation import METRICS, Evaluation, _as_annotations, evaluate, read_annotations
from ovseg.results.base import Result

HEIGHT, WIDTH = 40, 60
# What the graph of instance_graphs finds: a traffic light, 4 pixels wider than its box on each side, and a person.
LIGHT = [11, 1, 49, 1, 49, 24, 11, 24]
PERSON = [0, 16, 22, 16, 22, 40, 0, 40]


def annotation(image_id: int, category_id: int, outline: list[int], box: list[int]) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": [outline], "bbox": box, "iscrowd": 0}


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, Any]:
    """Four pictures in a folder, three of them with both objects and one with the person only."""
    (tmp_path / "pictures").mkdir()
    images, annotations = [], []
    for i in range(4):
        name = f"{i}.png"
        cv2.imwrite(str(tmp_path / "pictures" / name), np.full((HEIGHT, WIDTH, 3), 255 - i, np.uint8))
        images.append({"id": 10 * i, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations.append(annotation(10 * i, 7, PERSON, [0, 20, 18, 20]))
        if i < 3:
            annotations.append(annotation(10 * i, 3, LIGHT, [15, 5, 30, 15]))
    categories = [{"id": 7, "name": "person"}, {"id": 3, "name": "traffic light"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def run(tmp_path: Path, dataset: dict[str, Any], instance_folders: dict[str, Path]) -> Callable[..., Evaluation]:
    """run(dataset, ...): evaluate the pictures of `tmp_path`."""

    def run(changed: Any = None, **options: Any) -> Evaluation:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(dataset if changed is None else changed))
        pipeline: Any = create_pipeline(
            "instance_segmentation", model_dir=options.pop("model_dir", instance_folders["batch"]), device="cpu"
        )
        errors: list[OvsError] = options.pop("errors", [])
        options = {"on_error": errors.append} | options
        images = options.pop("images", tmp_path / "pictures")
        return evaluate(pipeline, read_annotations(path), images, tmp_path / "out", **options)

    return run


def test_perfect_masks_have_ap_1_but_for_what_is_found_and_not_there(run: Callable[..., Evaluation]) -> None:
    found = run(threshold=0.5)
    assert (found.images, found.skipped) == (4, 0)
    # The person is always there. The light of the last picture is not, and has the lowest score.
    assert found.mask["AP"] == found.box["AP"] == 1
    assert found.categories["person"] == {"mask": 1, "box": 1}
    assert found.mask["AP_large"] is None


def test_figures_are_those_of_pycocotools(
    run: Callable[..., Evaluation], dataset: dict[str, Any], tmp_path: Path
) -> None:
    # Masks that are off by some pixels, one object missed, one found twice, one crowd.
    dataset["annotations"][0]["segmentation"] = [[0, 18, 18, 18, 18, 38, 0, 38]]
    dataset["annotations"][1]["segmentation"] = [[15, 1, 49, 1, 49, 30, 15, 30]]
    dataset["annotations"][2]["bbox"] = [2, 22, 20, 17]
    dataset["annotations"][3]["iscrowd"] = 1
    dataset["annotations"].append(annotation(0, 7, [30, 30, 50, 30, 50, 39, 30, 39], [30, 30, 20, 9]))
    found = run(threshold=0.1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found.json
    truth = COCO()
    truth.dataset = copy.deepcopy(dataset)
    for number, entry in enumerate(truth.dataset["annotations"]):
        polygon = np.reshape(entry["segmentation"][0], (-1, 2))
        sides = polygon.max(0) - polygon.min(0)
        entry |= {"id": number + 1, "area": float(sides.prod())}
    truth.createIndex()
    for kind, figures in (("segm", found.mask), ("bbox", found.box)):
        entries = [{k: v for k, v in entry.items() if (k, kind) != ("bbox", "segm")} for entry in results]
        judge = COCOeval(truth, truth.loadRes(entries), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        expected = [None if value < 0 else round(float(value), 6) for value in judge.stats]
        assert [figures[name] for name in METRICS] == expected
        assert 0 < judge.stats[0] < 1
    assert 0 < found.mask["AP"] < found.mask["AP50"]  # type: ignore[operator]


def test_sizes_are_those_of_masks_or_of_boxes(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    run(threshold=0.5)
    results = json.loads((tmp_path / "out" / "results.json").read_text())[:2]
    assert [entry["area"] for entry in _as_annotations(results, "segm")] == [38 * 23, 22 * 24]
    assert [entry["area"] for entry in _as_annotations(results, "bbox")] == [30 * 15, 18 * 20]


def interrupted(run: Callable[..., Evaluation], calls: int) -> None:
    """Evaluate until so many times something was said to be done: once what was there, then each image."""
    said: list[int] = []

    def interrupt(count: int) -> None:
        said.append(count)
        if len(said) == calls:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(threshold=0.1, advance=interrupt)


def test_an_interrupted_evaluation_goes_on(
    run: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(threshold=0.1)
    expected = (tmp_path / "out" / "results.json").read_bytes()
    shutil.rmtree(tmp_path / "out")
    interrupted(run, 4)
    unfinished = tmp_path / "out" / "unfinished.jsonl"
    assert not (tmp_path / "out" / "results.json").exists()
    assert len(unfinished.read_text().splitlines()) == 4
    with unfinished.open("a") as file:
        file.write('{"image_id": 30, "resu')  # as a kill leaves it
    # Nothing is written anew, which would lose what is done if the disk were full.
    write = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if path == unfinished:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    advanced: list[int] = []
    seen: list[Any] = []
    pixels = Result.__init__
    monkeypatch.setattr(Result, "__init__", lambda self, *a: (seen.append(a), pixels(self, *a))[1])
    assert run(threshold=0.1, advance=advanced.append) == whole
    assert advanced == [3, 1] and len(seen) == 1
    assert (tmp_path / "out" / "results.json").read_bytes() == expected
    assert not unfinished.exists()


def test_an_unfinished_evaluation_of_something_else(run: Callable[..., Evaluation]) -> None:
    interrupted(run, 3)
    with pytest.raises(ConfigError, match=r"unfinished\.jsonl is of an evaluation of another model"):
        run(threshold=0.2)
    assert run(threshold=0.1).images == 4


def test_an_unfinished_evaluation_of_other_images(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    interrupted(run, 3)
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    with pytest.raises(ConfigError, match=r"unfinished\.jsonl is of .* other annotations, images or options"):
        run(threshold=0.1, images=tmp_path / "others")
    assert run(threshold=0.1).images == 4


def test_a_refused_threshold_leaves_nothing_in_the_way(run: Callable[..., Evaluation]) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        run(threshold=2)
    assert run(threshold=0.5).images == 4


def test_a_corrupt_image_and_one_of_another_size_are_reported(run: Callable[..., Evaluation], tmp_path: Path) -> None:
    (tmp_path / "pictures" / "1.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "pictures" / "2.png"), np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    errors: list[OvsError] = []
    advanced: list[int] = []
    found = run(errors=errors, advance=advanced.append, batch_size=4)
    assert (found.images, found.skipped, sum(advanced)) == (2, 2, 4)
    assert "1.png" in errors[0].cause and "40x61 pixels, and its annotations are for 40x60" in errors[1].cause
    assert found.categories["person"]["mask"] == 1
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(OvsError, match="None of the 4 images"):
        run()


def test_classes_and_categories_are_matched_by_name(
    run: Callable[..., Evaluation], tmp_path: Path, dataset: dict[str, Any]
) -> None:
    turned = write_folder(tmp_path / "turned", "batch", labels=[LABELS[2], LABELS[1], LABELS[0], LABELS[3]])
    assert run(threshold=0.5).mask["AP"] == 1
    # Persons are now called traffic lights and the other way round: nothing is where it should be.
    assert run(threshold=0.5, model_dir=turned).mask["AP"] == 0
    dataset["categories"].append({"id": 1, "name": "zebra"})
    with pytest.raises(ConfigError, match=r"1 of 3 categories that the model does not know: 'zebra'.*--known-only"):
        run(dataset)
    dataset["annotations"].append(annotation(0, 1, LIGHT, [0, 0, 1, 1]))
    found = run(dataset, known_only=True, threshold=0.5)
    assert found.mask["AP"] == 1 and list(found.categories) == ["traffic light", "person"]
    for category in dataset["categories"]:
        category["name"] += "s"
    with pytest.raises(
        ConfigError, match="3 of 3 categories that the model does not know: 'persons', 'traffic lights'"
    ):
        run(dataset, known_only=True)


def _set(dataset: Any, *path: Any, value: Any) -> Any:
    for key in path[:-1]:
        dataset = dataset[key]
    dataset[path[-1]] = value


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no list of images": (lambda d: d.pop("images"), "has not the lists images, annotations, categories"),
    "an image without a name": (lambda d: d["images"][1].pop("file_name"), r"images\[1\] has no file_name"),
    "an image without a size": (lambda d: _set(d, "images", 0, "width", value=None), "image '0.png' has no size"),
    "an annotation without a mask": (lambda d: d["annotations"][2].pop("segmentation"), r"\[2\] has no segmentation"),
    "an image twice": (lambda d: _set(d, "images", 1, "id", value=20), "two images have the id 20"),
    "a file twice": (
        lambda d: _set(d, "images", 1, "file_name", value="0.png"),
        "two images have the file_name '0.png'",
    ),
    "a category twice": (lambda d: _set(d, "categories", 1, "id", value=7), "two categories have the id 7"),
    "a name that is a list": (lambda d: _set(d, "categories", 1, "name", value=[]), r"have the name \[\]"),
    "an unknown image": (lambda d: _set(d, "annotations", 1, "image_id", value=5), r"\[1\] has the image_id 5"),
    "an unknown category": (
        lambda d: _set(d, "annotations", 1, "category_id", value=5),
        r"\[1\] has the category_id 5",
    ),
    "an image of a list": (lambda d: _set(d, "annotations", 1, "image_id", value=[0]), r"\[1\] has the image_id \[0\]"),
    "ids of two kinds": (
        lambda d: (_set(d, "images", 3, "id", value="30"), _set(d, "annotations", 6, "image_id", value="30")),
        "images have texts and numbers as ids",
    ),
    "an area of null": (lambda d: _set(d, "annotations", 1, "area", value=None), r"\[1\] has the area None"),
    "a box of null": (lambda d: _set(d, "annotations", 1, "bbox", value=None), r"\[1\] has the bbox None"),
    "a box of nothing": (lambda d: _set(d, "annotations", 1, "bbox", value=[]), r"\[1\] has the bbox \[\]"),
    "a crowd of null": (lambda d: _set(d, "annotations", 1, "iscrowd", value=None), r"\[1\] has the iscrowd None"),
    "a crowd of text": (lambda d: _set(d, "annotations", 1, "iscrowd", value="0"), r"\[1\] has the iscrowd '0'"),
    "a polygon of two points": (
        lambda d: _set(d, "annotations", 0, "segmentation", value=[[1, 2, 3, 4]]),
        r"annotations\[0\] has a segmentation that cannot be used",
    ),
    "a mask of another size": (
        lambda d: _set(d, "annotations", 0, "segmentation", value={"size": [4, 4], "counts": "02"}),
        r"for an image of 40x60 pixels \(its mask is of 4x4 pixels\)",
    ),
    "nothing": (lambda d: d["annotations"].clear(), "no images or no annotations"),
    "a missing picture": (
        lambda d: _set(d, "images", 1, "file_name", value="x.png"),
        r"1 of the 4 images that .*x\.png",
    ),
    "a file by two names": (
        lambda d: _set(d, "images", 1, "file_name", value="./0.png"),
        r"the images '0.png' and './0.png' are one file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_annotations_that_cannot_be_used(name: str, run: Callable[..., Evaluation], dataset: dict[str, Any]) -> None:
    change, message = BAD[name]
    change(dataset)
    with pytest.raises(ConfigError, match=message):
        run(dataset)


def test_run_lengths_as_annotations(run: Callable[..., Evaluation], dataset: dict[str, Any]) -> None:
    first = run(threshold=0.1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.rectangle(mask, (0, 16), (21, 39), 1, -1)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.flatten("F"), [0]])))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    for entry in dataset["annotations"][::2]:
        entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
        del entry["iscrowd"]
    assert run(dataset, threshold=0.1) == first


def test_command_line(
    run: Callable[..., Evaluation],
    tmp_path: Path,
    instance_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = run(threshold=0.5)
    given = ["eval", "instance_segmentation", "--annotations", str(tmp_path / "annotations.json"), "--images"]
    options = ["--model-dir", str(instance_folders["batch"]), "--save_path", str(tmp_path / "cli"), "--device", "cpu"]
    options += ["--threshold", "0.5", "--batch-size", "2"]
    assert main([*given, str(tmp_path / "pictures"), *options]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "4 images"
    assert printed.out.splitlines()[2].split() == ["AP", "1.0000", "1.0000"]
    assert len(printed.out.splitlines()) == 14 and printed.err == ""
    (tmp_path / "pictures" / "3.png").write_bytes(b"no image")
    assert main([*given, str(tmp_path / "pictures"), *options, "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 3 and "3.png" in printed.err
    assert json.loads(printed.out)["mask"]["AP"] == expected.mask["AP"]
    assert main([*given, str(tmp_path / "nothing"), *options]) == 2
    assert "nothing is not a folder" in capsys.readouterr().err
    assert main(["eval", "open_vocabulary_segmentation", *given[2:], str(tmp_path), "--device", "cpu"]) == 2
    assert "cannot be evaluated" in capsys.readouterr().err
    assert main([*given[:3], str(tmp_path / "no.json"), "--images", str(tmp_path), *options]) == 2
    assert "no.json could not be read" in capsys.readouterr().err

"""Each format is written, read back by the tool's own library where there is one, and compared to the mask."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from ovseg.errors import ConfigError, SaveError
from ovseg.results.base import Result
from ovseg.results.formats import FORMATS, open_writer
from ovseg.results.instance_segmentation import InstanceSegmentationResult
from ovseg.results.open_vocabulary_segmentation import OpenVocabularySegmentationResult

HEIGHT, WIDTH = 90, 130


def draw(paint: Callable[[np.ndarray], Any]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    paint(mask)
    return mask.view(np.int8)


def ring(mask: np.ndarray) -> None:
    cv2.circle(mask, (60, 45), 30, 1, cv2.FILLED)
    cv2.circle(mask, (64, 42), 12, 0, cv2.FILLED)


def two_parts(mask: np.ndarray) -> None:
    cv2.circle(mask, (30, 40), 20, 1, cv2.FILLED)
    cv2.rectangle(mask, (56, 20), (100, 70), 1, cv2.FILLED)


def noise(mask: np.ndarray) -> None:
    rough = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    mask[:] = cv2.GaussianBlur(rough, (0, 0), 4) > 0.01


MASKS = {
    "disc": draw(lambda mask: cv2.circle(mask, (60, 45), 30, 1, cv2.FILLED)),
    "whole image": draw(lambda mask: mask.fill(1)),
    "ring": draw(ring),
    "two parts": draw(two_parts),
    "at the corner": draw(lambda mask: cv2.rectangle(mask, (0, 0), (12, 9), 1, cv2.FILLED)),
    "a pixel": draw(lambda mask: mask.__setitem__((5, 7), 1)),
    "touching at corners": draw(lambda mask: (mask[10:20, 10:20].fill(1), mask[20:30, 20:30].fill(1))),
    "noise": draw(noise),
}
SIMPLE = ["disc", "whole image", "at the corner", "a pixel"]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(bool), b.astype(bool)
    return float((a & b).sum() / (a | b).sum())


def prompted(masks: list[np.ndarray], path: str | None = None) -> OpenVocabularySegmentationResult:
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    infos = [{"label": "box_prompt", "prompt": [0, 0, 5, 5]} for _ in masks]
    data = {"input_path": path, "page_index": None, "prompts": {}, "masks": masks, "mask_infos": infos}
    return OpenVocabularySegmentationResult(data, pixels)


def instances(path: str) -> InstanceSegmentationResult:
    masks = [MASKS["disc"], MASKS["ring"], MASKS["at the corner"]]
    boxes = [
        {"cls_id": number, "label": label, "score": score, "coordinate": [0, 0, 50, 50]}
        for number, label, score in ((3, "cat", 0.9), (7, "größe", 0.8), (3, "cat", 0.7))
    ]
    data = {"input_path": path, "page_index": None, "boxes": boxes, "masks": masks}
    return InstanceSegmentationResult(data, np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def write(name: str, folder: Path, *results: Result) -> None:
    with open_writer(name, folder) as writer:
        for result in results:
            writer.add(result)


def read_coco(folder: Path) -> list[np.ndarray]:
    from pycocotools.coco import COCO

    coco = COCO(str(folder / "annotations.json"))
    return [coco.annToMask(coco.anns[i]) for i in sorted(coco.anns)]


@pytest.mark.parametrize("name", ["coco", "coco-polygon"])
def test_coco(name: str, tmp_path: Path) -> None:
    write(name, tmp_path, prompted(list(MASKS.values()), "a/b.jpg"))
    for shape, mask, found in zip(MASKS, MASKS.values(), read_coco(tmp_path), strict=True):
        assert np.array_equal(found, mask), shape


def test_coco_of_several_images(tmp_path: Path) -> None:
    write("coco", tmp_path, instances("a/b.jpg"), prompted([], "c.png"), instances("d.jpg"))
    data = json.loads((tmp_path / "annotations.json").read_text("utf-8"))
    assert [image["file_name"] for image in data["images"]] == ["b.jpg", "c.png", "d.jpg"]
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "größe"}]
    found = [(item["image_id"], item["category_id"]) for item in data["annotations"]]
    assert found == [(1, 1), (1, 2), (1, 1), (3, 1), (3, 2), (3, 1)]
    first = data["annotations"][0]
    assert first["score"] == 0.9 and first["area"] == MASKS["disc"].sum() and first["bbox"] == [30, 15, 61, 61]


def supervision() -> Any:
    return pytest.importorskip("supervision", reason="supervision is not installed")


@pytest.mark.parametrize("shape", MASKS)
def test_yolo_is_read_by_supervision(shape: str, tmp_path: Path) -> None:
    sv = supervision()
    write("yolo", tmp_path, prompted([MASKS[shape]], "img/a.png"))
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    read = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    ((_, _, found),) = list(read)
    assert read.classes == ["object"]
    # Tools that draw with OpenCV draw bridges between parts one pixel wide, and each part of the noise has one.
    assert iou(found.mask[0], MASKS[shape]) >= 0.99
    assert (found.mask[0].astype(bool) >= MASKS[shape].astype(bool)).all()


def test_yolo_coordinates_are_the_same_rounded_down_and_to_nearest(tmp_path: Path) -> None:
    write("yolo", tmp_path, prompted([MASKS["at the corner"]], "a.png"))
    numbers = (tmp_path / "labels" / "a.txt").read_text("utf-8").split()[1:]
    corners = np.array(numbers, np.float32).reshape(-1, 2) * (WIDTH, HEIGHT)
    assert np.array_equal(np.floor(corners), np.round(corners))
    assert sorted(np.floor(corners).tolist()) == [[0, 0], [0, 9], [12, 0], [12, 9]]


def test_yolo_coordinates_are_those_of_the_image(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.int8)
    mask[4:9, 6:12] = mask[12:15, 20:23] = 1
    write("yolo", tmp_path, prompted([mask], "a.png"))
    numbers = (tmp_path / "labels" / "a.txt").read_text("utf-8").split()[1:]
    corners = np.floor(np.array(numbers, np.float32).reshape(-1, 2) * (WIDTH, HEIGHT))
    assert corners.min(axis=0).tolist() == [6, 4] and corners.max(axis=0).tolist() == [22, 14]


def test_yolo_warns_of_a_mask_that_no_polygon_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    apart = np.zeros((HEIGHT, WIDTH), np.int8)
    apart[:, :3] = apart[:, -3:] = 1
    write("yolo", tmp_path, prompted([MASKS["disc"], apart], "a.png"))
    (message,) = caplog.messages
    assert message.startswith("a.png: object 1 is in parts far from each other") and "an IoU of 0.81" in message


def test_yolo_names_classes_in_order(tmp_path: Path) -> None:
    write("yolo", tmp_path, instances("x/a.jpg"), instances("y/a.jpg"))
    lines = (tmp_path / "labels" / "a.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "0"] and (tmp_path / "labels" / "a_2.txt").is_file()
    assert yaml.safe_load((tmp_path / "data.yaml").read_text("utf-8"))["names"] == ["cat", "größe"]


def test_no_two_inputs_share_a_file(tmp_path: Path) -> None:
    inputs = ["a.jpg", "a_3.jpg", "a.png", "a_2.jpg", "a.bmp"]
    write("labelme", tmp_path, *(prompted([MASKS["disc"]], path) for path in inputs))
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["a", "a_2", "a_2_2", "a_3", "a_4"]


@pytest.mark.parametrize("embedded", [True, False])
def test_labelme(embedded: bool, tmp_path: Path) -> None:
    pytest.importorskip("labelme", reason="labelme is not installed")
    from labelme import _label_file as label_file
    from labelme.utils import shape as shapes

    path = None
    if not embedded:
        path = str(tmp_path / "pictures" / "a.png")
        (tmp_path / "pictures").mkdir()
        cv2.imwrite(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    write("labelme", tmp_path / "out", prompted(list(MASKS.values()), path))
    (file,) = (tmp_path / "out").glob("*.json")
    data = json.loads(file.read_text("utf-8"))
    read = [label_file._load_shape_json_obj(item) for item in data["shapes"]]
    found: dict[Any, np.ndarray] = {}
    for i, shape in enumerate(read):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        if shape["shape_type"] == "mask":
            (x1, y1), (x2, y2) = np.array(shape["points"], int)
            mask[y1 : y2 + 1, x1 : x2 + 1] = shape["mask"]
        else:
            mask |= shapes.shape_to_mask((HEIGHT, WIDTH), shape["points"], "polygon")
        key = ("group", shape["group_id"]) if shape["group_id"] is not None else ("alone", i)
        found[key] = found.get(key, np.zeros((HEIGHT, WIDTH), bool)) | mask
    for shape, mask, ours in zip(MASKS, MASKS.values(), found.values(), strict=True):
        assert np.array_equal(ours, mask.astype(bool)), shape
    picture = cv2.imread(str(file.parent / data["imagePath"])) if not embedded else None
    assert (data["imageData"] is not None) if embedded else (picture is not None)


def test_label_studio_brush(tmp_path: Path) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    write("label-studio", tmp_path, prompted(list(MASKS.values()), "a/b.jpg"))
    (task,) = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    assert task["data"] == {"image": "b.jpg"}
    regions = task["predictions"][0]["result"]
    for shape, mask, region in zip(MASKS, MASKS.values(), regions, strict=True):
        assert (region["original_height"], region["original_width"]) == (HEIGHT, WIDTH)
        found = brush.decode_rle(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3]
        assert np.array_equal(found > 0, mask > 0), shape


@pytest.mark.parametrize("shape", MASKS)
def test_label_studio_polygons(shape: str, tmp_path: Path) -> None:
    write("label-studio-polygon", tmp_path, prompted([MASKS[shape]], "https://example.org/b.jpg?x=1"))
    (task,) = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    assert task["data"] == {"image": "https://example.org/b.jpg?x=1"}
    # As Label Studio's own converter makes COCO of them: per cent of width and height.
    polygons = [
        (np.array(region["value"]["points"]) * (WIDTH / 100, HEIGHT / 100)).reshape(-1).tolist()
        for region in task["predictions"][0]["result"]
    ]
    found = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)))
    assert iou(found, MASKS[shape]) >= 0.99


def test_geojson_has_the_area_and_the_holes(tmp_path: Path) -> None:
    write("geojson", tmp_path, prompted(list(MASKS.values()), "a.jpg"))
    data = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    assert data["type"] == "FeatureCollection" and data["image"]["width"] == WIDTH
    for shape, mask, feature in zip(MASKS, MASKS.values(), data["features"], strict=True):
        geometry = feature["geometry"]
        parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        for outer, *holes in parts:
            assert all(ring[0] == ring[-1] for ring in (outer, *holes))
            found |= fill(outer) & ~sum((fill(hole) for hole in holes), np.zeros_like(found))
        assert np.array_equal(found & 1, mask), shape
    assert data["features"][list(MASKS).index("ring")]["geometry"]["type"] == "Polygon"
    assert len(data["features"][list(MASKS).index("ring")]["geometry"]["coordinates"]) == 2
    assert data["features"][list(MASKS).index("two parts")]["geometry"]["type"] == "MultiPolygon"


def fill(ring: list[list[int]]) -> np.ndarray:
    """The pixels whose centre is inside a ring, by counting crossings."""
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    x = np.arange(WIDTH) + 0.5
    for (x1, y1), (_, y2) in itertools.pairwise(ring):
        inside[min(y1, y2) : max(y1, y2)] ^= (x > x1).astype(np.uint8)
    return inside


def test_png(tmp_path: Path) -> None:
    result = prompted([MASKS["whole image"], MASKS["ring"], np.zeros_like(MASKS["ring"]), MASKS["a pixel"]], "x/a.jpg")
    for name in ("png", "png-index", "png-cutout"):
        result.save_as(name, tmp_path)
    for i, shape in enumerate(("whole image", "ring", "a pixel")):
        mask = MASKS[shape]
        assert np.array_equal(cv2.imread(str(tmp_path / f"a_{i}.png"), cv2.IMREAD_UNCHANGED), mask * np.uint8(255))
        cut = cv2.imread(str(tmp_path / f"a_{i}_cutout.png"), cv2.IMREAD_UNCHANGED)
        y, x = np.nonzero(mask)
        box = np.s_[y.min() : y.max() + 1, x.min() : x.max() + 1]
        assert np.array_equal(cut[..., 3] > 0, mask[box] > 0) and np.array_equal(cut[..., :3], result.pixels[box])
    index = cv2.imread(str(tmp_path / "a_index.png"), cv2.IMREAD_UNCHANGED)
    assert index.dtype == np.uint8 and set(np.unique(index)) == {1, 2, 3}
    assert np.array_equal(index == 2, (MASKS["ring"] > 0) & (MASKS["a pixel"] == 0))


def test_to_supervision(tmp_path: Path) -> None:
    sv = supervision()
    result = instances("a.jpg")
    found = result.to_supervision()
    assert isinstance(found, sv.Detections) and len(found) == 3
    assert np.array_equal(found.mask, np.array(result["masks"]) > 0)
    assert found.xyxy[0].tolist() == [30, 15, 91, 76] and found.class_id.tolist() == [3, 7, 3]
    assert found.confidence == pytest.approx([0.9, 0.8, 0.7]) and found.data["class_name"].tolist()[1] == "größe"
    assert len(prompted([]).to_supervision()) == 0
    alone = prompted([MASKS["disc"]]).to_supervision()
    assert np.isnan(alone.confidence).all() and alone.data["class_name"].tolist() == ["object"]


def test_supervision_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "supervision", None)
    with pytest.raises(Exception, match="pip install supervision"):
        prompted([]).to_supervision()


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_found_and_nowhere_to_write(name: str, tmp_path: Path) -> None:
    prompted([], "a.jpg").save_as(name, tmp_path / "out")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError):
        instances("a.jpg").save_as(name, tmp_path / "file")
    assert not list(tmp_path.rglob("*.part"))


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'voc'"):
        prompted([]).save_as("voc", tmp_path)

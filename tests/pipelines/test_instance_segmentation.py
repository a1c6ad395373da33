from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from instance_graphs import LABELS, write_folder

from ovseg import create_pipeline
from ovseg.errors import ConfigError, ImageError, ModelError, OvsError
from ovseg.pipelines.instance_segmentation import InstanceSegmentationPipeline
from ovseg.session import Session
from ovseg.stages.masks import paste_into_boxes

Make = Callable[..., Any]


@pytest.fixture
def make(instance_folders: dict[str, Path]) -> Make:
    def make(kind: str = "batch", **options: Any) -> Any:
        options = {"model_dir": instance_folders[kind], "device": "cpu"} | options
        return create_pipeline("instance_segmentation", **options)

    return make


def picture(value: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def scores(result: Any) -> list[float]:
    return [round(box["score"], 4) for box in result["boxes"]]


@pytest.mark.parametrize("kind", ["batch", "single", "resized"])
def test_boxes_and_masks_are_in_pixels_of_the_image(make: Make, kind: str) -> None:
    (result,) = make(kind).predict(picture(255), threshold=0.5)
    assert list(result) == ["input_path", "page_index", "boxes", "masks"]
    assert [box["label"] for box in result["boxes"]] == ["traffic light", "person"]
    assert list(result["boxes"][0]) == ["cls_id", "label", "score", "coordinate"]
    assert result["boxes"][0]["cls_id"] == 2
    assert [box["coordinate"] for box in result["boxes"]] == [[15, 5, 45, 20], [0, 20, 18, 40]]
    assert [(mask.shape, mask.dtype) for mask in result["masks"]] == [((40, 60), np.int8)] * 2
    # The model's masks are wider than their boxes: kept in full, and cropped as PaddleX crops them.
    expected = np.zeros((40, 60), np.int8)
    expected[1:24, 11:49] = 1
    assert np.array_equal(result["masks"][0], expected)
    assert [crop.shape for crop in result.crop()] == [(15, 30), (20, 18)]


def test_masks_that_the_pipeline_puts_into_their_boxes(make: Make) -> None:
    (result,) = make("in_boxes").predict(picture(255), threshold=0.1)
    boxes = np.float32([[15, 5, 45, 20], [-6, 20, 18, 48], [30, 20, 31.2, 36]])
    expected = paste_into_boxes(np.ones((3, 4, 4), np.float32), boxes, 40, 60, threshold=0.5)
    assert expected[0, 12, 15:45].all() and expected[1].sum() > 100 and 1 < expected[2].sum() < 20
    assert np.array_equal(np.array(result["masks"]), expected)
    # A box is clipped to the image, and its mask is not squeezed into what is left of it.
    assert result["boxes"][1]["coordinate"] == [0, 20, 18, 40]
    (result,) = make("in_boxes").predict(picture(255), threshold=1.0)
    assert result["masks"] == []


def test_an_image_without_a_detection_in_a_batch_of_an_rcnn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0, 0.9, 0, 0, 10, 10], [0, 0, 0, 0, 1, 1], [1, 0.8, 20, 20, 30, 30], [0, 0, 0, 0, 1, 1]]
    outputs = {
        "boxes": np.float32(rows),
        "counts": np.array([1, 1, 1, 1], np.int32),
        "low_res_masks": np.stack([np.ones((4, 4), np.float32), np.full((4, 4), 0.1, np.float32)]),
    }
    pipeline = make("in_boxes")
    pipeline._model(pipeline.device).takes_batches = True
    monkeypatch.setattr(Session, "run", lambda self, feeds, names=None: outputs)
    results = list(pipeline.predict([picture(255)] * 4, threshold=0.0, batch_size=4))
    assert [scores(result) for result in results] == [[0.9], [], [0.8], []]
    assert results[0]["masks"][0][1:9, 1:9].all() and not results[2]["masks"][0].any()


@pytest.mark.parametrize(
    "facts",
    [
        7,
        {},
        {"paste": "somehow", "threshold": 0},
        {"paste": "resize", "threshold": "x"},
        {"paste": [1], "threshold": 0},
    ],
)
def test_a_wrong_way_to_paste(make: Make, tmp_path: Path, facts: Any) -> None:
    folder = write_folder(tmp_path / "x", "resized", postprocess={"masks": facts})
    with pytest.raises(ModelError, match=r"has the postprocess\.masks"):
        make(model_dir=folder)


def test_a_threshold_is_exceeded_not_reached(make: Make) -> None:
    pipeline = make()
    (result,) = pipeline.predict(picture(255), threshold=float(np.float32(0.9)))
    assert result["boxes"] == [] and result["masks"] == []
    (result,) = pipeline.predict(picture(255), threshold=0.0)
    assert scores(result) == [0.9, 0.6, 0.3]


def test_thresholds_by_class_and_their_order_of_precedence(make: Make, tmp_path: Path) -> None:
    assert scores(next(make().predict(picture(255)))) == [0.9, 0.6]
    module = {"model_name": "x", "threshold": 0.7}
    config = {"pipeline_name": "instance_segmentation", "SubModules": {"InstanceSegmentation": module}}
    assert scores(next(make(config=config).predict(picture(255)))) == [0.9]
    assert scores(next(make(config=config, threshold=0.2).predict(picture(255)))) == [0.9, 0.6, 0.3]
    pipeline = make(threshold={"person": 0.95, "traffic light": 0.1})
    assert scores(next(pipeline.predict(picture(255)))) == [0.9, 0.3]
    # What a call's mapping leaves out keeps the pipeline's threshold.
    assert scores(next(pipeline.predict(picture(255), threshold={"traffic light": 0.8}))) == [0.9]
    assert scores(next(pipeline.predict(picture(255), threshold={0: 0.5}))) == [0.9, 0.6, 0.3]


@pytest.mark.parametrize("key", ["model_name", "model_dir"])
def test_a_model_that_is_no_text(key: str) -> None:
    config = {"pipeline_name": "instance_segmentation", "SubModules": {"InstanceSegmentation": {key: 3}}}
    with pytest.raises(ConfigError, match=f"{key} is 3"):
        create_pipeline(config, device="cpu")


@pytest.mark.parametrize("threshold", [1.1, -0.5, "a", {"cat": 0.5}, {"person": 2}])
def test_bad_thresholds_are_refused_at_once(make: Make, threshold: Any) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        make().predict(picture(255), threshold=threshold)
    with pytest.raises(ConfigError, match="threshold"):
        make(threshold=threshold)


def test_nothing_found_is_a_result_that_can_be_saved(make: Make, tmp_path: Path, image_file: Path) -> None:
    (result,) = make().predict(str(image_file), threshold=1.0)
    result.save_all(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "a_res.json").read_text())
    assert saved == {"input_path": str(image_file), "page_index": None, "boxes": [], "masks": []}
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "a_res.png")), cv2.imread(str(image_file)))


def test_a_box_outside_of_the_image_takes_its_mask_with_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # PaddleX drops the box and keeps its mask, so that all later boxes have the mask of another.
    rows = np.float32([[0, 0.9, -9, 2, 0, 8], [1, 0.8, 1, 2, 5, 8], [2, 0.7, 3, 4, 6, 6]])
    masks = np.zeros((3, 40, 60), np.int32)
    for mask, value in zip(masks, (1, 2, 3), strict=True):
        mask[value] = 1
    outputs = {"boxes": rows, "counts": np.array([3], np.int32), "masks": masks}
    pipeline = make()
    monkeypatch.setattr(Session, "run", lambda self, feeds, names=None: outputs)
    (result,) = pipeline.predict(picture(255))
    assert [box["cls_id"] for box in result["boxes"]] == [1, 2]
    assert [int(np.flatnonzero(mask.any(axis=1))[0]) for mask in result["masks"]] == [2, 3]


def test_counts_that_do_not_fit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {
        "boxes": np.zeros((3, 6), np.float32),
        "counts": np.array([4], np.int32),
        "masks": np.zeros((3, 40, 60), np.int32),
    }
    pipeline = make()
    monkeypatch.setattr(Session, "run", lambda self, feeds, names=None: outputs)
    with pytest.raises(ModelError, match=r"3 boxes and 3 masks with the counts \[4\] for 1 images"):
        list(pipeline.predict(picture(255)))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of each run of a session."""
    runs: list[int] = []
    run = Session.run

    def counted(self: Session, feeds: Any, outputs: Any = None) -> Any:
        runs.append(len(feeds["image"]))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", counted)
    return runs


MIXED = [picture(255), picture(200, 80, 30), picture(150), picture(250, 80, 30), picture(100, 9, 9)]


def test_batches_of_mixed_sizes_keep_order_and_results(make: Make, batches: list[int]) -> None:
    pipeline = make()
    alone = [result for image in MIXED for result in pipeline.predict(image, threshold=0.1)]
    batches.clear()
    together = list(pipeline.predict(MIXED, threshold=0.1, batch_size=4))
    assert batches == [2, 2, 1]
    assert len({tuple(scores(result)) for result in alone}) == 5
    for one, other in zip(alone, together, strict=True):
        assert [box["coordinate"] for box in one["boxes"]] == [box["coordinate"] for box in other["boxes"]]
        assert scores(one) == scores(other)
        assert all(np.array_equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))


def test_batch_size_from_config_option_and_call(make: Make, batches: list[int]) -> None:
    images = [picture(255)] * 6
    config = {
        "pipeline_name": "instance_segmentation",
        "SubModules": {"InstanceSegmentation": {"batch_size": 3}},
    }
    list(make(config=config).predict(images))
    list(make(config=config, batch_size=2).predict(images))
    list(make(config=config).predict(images, batch_size=6))
    assert batches == [3, 3, 2, 2, 2, 6]


def test_a_model_that_takes_one_image_gets_one_at_a_time(make: Make, batches: list[int], tmp_path: Path) -> None:
    # By its graph, or because the export has seen it fail on two.
    proven = write_folder(tmp_path / "x", "batch", parity={"batch": 1})
    for options in ({"kind": "single"}, {"kind": "without_boxes"}, {"model_dir": proven}):
        assert len(list(make(**options).predict([picture(255)] * 3, batch_size=3))) == 3
    assert batches == [1] * 9


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "2"])
def test_bad_batch_sizes(make: Make, batch_size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        make().predict(picture(0), batch_size=batch_size)
    with pytest.raises(ConfigError, match="batch_size"):
        make(batch_size=batch_size)


def test_a_bad_image_in_the_middle_of_a_batch(make: Make, tmp_path: Path) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(255 - 20 * i))
    (tmp_path / "2.png").write_bytes(b"no image")
    errors: list[OvsError] = []
    results = list(make().predict(str(tmp_path), batch_size=8, on_error=errors.append))
    assert [Path(result["input_path"]).name for result in results] == ["0.png", "1.png", "3.png", "4.png"]
    assert len(errors) == 1 and "2.png" in errors[0].cause
    with pytest.raises(ImageError):
        list(make().predict(str(tmp_path / "2.png"), batch_size=8))


def test_a_batch_that_fails_is_tried_image_by_image(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Session.run

    def fail_on_dark(self: Session, feeds: Any, outputs: Any = None) -> Any:
        if feeds["image"].mean(axis=(1, 2, 3)).min() < 0.5:
            raise OvsError("Too dark.", "Turn on the light.")
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", fail_on_dark)
    errors: list[OvsError] = []
    images = [picture(255), picture(10), picture(230)]
    results = list(make().predict(images, threshold=0.1, batch_size=3, on_error=errors.append))
    assert [scores(result)[0] for result in results] == [0.9, round(0.9 * 230 / 255, 4)]
    assert len(errors) == 1


def test_solov2_has_the_box_of_each_mask(make: Make) -> None:
    (result,) = make("without_boxes").predict(picture(255), threshold=0.5)
    # PaddleX keeps a score that equals the threshold here, and calls the class `class_id`.
    assert result["boxes"] == [
        {"cls_id": 3, "label": "kite", "score": 0.5, "class_id": 3, "coordinate": [3, 3, 60, 40]}
    ]
    assert result["masks"][0].shape == (40, 60) and result["masks"][0][3:, 3:].all()
    assert result["masks"][0].sum() == 37 * 57
    assert np.shape(result.json["res"]["masks"]) == (1, 40, 60)
    (result,) = make("without_boxes").predict(picture(255), threshold=0.4)
    assert result["boxes"][1]["coordinate"] == [0, 0, 0, 0]  # an empty mask
    assert result.draw().size == (60, 40)


@pytest.mark.parametrize("kind", ["batch", "without_boxes"])
def test_fewer_labels_than_classes(tmp_path: Path, make: Make, kind: str) -> None:
    folder = write_folder(tmp_path / "x", kind, labels=list(LABELS[:2]))
    images = [picture(255), picture(250)]
    with pytest.raises(ModelError, match=r"the class [23], and .*x has 2 labels"):
        list(make(model_dir=folder).predict(images, threshold=0.4, batch_size=2))


def test_no_labels(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ModelError, match="has no labels"):
        make(model_dir=write_folder(tmp_path / "x", "batch", labels=[]))


def test_a_model_of_another_task(sam_folders: dict[str, Path], make: Make) -> None:
    with pytest.raises(
        ModelError, match="is of the family sam, for open_vocabulary_segmentation; needed is mask_rtdetr or"
    ):
        make(model_dir=sam_folders["general"])


def test_a_graph_of_another_kind(sam_folders: dict[str, Path], tmp_path: Path, make: Make) -> None:
    folder = write_folder(tmp_path / "x", "batch")
    (folder / "model.onnx").write_bytes((sam_folders["general"] / "encoder.onnx").read_bytes())
    with pytest.raises(ModelError, match="outputs embedding"):
        make(model_dir=folder)


def test_without_a_model_the_error_says_how_to_get_one(home: Path) -> None:
    with pytest.raises(ModelError, match="Mask-RT-DETR-S is not on this machine") as raised:
        create_pipeline("instance_segmentation", device="cpu")
    assert "ovs models pull Mask-RT-DETR-S" in raised.value.cure


def test_a_fine_tuned_model_with_its_own_labels_by_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", "batch", labels=["\u732b", "b", "c", "d"], name="mine")
    pipeline = InstanceSegmentationPipeline(
        {
            "pipeline_name": "instance_segmentation",
            "SubModules": {
                "InstanceSegmentation": {
                    "module_name": "instance_segmentation",
                    "model_name": "mine",
                    "model_dir": str(folder),
                    "batch_size": 1,
                    "threshold": 0.5,
                }
            },
        },
        device="cpu",
    )
    assert pipeline.labels == ("\u732b", "b", "c", "d")
    (result,) = pipeline.predict(picture(255))
    assert [box["label"] for box in result["boxes"]] == ["c", "\u732b"]


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 4)])
def test_grey_and_rgba(make: Make, shape: tuple[int, ...]) -> None:
    (result,) = make().predict(np.full(shape, 255, np.uint8))
    assert scores(result) == [0.9, 0.6]


def test_an_image_of_20000_pixels_width(make: Make) -> None:
    (result,) = make().predict(picture(255, 1, 20_000), threshold=0.5)
    assert result["masks"][0].shape == (1, 20_000)
    assert result["boxes"][0]["coordinate"] == [5000, 0.125, 15000, 0.5]


def test_an_unknown_key_and_a_wrong_mask_format(make: Make) -> None:
    with pytest.raises(ConfigError, match="'thresh'"):
        make(config={"pipeline_name": "instance_segmentation", "thresh": 1})
    with pytest.raises(ConfigError, match="'png'"):
        make(mask_format="png")
    with pytest.raises(ConfigError, match="'png'"):
        make().predict(picture(0), mask_format="png")

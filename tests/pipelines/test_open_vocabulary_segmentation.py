from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from onnx import numpy_helper
from sam_graphs import LOW, encoder, general_decoder, write_folder

from ovseg import create_pipeline
from ovseg.errors import ConfigError, DeviceUnavailable, ImageError, ModelError, PromptError
from ovseg.pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ovseg.pipelines.sam import SamModel
from ovseg.session import Session
from ovseg.stages.masks import RleMasks
from ovseg.stages.prompts import Prompt
from ovseg.zoo import bundled_dir

BOXES = [[20, 10, 120, 90.5], [100, 60, 159, 119]]
POINTS = [[80, 60], [40, 30]]

Make = Callable[..., OpenVocabularySegmentationPipeline]


@pytest.fixture
def make(sam_folders: dict[str, Path]) -> Make:
    def make(kind: str = "general", **options: Any) -> OpenVocabularySegmentationPipeline:
        options = {"device": "cpu", "model_dir": sam_folders[kind], "threads": 1} | options
        pipeline = create_pipeline("open_vocabulary_segmentation", **options)
        assert isinstance(pipeline, OpenVocabularySegmentationPipeline)
        return pipeline

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that went through an encoder."""
    seen = []
    embed = SamModel.embed

    def counting(self: SamModel, pixels: np.ndarray) -> Any:
        seen.append(pixels.shape)
        return embed(self, pixels)

    monkeypatch.setattr(SamModel, "embed", counting)
    return seen


def box_mask(box: list[float], height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])


def disc_mask(point: list[float], height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    radius = 12 * max(height, width) / 64
    return np.hypot(x - point[0], y - point[1]) < radius


def iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(bool), b.astype(bool)
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("kind", ["general", "one_mask", "boxes"])
def test_boxes_give_a_mask_each(make: Make, kind: str, image_file: Path) -> None:
    (result,) = make(kind).predict(str(image_file), BOXES, "box")
    assert list(result) == ["input_path", "page_index", "prompts", "masks", "mask_infos"]
    assert result["input_path"] == str(image_file) and result["page_index"] is None
    assert result["prompts"] == {"box_prompt": BOXES}
    assert result["mask_infos"] == [{"label": "box_prompt", "prompt": box} for box in BOXES]
    assert len(result["masks"]) == 2
    for mask, box in zip(result["masks"], BOXES, strict=True):
        assert mask.shape == (120, 160) and mask.dtype == np.int8
        assert iou(mask, box_mask(box)) > 0.9


@pytest.mark.parametrize("kind", ["general", "one_mask", "points"])
def test_points_give_a_mask_each(make: Make, kind: str, pixels: np.ndarray) -> None:
    (result,) = make(kind).predict(pixels, prompt=POINTS, prompt_type="point")
    assert result["input_path"] is None
    assert [info["label"] for info in result["mask_infos"]] == ["point_prompt"] * 2
    for mask, point in zip(result["masks"], POINTS, strict=True):
        assert iou(mask, disc_mask(point)) > 0.9


def test_fixed_decoders_agree_with_the_general_one(make: Make, pixels: np.ndarray) -> None:
    general = make()
    for kind, prompts, prompt_type in (("boxes", BOXES, "box"), ("points", POINTS, "point")):
        (one,) = general.predict(pixels, prompts, prompt_type)
        (other,) = make(kind).predict(pixels, prompts, prompt_type)
        assert np.array_equal(one["masks"], other["masks"])


def test_the_mask_depends_on_the_image(make: Make, pixels: np.ndarray) -> None:
    pipeline = make()
    bright = [next(pipeline.predict(image, BOXES))["masks"][0].sum() for image in (pixels, pixels + 100)]
    assert bright[1] > bright[0]


def test_prompts_in_batches_are_prompts_one_by_one(make: Make, pixels: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    boxes = np.sort(rng.uniform(0, 100, (21, 2, 2)), axis=1).reshape(-1, 4)
    boxes[:, 2:] += 20
    whole = next(make(prompt_batch=8).predict(pixels, boxes))["masks"]
    single = make(prompt_batch=1)
    for box, mask in zip(boxes, whole, strict=True):
        assert np.array_equal(next(single.predict(pixels, [box]))["masks"][0], mask)


@pytest.mark.parametrize(
    ("kind", "prompt", "prompt_type", "cure"),
    [("boxes", POINTS, "point", "SAM-H_point"), ("points", BOXES, "box", "SAM-H_box")],
)
def test_wrong_kind_of_prompt_names_the_right_model(
    make: Make, pixels: np.ndarray, kind: str, prompt: Any, prompt_type: str, cure: str
) -> None:
    with pytest.raises(PromptError, match=f"test-{kind}.*{cure}"):
        make(kind).predict(pixels, prompt, prompt_type)


def test_bad_prompts_raise_before_the_first_image_is_read(make: Make) -> None:
    pipeline = make()
    for prompt, prompt_type in ((None, None), ([[1, 2, 3]], "box"), (BOXES, "text")):
        with pytest.raises(PromptError):
            pipeline.predict("no/such/file.jpg", prompt, prompt_type)


def test_predict_is_lazy(make: Make, encoded: list[Any], pixels: np.ndarray) -> None:
    results = make().predict((pixels for _ in range(10**9)), BOXES)
    assert not encoded
    next(results)
    next(results)
    assert len(encoded) <= 2


# Errors of one image.


def test_an_only_bad_image_raises(make: Make, tmp_path: Path) -> None:
    pipeline = make()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    for source in ("no.jpg", ["no.jpg"], tmp_path / "empty", tmp_path / "bad.jpg", [tmp_path / "bad.jpg"]):
        with pytest.raises(ImageError):
            list(pipeline.predict(source, BOXES))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_bad_image_of_several_is_reported_and_the_rest_goes_on(
    make: Make, image_file: Path, pixels: np.ndarray, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    source: list[Any] = [image_file, pixels]
    source.insert(order, "no/such.jpg")
    with caplog.at_level(logging.WARNING, "ovseg"):
        results = list(make().predict(source, BOXES))
    assert [result["input_path"] for result in results] == [str(image_file), None]
    assert [record.getMessage() for record in caplog.records] == [caplog.messages[0]]
    assert "no/such.jpg does not exist" in caplog.text


def test_all_bad_images_are_reported(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ovseg"):
        assert list(make().predict(["a.jpg", "b.jpg", "c.jpg"], BOXES)) == []
    assert [message.split()[0] for message in caplog.messages] == ["a.jpg", "b.jpg", "c.jpg"]


def test_on_error_gets_every_error(make: Make, pixels: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = []
    assert list(make().predict("no.jpg", BOXES, on_error=errors.append)) == []
    assert len(list(make().predict([pixels[:5, :5], pixels], BOXES, on_error=errors.append))) == 1
    assert [type(error) for error in errors] == [ImageError, PromptError]
    assert "5x5 pixels" in str(errors[1]) and not caplog.records


def test_a_prompt_outside_an_only_image_raises(make: Make, image_file: Path) -> None:
    with pytest.raises(PromptError, match=r"a\.png \(160x120 pixels\)"):
        list(make().predict(image_file, [[200, 0, 300, 50]]))


# The embedding.


def test_the_same_image_is_encoded_once(make: Make, encoded: list[Any], image_file: Path, pixels: np.ndarray) -> None:
    pipeline = make(embedding_cache=2)
    for prompt, prompt_type in ((BOXES, "box"), (POINTS, "point"), (BOXES[:1], "box")):
        list(pipeline.predict([image_file, pixels.copy()], prompt, prompt_type))
    assert len(encoded) == 1


def test_the_cache_forgets_the_oldest(make: Make, encoded: list[Any], pixels: np.ndarray) -> None:
    pipeline = make(embedding_cache=2)
    images = [pixels, pixels + 1, pixels + 2]
    list(pipeline.predict([*images[:2], images[0], images[2], images[0], images[1]], BOXES))
    assert len(encoded) == 4


def test_a_cached_embedding_is_of_the_same_shape(make: Make, encoded: list[Any]) -> None:
    black = np.zeros((60, 80, 3), np.uint8)
    first, second = make().predict([black, black.reshape(80, 60, 3)], [[0, 0, 50, 50]])
    assert first["masks"][0].shape == (60, 80) and second["masks"][0].shape == (80, 60)
    assert len(encoded) == 2


def test_no_cache(make: Make, encoded: list[Any], pixels: np.ndarray) -> None:
    list(make(embedding_cache=0).predict([pixels, pixels], BOXES))
    assert len(encoded) == 2


def test_an_open_image_is_encoded_once(make: Make, encoded: list[Any], image_file: Path) -> None:
    pipeline = make(embedding_cache=0)
    with pipeline.open(image_file) as image:
        by_box = image.segment(boxes=BOXES)
        by_point = image.segment(points=POINTS, mask_format="rle")
    assert len(encoded) == 1
    assert by_box.json == next(pipeline.predict(image_file, BOXES)).json
    assert by_point.json == next(pipeline.predict(image_file, POINTS, "point", mask_format="rle")).json
    with pytest.raises(ConfigError, match="closed"):
        image.segment(boxes=BOXES)


def test_labels_of_points(make: Make, pixels: np.ndarray) -> None:
    with make().open(pixels) as image:
        together = image.segment(points=[[50, 60], [70, 60]], labels=[1, 1])
        without = image.segment(points=[[50, 60], [70, 60]], labels=[1, 0])
        groups = image.segment(points=[[[50, 60], [70, 60]], [[50, 60]]], labels=[[1, 0], [1]])
        alone = image.segment(points=[[50, 60]])
    assert len(together["masks"]) == len(without["masks"]) == 1
    union = disc_mask([50, 60]) | disc_mask([70, 60])
    assert iou(together["masks"][0], union) > 0.9
    assert iou(without["masks"][0], disc_mask([50, 60]) & ~disc_mask([70, 60])) > 0.7
    assert np.array_equal(groups["masks"][0], without["masks"][0])
    assert np.array_equal(groups["masks"][1], alone["masks"][0])
    assert groups["mask_infos"][0]["point_labels"] == [1, 0]


def test_box_and_points_together(make: Make, pixels: np.ndarray) -> None:
    box = [20, 20, 140, 100]
    with make().open(pixels) as image:
        alone = image.segment(boxes=[box])
        both = image.segment(boxes=[box], points=[[70, 60]])
        prompted = image.segment(Prompt(points=[[70, 60]], box=box))
        several = image.segment([Prompt(box=box), Prompt(points=[[50, 60]]), Prompt(box=box, mask=alone.logits[0])])
        point = image.segment(points=[[50, 60]])
    # In the graph of these tests the box wins over the points.
    assert np.array_equal(both["masks"][0], alone["masks"][0])
    assert np.array_equal(prompted["masks"][0], both["masks"][0])
    info = {"box": box, "points": [[70, 60]], "point_labels": [1]}
    assert both["mask_infos"] == [{"label": "mixed_prompt", "prompt": info}]
    assert both["prompts"] == {"mixed_prompt": [info]} and both.json["res"]["mask_infos"][0]["prompt"] == info
    # What a prompt gives does not depend on the company.
    assert np.array_equal(several["masks"][0], alone["masks"][0])
    assert np.array_equal(several["masks"][1], point["masks"][0])
    # The graph adds the mask prompt to what the box gives.
    assert np.allclose(several.logits[2], 2 * alone.logits[0], atol=1e-4)
    assert several["mask_infos"][2]["prompt"] == {"box": box, "mask": True}


def test_prompts_of_predict(make: Make, pixels: np.ndarray) -> None:
    (result,) = make().predict(pixels, [Prompt(points=[[50, 60], [70, 60]], labels=[1, 0])])
    with make().open(pixels) as image:
        expected = image.segment(points=[[50, 60], [70, 60]], labels=[1, 0])
    assert np.array_equal(result["masks"], expected["masks"])
    assert result["mask_infos"] == expected["mask_infos"]


def test_a_mask_of_the_image_as_prompt(make: Make, pixels: np.ndarray) -> None:
    rough = box_mask([20, 20, 140, 100])
    with make().open(pixels) as image:
        alone = image.segment(points=[[70, 60]])
        result = image.segment(points=[[70, 60]], masks=rough)
    added = result.logits[0] - alone.logits[0]
    # 160 pixels are 16 of low resolution; the last quarter is padding.
    assert added[3:9, 3:13].min() > 9.9 and added[12:].max() < -9.9 and added[:, :1].max() < -9.9


@pytest.mark.parametrize("kind", ["general", "one_mask"])
def test_three_masks_and_the_best_of_them(make: Make, kind: str, pixels: np.ndarray) -> None:
    with make(kind).open(pixels) as image:
        single = image.segment(points=POINTS)
        three = image.segment(points=POINTS, multimask=True)
    # The graph's tokens are shifted by 0, -100, -200 and 100, and its IoU is the mean logit.
    assert np.allclose(three.logits, single.logits + 100, atol=1e-3)
    candidates = three.candidates(1)
    assert len(candidates) == 3 and candidates[0]["mask"].shape == (120, 160)
    assert np.array_equal(candidates[0]["mask"], three["masks"][1])
    scores = [candidate["predicted_iou"] for candidate in candidates]
    assert scores == sorted(scores, reverse=True) and scores[0] == three.predicted_iou[1]
    assert [info["predicted_iou"] for info in three["mask_infos"]] == three.predicted_iou
    assert "predicted_iou" not in single["mask_infos"][0] and len(single.candidates(0)) == 1
    with pytest.raises(ConfigError, match="no prompt 2"):
        three.candidates(2)


def test_refine_feeds_the_logits_back(make: Make, pixels: np.ndarray) -> None:
    with make().open(pixels) as image:
        first = image.segment(points=[[50, 60]])
        second = first.refine(points=[[70, 60]], labels=[0])
        expected = image.segment(Prompt([[50, 60], [70, 60]], [1, 0], mask=first.logits[0]))
        assert np.array_equal(second.logits, expected.logits)
        assert second["mask_infos"][0]["prompt"]["points"] == [[50, 60], [70, 60]]
        third = second.refine(boxes=[[30, 30, 90, 90]])
        assert third["mask_infos"][0]["prompt"]["box"] == [30, 30, 90, 90]
        two = image.segment(points=POINTS).refine(points=[[[20, 20]], None])
        assert [len(info["prompt"]["points"]) for info in two["mask_infos"]] == [2, 1]
        for given, message in (({}, "nothing to refine"), ({"points": [[[1, 1]], [[2, 2]]]}, "different length")):
            with pytest.raises(PromptError, match=message):
                first.refine(**given)
    with pytest.raises(ConfigError, match="closed"):
        first.refine(points=[[70, 60]])
    # A result of `predict` keeps its image.
    (result,) = make().predict(pixels, [[50, 60]], "point")
    assert np.allclose(result.refine(points=[[70, 60]], labels=[0]).logits, second.logits, atol=1e-5)


def test_logits_of_another_model(make: Make, pixels: np.ndarray) -> None:
    with make().open(pixels) as image, pytest.raises(PromptError, match=f"8x8, and test-general takes {LOW}x{LOW}"):
        image.segment(points=[[50, 60]], masks=np.zeros((8, 8), np.float32))


def test_everything(make: Make, pixels: np.ndarray) -> None:
    scene = pixels.copy()
    settings = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0.5, "box_nms_thresh": 0.6}
    result = make("points").segment_everything(scene, **settings)
    # Discs of the same size around the points of the grid.
    assert len(result["masks"]) == len(result["mask_infos"]) == 16
    for mask, info in zip(result["masks"], result["mask_infos"], strict=True):
        assert iou(mask, disc_mask(info["prompt"])) > 0.8 and info["area"] == mask.sum()
        x1, y1, x2, y2 = info["coordinate"]
        assert mask[y1:y2, x1:x2].sum() == mask.sum() and mask[y1].any() and mask[:, x2 - 1].any()
        assert info["predicted_iou"] is None and 0.5 <= info["stability_score"] <= 1
    assert isinstance(result["masks"], RleMasks), "thousands of masks do not fit as pixels"
    areas = [info["area"] for info in result["mask_infos"]]
    assert areas == sorted(areas, reverse=True)
    assert result.json["res"]["masks"][0]["size"] == [120, 160]
    assert result.img["res"].size == (160, 120)
    fewer = make("points").segment_everything(scene, **settings | {"box_nms_thresh": 0.0})
    assert 0 < len(fewer["masks"]) < 16
    with pytest.raises(ConfigError, match="not made from prompts"):
        result.refine(points=[[1, 1]])


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 90), (90, 1)])
def test_the_smallest_images_have_crops_too(make: Make, shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    result = make().segment_everything(pixels, 2, 0.0, 0.0, crops=3, min_area=5)
    assert all(mask.shape == shape for mask in result["masks"])
    assert all(type(info["stability_score"]) is float for info in result["mask_infos"])


def test_crops_find_what_is_small(make: Make, pixels: np.ndarray) -> None:
    settings = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1.0}
    whole = make("points").segment_everything(pixels, **settings)
    crops = make("points").segment_everything(pixels, crops=1, crop_overlap=0.2, **settings)
    assert {tuple(info["crop"]) for info in whole["mask_infos"]} == {(0, 0, 160, 120)}
    found = {tuple(info["crop"]) for info in crops["mask_infos"]}
    assert len(found) > 1 and max(info["area"] for info in crops["mask_infos"]) <= whole["mask_infos"][0]["area"]
    for mask, info in zip(crops["masks"], crops["mask_infos"], strict=True):
        x1, y1, x2, y2 = info["crop"]
        assert mask.sum() == mask[y1:y2, x1:x2].sum() and mask[int(info["prompt"][1]), int(info["prompt"][0])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"points_per_side": 2.5}, "Give a whole number"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh is 1.5"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh is nan"),
        ({"crops": -1}, "crops is -1"),
        ({"min_area": True}, "min_area is True"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh is '0.7'"),
        ({"grid": 3}, "no setting 'grid'"),
    ],
)
def test_settings_of_everything_are_checked(make: Make, pixels: np.ndarray, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().segment_everything(pixels, **settings)


def test_a_model_has_settings_of_everything_of_its_own(tmp_path: Path, pixels: np.ndarray) -> None:
    folder = tmp_path / "SAM-tiny"
    shutil.copytree(bundled_dir("SAM-tiny"), folder)
    pipeline = create_pipeline("open_vocabulary_segmentation", model_dir=folder, device="cpu")
    own = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.8}
    for given in ({}, {"pred_iou_thresh": 0.9}, {"pred_iou_thresh": None}):
        used = pipeline.segment_everything(pixels, 1, **given)["prompts"]["everything"]
        wanted = own | {name: value for name, value in given.items() if value is not None}
        assert {name: used[name] for name in own} == wanted and used["box_nms_thresh"] == 0.7
    described = yaml.safe_load((folder / "model.yaml").read_text("utf-8"))
    for wrong in ({"pred_iou_thresh": 2}, {"grid": 1}, [1]):
        described["postprocess"]["everything"] = wrong
        (folder / "model.yaml").write_text(yaml.safe_dump(described), "utf-8")
        with pytest.raises(ModelError, match=r"model.yaml of SAM-tiny has the postprocess.everything"):
            create_pipeline("open_vocabulary_segmentation", model_dir=folder).segment_everything(pixels, 1)


def test_everything_needs_points(make: Make, pixels: np.ndarray) -> None:
    with pytest.raises(PromptError, match="takes box prompts, not point"):
        make("boxes").segment_everything(pixels)


def test_what_open_images_refuse(make: Make, sam_folders: dict[str, Path], pixels: np.ndarray) -> None:
    with make("points").open(pixels) as image:
        for prompts, message in (
            ({}, "No prompt was given"),
            ({"boxes": BOXES, "points": POINTS}, "which object"),
            ({"boxes": BOXES[:1], "points": POINTS[:1]}, "not box, point and mask prompts together"),
            ({"points": POINTS, "masks": np.zeros((2, LOW, LOW))}, "which object"),
            ({"points": POINTS[:1], "multimask": True}, "one mask for each prompt, not three"),
            ({"prompts": [Prompt(box=BOXES[0])], "boxes": BOXES}, "in two ways"),
            ({"boxes": BOXES, "labels": [1]}, "Labels were given without points"),
            ({"boxes": BOXES}, "test-points takes point prompts"),
            ({"points": POINTS, "labels": [1, 0]}, "takes one point for each mask"),
            ({"points": [[500, 3]]}, "outside the image"),
        ):
            with pytest.raises(PromptError, match=message):
                image.segment(**prompts)
    with pytest.raises(ImageError, match="more than one image"):
        make().open([pixels, pixels])
    with pytest.raises(ImageError, match="no image to open"):
        make().open([])


def test_threads_share_a_pipeline(make: Make, pixels: np.ndarray) -> None:
    pipeline = make(embedding_cache=2, prompt_batch=2)
    images = [np.roll(pixels, i, axis=0) + 10 * i for i in range(5)]
    expected = [next(pipeline.predict(image, BOXES))["masks"] for image in images]
    start = threading.Barrier(4)

    def work(offset: int) -> bool:
        start.wait()
        return all(
            np.array_equal(next(pipeline.predict(images[(i + offset) % 5], BOXES))["masks"], expected[(i + offset) % 5])
            for i in range(20)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# Devices, models and configuration.


def test_a_device_of_one_call(make: Make, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make()
    loaded = []
    load = Session.__init__

    def counting(self: Session, *args: Any, **kwargs: Any) -> None:
        loaded.append(args[1].kind)
        load(self, *args, **kwargs)

    monkeypatch.setattr(Session, "__init__", counting)
    list(pipeline.predict(pixels, BOXES, device="cpu"))
    list(pipeline.predict(pixels, BOXES, device="cpu"))
    assert loaded == []
    with pytest.raises(DeviceUnavailable):
        pipeline.predict(pixels, BOXES, device="npu:0")


def test_a_named_device_that_is_not_there_is_an_error_at_once(make: Make) -> None:
    with pytest.raises(DeviceUnavailable):
        make(device="npu:0")


def test_models_for_boxes_and_points_may_differ(sam_folders: dict[str, Path], pixels: np.ndarray) -> None:
    config = {
        "pipeline_name": "open_vocabulary_segmentation",
        "SubModules": {
            "BoxPromptSegmentation": {"model_name": "a", "model_dir": str(sam_folders["boxes"])},
            "PointPromptSegmentation": {"model_name": "b", "model_dir": str(sam_folders["points"])},
        },
    }
    pipeline = create_pipeline(config=config, device="cpu")
    assert len(next(pipeline.predict(pixels, BOXES, "box"))["masks"]) == 2
    assert len(next(pipeline.predict(pixels, POINTS, "point"))["masks"]) == 2


def test_paddlex_yaml_is_accepted(tmp_path: Path, sam_folders: dict[str, Path], pixels: np.ndarray) -> None:
    path = tmp_path / "paddlex.yaml"
    path.write_text(
        f"""
pipeline_name: open_vocabulary_segmentation
use_hpip: False

SubModules:
  BoxPromptSegmentation:
    module_name: box_prompt_segmentation
    model_name: SAM-H_box
    model_dir: {sam_folders["boxes"]}
    batch_size: 1
  PointPromptSegmentation:
    module_name: point_prompt_segmentation
    model_name: SAM-H_point
    model_dir: null
    batch_size: 1
""",
        encoding="utf-8",
    )
    for names in ({"pipeline": str(path)}, {"pipeline_name": path}, {"config": str(path)}):
        pipeline = create_pipeline(**names, device="cpu", engine="paddle", pp_option={"run_mode": "x"})
        assert len(next(pipeline.predict(pixels, BOXES))["masks"]) == 2
    # The model for points is not here, and is asked for only now.
    with pytest.raises(ModelError, match="SAM-H_point is not on this machine"):
        pipeline.predict(pixels, POINTS, "point")


def test_our_yaml_is_read(tmp_path: Path, sam_folders: dict[str, Path], pixels: np.ndarray) -> None:
    shipped = Path(create_pipeline.__globals__["__file__"]).parent / "open_vocabulary_segmentation.yaml"
    settings = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    settings["mask_format"] = "rle"
    for module in settings["SubModules"].values():
        module["model_dir"] = str(sam_folders["general"])
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    pipeline = create_pipeline(tmp_path / "mine.yml", device="cpu")
    assert "counts" in next(pipeline.predict(pixels, BOXES)).json["res"]["masks"][0]
    settings["max_pixels"] = 100
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    with pytest.raises(ImageError):
        list(create_pipeline(str(tmp_path / "small.yaml"), device="cpu").predict(tmp_path / "a.png", BOXES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("prompt_batch: 4\nprompt_batch: 8", "key 'prompt_batch' is written twice"),
        ("a: 2026-99-99", "is not valid YAML"),
        ("a: !!bool maybe", "is not valid YAML"),
        ("a: " + 2000 * "[" + 2000 * "]", "nested too deeply"),
        ("- 1", "does not hold a mapping"),
        ("pipeline_name: OCR", "'OCR', which is not known"),
        ("SubModules: {}", r"bad\.yaml has no pipeline_name\."),
        ("pipeline_name:", r"bad\.yaml has no pipeline_name\."),
        ("pipeline_name: open_vocabulary_segmentation\nmask_formats: rle", "'mask_formats'"),
        ("pipeline_name: open_vocabulary_segmentation\nmask_format: png", "'png'"),
        ("pipeline_name: open_vocabulary_segmentation\nembedding_cache: -1", "embedding_cache is -1"),
        ("pipeline_name: open_vocabulary_segmentation\nprompt_batch: 0", "prompt_batch is 0"),
        ("pipeline_name: open_vocabulary_segmentation\nmax_pixels: many", "max_pixels is 'many'"),
        ("pipeline_name: open_vocabulary_segmentation\nSubModules: {Box: {}}", "'Box'"),
        ("pipeline_name: open_vocabulary_segmentation\nSubModules: 3", "does not hold a mapping"),
    ],
)
def test_bad_configurations(tmp_path: Path, sam_folders: dict[str, Path], text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        create_pipeline(str(path), device="cpu", model_dir=sam_folders["general"])


def test_bad_arguments_of_create_pipeline(make: Make) -> None:
    for arguments, message in (
        ({}, "No pipeline was named"),
        ({"pipeline": "OCR"}, "no pipeline 'OCR'"),
        ({"pipeline": "no/such.yaml"}, "cannot be read"),
        ({"pipeline": "a" * 300}, "no pipeline 'aaa"),
        ({"pipeline": "a" * 300 + ".yaml"}, "cannot be read"),
        ({"pipeline": "a\0.yaml"}, "null byte"),
        ({"pipeline": "a", "pipeline_name": "b"}, "Two pipelines"),
        ({"config": 3}, "type int"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_pipeline(**arguments)
    with pytest.raises(ConfigError, match="'png'"):
        make(mask_format="png")
    with pytest.raises(ConfigError, match="'png'"):
        make().predict("a.jpg", BOXES, mask_format="png")


def test_models_that_are_not_sam(tmp_path: Path, sam_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError):
        create_pipeline("open_vocabulary_segmentation", device="cpu", model="no-such-model")
    with pytest.raises(ModelError, match="does not exist"):
        create_pipeline("open_vocabulary_segmentation", device="cpu", model_dir=tmp_path / "no")
    swapped = write_folder(tmp_path / "swapped")
    facts = yaml.safe_load((swapped / "model.yaml").read_text(encoding="utf-8"))
    facts["files"]["encoder"], facts["files"]["decoder"] = (
        facts["files"]["decoder"],
        facts["files"]["encoder"],
    )
    (swapped / "model.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    with pytest.raises(ModelError, match="not those of a SAM encoder"):
        create_pipeline("open_vocabulary_segmentation", device="cpu", model_dir=swapped)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", "big", "size 'big'"),
        ("mean", [1, 2], r"mean \[1, 2\]"),
        ("std", [1, 0, 1], r"std \[1, 0, 1\]"),
    ],
)
def test_bad_preprocessing_facts(tmp_path: Path, key: str, value: Any, message: str) -> None:
    folder = write_folder(tmp_path / "model")
    facts = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    facts["preprocess"][key] = value
    (folder / "model.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        create_pipeline("open_vocabulary_segmentation", device="cpu", model_dir=folder)


def test_scores_where_the_decoder_tells(sam_folders: dict[str, Path], pixels: np.ndarray) -> None:
    boxes = [[20, 20, 90, 90], [5, 5, 50, 60], [40, 10, 150, 100]]
    general = create_pipeline("open_vocabulary_segmentation", model_dir=sam_folders["general"], device="cpu")
    with general.open(pixels) as image:
        alone = [image.segment(boxes=[box]).predicted_iou for box in boxes]
        together = image.segment(boxes=boxes).predicted_iou
    assert together == pytest.approx([scores[0] for scores in alone], rel=1e-4) and len(set(together)) == 3
    (result,) = general.predict(pixels, prompt=boxes)
    assert result.predicted_iou == pytest.approx(together)
    others = create_pipeline("open_vocabulary_segmentation", model_dir=sam_folders["boxes"], device="cpu")
    assert next(iter(others.predict(pixels, prompt=boxes))).predicted_iou == [None] * 3


@pytest.mark.parametrize("missing", ["mask_input", "has_mask_input", "point_labels"])
def test_a_decoder_without_one_of_two_inputs_that_go_together(missing: str, tmp_path: Path) -> None:
    """The input became a constant, as exporters make of what they take for one."""
    decoder = general_decoder()
    (found,) = [value for value in decoder.graph.input if value.name == missing]
    decoder.graph.input.remove(found)
    shape = [dimension.dim_value or 1 for dimension in found.type.tensor_type.shape.dim]
    decoder.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), missing))
    for name, graph in (("encoder", encoder()), ("decoder", decoder)):
        (tmp_path / f"{name}.onnx").write_bytes(graph.SerializeToString())
    files = {"encoder": tmp_path / "encoder.onnx", "decoder": tmp_path / "decoder.onnx"}
    with pytest.raises(ModelError, match="not those of a SAM decoder"):
        create_pipeline("open_vocabulary_segmentation", device="cpu", **files)


def test_one_prompt_is_as_good_as_a_list_of_one(make: Make, pixels: np.ndarray) -> None:
    with make().open(pixels) as image:
        for one in (Prompt(box=BOXES[0]), {"box": BOXES[0]}):
            assert np.array_equal(image.segment(one)["masks"][0], image.segment(boxes=BOXES[:1])["masks"][0])
        with pytest.raises(PromptError, match="5 is not a list"):
            image.segment(5)

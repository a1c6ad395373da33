from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ovseg.errors import ConfigError
from ovseg.results.drawing import colour_of
from ovseg.results.instance_segmentation import InstanceSegmentationResult
from ovseg.stages.masks import decode_rle

BOXES = (("dog", 1, 0.75, [10.4, 5.0, 30.5, 20.0]), ("traffic light", 9, 0.5, [1.0, 2.0, 23.0, 40.0]))


def make_result(boxes: Any = BOXES, height: int = 48, width: int = 60, **options: Any) -> InstanceSegmentationResult:
    masks = np.zeros((len(boxes), height, width), np.int8)
    for mask, (_, _, _, (x1, y1, x2, y2)) in zip(masks, boxes, strict=True):
        mask[int(y1) - 2 : int(y2) + 2, int(x1) : int(x2) + 4] = 1
    return InstanceSegmentationResult(
        {
            "input_path": "folder/cat.jpg",
            "page_index": None,
            "boxes": [
                {"cls_id": number, "label": label, "score": score, "coordinate": box}
                for label, number, score, box in boxes
            ],
            "masks": list(masks),
        },
        np.full((height, width, 3), 90, np.uint8),
        **options,
    )


def test_print_has_paddlex_keys_and_no_masks(capsys: pytest.CaptureFixture[str]) -> None:
    make_result().print()
    printed = ast.literal_eval(capsys.readouterr().out)["res"]
    assert list(printed) == ["input_path", "page_index", "boxes", "masks"]
    assert printed["masks"] == "..."
    assert printed["boxes"][0] == {
        "cls_id": 1,
        "label": "dog",
        "score": 0.75,
        "coordinate": [10.4, 5.0, 30.5, 20.0],
    }


def test_crop_is_a_view_of_the_rounded_box() -> None:
    result = make_result()
    crops = result.crop()
    assert [crop.shape for crop in crops] == [(15, 20), (38, 22)]  # 30.5 is rounded to 30
    assert all(np.shares_memory(crop, mask) for crop, mask in zip(crops, result["masks"], strict=True))
    assert np.array_equal(crops[0], result["masks"][0][5:20, 10:30])


def test_json_is_what_is_saved_and_holds_the_crops(tmp_path: Path) -> None:
    result = make_result()
    result.save_to_json(tmp_path)
    saved = json.loads((tmp_path / "cat_res.json").read_text())
    assert saved == result.json["res"]
    assert [np.shape(mask) for mask in saved["masks"]] == [(15, 20), (38, 22)]


def test_json_of_a_model_without_boxes_holds_whole_masks() -> None:
    assert np.shape(make_result(crop_in_json=False).json["res"]["masks"]) == (2, 48, 60)


def test_rle_is_of_the_whole_image() -> None:
    result = make_result(mask_format="rle")
    decoded = decode_rle(result.json["res"]["masks"])
    assert np.array_equal(np.stack(decoded), np.stack(result["masks"]))
    assert result.rle() == result.json["res"]["masks"]


def test_polygons_go_around_the_mask() -> None:
    assert make_result().polygons()[0] == [[10.0, 3.0, 10.0, 21.0, 33.0, 21.0, 33.0, 3.0]]


def test_an_unknown_mask_format() -> None:
    with pytest.raises(ConfigError, match="'png'"):
        make_result(mask_format="png")


def test_nothing_found_is_an_empty_result_and_the_same_picture(tmp_path: Path) -> None:
    result = make_result(())
    result.save_all(tmp_path)
    saved = json.loads((tmp_path / "cat_res.json").read_text())
    assert saved == {"input_path": "folder/cat.jpg", "page_index": None, "boxes": [], "masks": []}
    assert np.abs(np.asarray(PIL.Image.open(tmp_path / "cat_res.jpg")).astype(int) - 90).max() <= 1
    assert result.crop() == result.rle() == result.polygons() == []


def test_a_class_has_one_colour_whatever_else_is_there() -> None:
    alone = np.asarray(make_result(BOXES[1:]).draw())
    together = np.asarray(make_result().draw())
    assert np.array_equal(alone[30, 12], together[30, 12])
    expected = 0.45 * np.array(colour_of(9)) + 0.55 * 90
    assert np.abs(alone[30, 12] - expected).max() <= 1


def test_a_mask_is_drawn_as_far_as_its_box() -> None:
    result = make_result([("dog", 1, 0.9, [20.0, 20.0, 40.0, 40.0])])
    result["masks"][0][:] = 1
    picture = np.asarray(result.draw())
    assert (picture[25:35, 25:35] != 90).any(axis=-1).all()
    assert (picture[43:] == 90).all() and (picture[22:, 43:] == 90).all() and (picture[22:, :17] == 90).all()


@pytest.mark.parametrize("side", [1, 60, 4000])
def test_draws_any_size(side: int) -> None:
    box = [0.0, 0.0, float(side), float(side)]
    result = make_result([("dog", 1, 0.9, box)], side, side)
    assert result.draw().size == (side, side)


def test_letters_grow_with_the_picture() -> None:
    def label_height(side: int) -> float:
        box = [side * 0.25, side * 0.5, side * 0.9, side * 0.9]
        result = make_result([("dog", 1, 0.9, box)], side, side)
        result["masks"][0][:] = 0
        picture = np.asarray(result.draw())
        return float((picture[: side // 2 - side // 200] != 90).any(axis=(1, 2)).sum()) / side

    assert label_height(4000) == pytest.approx(label_height(1280), rel=0.3)
    assert label_height(1280) > 0


def test_a_label_that_opencv_cannot_write_is_its_number() -> None:
    picture = np.asarray(make_result([("\u72d7", 1, 0.75, [20.0, 30.0, 50.0, 40.0])], 60, 200).draw())
    expected = np.asarray(make_result([("class 1", 1, 0.75, [20.0, 30.0, 50.0, 40.0])], 60, 200).draw())
    assert np.array_equal(picture, expected)

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ovseg.errors import ConfigError, SaveError
from ovseg.results.open_vocabulary_segmentation import OpenVocabularySegmentationResult
from ovseg.stages.masks import decode_rle


def make_result(
    input_path: str | None = "folder/cat.jpg", page_index: int | None = None, mask_format: str = "list"
) -> OpenVocabularySegmentationResult:
    masks = np.zeros((2, 30, 40), np.int8)
    masks[0, 5:20, 10:30] = 1
    boxes = [[10.5, 5, 30, 20], [1, 2, 3, 4]]
    return OpenVocabularySegmentationResult(
        {
            "input_path": input_path,
            "page_index": page_index,
            "prompts": {"box_prompt": boxes},
            "masks": list(masks),
            "mask_infos": [{"label": "box_prompt", "prompt": box} for box in boxes],
        },
        np.full((30, 40, 3), (40, 80, 120), np.uint8),
        mask_format,
    )


def test_print_shows_a_dict_without_the_masks(capsys: pytest.CaptureFixture[str]) -> None:
    make_result().print()
    printed = ast.literal_eval(capsys.readouterr().out)
    assert list(printed["res"]) == ["input_path", "page_index", "prompts", "masks", "mask_infos"]
    assert printed["res"]["masks"] == "..."
    assert printed["res"]["mask_infos"][0] == {"label": "box_prompt", "prompt": [10.5, 5, 30, 20]}


@pytest.mark.parametrize("name", ["json_format", "format_json"])
def test_print_json(capsys: pytest.CaptureFixture[str], name: str) -> None:
    make_result("caf\u00e9.jpg").print(**{name: True}, indent=2)
    printed = capsys.readouterr().out
    assert printed.startswith('{\n  "res": {\n    "input_path": "caf\u00e9.jpg"')
    assert json.loads(printed)["res"]["masks"] == "..."


def test_json_is_what_is_saved(tmp_path: Path) -> None:
    result = make_result()
    result.save_to_json(tmp_path)
    saved = json.loads((tmp_path / "cat_res.json").read_text())
    assert saved == result.json["res"]
    assert np.array_equal(np.array(saved["masks"]), np.stack(result["masks"]))
    assert type(saved["masks"][0][0][0]) is int


def test_run_lengths_survive_the_file(tmp_path: Path) -> None:
    result = make_result(mask_format="rle")
    result.save_to_json(tmp_path / "a.json")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved == result.json["res"]
    assert np.array_equal(np.stack(decode_rle(saved["masks"])), np.stack(result["masks"]))
    make_result().save_to_json(tmp_path / "b.json", mask_format="rle")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("call", [make_result, make_result().save_to_json])
def test_unknown_mask_format(call: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'png'"):
        call(str(tmp_path), mask_format="png")


@pytest.mark.parametrize(
    ("input_path", "page_index", "picture", "text"),
    [
        ("folder/cat.jpg", None, "cat_res.jpg", "cat_res.json"),
        ("a.b.PNG", None, "a.b_res.PNG", "a.b_res.json"),
        ("doc.pdf", 0, "doc_0_res.png", "doc_0_res.json"),
        ("scan.tiff", 3, "scan_3_res.tiff", "scan_3_res.json"),
        ("no_suffix", None, "no_suffix_res.png", "no_suffix_res.json"),
        ("https://host/x/my%20cat.jpg?size=3", None, "my cat_res.jpg", "my cat_res.json"),
        ("-", None, "stdin_res.png", "stdin_res.json"),
    ],
)
def test_files_in_a_folder_are_named_after_the_input(
    tmp_path: Path, input_path: str, page_index: int | None, picture: str, text: str
) -> None:
    make_result(input_path, page_index).save_all(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([picture, text])


def test_files_of_an_array_are_named_by_time_and_chance(tmp_path: Path) -> None:
    make_result(None).save_all(str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    match = re.fullmatch(r"(\d{10}_\d{4})_res\.json", names[0])
    assert match and names[1] == f"{match[1]}_res.png"


def test_a_path_with_a_file_suffix_is_a_file(tmp_path: Path) -> None:
    result = make_result()
    result.save_to_json(str(tmp_path / "x" / "mine.json"))
    result.save_to_img(tmp_path / "x" / "mine.webp")
    result.save_to_img(str(tmp_path / "x.json"))  # not a picture's name: a folder
    assert (tmp_path / "x" / "mine.json").is_file()
    assert PIL.Image.open(tmp_path / "x" / "mine.webp").format == "WEBP"
    assert (tmp_path / "x.json" / "cat_res.jpg").is_file()


def test_a_picture_format_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="no such image format"):
        make_result().save_to_img(tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.webp", "a.jpg", "a.gif", "a.xbm"])
def test_a_picture_that_its_format_cannot_hold(tmp_path: Path, name: str) -> None:
    result = OpenVocabularySegmentationResult({"masks": [], "mask_infos": []}, np.zeros((1, 70_000, 3), np.uint8))
    with pytest.raises(SaveError, match=rf"{name} could not be written: 70000x1 pixels as") as raised:
        result.save_to_img(tmp_path / name)
    assert raised.value.cure == "Use .png." and not list(tmp_path.iterdir())


def test_the_picture_shows_masks_and_prompts() -> None:
    result = make_result()
    picture = result.img["res"]
    assert isinstance(picture, PIL.Image.Image) and picture.size == (40, 30)
    drawn = np.asarray(picture).astype(int)
    assert np.array_equal(drawn[27, 5], (120, 80, 40))  # beyond masks and prompts: the image, as RGB
    assert np.abs(drawn[12, 20] - (120, 80, 40)).sum() > 40
    assert np.array_equal(drawn, np.asarray(result.img["res"]))  # the same each time
    assert (result.pixels == (40, 80, 120)).all()


def test_a_large_picture_has_thicker_lines() -> None:
    widths = []
    for size in (400, 4000):
        result = make_result()
        result["masks"] = [np.zeros((size, size), np.int8)]
        result["mask_infos"] = [{"label": "box_prompt", "prompt": [size // 4, size // 4, size // 2, size // 2]}]
        result.pixels = np.zeros((size, size, 3), np.uint8)
        row = np.asarray(result.img["res"])[3 * size // 8]
        widths.append(np.count_nonzero(row.any(axis=1)) // 2)
    assert widths[1] >= 5 * widths[0] > 0


def test_points_are_drawn_where_they_are() -> None:
    result = make_result()
    result["masks"] = [np.zeros((30, 40), np.int8)] * 2
    result["mask_infos"] = [
        {"label": "point_prompt", "prompt": [8, 8]},
        {"label": "point_prompt", "prompt": [[30, 20], [30, 8]], "point_labels": [1, 0]},
    ]
    drawn = np.asarray(result.img["res"])
    for x, y in ((8, 8), (30, 20), (30, 8)):
        assert not np.array_equal(drawn[y, x], (120, 80, 40))
    assert np.array_equal(drawn[25, 8], (120, 80, 40))


@pytest.mark.parametrize("path", [None, 3, "a\0b.png"])
def test_what_can_be_no_path_is_refused(path: object) -> None:
    for save in (make_result().save_to_img, make_result().save_to_json):
        with pytest.raises(SaveError, match=r"save_path is|NUL"):
            save(path)  # type: ignore[arg-type]

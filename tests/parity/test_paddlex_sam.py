"""The stages against numbers that PaddleX's own classes made: see make_paddlex_sam.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg.results.open_vocabulary_segmentation import OpenVocabularySegmentationResult
from ovseg.stages.masks import upsample_masks
from ovseg.stages.prompts import scale_coords
from ovseg.stages.resize import normalise_and_pad, resize_long_side

HERE = Path(__file__).parent
SIZE = 64
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SHAPES = ((48, 64), (64, 48), (100, 37), (19, 90), (64, 64), (7, 5))


@pytest.fixture(scope="module")
def paddlex() -> dict[str, np.ndarray]:
    with np.load(HERE / "paddlex_sam.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_stages_give_paddlex_numbers(paddlex: dict[str, np.ndarray], height: int, width: int) -> None:
    found = {key.split(".")[1]: value for key, value in paddlex.items() if key.startswith(f"{height}x{width}.")}
    image = normalise_and_pad(resize_long_side(found["rgb"][..., ::-1], SIZE), SIZE, MEAN, STD)
    assert np.array_equal(image, found["image"])
    assert np.array_equal(scale_coords(found["boxes"], height, width, SIZE), found["scaled_boxes"])
    point = scale_coords(found["boxes"][:1, None, :2], height, width, SIZE)
    assert np.array_equal(point, found["scaled_point"])
    masks = upsample_masks(found["logits"][:, 0], SIZE, height, width)
    assert 0.1 < masks.mean() < 0.9
    assert (masks == found["masks"][:, 0]).mean() >= 0.9995


def test_json_is_paddlex_json_and_page_index(paddlex: dict[str, np.ndarray], tmp_path: Path) -> None:
    boxes = [[0.5, 1, 4, 6.25], [1, 1, 3, 3]]
    result = OpenVocabularySegmentationResult(
        {
            "input_path": "folder/caf\u00e9.jpg",
            "page_index": None,
            "prompts": {"box_prompt": boxes},
            "masks": [mask[0] for mask in paddlex["7x5.masks"][:2]],
            "mask_infos": [{"label": "box_prompt", "prompt": box} for box in boxes],
        },
        np.zeros((7, 5, 3), np.uint8),
    )
    result.save_to_json(tmp_path)
    ours = (tmp_path / "caf\u00e9_res.json").read_text(encoding="utf-8")
    theirs = (HERE / "paddlex_sam.json").read_text(encoding="utf-8")
    assert ours.replace('    "page_index": null,\n', "", 1) == theirs

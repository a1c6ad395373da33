from __future__ import annotations

import json

import numpy as np

from ovseg.index import Matches
from ovseg.results.image_recognition import ImageRecognitionResult


def make(labels: list[str | None]) -> ImageRecognitionResult:
    known = [label for label in labels if label is not None]
    scores = [0.9 - 0.1 * i for i in range(len(known))]
    box = {
        "labels": labels,
        "rec_scores": scores or [None],
        "det_score": 0.6,
        "coordinate": [10.5, 20.25, 70.0, 90.0],
    }
    data = {"input_path": "shelf.jpg", "page_index": None, "boxes": [box]}
    matches = Matches(list(range(len(known))), scores, known, [None] * len(known), "IP")
    return ImageRecognitionResult(data, np.full((100, 80, 3), 200, np.uint8), [matches])


def test_json_is_the_result_itself() -> None:
    result = make(["红牛", "cola"])
    assert result.json == {"res": dict(result)} and json.loads(json.dumps(result.json)) == result.json
    assert result.matches[0].vote()[0].label == "红牛"


def test_pictures_show_the_box_and_a_label() -> None:
    drawn = {}
    for label in ("cola", "红牛", None):
        drawn[label] = np.asarray(make([label]).img["res"])
        changed = (drawn[label] != 200).any(axis=2)
        assert changed[20:91, 10].all() and changed[90, 10:71].all() and not changed[95:].any()
    assert (drawn["cola"] != drawn["红牛"]).any() and (drawn["红牛"] != drawn[None]).any()


def test_one_label_has_one_colour() -> None:
    result = make(["cola"])
    boxes = result["boxes"]
    for label, x in (("tea", 40), ("cola", 50)):
        boxes.append({"labels": [label], "rec_scores": [0.5], "det_score": 0.5, "coordinate": [x, 40, x + 5, 95]})
    result.matches *= 3
    drawn = np.asarray(result.draw())
    assert (drawn[90, 10] == drawn[95, 55]).all() and (drawn[90, 10] != drawn[95, 45]).any()

"""Segmentation by example, with the models that ship on the gallery that ships."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from ovseg import create_pipeline
from ovseg.pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ovseg.samples import gallery_path

GALLERY = gallery_path()
SCENES = yaml.safe_load((GALLERY / "scenes" / "scenes.yaml").read_text("utf-8"))
PICTURES = {
    label: GALLERY / name
    for name, label in (line.split(" ", 1) for line in (GALLERY / "labels.txt").read_text("utf-8").splitlines())
}


@pytest.fixture(scope="module")
def pipeline() -> OpenVocabularySegmentationPipeline:
    return create_pipeline("open_vocabulary_segmentation", device="cpu")


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of two boxes."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def test_what_looks_like_a_picture_comes_first(pipeline: OpenVocabularySegmentationPipeline) -> None:
    scene = SCENES[1]
    image = str(GALLERY / "scenes" / scene["file"])
    right = 0
    for item in scene["objects"]:
        result = pipeline.find_like(image, str(PICTURES[item["label"]]), top=1)
        (info,) = result["mask_infos"]
        assert -1 <= info["similarity"] <= 1
        right += overlap(info["coordinate"], item["box"]) >= 0.5
    print(f"{right} of {len(scene['objects'])}")
    assert right >= len(scene["objects"]) - 2


def test_a_box_of_the_image_is_most_like_itself(pipeline: OpenVocabularySegmentationPipeline) -> None:
    scene = SCENES[1]
    box = scene["objects"][0]["box"]
    result = pipeline.find_like(str(GALLERY / "scenes" / scene["file"]), box)
    similarities = [info["similarity"] for info in result["mask_infos"]]
    assert overlap(result["mask_infos"][0]["coordinate"], box) >= 0.5
    assert similarities[0] > 0.8 and similarities[0] > np.mean(similarities) + 0.2


def test_an_example_without_an_object_is_taken_whole(pipeline: OpenVocabularySegmentationPipeline) -> None:
    plain = np.full((64, 64, 3), 90, np.uint8)
    image = cv2.imread(str(GALLERY / "scenes" / SCENES[0]["file"]))
    assert len(pipeline.find_like(image, plain, top=2)["masks"]) == 2
    # A box inside of one pixel, in which no pixel of a mask begins.
    assert len(pipeline.find_like(image, [10.2, 10.3, 10.7, 10.8], top=2)["masks"]) == 2

"""The sample images that ship in the wheel, and their prompts."""

from __future__ import annotations

import cv2
import pytest
from photos import load_photos

from ovseg.errors import ConfigError
from ovseg.samples import Sample, sample_path, samples


def test_sample_path_finds_each_sample() -> None:
    assert [sample.name for sample in samples()] == ["coffee", "citrus", "bee"]
    for sample in samples():
        assert sample_path(sample.name) == sample.path


def test_sample_path_names_the_samples_when_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"'tea'.*coffee, citrus, bee"):
        sample_path("tea")


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_sample_is_small_and_its_prompts_lie_inside(sample: Sample) -> None:
    assert sample.path.stat().st_size <= 150_000
    assert sample.author and sample.licence and sample.source
    height, width = cv2.imread(str(sample.path)).shape[:2]
    assert max(height, width) <= 800
    assert sample.boxes and sample.points
    for x0, y0, x1, y1 in sample.boxes.values():
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    for x, y in sample.points.values():
        assert 0 <= x < width and 0 <= y < height


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.name)
def test_prompts_agree_with_the_hand_made_masks(sample: Sample) -> None:
    photo = next(photo for photo in load_photos() if photo.path.name == sample.path.name)
    assert photo.path.read_bytes() == sample.path.read_bytes()
    known = {item.name: item for item in photo.objects}
    points = {name: point for name, point in sample.points.items() if name in known}
    assert points
    for name, (x, y) in points.items():
        assert known[name].mask[int(y), int(x)]
    for name, box in sample.boxes.items():
        if name in known:
            assert box == pytest.approx(known[name].box, abs=1.5)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ovseg.errors import PromptError
from ovseg.stages.prompts import (
    check_inside,
    corner_points,
    parse_boxes,
    parse_points,
    parse_prompts,
    scale_coords,
    with_padding_point,
)

BAD: list[tuple[Any, Any, str]] = [
    (None, "box", "No prompt was given"),
    (None, "point", "No prompt was given"),
    ([], "box", "empty list"),
    ([], "point", "empty list"),
    (np.zeros((0, 4)), "box", "empty list"),
    ([1, 2, 3, 4], "box", "flat list"),
    ([1, 2], "point", "flat list"),
    (np.arange(4), "box", "flat list"),
    ([[[1, 2, 3, 4]]], "box", "nested too deeply"),
    ([[1, 2, 3, 4], 5], "box", r"Prompt 1, 5, is not a list"),
    ([[1, 2, 3]], "box", r"\[1, 2, 3\], has 3 numbers"),
    ([[1, 2]], "box", r'prompt_type="point"'),
    ([[1, 2, 3, 4]], "point", r'prompt_type="box"'),
    ([[]], "box", "has 0 numbers"),
    ("[[1, 2, 3, 4]]", "box", "is not a list"),
    ("cat", "point", "'cat' is not a list"),
    ({"box": 1}, "box", "is not a list"),
    (7, "point", "7 is not a list"),
    ([["1", 2, 3, 4]], "box", "'1', which is not a number"),
    ([[1, None]], "point", "None, which is not a number"),
    ([[1, True]], "point", "True, which is not a number"),
    ([[1, 2j]], "point", "2j, which is not a number"),
    ([[float("nan"), 2, 3, 4]], "box", "nan, which is not finite"),
    ([[1, float("inf")]], "point", "inf, which is not finite"),
    ([[0, 0, 5, 5], [3, 1, 3, 4]], "box", r"Prompt 1, \[3, 1, 3, 4\], is not a box"),
    ([[1, 5, 3, 4]], "box", "is not a box"),
    ([[1, 2, 3, 4]], "text", "'text' is not known"),
    ([[1, 2, 3, 4]], 3, "3 is not known"),
]


@pytest.mark.parametrize(("prompt", "prompt_type", "message"), BAD)
def test_bad_prompts_are_refused(prompt: Any, prompt_type: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        parse_prompts(prompt, prompt_type)
    assert caught.value.cure and caught.value.exit_code == 2


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts([list(range(10_000))], "box")
    assert len(str(caught.value)) < 300


def test_numbers_stay_as_they_were_given() -> None:
    assert parse_prompts([(1, 2.5, np.float32(3), np.int64(4))], None).given == [[1, 2.5, 3.0, 4]]
    assert parse_prompts(np.array([[1.5, 2.0]]), "point").given == [[1.5, 2.0]]


def test_a_flat_list_of_points_is_a_mask_each() -> None:
    prompts = parse_points([[1, 2], [3, 4]])
    assert len(prompts) == 2 and prompts.coords.shape == (2, 1, 2)
    assert prompts.labels is not None and prompts.labels.tolist() == [[1], [1]]


def test_labels_make_one_object_of_a_flat_list() -> None:
    prompts = parse_points([[1, 2], [3, 4]], labels=[1, 0])
    assert len(prompts) == 1 and prompts.coords.tolist() == [[[1, 2], [3, 4]]]
    assert prompts.labels is not None and prompts.labels.tolist() == [[1, 0]]


def test_groups_of_points_are_padded() -> None:
    prompts = parse_points([[[1, 2]], [[3, 4], [5, 6]]], labels=[[1], [0, 1]])
    assert prompts.labels is not None and prompts.labels.tolist() == [[1, -1], [0, 1]]
    assert prompts.given == [[[1, 2]], [[3, 4], [5, 6]]]


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[1, 2]], [1, 1], "do not match"),
        ([[1, 2]], 1, "do not match"),
        ([[1, 2]], [2], "label 2 is not known"),
        ([[1, 2]], [True], "label True is not known"),
        ([[1, 2]], [0], "no point inside"),
        ([[[1, 2]], [[3, 4]]], [1, 1], "do not match"),
    ],
)
def test_bad_labels_are_refused(points: Any, labels: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_points(points, labels)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([-5, -5, 1, 1], True),
        ([-5, -5, 0, 0], False),
        ([99, 49, 300, 300], True),
        ([100, 0, 120, 20], False),
        ([0, 50, 20, 60], False),
    ],
)
def test_boxes_may_reach_over_the_edge_but_not_lie_beyond_it(box: list[float], inside: bool) -> None:
    if inside:
        check_inside(parse_boxes([[0, 0, 9, 9], box]), 50, 100)
    else:
        with pytest.raises(PromptError, match=r"Prompt 1, .*outside the image \(100x50 pixels\)"):
            check_inside(parse_boxes([[0, 0, 9, 9], box]), 50, 100)


@pytest.mark.parametrize(
    ("point", "inside"), [([0, 0], True), ([100, 50], True), ([100.5, 3], False), ([3, -1], False)]
)
def test_points_lie_inside(point: list[float], inside: bool) -> None:
    if inside:
        check_inside(parse_points([point]), 50, 100)
    else:
        with pytest.raises(PromptError, match=r"outside cat\.jpg"):
            check_inside(parse_points([point]), 50, 100, "cat.jpg")


def test_scale_coords_keeps_the_shape() -> None:
    scaled = scale_coords(np.array([[10.0, 20.0, 30.0, 40.0]]), 50, 100, 200)
    assert scaled.dtype == np.float32 and scaled.tolist() == [[20, 40, 60, 80]]
    # The short side is rounded to whole pixels, so the two axes scale by different factors.
    assert scale_coords(np.array([[3.0, 3.0]]), 3, 100, 64).tolist() == [[np.float32(1.92), 2.0]]


def test_boxes_become_corner_points() -> None:
    points, labels = corner_points(np.array([[1, 2, 3, 4]], np.float32))
    assert points.tolist() == [[[1, 2], [3, 4]]] and labels.tolist() == [[2, 3]]


def test_padding_point_comes_last() -> None:
    points, labels = with_padding_point(np.ones((2, 1, 2)), np.ones((2, 1)))
    assert points.tolist() == [[[1, 1], [0, 0]]] * 2 and labels.tolist() == [[1, -1]] * 2

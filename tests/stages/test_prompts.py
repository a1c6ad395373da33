from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ovseg.errors import PromptError
from ovseg.stages.prompts import (
    Prompt,
    check_inside,
    combine_prompts,
    gather_prompts,
    parse_boxes,
    parse_points,
    parse_prompts,
    scale_coords,
    tokens,
)

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

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
    (ENDLESS, "box", "nested too deeply"),
    ([[0, 0, 10**5000, 5]], "box", "a huge number, which is in no image"),
    ([[1, 2, 3, 4], 5], "box", r"Prompt 1, 5, is not a list"),
    ([[1, 2, 3]], "box", r"\[1, 2, 3\], has 3 numbers"),
    ([[1, 2]], "box", r'prompt_type="point"'),
    ([[1, 2, 3, 4]], "point", r'prompt_type="box"'),
    ([[]], "box", "has 0 numbers"),
    ("[[1, 2, 3, 4]]", "box", "is not a list"),
    ("cat", "point", "'cat' is not a list"),
    ({"box": 1}, "box", "say themselves"),
    ({"box": 1}, None, "flat list"),
    (7, "point", "7 is not a list"),
    ([["1", 2, 3, 4]], "box", "'1', which is not a number"),
    ([[1, None]], "point", "None, which is not a number"),
    ([[1, True]], "point", "True, which is not a number"),
    ([[1, 2j]], "point", "2j, which is not a number"),
    ([[float("nan"), 2, 3, 4]], "box", "nan, which is not finite"),
    ([[1, float("inf")]], "point", "inf, which is not finite"),
    ([[1, 2, 3, 1e39]], "box", "1e\\+39, which is in no image"),
    ([[1, 2, 3, 10**400]], "box", "0, which is in no image"),
    ([[-(10**400), 2]], "point", "0, which is in no image"),
    ([[0, 0, 5, 5], [3, 1, 3, 4]], "box", r"Prompt 1, \[3, 1, 3, 4\], is not a box"),
    ([[1, 5, 3, 4]], "box", "is not a box"),
    ([[1, 2, 3, 4]], "text", "no text prompts"),
    ("a cup", "text", "no text prompts"),
    ([[1, 2, 3, 4]], "word", "'word' is not known"),
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
    assert [item.points for item in prompts.items] == [[[1, 2]], [[3, 4]]]
    assert [item.labels for item in prompts.items] == [[1], [1]] and not prompts.shows_labels


def test_labels_make_one_object_of_a_flat_list() -> None:
    prompts = parse_points([[1, 2], [3, 4]], labels=[1, 0])
    assert len(prompts) == 1 and prompts.items[0].points == [[1, 2], [3, 4]]
    assert prompts.items[0].labels == [1, 0] and prompts.shows_labels


def test_groups_of_points_are_an_object_each() -> None:
    prompts = parse_points([[[1, 2]], [[3, 4], [5, 6]]], labels=[[1], [0, 1]])
    assert [item.labels for item in prompts.items] == [[1], [0, 1]]
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


def test_tokens_are_points_then_corners() -> None:
    coords, labels = tokens(Prompt(points=[[5, 6], [7, 8]], labels=[1, 0], box=[1, 2, 3, 4]))
    assert coords == [[5, 6], [7, 8], [1, 2], [3, 4]] and labels == [1, 0, 2, 3]


def test_points_without_a_box_get_a_padding_point() -> None:
    coords, labels = tokens(Prompt(points=[[5, 6]]))
    assert coords == [[5, 6], [0, 0]] and labels == [1, -1]


def test_a_mask_alone_is_padding() -> None:
    coords, labels = tokens(Prompt(mask=np.ones((4, 5), bool)))
    assert coords == [[0, 0]] and labels == [-1]


BAD_PROMPT: list[tuple[dict[str, Any], str]] = [
    ({}, "says nothing"),
    ({"points": []}, "says nothing"),
    ({"points": [1, 2]}, "flat list"),
    ({"points": [[1, 2]], "labels": [1, 0]}, "do not match"),
    ({"points": [[1, 2]], "labels": [0]}, "no point inside"),
    ({"labels": [1]}, "do not match"),
    ({"box": [1, 2, 3]}, "has 3 numbers"),
    ({"box": [3, 2, 1, 4]}, "is not a box"),
    ({"box": [[1, 2, 3, 4]]}, "nested too deeply"),
    ({"mask": np.zeros((4, 5), bool)}, "is empty"),
    ({"mask": np.full((4, 5), 2)}, "other numbers than 0 and 1"),
    ({"mask": np.ones((4, 5), np.float32)}, "not square"),
    ({"mask": np.full((4, 4), np.nan)}, "not finite"),
    ({"mask": np.ones((2, 4, 4))}, "has shape"),
    ({"mask": "cat"}, "has shape"),
]


@pytest.mark.parametrize(("parts", "message"), BAD_PROMPT)
def test_a_bad_prompt_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        Prompt(**parts)
    assert caught.value.cure


def test_a_box_may_have_negative_points_only() -> None:
    assert Prompt(points=[[1, 2]], labels=[0], box=[0, 0, 5, 5]).labels == [0]


def test_the_kind_is_the_simplest_that_fits() -> None:
    box, point = Prompt(box=[0, 0, 5, 5]), Prompt(points=[[1, 2]])
    assert gather_prompts([box]).kind == "box" and gather_prompts([box]).given == [[0, 0, 5, 5]]
    assert gather_prompts([point]).kind == "point"
    mixed = gather_prompts([box, point])
    assert mixed.kind == "mixed"
    assert mixed.given == [{"box": [0, 0, 5, 5]}, {"points": [[1, 2]], "point_labels": [1]}]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty list"), ([Prompt(points=[[1, 2]]), [1, 2]], "is not a Prompt")],
)
def test_lists_that_are_not_of_prompts_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        gather_prompts(prompt)


def test_prompts_say_themselves_what_they_are() -> None:
    assert parse_prompts(Prompt(box=[0, 0, 5, 5]), None).kind == "box"
    with pytest.raises(PromptError, match="Leave prompt_type out"):
        parse_prompts([Prompt(box=[0, 0, 5, 5])], "box")


def test_boxes_and_points_side_by_side() -> None:
    one = combine_prompts(boxes=[[0, 0, 5, 5]], points=[[1, 2], [3, 4]], labels=[1, 0])
    assert one.items[0].points == [[1, 2], [3, 4]] and one.items[0].labels == [1, 0]
    two = combine_prompts(boxes=[[0, 0, 5, 5], [1, 1, 9, 9]], points=[None, [[3, 4]]])
    assert [item.points for item in two.items] == [[], [[3, 4]]] and two.items[1].box == [1, 1, 9, 9]
    masks = combine_prompts(points=[[1, 2]], masks=np.zeros((1, 8, 8), np.float32))
    assert masks.items[0].mask is not None and masks.items[0].points == [[1, 2]]


BOXES = [[0, 0, 5, 5], [1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "No prompt was given"),
        ({"boxes": BOXES, "labels": [1]}, "Labels were given without points"),
        ({"boxes": BOXES, "points": [[1, 2], [3, 4]]}, "which object"),
        ({"boxes": BOXES, "points": [[[1, 2]]]}, "different length: 2 of box, 1 of points"),
        ({"boxes": BOXES, "points": [[[1, 2]], []], "labels": [[1]]}, "different length"),
        ({"boxes": BOXES, "masks": np.ones((8, 8), bool)}, "different length"),
        ({"boxes": BOXES, "masks": "cat"}, "not a list of arrays"),
    ],
)
def test_prompts_that_do_not_fit_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        combine_prompts(**parts)


def test_a_mask_has_the_size_of_the_image() -> None:
    check_inside(gather_prompts([Prompt(mask=np.ones((50, 100), bool))]), 50, 100)
    with pytest.raises(PromptError, match="5x4 pixels"):
        check_inside(gather_prompts([Prompt(mask=np.ones((4, 5), bool))]), 50, 100)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"points": 5}, "5 is not a list"),
        ({"points": np.array(3)}, "is not a list"),
        ({"points": ([x, x] for x in (1, 2))}, "is not a list"),
        ({"points": [[1, 2]], "labels": [np.array([1])]}, r"\[1\] is not known"),
        ({"mask": [[1, 0], [1]]}, "different length"),
        ({"mask": np.full((4, 4), 1e300)}, "not finite as float32"),
    ],
)
def test_parts_of_other_kinds_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt(**parts)


@pytest.mark.parametrize("prompts", [5, "a cup", np.zeros((1, 4)), None])
def test_what_is_no_list_of_prompts_is_refused(prompts: Any) -> None:
    with pytest.raises(PromptError):
        gather_prompts(prompts)


def test_one_prompt_needs_no_list() -> None:
    for one in (Prompt(box=[1, 2, 3, 4]), {"box": [1, 2, 3, 4]}):
        assert gather_prompts(one).given == [[1, 2, 3, 4]]


def test_arrays_in_lists_are_as_good_as_lists() -> None:
    found = combine_prompts(
        boxes=[np.array([1, 2, 30, 40])] * 2,
        points=[np.array([[5, 6], [7, 8]]), None],
        labels=[np.array([1, 0]), None],
    )
    assert found.items[0].points == [[5, 6], [7, 8]] and found.items[0].labels == [1, 0]
    assert found.items[1].points == [] and found.items[1].box == [1, 2, 30, 40]


def test_a_mask_that_is_one_number_is_refused() -> None:
    with pytest.raises(PromptError, match=r"shape \(\)"):
        combine_prompts(masks=np.array(1))

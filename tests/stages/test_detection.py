from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from ovseg.errors import ConfigError, ModelError
from ovseg.stages.detection import (
    check_shape,
    class_thresholds,
    clip_boxes,
    parse_threshold,
    prepare,
    read_preprocessing,
    resized_shape,
    rounded_boxes,
)

FACTS: dict[str, Any] = {
    "type": "Resize",
    "size": [32, 48],
    "keep_ratio": True,
    "interp": "linear",
    "mean": [10.0, 20.0, 30.0],
    "std": [2.0, 4.0, 8.0],
}
LABELS = ("person", "dog", "kite")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (32, 48, (32, 48)),
        (64, 64, (32, 32)),  # the short side decides
        (40, 120, (16, 48)),  # the long side decides
        (120, 40, (48, 16)),
        (16, 21, (32, 42)),
        (64, 41, (48, 31)),  # 30.75
        (64, 42, (48, 32)),  # 31.5, halves to even
        (64, 38, (48, 28)),  # 28.5, halves to even
        (1, 1, (32, 32)),
        (20_000, 1, (48, 1)),  # not 0
    ],
)
def test_resized_shape_keeps_the_ratio(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_shape(height, width, read_preprocessing(FACTS, "x")) == expected


def test_prepare_resizes_normalises_and_pads() -> None:
    pixels = np.empty((40, 100, 3), np.uint8)
    pixels[:] = (110, 60, 30)  # blue, green, red
    prepared = prepare([pixels, pixels + 1], read_preprocessing(FACTS | {"pad_stride": 16}, "x"))
    assert prepared.image.dtype == np.float32 and prepared.image.shape == (2, 3, 32, 48)
    assert prepared.im_shape.tolist() == [[19, 48]] * 2
    assert prepared.scale_factor.tolist() == [[np.float32(19 / 40), np.float32(48 / 100)]] * 2
    assert np.allclose(prepared.image[0, :, :19, :48], np.array([10, 10, 10])[:, None, None])
    assert (prepared.image[1, :, :19, :48] > prepared.image[0, :, :19, :48]).all()
    assert not prepared.image[..., 19:, :].any()


def test_prepare_to_a_fixed_size_is_height_by_width() -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    other = np.zeros((40, 10, 3), np.uint8)
    prepared = prepare([pixels, other], read_preprocessing(FACTS | {"keep_ratio": False}, "x"))
    assert prepared.image.shape == (2, 3, 32, 48)
    assert np.allclose(prepared.scale_factor, [[3.2, 2.4], [0.8, 4.8]])


def test_floats_are_resized_where_the_model_normalises_first() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[:, 1] = 3  # between 0 and 3 lie values that bytes would round
    facts = FACTS | {"mean": [0.0] * 3, "std": [1.0] * 3, "size": [2, 5], "keep_ratio": False}
    rounded = prepare([pixels], read_preprocessing(facts, "x")).image
    exact = prepare([pixels], read_preprocessing(facts | {"normalize_first": True}, "x")).image
    assert np.array_equal(rounded, np.rint(rounded))
    assert np.allclose(exact[0, 0, 0], [0, 0.3, 1.5, 2.7, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 640}, "size 640"),
        ({"size": [640]}, r"size \[640\]"),
        ({"size": [0, 640]}, r"size \[0, 640\]"),
        ({"mean": None}, "mean None"),
        ({"mean": [1, 2, float("nan")]}, "mean"),
        ({"std": [1, 0, 1]}, "std"),
        ({"interp": "bilinear"}, "interp 'bilinear'"),
        ({"interp": ["linear"]}, "interp"),
        ({"pad_stride": 0}, "pad_stride 0"),
        ({"size": [640.5, 640]}, r"size \[640.5, 640\]"),
        ({"keep_ratio": "false"}, "keep_ratio 'false'"),
        ({"normalize_first": 1}, "normalize_first 1"),
    ],
)
def test_wrong_preprocessing_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_preprocessing(FACTS | changes, "model.yaml: preprocess")


@pytest.mark.parametrize(
    ("changes", "shape", "takes_bytes", "fits"),
    [
        ({}, (1, 3, 32, 48), False, True),
        ({}, ("batch", 3, "height", 48), False, True),
        ({}, (), False, True),
        ({}, (1, 3, 48, 32), False, False),
        ({"pad_stride": 32}, (1, 3, 32, 64), False, True),
        ({"pad_stride": 32}, (1, 3, 32, 48), False, False),
        ({"keep_ratio": True}, (1, 3, 5, 5), False, True),
        ({"normalize_first": True}, (1, 3, 32, 48), False, True),
        ({}, ("batch", 32, 48, 3), True, True),
        ({}, ("batch", 48, 32, 3), True, False),
        ({"normalize_first": True}, ("batch", 32, 48, 3), True, False),
        ({"pad_stride": 32}, ("batch", "height", "width", 3), True, False),
    ],
)
def test_images_that_a_network_does_not_take(
    changes: dict[str, Any], shape: tuple[Any, ...], takes_bytes: bool, fits: bool
) -> None:
    preprocessing = read_preprocessing(FACTS | {"size": [32, 48], "keep_ratio": False} | changes, "x")
    with contextlib.nullcontext() if fits else pytest.raises(ModelError, match=r"^model.yaml has the size \[32, 48\]"):
        check_shape(preprocessing, shape, "model.yaml", takes_bytes=takes_bytes)


def test_thresholds() -> None:
    assert parse_threshold(0.25, LABELS, 0.5).tolist() == [0.25] * 3
    assert parse_threshold({"dog": 1, 2: 0}, LABELS, 0.5).tolist() == [0.5, 1, 0]
    assert parse_threshold({"dog": 1}, LABELS, np.float32([0.25, 0.5, 0.75])).tolist() == [0.25, 1, 0.75]
    assert parse_threshold({"1": 1, np.int64(2): 0}, LABELS, 0.5).tolist() == [0.5, 1, 0]
    assert parse_threshold({"1": 1}, ["1", "0"], 0.5).tolist() == [1, 0.5]  # a label comes first
    thresholds = parse_threshold({"dog": 0.75, "kite": 0.25}, LABELS, 0.5)
    # A class beyond the labels is not hidden by a threshold: the pipeline has to see it and say so.
    assert class_thresholds(np.array([2, 1, 0, 7, -1]), thresholds).tolist() == [0.25, 0.75, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", True, None, [0.5]])
def test_a_threshold_outside_of_0_to_1(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"The threshold is .* from 0 to 1"):
        parse_threshold(value, LABELS, 0.5)
    with pytest.raises(ConfigError, match=r"The threshold of 'dog' is"):
        parse_threshold({"dog": value}, LABELS, 0.5)


@pytest.mark.parametrize("name", ["cat", 3, -1, True, None, "3", "-1", "\u00b2", "9" * 5000])
def test_a_threshold_of_an_unknown_class(name: Any) -> None:
    with pytest.raises(ConfigError, match="which the model does not know") as raised:
        parse_threshold({name: 0.5}, LABELS, 0.5)
    assert "person, dog, kite" in raised.value.cure


def test_boxes_are_clipped_and_rounded() -> None:
    boxes = np.float32([[-3, 4.5, 70, 20], [10.5, -1, 11.5, 99]])
    clipped = clip_boxes(boxes, 40, 60)
    assert clipped.tolist() == [[0, 4.5, 60, 20], [10.5, 0, 11.5, 40]] and clipped.dtype == np.float32
    assert rounded_boxes(clipped).tolist() == [[0, 4, 60, 20], [10, 0, 12, 40]]
    assert rounded_boxes(np.array([])).shape == (0, 4)

"""Detection operators against Paddle's, on random and on edge inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
ops = paddle.vision.ops
pytestmark = pytest.mark.export

Compare = Callable[..., None]


def make_boxes(rng: np.random.Generator, *shape: int, size: float = 200.0) -> np.ndarray:
    """Boxes that overlap a lot: few centres, many sizes. [*shape, 4]."""
    centres = rng.uniform(0.2, 0.8, (6, 2))[rng.integers(0, 6, shape)] * size
    half = rng.uniform(0.05, 0.2, (*shape, 2)) * size
    return np.concatenate([centres - half, centres + half], -1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
def test_roi_align(aligned: bool, ratio: int, compare: Compare) -> None:
    rng = np.random.default_rng(0)
    x, rois = rng.normal(size=(2, 3, 14, 18)), make_boxes(rng, 7, size=60)
    rois[0] = [-9, -7, 70, 90]  # beyond the map on all sides
    rois[1] = [3, 3, 3.4, 3.6]  # smaller than one element
    specs = [((-1, 3, -1, -1), "float32"), ((-1, 4), "float32"), ((-1,), "int32")]
    compare(
        lambda x, rois, n: ops.roi_align(x, rois, n, (3, 5), 0.25, ratio, aligned),
        specs,
        [x, rois, [3, 4]],
        [x, rois, [0, 7]],
        [x[:1], rois[:1], [1]],
        [x, np.zeros((0, 4)), [0, 0]],
        tolerance=1e-5,
    )


@pytest.mark.parametrize("pixel_offset", [False, True])
def test_distribute_fpn_proposals(pixel_offset: bool, compare: Compare) -> None:
    def function(rois: Any, numbers: Any) -> Any:
        levels, restore, counts = ops.distribute_fpn_proposals(rois, 2, 5, 4, 224, pixel_offset, rois_num=numbers)
        return [*levels, restore, *counts]

    rng = np.random.default_rng(0)
    side = np.exp(rng.uniform(np.log(5), np.log(1500), (40, 2)))
    start = rng.uniform(0, 50, (40, 2))
    rois = np.concatenate([start, start + side], 1)
    plus = float(pixel_offset)
    for i, length in enumerate([112, 224, 448, 111.9999, 0, 896]):  # at the borders of levels
        rois[i] = [0, 0, length - plus, length - plus]
    rois[6], rois[7] = [10, 10, 5, 30], [400, 0, 0, 900]  # turned inside out
    specs = [((-1, 4), "float32"), ((-1,), "int32")]
    feeds = [[rois, [40]], [rois, [15, 0, 25]], [rois[:1], [1]], [rois[4:7], [1, 2]], [rois[:0], [0]]]
    compare(function, specs, *feeds, tolerance=0)


def proposals(pixel_offset: bool, **options: Any) -> Callable[..., Any]:
    def function(scores: Any, deltas: Any, size: Any, anchors: Any, variances: Any) -> Any:
        rois, probabilities, numbers = ops.generate_proposals(
            scores,
            deltas,
            size,
            anchors,
            variances,
            pixel_offset=pixel_offset,
            return_rois_num=True,
            **options,
        )
        return rois, probabilities, numbers.astype("int32")  # declared as float32, but written as int32

    return function


def proposal_inputs(images: int, height: int = 6, width: int = 7, kinds: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(images)
    y, x = np.meshgrid(np.arange(height) * 16.0, np.arange(width) * 16.0, indexing="ij")
    sizes = np.array([24.0, 40, 64])[:kinds]
    anchors = np.stack([np.stack([x - s, y - s, x + s, y + s], -1) for s in sizes], 2)
    return [
        rng.uniform(0, 1, (images, kinds, height, width)),
        rng.normal(0, 0.4, (images, 4 * kinds, height, width)),
        np.array([[90.0, 110.0], [60, 80], [75, 100]])[:images],
        anchors,
        np.full_like(anchors, 0.9),
    ]


PROPOSAL_SPECS = [
    ((-1, 3, -1, -1), "float32"),
    ((-1, 12, -1, -1), "float32"),
    ((-1, 2), "float32"),
    ((-1, -1, 3, 4), "float32"),
    ((-1, -1, 3, 4), "float32"),
]


@pytest.mark.parametrize("pixel_offset", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1000, 1000), (50, 9), (2, 1)])
def test_generate_proposals(pixel_offset: bool, before: int, after: int, compare: Compare) -> None:
    function = proposals(pixel_offset, pre_nms_top_n=before, post_nms_top_n=after, nms_thresh=0.6, min_size=2.0)
    huge = proposal_inputs(1)
    huge[1] = huge[1] + 9  # sizes beyond the clipped logarithm
    wide = [*huge[:2], np.array([[30000.0, 40000.0]]), *huge[3:]]  # and a picture that holds them
    feeds = [proposal_inputs(1), proposal_inputs(3), proposal_inputs(1, 1, 1), huge, wide]
    compare(function, PROPOSAL_SPECS, *feeds, tolerance=1e-5)


def test_generate_proposals_of_images_without_any(compare: Compare) -> None:
    function = proposals(False, pre_nms_top_n=100, post_nms_top_n=10, nms_thresh=0.6, min_size=4.0)
    inputs = proposal_inputs(3)
    inputs[1][1] = -40  # all boxes of the second image shrink to nothing
    compare(
        function,
        PROPOSAL_SPECS,
        inputs,
        [a[1:2] if i < 3 else a for i, a in enumerate(inputs)],
        tolerance=1e-5,
    )


def nms_function(**options: Any) -> Callable[..., Any]:
    defaults = {"score_threshold": 0.1, "nms_top_k": -1, "keep_top_k": -1, "nms_threshold": 0.5,
                "normalized": True, "nms_eta": 1.0, "background_label": -1}  # fmt: skip

    def function(boxes: Any, scores: Any, rois_num: Any = None) -> Any:
        return paddle._C_ops.multiclass_nms3(boxes, scores, rois_num, *{**defaults, **options}.values())

    return function


NMS_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top k of a class": {"nms_top_k": 7},
    "best of the image": {"keep_top_k": 5},
    "both": {"nms_top_k": 9, "keep_top_k": 12},
    "background": {"background_label": 1, "keep_top_k": 20},
    "pixels": {"normalized": False, "keep_top_k": 20},
    "nothing": {"score_threshold": 2.0},
    "as in R-CNN": {"nms_top_k": -1, "keep_top_k": 100, "score_threshold": 0.05},
}


@pytest.mark.parametrize("name", NMS_OPTIONS)
def test_multiclass_nms_with_shared_boxes(name: str, compare: Compare) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = make_boxes(rng, 2, 60), rng.uniform(0, 1, (2, 3, 60)) ** 2
    ties = np.round(scores, 1)  # many equal scores
    specs = [((-1, -1, 4), "float32"), ((-1, 3, -1), "float32")]
    feeds = [[boxes, scores], [boxes, ties], [boxes[:1], ties[:1]], [boxes[:, :1], scores[:, :, :1]]]
    feeds.append([boxes, np.stack([scores[0], scores[1] * 0])])  # nothing in the second image
    apart = np.arange(8)[:, None] * 10.0 + [0, 0, 5, 5]  # one more than the 7 of a class that may enter
    feeds.append([apart[None], 0.2 + scores[:1, :, :8] / 2])
    compare(nms_function(**NMS_OPTIONS[name]), specs, *feeds, tolerance=0)


@pytest.mark.parametrize("name", NMS_OPTIONS)
def test_multiclass_nms_with_boxes_by_class(name: str, compare: Compare) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = make_boxes(rng, 60, 3), rng.uniform(0, 1, (60, 3)) ** 2
    ties = np.round(scores, 1)
    specs = [((-1, 3, 4), "float32"), ((-1, 3), "float32"), ((-1,), "int32")]
    feeds = [[boxes, scores, [60]], [boxes, ties, [25, 0, 35]], [boxes[:1], scores[:1] + 0.2, [1]]]
    compare(nms_function(**NMS_OPTIONS[name]), specs, *feeds, tolerance=0)


def make_empty_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Points, lines and boxes on a small grid: many touch, many are equal. [*shape, 4]."""
    start, side = rng.integers(0, 5, (*shape, 2)), rng.integers(0, 3, (*shape, 2))
    return np.concatenate([start, start + side], -1).astype(float)


@pytest.mark.parametrize("name", NMS_OPTIONS)
def test_multiclass_nms_of_boxes_without_area(name: str, compare: Compare) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = make_empty_boxes(rng, 2, 60), rng.uniform(0, 1, (2, 3, 60)) ** 2
    boxes[:, 5] = boxes[:, 3]
    specs = [((-1, -1, 4), "float32"), ((-1, 3, -1), "float32")]
    feeds = [[boxes, scores], [boxes, np.round(scores, 1)]]
    # one box without area, two, and two that do not touch
    for pair in ([0, 0, 9, 9], [5, 5, 5, 5]), ([5, 5, 5, 5], [5, 5, 5, 7]), ([5, 5, 5, 5], [6, 5, 6, 5]):
        feeds.append([np.array([pair]), np.array([[[0, 0], [0.8, 0.9], [0, 0]]])])
    compare(nms_function(**NMS_OPTIONS[name]), specs, *feeds, tolerance=0)
    by_class = make_empty_boxes(rng, 60, 3)
    specs = [((-1, 3, 4), "float32"), ((-1, 3), "float32"), ((-1,), "int32")]
    compare(nms_function(**NMS_OPTIONS[name]), specs, [by_class, scores[0].T, [25, 0, 35]], tolerance=0)


@pytest.mark.parametrize("name", [name for name in NMS_OPTIONS if name != "background"])
def test_multiclass_nms_of_one_class(name: str, compare: Compare) -> None:
    rng = np.random.default_rng(0)
    boxes, empty, scores = make_boxes(rng, 3, 60), make_empty_boxes(rng, 3, 60), rng.uniform(0, 1, (3, 1, 60))
    feeds = [[some, each] for some in (boxes, empty) for each in (scores, np.round(scores, 1), scores * 0)]
    # more that stay than `keep_top_k`, and then some without area
    apart = np.arange(60)[:, None] * 10.0 + [0, 0, 5, 5]
    points = np.where((np.arange(60) % 4 == 0)[:, None], 0.0, apart)
    feeds += [[np.stack([apart, points, empty[0]]), scores], [points[None], scores[:1]]]
    compare(
        nms_function(**NMS_OPTIONS[name]), [((-1, -1, 4), "float32"), ((-1, 1, -1), "float32")], *feeds, tolerance=0
    )


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("options", [{"nms_top_k": 20, "keep_top_k": 15}, {"nms_top_k": -1, "keep_top_k": -1}])
def test_matrix_nms(gaussian: bool, options: dict[str, int], compare: Compare) -> None:
    def function(boxes: Any, scores: Any) -> Any:
        return ops.matrix_nms(
            boxes, scores, 0.1, 0.05, use_gaussian=gaussian, background_label=0, normalized=False,
            return_index=True, **options,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    boxes, scores = make_boxes(rng, 2, 40), rng.uniform(0, 1, (2, 3, 40))
    specs = [((-1, -1, 4), "float32"), ((-1, 3, -1), "float32")]
    feeds = [[boxes, scores], [boxes[:, :1], scores[:, :, :1]], [boxes, scores * 0]]
    inverted = boxes.copy()
    inverted[:, ::3, 2] = inverted[:, ::3, 0] - 0.5  # within the pixel that is added to both sides
    feeds.append([inverted, scores])
    compare(function, specs, *feeds, tolerance=1e-5)


def test_nms(compare: Compare) -> None:
    boxes = make_boxes(np.random.default_rng(0), 50)
    compare(lambda boxes: ops.nms(boxes, 0.4), [((-1, 4), "float32")], [boxes], [boxes[:1]])


def test_suppression_of_boxes_without_area(compare: Compare) -> None:
    """0 / 0 is no overlap for `nms` and `matrix_nms`."""
    rng = np.random.default_rng(0)
    boxes, scores = make_empty_boxes(rng, 1, 40), rng.uniform(0.1, 1, (1, 2, 40))
    compare(lambda boxes: ops.nms(boxes, 0.4), [((-1, 4), "float32")], [boxes[0]])
    specs = [((-1, -1, 4), "float32"), ((-1, 2, -1), "float32")]

    def function(boxes: Any, scores: Any) -> Any:
        results = []
        for gaussian in (False, True):
            results += ops.matrix_nms(
                boxes, scores, 0.1, 0.05, 30, 50, gaussian, return_index=True, background_label=-1
            )
        return results

    compare(function, specs, [boxes, scores], tolerance=1e-5)


@pytest.mark.parametrize("min_size", [0.0, 1.0])
def test_generate_proposals_leaves_out_boxes_without_area(min_size: float, compare: Compare) -> None:
    """Sides of less than a pixel go, whatever `min_size` says."""
    function = proposals(False, pre_nms_top_n=100, post_nms_top_n=50, nms_thresh=0.6, min_size=min_size)
    inputs = proposal_inputs(2)
    inputs[1][:, 3] -= 9  # the first kind of anchor becomes flat
    inputs[1][:, 2, :3] -= 40
    inputs[1][:, 4:6] += 30  # the second moves out of the picture, and is clipped to a line
    compare(function, PROPOSAL_SPECS, inputs, tolerance=1e-5)

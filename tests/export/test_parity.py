"""How two runs of one model are judged, and the process that Paddle runs in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ovseg_export import compare, parity
from ovseg_export.errors import PaddleFailure, ParityError
from ovseg_export.families import FAMILIES
from ovseg_export.feeds import Case, cases, pictures
from ovseg_export.paddle_host import Host, require_paddle

from ovseg.errors import MissingExtra

RNG = np.random.default_rng(5)


def detections(count: int = 40, images: int = 1) -> dict[str, np.ndarray]:
    """Boxes [M, 6] with different scores, in descending order in each image, and masks [M, 16, 20]."""
    rows = []
    for _ in range(images):
        scores = np.sort(RNG.uniform(0.1, 1, count))[::-1]
        corners = RNG.uniform(0, 100, (count, 4))
        rows.append(np.column_stack([RNG.integers(0, 3, count), scores, corners]))
    return {
        "boxes": np.concatenate(rows).astype(np.float32),
        "counts": np.full(images, count, np.int32),
        "masks": (RNG.uniform(size=(images * count, 16, 20)) > 0.5).astype(np.int32),
    }


def changed(outputs: dict[str, np.ndarray], name: str, place: Any, by: float) -> dict[str, np.ndarray]:
    array = outputs[name].copy()
    array[place] += by
    return outputs | {name: array}


def judge(family: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    judged = parity._judge(FAMILIES[family], Case("case", {}, 1), expected, found)
    return parity._failures(FAMILIES[family].tolerances, judged)


def test_equal_detections_pass_in_any_order_of_equal_scores() -> None:
    expected = detections(images=2)
    expected["boxes"][[3, 4], :2] = [1, 0.7]
    order = np.arange(80)
    order[[3, 4]] = [4, 3]
    found = expected | {name: expected[name][order] for name in ("boxes", "masks")}
    figures = compare.compare_instances(expected, found)
    assert (figures["instances"], figures["matched"], figures["unmatched"]) == (80, 80, 0)
    assert (figures["box"], figures["score"], figures["mask_iou"]) == (0, 0, 1)
    assert judge("mask_rcnn", expected, found) == []


@pytest.mark.parametrize(
    ("name", "place", "by", "failing"),
    [
        ("boxes", (5, 3), 0.06, "box"),
        ("boxes", (5, 1), 2e-4, "score"),
        ("boxes", (5, 0), 1, "unmatched"),
        ("boxes", (5, 1), 0.3, "unmatched"),
        ("boxes", (5, 2), float("nan"), "box"),
    ],
)
def test_a_difference_beyond_its_tolerance_fails(name: str, place: Any, by: float, failing: str) -> None:
    expected = detections()
    (failure,) = judge("mask_rcnn", expected, changed(expected, name, place, by))
    assert failure.startswith(f"{failing} is ")
    assert judge("mask_rcnn", expected, changed(expected, "boxes", (5, 3), 0.04)) == []


def test_a_wrong_mask_fails() -> None:
    expected = detections()
    masks = expected["masks"].copy()
    masks[7] = 1 - masks[7]
    failure, *_ = judge("mask_rcnn", expected, expected | {"masks": masks})
    assert failure.startswith("mask_iou is ")
    assert judge("mask_rcnn", expected, expected | {"masks": masks[:, :8]})[0].startswith("mask_iou is 0")


def test_only_the_lowest_score_may_be_exchanged() -> None:
    expected = detections()
    lowest = int(np.argmin(expected["boxes"][:, 1]))
    elsewhere = changed(expected, "boxes", (lowest, 0), 1)
    figures = compare.compare_instances(expected, elsewhere)
    assert (figures["at_cut"], figures["unmatched"], figures["matched"]) == (2, 0, 39)
    json.dumps(figures)  # as parity.json is written: no numpy numbers
    middle = compare.compare_instances(expected, changed(expected, "boxes", (3, 0), 1))
    assert middle["at_cut"] == 0 and middle["unmatched"] == pytest.approx(2 / 80)


def rows(*scores: float, kind: int = 1) -> dict[str, np.ndarray]:
    """Detections of one image with these scores."""
    boxes = [[kind, score, 10 * i, 5, 10 * i + 8, 20] for i, score in enumerate(scores)]
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 6), "counts": np.array([len(scores)], np.int32)}


@pytest.mark.parametrize(
    ("expected", "found", "unmatched"),
    [
        (rows(0.9), rows(0.9, kind=2), 1.0),
        (rows(0.9), rows(0.5), 1.0),
        (rows(0.9), rows(), 1.0),
        (rows(*[0.5] * 5), rows(*[0.5] * 5, kind=2), 1.0),
        (rows(0.9, 0.5), rows(0.9, 0.4), 0.5),
        (rows(*[0.9] * 19, 0.5), rows(*[0.9] * 19, 0.5, 0.5), 1 / 41),
    ],
)
def test_in_a_short_list_or_one_of_another_length_nothing_is_chance(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], unmatched: float
) -> None:
    figures = compare.compare_instances(expected, found)
    assert figures["at_cut"] == 0 and figures["unmatched"] == pytest.approx(unmatched)


@pytest.mark.parametrize("which", ["expected", "found"])
def test_no_detection_against_some_fails(which: str) -> None:
    some = detections(3)
    none = {
        "boxes": np.zeros((0, 6), np.float32),
        "counts": np.zeros(1, np.int32),
        "masks": some["masks"][:0],
    }
    assert judge("mask_rcnn", none, none) == []
    pair = (none, some) if which == "expected" else (some, none)
    assert any(failure.startswith("unmatched is ") for failure in judge("mask_rcnn", *pair))


def test_solov2_is_matched_by_class_score_and_mask() -> None:
    boxes = detections(10)
    expected = {
        "counts": boxes["counts"],
        "labels": boxes["boxes"][:, 0].astype(np.int64),
        "scores": boxes["boxes"][:, 1],
        "masks": boxes["masks"],
    }
    assert judge("solov2", expected, expected) == []
    (failure,) = judge("solov2", expected, changed(expected, "scores", 2, 3e-4))
    assert failure.startswith("score is ")


def test_embeddings_and_logits() -> None:
    rows = RNG.normal(size=(3, 64)).astype(np.float32)
    assert judge("shitu_rec", {"embedding": rows}, {"embedding": rows * 1.5}) == []
    (failure,) = judge("shitu_rec", {"embedding": rows}, changed({"embedding": rows}, "embedding", (1, 3), 0.1))
    assert failure.startswith("cosine is 0.9")
    logits = RNG.normal(size=(2, 1, 8, 8)).astype(np.float32)
    logits += np.sign(logits) * 0.01
    assert judge("sam", {"low_res_masks": logits}, {"low_res_masks": logits + 9e-4}) == []
    (failure,) = judge("sam", {"low_res_masks": logits}, {"low_res_masks": logits + 2e-3})
    assert failure.startswith("logit is ")
    (failure,) = judge("sam", {"low_res_masks": logits}, {"low_res_masks": logits[:1]})
    assert failure.startswith("shapes of Paddle and ONNX")


def test_pictures_without_an_effect_prove_nothing() -> None:
    same = parity._Run({"embedding": np.ones((1, 4))}, {}, 0, 0)
    other = replace(same, expected={"embedding": np.zeros((1, 4))})
    both = replace(same, expected={"embedding": np.ones((2, 4))})
    labels = [Case("first", {}, 1), Case("second", {}, 1), Case("pair", {}, 2)]
    assert "same for all 2 pictures: nothing is proven" in parity._sameness(labels, [same, same, both])[0]
    assert parity._sameness(labels, [same, other, both]) == []


def test_nothing_detected_is_not_proven() -> None:
    family, nothing = FAMILIES["mask_rcnn"], detections(1)
    # What the R-CNN graphs give for a picture without a detection; Paddle's older ones have a class of -1.
    nothing["boxes"][:] = [0, 0, 0, 0, 1, 1]
    older = nothing | {"boxes": np.float32([[-1, 0.5, 0, 0, 1, 1]])}
    assert compare.compare_instances(older, older)["detections"] == 0
    empty = [parity._judge(family, Case("empty", {}, batch), nothing, nothing) for batch in (1, 2)]
    assert parity._found_nothing(empty)
    some = parity._judge(family, Case("some", {}, 1), detections(3), detections(3))
    assert some["figures"]["detections"] == 3 and not parity._found_nothing([*empty, some])
    assert parity._case_to_time([Case("a", {}, 1), Case("b", {}, 1)], [empty[0], some]).label == "b"
    rows = {"embedding": RNG.normal(size=(1, 8)).astype(np.float32)}
    assert not parity._found_nothing([parity._judge(FAMILIES["shitu_rec"], Case("c", {}, 1), rows, rows)])
    with pytest.raises(ParityError, match="export of m is not proven: Paddle detects nothing") as error:
        parity.require_parity({"passed": False, "failures": [parity._NOTHING]}, "m")
    assert "--images" in error.value.cure


def test_sample_photographs_are_among_the_pictures_of_detectors(tmp_path: Path) -> None:
    import cv2

    labels = [label for label, _ in pictures(None, photographs=True)]
    assert labels[:3] == ["sample coffee", "sample citrus", "sample bee"]
    assert len(labels) == 7 and all(label.startswith("synthetic") for label in labels[3:])
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((50, 70, 3), np.uint8))
    assert len(pictures(tmp_path, photographs=True)) == 4


def test_a_failed_report_raises_with_the_first_differences() -> None:
    parity.require_parity({"passed": True, "failures": []}, "m")
    with pytest.raises(ParityError, match=r"ONNX model of m differs from Paddle's: a; b; c; and 2 more") as error:
        parity.require_parity({"passed": False, "failures": list("abcde")}, "m")
    assert error.value.exit_code == 1 and "--allow-mismatch" in error.value.cure


def test_cases_have_the_inputs_of_their_family(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "given.png"), np.zeros((50, 70, 3), np.uint8))
    chosen = pictures(tmp_path)
    assert len(chosen) == 4 and chosen[0][1].shape == (50, 70, 3)
    assert len({pixels.shape for _, pixels in chosen}) == 4
    rcnn = {"type": "Resize", "size": [80, 130], "keep_ratio": True, "interp": "cubic", "pad_stride": 32}
    shapes: dict[str, list[int | str]] = {
        "im_shape": ["batch", 2],
        "image": ["batch", 3, "height", "width"],
        "scale_factor": ["batch", 2],
    }
    normal = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    made = list(cases(rcnn | normal, shapes, chosen, batched=True))
    assert [case.batch for case in made] == [1, 1, 1, 1, 2, 2]
    first = made[0].feeds
    assert list(first) == ["im_shape", "image", "scale_factor"]
    assert first["im_shape"].tolist() == [[80, 112]] and first["image"].shape == (1, 3, 96, 128)
    np.testing.assert_allclose(first["scale_factor"], [[1.6, 1.6]])
    np.testing.assert_allclose(first["image"][0, :, 0, 0], [-2.1179, -2.0357, -1.8044], atol=1e-4)
    assert (first["image"][0, :, 80:] == 0).all() and (first["image"][0, :, :, 112:] == 0).all()
    sam = {"type": "SAMProcessor", "size": 64, **normal}
    made = list(cases(sam, {"image": [1, 3, 64, 64], "boxes": ["prompts", 4]}, chosen, batched=False))
    assert [case.feeds["boxes"].shape for case in made] == [(1, 4), (2, 4), (3, 4), (1, 4)]
    assert all(case.feeds["image"].shape == (1, 3, 64, 64) for case in made)


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "not installed"), ("3.3.1", "3.3.1 cannot host"), ("2.6.2", "2.6.2 cannot host")],
)
def test_a_paddle_that_cannot_host_is_refused(version: str | None, message: str) -> None:
    assert require_paddle(lambda: "3.2.2") == "3.2.2"
    with pytest.raises(MissingExtra, match=message) as error:
        require_paddle(lambda: version)
    assert "pip install" in error.value.cure


@pytest.mark.export
def test_a_failure_of_paddle_is_an_error_and_a_crash_too(tmp_path: Path) -> None:
    pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
    (tmp_path / "inference.json").write_text("{}")
    (tmp_path / "inference.pdiparams").write_bytes(b"x")
    with Host(tmp_path) as paddle:
        with pytest.raises(PaddleFailure, match="while loading"):
            paddle.load(tmp_path / "inference.json", tmp_path / "inference.pdiparams", optimise=False, onednn=False)
        paddle._process.kill()
        paddle._process.wait()
        with pytest.raises(PaddleFailure, match="ended with signal SIGKILL while running the model"):
            paddle.run({"x": np.zeros(1, np.float32)})


@pytest.mark.export
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_a_full_disk_is_no_failure_of_paddle(tmp_path: Path, save_paddle: Any) -> None:
    import resource

    save_paddle(lambda x: x.tile([1000, 1000]), [((1, 1), "float32")])
    with Host(tmp_path) as paddle:
        paddle.load(tmp_path / "inference.json", tmp_path / "inference.pdiparams", optimise=False, onednn=False)
        resource.prlimit(paddle._process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match="File too large"):
            paddle.run({"x0": np.ones((1, 1), np.float32)})


@pytest.mark.parametrize(("amd", "hurry"), [(True, True), (True, False), (False, True)])
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_paddle_hurries_where_told(amd: bool, hurry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg_export.paddle_host._is_amd", lambda: amd)
    with Host(tmp_path, hurry=hurry) as paddle:
        listed = Path(f"/proc/{paddle._process.pid}/environ")
        # A process that has just begun has none for a moment.
        for _ in range(200):
            environment = listed.read_bytes().split(b"\0")
            if len(environment) > 1:
                break
            time.sleep(0.01)
    assert (b"MKL_DEBUG_CPU_TYPE=5" in environment) == (amd and hurry)


# Saved with Paddle's old program representation, which is chosen when Paddle is imported.
_OLD_PROGRAMS = """
import sys
import numpy
import paddle
from ovseg_export.builders.legacy import restore_old_functions

restore_old_functions()
paddle.enable_static()
for name in ("index_put", "shared"):
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [2, 2], "float32")
        weight = paddle.static.create_global_var([2, 2], 3.0, "float32", persistable=True, name="weight")
        if name == "index_put":
            mask = paddle.assign([[True, False], [False, False]])
            y = paddle.index_put(x + weight, [mask], paddle.zeros([1]))
        else:
            y = paddle.matmul(x, weight) * 2.0 + paddle.matmul(x + 1.0, weight) * 2.0
        executor = paddle.static.Executor(paddle.CPUPlace())
        paddle.static.global_scope().var("weight").get_tensor().set(numpy.full((2, 2), 3, "float32"), paddle.CPUPlace())
        paddle.static.save_inference_model(f"{sys.argv[1]}/{name}", [x], [y], executor, program=program)
"""


@pytest.mark.export
def test_paddle_runs_old_programs_rightly_again_and_optimised(tmp_path: Path) -> None:
    """Two faults of Paddle 3.2: a predictor's second run, and a weight that two scaled products share."""
    pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
    root = str(Path(parity.__file__).parents[1])
    environment = os.environ | {"FLAGS_enable_pir_api": "0", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", _OLD_PROGRAMS, str(tmp_path)], env=environment, check=True)
    arrays = RNG.normal(size=(3, 2, 2)).astype(np.float32)
    expected = {
        "index_put": (arrays + 3) * [[0, 1], [1, 1]],
        "shared": (2 * arrays + 1) @ np.full((2, 2), 6.0),
    }
    with Host(tmp_path) as paddle:
        for name, truth in expected.items():
            for optimise in (False, True):
                program = tmp_path / f"{name}.pdmodel"
                paddle.load(program, program.with_suffix(".pdiparams"), optimise=optimise, onednn=False)
                found = np.stack([paddle.run({"x": array})[0][0] for array in arrays])
                np.testing.assert_allclose(found, truth, atol=1e-5, err_msg=f"{name}, optimise {optimise}")

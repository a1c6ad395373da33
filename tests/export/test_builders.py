"""Each builder writes an archive that Paddle Inference runs, with outputs that can show an error."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("paddle", reason="the export extra (paddlepaddle) is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "export"))

import yaml
from ovseg_export.builders.images import TEST_SIZES, network_input, synthetic_image

pytestmark = pytest.mark.export

Arrays = list[np.ndarray[Any, Any]]


def run_paddle(folder: Path, feeds: list[dict[str, np.ndarray[Any, Any]]]) -> list[Arrays]:
    """Run an archive in Paddle Inference on the CPU without oneDNN; the outputs of each feed in order.

    Paddle 3.2's `matmul_v2_scale_fuse_pass` drops the offset of a scale before a matmul, which SAM has.
    """
    from paddle.inference import Config, create_predictor

    program = folder / "inference.json"
    if not program.exists():
        program = folder / "inference.pdmodel"
    config = Config(str(program), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_mkldnn()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    if program.suffix == ".pdmodel":
        config.delete_pass("matmul_v2_scale_fuse_pass")
    predictor = create_predictor(config)
    results = []
    for feed in feeds:
        names = predictor.get_input_names()
        assert len(names) == len(feed)
        # SAM's inputs are told apart by order, the others by name.
        named = feed if set(names) == set(feed) else dict(zip(names, feed.values(), strict=True))
        for name in names:
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(named[name]))
        predictor.run()
        results.append([predictor.get_output_handle(n).copy_to_cpu() for n in predictor.get_output_names()])
    return results


@dataclass(frozen=True)
class Case:
    family: str
    inputs: str
    model_name: str
    options: dict[str, Any] = field(default_factory=dict)
    unit: bool = False
    side: int = 256

    def feed(self, seed: int) -> dict[str, np.ndarray[Any, Any]]:
        picture = synthetic_image(self.side, self.side, seed=seed)
        image = network_input([picture], mean=(0,) * 3, std=(1,) * 3) if self.unit else network_input([picture])
        scale = np.array([[self.side / 200, self.side / 160]], np.float32)
        if self.inputs == "box":
            boxes = np.array([[20, 30, 150, 200], [60, 60, 240, 140]], np.float32)
            return {"image": image, "boxes": boxes}
        if self.inputs == "point":
            return {"image": image, "point": np.array([[[100, 120]]], np.float32)}
        if self.inputs == "x":
            return {"x": image}
        if self.inputs == "scale":
            return {"image": image, "scale_factor": scale}
        shape = np.array([[self.side, self.side]], np.float32)
        return {"im_shape": shape, "image": image, "scale_factor": np.full_like(scale, self.side / 200)}


CASES = {
    "sam-box": Case("sam", "box", "SAM-H_box", {"prompt": "box"}),
    "sam-point": Case("sam", "point", "SAM-H_point", {"prompt": "point"}),
    "shitu": Case("shitu_rec", "x", "PP-ShiTuV2_rec", {"image_size": 224}, side=224),
    "clip": Case("clip", "x", "PP-ShiTuV2_rec_CLIP_vit_base", {"image_size": 224}, side=224),
    "picodet": Case("picodet", "scale", "PP-ShiTuV2_det", {"image_size": 256}),
    "rtdetr": Case("mask_rtdetr", "shape", "Mask-RT-DETR-S", {"image_size": 256}, unit=True),
    "ppyoloe": Case("ppyoloe_seg", "shape", "PP-YOLOE_seg-S", {"image_size": 256}, unit=True),
    "maskrcnn": Case("mask_rcnn", "shape", "MaskRCNN-ResNet50-FPN", {"image_size": [256, 256]}),
    "maskrcnn-c4": Case(
        "mask_rcnn",
        "shape",
        "MaskRCNN-ResNet50",
        {"image_size": [256, 256], "model_name": "MaskRCNN-ResNet50"},
    ),
    "cascade": Case("cascade_mask_rcnn", "shape", "Cascade-MaskRCNN-ResNet50-FPN", {"image_size": [256, 256]}),
    "solov2": Case("solov2", "shape", "SOLOv2", {"image_size": [256, 256]}),
}
INSTANCES = ["rtdetr", "ppyoloe", "maskrcnn", "maskrcnn-c4", "cascade"]


def build(name: str, folder: Path, **changes: Any) -> Path:
    case = CASES[name]
    module = importlib.import_module(f"ovseg_export.builders.{case.family}")
    written: Path = module.build(folder, **(case.options | changes))
    return written


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def of(name: str) -> tuple[Path, list[Arrays]]:
        folder = build(name, tmp_path_factory.mktemp("archives") / name)
        return folder, run_paddle(folder, [CASES[name].feed(1), CASES[name].feed(2)])

    return of


@pytest.mark.parametrize("name", CASES)
def test_archive_has_the_official_files(name: str, results: Any) -> None:
    folder, _ = results(name)
    assert sorted(p.name for p in folder.iterdir()) == [
        "inference.json",
        "inference.pdiparams",
        "inference.yml",
    ]
    config = yaml.safe_load((folder / "inference.yml").read_text())
    assert config["Global"]["model_name"] == CASES[name].model_name
    assert (folder / "inference.pdiparams").stat().st_size < 10e6


@pytest.mark.parametrize("name", CASES)
def test_outputs_follow_the_picture(name: str, results: Any) -> None:
    _, (first, second) = results(name)
    changed = [a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(first, second, strict=True)]
    assert any(changed)
    assert all(np.isfinite(a).all() for a in first if a.dtype.kind == "f")


@pytest.mark.parametrize("name", ["sam-box", "sam-point"])
def test_sam_gives_masks_with_inside_and_outside(name: str, results: Any) -> None:
    _, runs = results(name)
    (masks,) = runs[0]
    assert masks.shape == ((2 if name == "sam-box" else 1), 1, 64, 64)
    assert masks.dtype == np.float32
    assert 0.05 < (masks > 0).mean() < 0.95
    if name == "sam-box":
        assert abs(masks[0] - masks[1]).max() > 0.1


def test_sam_graphs_share_weights(tmp_path: Path) -> None:
    import paddle
    from ovseg_export.builders import sam

    with paddle.utils.unique_name.guard():
        paddle.seed(3)
        box = sam.make(seed=3, prompt="box", size="tiny", pad_operator="pad3d").network
        paddle.seed(3)
        point = sam.make(seed=3, prompt="point", size="tiny", pad_operator="pad3d").network
    assert box.state_dict().keys() == point.state_dict().keys()
    for key, value in box.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), point.state_dict()[key].numpy(), err_msg=key)


@pytest.mark.parametrize(("operator", "absent"), [("pad3d", "pad"), ("pad", "pad3d")])
def test_sam_pads_with_the_operator_asked_for(operator: str, absent: str, tmp_path: Path) -> None:
    text = (build("sam-box", tmp_path / "a", pad_operator=operator) / "inference.json").read_text()
    names = {op["#"].split(".")[-1] for op in json.loads(text)["program"]["regions"][0]["blocks"][0]["ops"]}
    assert operator in names
    assert absent not in names


@pytest.mark.parametrize("name", ["shitu", "clip"])
def test_embeddings_differ_and_take_a_batch(name: str, results: Any) -> None:
    folder, runs = results(name)
    a, b = runs[0][0], runs[1][0]
    assert a.shape == (1, 512)
    cosine = float((a @ b.T).item() / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine < 0.9
    both = {"x": np.concatenate([CASES[name].feed(1)["x"], CASES[name].feed(2)["x"]])}
    np.testing.assert_allclose(run_paddle(folder, [both])[0][0], np.concatenate([a, b]), atol=1e-3)


@pytest.mark.parametrize("name", ["picodet", *INSTANCES])
def test_boxes_spread(name: str, results: Any) -> None:
    _, runs = results(name)
    for boxes, count, *_ in runs:
        assert boxes.shape == (int(count.sum()), 6)
        assert count.dtype == np.int32
        scores = boxes[:, 1]
        assert len(scores) >= 20
        assert len(np.unique(scores)) == len(scores)
        assert scores.max() - scores.min() > 0.2
        assert scores.max() > 0.3
        assert len(np.unique(boxes[:, 2:].round(2), axis=0)) > len(boxes) // 4
        if name != "picodet":
            assert len(np.unique(boxes[:, 0])) > 5


@pytest.mark.parametrize("name", INSTANCES)
def test_masks_fill_the_original_size(name: str, results: Any) -> None:
    _, runs = results(name)
    for boxes, _, masks in runs:
        assert masks.shape == (len(boxes), 200, 200)
        assert masks.dtype == (np.float32 if name == "ppyoloe" else np.int32)
        assert set(np.unique(masks)) == {0, 1}
        share = masks.reshape(len(masks), -1).mean(axis=1)
        assert share.max() > 0.02
        assert len(np.unique(share)) > 10


def test_solov2_gives_four_outputs(results: Any) -> None:
    _, runs = results("solov2")
    for count, labels, scores, masks in runs:
        assert labels.shape == scores.shape == (int(count),)
        assert masks.shape == (int(count), 200, 200)
        assert (labels.dtype, scores.dtype, masks.dtype) == (np.int64, np.float32, np.uint8)
        assert len(np.unique(scores)) == len(scores) > 5
        assert scores.max() - scores.min() > 0.2
        assert 0.05 < masks.mean() < 0.95


@pytest.mark.parametrize("name", ["maskrcnn", "cascade"])
def test_rcnn_without_detections_gives_one_row_of_zeros(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / name, background=60.0)
    boxes, count, masks = run_paddle(folder, [CASES[name].feed(1)])[0]
    np.testing.assert_array_equal(boxes[:, :2], [[0, 0]])
    assert count.tolist() == [1]
    assert masks.shape == (1, 200, 200)
    assert masks.max() == 0


def test_rcnn_takes_two_pictures_of_different_size(results: Any) -> None:
    folder, _ = results("maskrcnn")
    sizes = [(256, 192), (160, 256)]
    image = np.zeros((2, 3, 256, 256), np.float32)
    for i, (height, width) in enumerate(sizes):
        image[i, :, :height, :width] = network_input([synthetic_image(height, width, seed=i)])[0]
    feed = {
        "im_shape": np.array(sizes, np.float32),
        "image": image,
        "scale_factor": np.full((2, 2), 2, np.float32),
    }
    boxes, count, masks = run_paddle(folder, [feed])[0]
    assert count.shape == (2,)
    assert len(boxes) == len(masks) == count.sum()
    assert masks.shape[1:] == (128, 128)
    for picked, (height, width) in zip(np.split(boxes, [count[0]]), sizes, strict=True):
        assert picked[:, 4].max() <= width / 2
        assert picked[:, 5].max() <= height / 2


def test_ppyoloe_without_detections_gives_one_row_of_zeros(tmp_path: Path) -> None:
    folder = build("ppyoloe", tmp_path / "p", score_threshold=1.5)
    boxes, count, masks = run_paddle(folder, [CASES["ppyoloe"].feed(1)])[0]
    assert count.tolist() == [1]
    assert not boxes.any()
    assert not masks.any()


@pytest.mark.parametrize("name", ["sam-box", "picodet", "rtdetr"])
def test_parameter_names_do_not_depend_on_what_ran_before(name: str, results: Any) -> None:
    folder, _ = results(name)
    text = (folder / "inference.json").read_text()
    assert "buffer." in text
    assert "eager_tmp" not in text


@pytest.mark.parametrize("name", CASES)
def test_same_seed_gives_identical_bytes(name: str, results: Any, tmp_path: Path) -> None:
    folder, _ = results(name)
    again = build(name, tmp_path / "again")
    other = build(name, tmp_path / "other", seed=1)

    def digest(path: Path) -> str:
        return hashlib.sha256((path / "inference.pdiparams").read_bytes()).hexdigest()

    assert digest(again) == digest(folder) != digest(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_old_format_agrees(name: str, results: Any, tmp_path: Path) -> None:
    _, new = results(name)
    folder = build(name, tmp_path / "old", fmt="pdmodel")
    assert (folder / "inference.pdmodel").exists()
    old = run_paddle(folder, [CASES[name].feed(1)])[0]
    for a, b in zip(new[0], old, strict=True):
        assert a.shape == b.shape
        if a.ndim == 3:
            # Rows of nearly equal score may change places; the share of each mask does not.
            np.testing.assert_allclose(np.sort(a.mean((1, 2))), np.sort(b.mean((1, 2))), atol=1e-3)
        elif a.dtype == np.float32:
            np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0), atol=0.05)


def test_smooth_kernels_average_and_keep_their_variance() -> None:
    from ovseg_export.builders.calibrate import smooth_kernels
    from paddle import nn

    network = nn.Sequential(nn.Conv2D(8, 16, 3), nn.Conv2D(16, 8, 1), nn.Linear(4, 4))
    before = [parameter.numpy() for parameter in network.parameters()]
    smooth_kernels(network, 0.85)
    after = [parameter.numpy() for parameter in network.parameters()]
    np.testing.assert_allclose((after[0] ** 2).mean(), (before[0] ** 2).mean(), rtol=1e-4)
    assert after[0].std((2, 3)).mean() < 0.35 * before[0].std((2, 3)).mean()
    for old, new in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(old, new)


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="onnx"):
        build("shitu", tmp_path / "x", fmt="onnx")
    assert not (tmp_path / "x").exists()


def test_synthetic_images_depend_on_seed_and_size() -> None:
    for height, width in TEST_SIZES:
        picture = synthetic_image(height, width, seed=1)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, synthetic_image(height, width, seed=1))
        assert not np.array_equal(picture, synthetic_image(height, width, seed=2))
        assert picture.std() > 10


def test_the_process_that_builds_explains_itself() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "export")}
    command = [sys.executable, "-m", "ovseg_export.builders"]
    run = [
        subprocess.run([*command, argument], env=environment, capture_output=True, text=True, check=False)
        for argument in ("--help", "{}")
    ]
    assert (run[0].returncode, run[1].returncode) == (0, 2)
    assert "write_archive" in run[0].stdout and "must have family, out_dir" in run[1].stderr

"""Mask R-CNN and Cascade Mask R-CNN as a whole, with none, one and a hundred detections."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("paddle", reason="needs Paddle (the export extra)")

import onnxruntime
import paddle
from ovseg_export.builders import cascade_mask_rcnn, mask_rcnn, rcnn
from ovseg_export.builders.images import network_input, synthetic_image
from ovseg_export.compare import compare_instances
from ovseg_export.convert import convert, load

pytestmark = pytest.mark.export

NAMES = ["boxes", "counts", "masks"]
SIZES = [(192, 256), (256, 160), (128, 128)]
MODULES = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}
# Logits of the background class that leave no detection, one in the first picture, and the hundred best.
NONE, FEW, MANY = 60.0, 11.0, -50.0
ONE = {"mask_rcnn": 15.0, "cascade_mask_rcnn": 17.65}

Arrays = dict[str, np.ndarray]
WithBackground = Callable[[Path, float], Path]


def make_feed(sizes: Sequence[tuple[int, int]], seed: int = 0) -> Arrays:
    """Synthetic pictures at the top left of a batch, half of the original size in each direction."""
    height, width = (-(-max(sides) // 32) * 32 for sides in zip(*sizes, strict=True))
    image = np.zeros((len(sizes), 3, height, width), np.float32)
    for i, (h, w) in enumerate(sizes):
        image[i, :, :h, :w] = network_input([synthetic_image(h, w, seed=seed + i)])[0]
    return {
        "im_shape": np.array(sizes, np.float32),
        "image": image,
        "scale_factor": np.full((len(sizes), 2), 2, np.float32),
    }


def run_paddle(folder: Path, feed: Arrays) -> Arrays:
    """Run a model in Paddle Inference, one predictor for each run: a failed one is not used again."""
    from paddle.inference import Config, create_predictor

    config = Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_mkldnn()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(1)
    predictor = create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(feed[name])
    predictor.run()
    results = [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
    return dict(zip(NAMES, results, strict=True))


def make_session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = convert(folder, output_names=NAMES).to_model().SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=MODULES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("rcnn") / request.param
    return request.param, MODULES[request.param].build(folder, image_size=(192, 256), background=0.0)


@pytest.fixture
def with_background(tmp_path: Path) -> WithBackground:
    """with_background(folder, logit): the model with another bias of its background class."""

    def write(folder: Path, logit: float) -> Path:
        target = tmp_path / f"{logit:g}"
        shutil.copytree(folder, target)
        _, parameters = load(folder)
        data = bytearray((folder / "inference.pdiparams").read_bytes())
        heads = [array for array in parameters.values() if array.shape == (81,)]
        assert heads
        for old in heads:
            assert data.count(old.tobytes()) == 1
            new = old.copy()
            new[-1] += logit
            start = data.find(old.tobytes())
            data[start : start + old.nbytes] = new.tobytes()
        (target / "inference.pdiparams").write_bytes(data)
        return target

    return write


def require_same(expected: Arrays, found: Arrays) -> dict[str, float]:
    for name in NAMES:
        assert (name, found[name].dtype, found[name].shape) == (
            name,
            expected[name].dtype,
            expected[name].shape,
        )
    np.testing.assert_array_equal(found["counts"], expected["counts"])
    figures = compare_instances(expected, found)
    assert figures["unmatched"] == 0
    assert figures["box"] <= 0.05
    assert figures["score"] <= 1e-4
    assert figures["mask_iou"] >= 0.999
    return figures


def check(folder: Path, batches: Sequence[Sequence[tuple[int, int]]]) -> list[Arrays]:
    """Compare both on batches of pictures of these sizes; what Paddle gives."""
    session = make_session(folder)
    results = []
    for seed, sizes in enumerate(batches):
        feed = make_feed(sizes, seed)
        results.append(run_paddle(folder, feed))
        require_same(results[-1], dict(zip(NAMES, session.run(NAMES, feed), strict=True)))
    return results


def test_no_detection(model: tuple[str, Path], with_background: WithBackground) -> None:
    for outputs in check(with_background(model[1], NONE), [[size] for size in SIZES]):
        np.testing.assert_array_equal(outputs["boxes"][:, :2], [[0, 0]])
        assert outputs["counts"].tolist() == [1]  # the row that stands for none


def test_one_detection(model: tuple[str, Path], with_background: WithBackground) -> None:
    name, folder = model
    (outputs,) = check(with_background(folder, ONE[name]), [SIZES[:1]])
    assert outputs["counts"].tolist() == [1]
    assert outputs["boxes"][0, 1] > 0.05
    assert outputs["masks"].any()


def test_a_hundred_detections(model: tuple[str, Path], with_background: WithBackground) -> None:
    results = check(with_background(model[1], MANY), [[size] for size in SIZES])
    for outputs, (height, width) in zip(results, SIZES, strict=True):
        assert outputs["counts"].tolist() == [100]
        assert outputs["masks"].shape == (100, height // 2, width // 2)
        assert 0 < outputs["masks"].mean() < 1


@pytest.mark.parametrize("model", ["mask_rcnn"], indirect=True)
def test_two_pictures(model: tuple[str, Path], with_background: WithBackground) -> None:
    (outputs,) = check(with_background(model[1], MANY), [SIZES[:2]])
    assert outputs["counts"].tolist() == [100, 100]
    assert outputs["masks"].shape == (200, 128, 128)
    (outputs,) = check(with_background(model[1], FEW), [SIZES[1:]])
    assert all(1 < count < 100 for count in outputs["counts"])


@pytest.mark.parametrize(
    ("model", "logit", "message"),
    [("mask_rcnn", NONE, "expand"), ("cascade_mask_rcnn", MANY, "batch size of rois")],
    indirect=["model"],
)
def test_two_pictures_that_paddle_refuses(
    model: tuple[str, Path], logit: float, message: str, with_background: WithBackground
) -> None:
    """Mask R-CNN with no detection in either picture, and any batch of Cascade: there is nothing to equal."""
    with pytest.raises(ValueError, match=message):
        run_paddle(with_background(model[1], logit), make_feed(SIZES[:2]))


def test_boxes_without_area_have_empty_masks(compare: Callable[..., None]) -> None:
    """Boxes without width, height or both, some of them on the centre of a pixel; and one with an area."""

    def masks(values: Any, boxes: Any) -> Any:
        pasted = rcnn.paste(values, boxes, 6, 8)
        return paddle.cast(pasted >= 0.5, "int32"), pasted

    boxes = [[1, 1, 6, 5], [3, 1, 3, 5], [2.5, 1, 2.5, 5], [1, 4, 6, 4], [1, 3.5, 6, 3.5], [2.5, 3.5, 2.5, 3.5]]
    values = np.random.default_rng(0).uniform(0.6, 1, (6, 1, 4, 4))
    compare(masks, [((-1, 1, 4, 4), "float32"), ((-1, 4), "float32")], [values, boxes], tolerance=1e-5)

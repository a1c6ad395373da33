"""The Paddle archives that `ovs bench` gives to PaddleX compute what the shipped ONNX files compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

pytest.importorskip("paddle", reason='needs the export extra: pip install "ovseg[export]"')
pytestmark = pytest.mark.export

from ovseg_export import maskseg_tiny, shitu_tiny  # noqa: E402
from ovseg_export.convert import convert  # noqa: E402
from ovseg_export.paddle_forms import FORMS, recovered  # noqa: E402
from paddle.static import InputSpec  # noqa: E402

from ovseg.bench.workers import paddle_side  # noqa: E402
from ovseg.session import Session  # noqa: E402
from ovseg.zoo import find_model, load_zoo  # noqa: E402


def written(name: str, folder: Path) -> Session:
    """The archive of a model, converted once more."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-m", "ovseg_export.paddle_forms", name, str(folder)], check=True, env=environment)
    return Session(convert(folder).to_model().SerializeToString(), "cpu")


def test_every_model_that_ships_has_a_form() -> None:
    assert {name for name, spec in load_zoo().items() if spec.bundled} <= set(FORMS)


def test_the_embedding_network_has_the_shipped_weights(tmp_path: Path) -> None:
    size, folder = shitu_tiny.REC_SIZE, find_model("ShiTu-tiny-rec")
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    archive = written("ShiTu-tiny-rec", tmp_path / "archive")
    np.savez(tmp_path / "feeds.npz", pixels=pixels)
    side = paddle_side.Side(
        {
            "subject": {"paddle": {"model": tmp_path / "archive"}, "preprocess": {"model": folder.preprocess}},
            "runs": {2: [{"feeds": tmp_path / "feeds.npz"}]},
            "threads": 1,
        }
    )
    side.call(2)
    ((image,),) = side._feeds[2]
    (got,) = archive.run({"x": image}).values()
    expected = Session(folder.files["model"], "cpu").run({"pixels": pixels})["unit_embedding"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_detector_has_the_shipped_weights(tmp_path: Path) -> None:
    size = shitu_tiny.DET_SIZE
    feeds = {
        "image": np.random.default_rng(0).normal(0, 1, (1, 3, size, size)).astype(np.float32),
        "scale_factor": np.full((1, 2), 0.5, np.float32),
    }
    found = written("ShiTu-tiny-det", tmp_path).run(feeds)
    expected = Session(find_model("ShiTu-tiny-det").files["model"], "cpu").run(feeds)
    assert len(expected["boxes"]) > 10
    np.testing.assert_allclose(next(iter(found.values())), expected["boxes"], rtol=1e-3, atol=1e-3)


def test_the_segmenter_has_the_shipped_weights(tmp_path: Path) -> None:
    size = maskseg_tiny.SIZE
    picture = cv2.resize(cv2.imread(str(Path(__file__).parents[1] / "data" / "instances" / "000.jpg")), (size, size))
    image = (picture[:, :, ::-1] / np.float32(255) - shitu_tiny.MEAN) / np.float32(shitu_tiny.STD)
    feeds = {
        "im_shape": np.full((1, 2), size, np.float32),
        "image": image.transpose(2, 0, 1)[None].astype(np.float32),
        "scale_factor": np.ones((1, 2), np.float32),
    }
    found = written("MaskSeg-tiny", tmp_path).run(feeds)
    expected = Session(find_model("MaskSeg-tiny").files["model"], "cpu").run(feeds)
    assert expected["boxes"][:, 1].max() > 0.3
    np.testing.assert_allclose(next(iter(found.values())), expected["boxes"], rtol=1e-3, atol=1e-3)


def test_sam_takes_boxes_as_paddlex_gives_them(tmp_path: Path) -> None:
    folder = find_model("SAM-tiny")
    size = folder.preprocess["size"]
    image = np.random.default_rng(0).normal(0, 1, (1, 3, size, size)).astype(np.float32)
    boxes = np.array([[40, 60, 300, 350], [200, 10, 500, 120]], np.float32)
    archive = written("SAM-tiny", tmp_path)
    assert sorted(tensor.name for tensor in archive.inputs) == ["image", "prompt"]
    (got,) = archive.run({"image": image, "prompt": boxes}).values()
    embedding = Session(folder.files["encoder"], "cpu").run({"image": image})
    prompt = {
        "point_coords": boxes.reshape(2, 2, 2),
        "point_labels": np.tile(np.array([[2, 3]], np.float32), (2, 1)),
        "mask_input": np.zeros((1, 1, size // 4, size // 4), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    expected = Session(folder.files["decoder"], "cpu").run(embedding | prompt)["low_res_masks"]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_weights_of_another_network_are_refused() -> None:
    from ovseg_export.shitu_tiny.network import Rec

    size = shitu_tiny.REC_SIZE
    inputs = [InputSpec([None, 3, size, size], "float32", "x")]
    with pytest.raises(ValueError, match="is not found in the graph"):
        recovered(Rec(size), inputs, onnx.load(str(find_model("ShiTu-tiny-det").files["model"])))

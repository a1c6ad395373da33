"""From a Paddle model to results: families are exported, and the pipeline runs their folders."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "export"))

from ovseg_export import export_model
from ovseg_export.builders.images import TEST_SIZES, synthetic_image
from ovseg_export.errors import ParityError

from ovseg import create_pipeline
from ovseg.errors import ModelError
from ovseg.model_folder import open_model_folder

pytestmark = [pytest.mark.export, pytest.mark.slow, pytest.mark.usefixtures("home")]

# One with queries, one with proposals, one without boxes.
FAMILIES = ("mask_rtdetr", "mask_rcnn", "solov2")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_runs(family: str, tmp_path: Path) -> None:
    folder = _exported(family, tmp_path)
    # The graph ends before it spreads its masks over the image.
    assert "low_res_masks" in [port["name"] for port in open_model_folder(folder, verify=True).facts["outputs"]]
    pipeline = create_pipeline("instance_segmentation", model_dir=folder, device="cpu", threads=1)
    images = [synthetic_image(height, width, seed=i) for i, (height, width) in enumerate(TEST_SIZES[:3])]
    images.insert(1, images[0][:, ::-1].copy())
    # The highest scores of a model with random weights are what it finds.
    alone = [result for image in images for result in pipeline.predict(image, threshold=0.1)]
    together = list(pipeline.predict(images, threshold=0.1, batch_size=3))
    assert sum(len(result["boxes"]) for result in alone) > 4
    for image, one, other in zip(images, alone, together, strict=True):
        height, width = image.shape[:2]
        assert len(one["boxes"]) == len(one["masks"]) == len(other["boxes"])
        for box, mask in zip(one["boxes"], one["masks"], strict=True):
            x1, y1, x2, y2 = box["coordinate"]
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert mask.shape == (height, width) and box["label"] == pipeline.labels[box["cls_id"]]
        assert any(mask.any() for mask in one["masks"])
        # A batch changes the order of sums in the network, and nothing else.
        firsts = [np.array([box["score"] for box in result["boxes"]]) for result in (one, other)]
        np.testing.assert_allclose(*firsts, atol=1e-3)


def _exported(family: str, work: Path) -> Path:
    """A proven model. SOLOv2 scores by the pixels of a mask, and a random one may have a pixel that rounding moves over
    the threshold (docs/export.md), on one processor and not on another: then that of another seed has to pass."""

    def made(seed: int) -> Path:
        paddle = work / f"paddle-{seed}"
        importlib.import_module(f"ovseg_export.builders.{family}").build(paddle, seed=seed)
        _refuses_fewer_labels(paddle)
        return export_model(str(paddle), work / "onnx")

    try:
        return made(0)
    except ParityError as error:
        moved = re.search(r"score is ([\d.e-]+), limit", str(error))
        if family != "solov2" or not moved or float(moved[1]) > 1e-3:
            raise
    return made(1)


def _refuses_fewer_labels(folder: Path) -> None:
    described = folder / "inference.yml"
    text = described.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    described.write_text(yaml.safe_dump(config | {"label_list": config["label_list"][:79]}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"inference\.yml: label_list has 79 labels, and the program has 80 classes"):
        export_model(folder, folder.parent / "refused")
    described.write_text(text, encoding="utf-8")

"""The general decoder of both SAM archives, against both fixed graphs and against Paddle's own layers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("paddle", reason="needs Paddle (the export extra)")

import onnx
import paddle
import yaml
from ovseg_export.builders import sam
from ovseg_export.general_sam import general_decoder

from ovseg import create_pipeline
from ovseg.cli import main
from ovseg.errors import ModelError, PromptError
from ovseg.samples import samples
from ovseg.session import Session
from ovseg.stages.prompts import Prompt

pytestmark = pytest.mark.export

SIZE = 256


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("archives")
    return {prompt: sam.build(base / prompt, prompt=prompt, size="tiny") for prompt in ("box", "point")}


@pytest.fixture(scope="module")
def folder(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("general") / "SAM-H"
    assert (
        main(["export", "SAM-H", "--from", str(archives["box"]), "--point", str(archives["point"]), "--out", str(out)])
        == 0
    )
    return out


@pytest.fixture(scope="module")
def layer() -> sam.Sam:
    """The network of the archives, as their process makes it."""
    paddle.seed(0)
    return sam.make(seed=0, prompt="box", size="tiny", pad_operator="pad3d").network


def paddle_masks(layer: sam.Sam, features: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All four masks [N, 4, L, L] of mixed prompts, by Paddle's layers of the prompt encoder and the decoder."""
    encoder = layer.prompt_encoder
    with paddle.no_grad():
        tokens = encoder._encode_pixels(paddle.to_tensor(coords + 0.5))
        embeddings = [encoder.not_a_point.weight, *(one.weight for one in encoder.labels)]
        for i, weight in enumerate(embeddings):
            mask = paddle.to_tensor((labels == i - 1).astype(np.float32))[..., None]
            tokens = tokens * (1 - mask) + weight * mask if i == 0 else tokens + weight * mask
        grid = encoder.grid
        dense = encoder.no_mask.weight.reshape([1, -1, 1, 1]).expand([len(coords), -1, grid, grid])
        hyper, upscaled = layer.mask_decoder.parts(paddle.to_tensor(features), encoder.dense_positions(), tokens, dense)
        count, channels, rows, columns = upscaled.shape
        masks = hyper @ upscaled.reshape([count, channels, rows * columns])
        return masks.reshape([count, -1, rows, columns]).numpy()


def test_the_proof_is_in_the_folder(folder: Path) -> None:
    facts = yaml.safe_load((folder / "model.yaml").read_text())
    assert facts["name"] == "SAM-H" and facts["prompts"] == ["box", "point"]
    assert facts["parity"]["passed"] and max(facts["parity"]["worst_logit"].values()) <= 1e-3


@pytest.mark.parametrize("labels", [[1, -1], [1, 0, 1, -1], [2, 3], [1, 0, 2, 3], [0, 1, 1, 1, 0, 2, 3]], ids=str)
def test_mixed_prompts_give_what_paddles_layers_give(folder: Path, layer: sam.Sam, labels: list[int]) -> None:
    rng = np.random.default_rng(len(labels))
    features = rng.normal(0, 1, (1, 64, SIZE // 16, SIZE // 16)).astype(np.float32)
    coords = rng.uniform(0, SIZE, (3, len(labels), 2)).astype(np.float32)
    marks = np.tile(np.array(labels, np.float32), (3, 1))
    ours = Session(folder / "decoder.onnx", "cpu").run(
        {"embedding": features, "point_coords": coords, "point_labels": marks}
    )["low_res_masks"]
    theirs = paddle_masks(layer, features, coords, marks)
    assert ours.shape == theirs.shape == (3, 4, SIZE // 4, SIZE // 4)
    assert np.abs(ours - theirs).max() <= 1e-3
    # The prompts and the masks are not all the same, or the comparison would say nothing.
    assert np.abs(theirs[0] - theirs[1]).max() > 0.1 and np.abs(theirs[:, 0] - theirs[:, 3]).max() > 0.1


def test_the_folder_runs(folder: Path) -> None:
    pipeline = create_pipeline("open_vocabulary_segmentation", model_dir=folder, device="cpu", threads=1)
    photo = cv2.imread(str(next(iter(samples())).path))
    with pipeline.open(photo) as image:
        result = image.segment(
            [
                Prompt(points=[[210, 150], [300, 220]], labels=[1, 0]),
                Prompt(points=[[210, 150]], box=[120, 60, 330, 290]),
            ],
            multimask=True,
        )
        assert len(result["masks"]) == 2 and len(result.candidates(0)) == 3
        # The first candidate is the mask that was chosen, though the model has no score to say so.
        for i, mask in enumerate(result["masks"]):
            assert np.array_equal(result.candidates(i)[0]["mask"], mask)
        assert result.predicted_iou == [None, None]
        with pytest.raises(PromptError, match="takes no mask as a prompt"):
            result.refine(points=[[[100, 100]], None])
    assert len(pipeline.segment_everything(photo, 4, 0.0, 0.0)["masks"]) >= 1


def test_archives_that_do_not_belong_together(
    archives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = sam.build(tmp_path / "other", prompt="point", size="tiny", seed=1)
    for box, point, message in (
        (archives["box"], other, "different encoders"),
        (archives["point"], archives["box"], "is no SAM for boxes"),
    ):
        arguments = ["export", "SAM-H", "--from", str(box), "--point", str(point), "--out", str(tmp_path / "out")]
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
    assert said.count("comparing with Paddle on") == 1  # the second one is not exported when the first is wrong
    for arguments, message in (
        (["SAM-H", "--from", str(other)], "Only one of the two archives"),
        (["SAM-H_box", "--point", str(other)], "is for SAM-H only"),
        (["SAM-H", "--precision", "int8"], "made in fp32"),
    ):
        assert main(["export", *arguments]) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_graphs_without_the_parts(folder: Path) -> None:
    general = onnx.load(str(folder / "decoder.onnx"))
    with pytest.raises(ModelError, match="cannot be found in the graphs"):
        general_decoder(general, general, size=SIZE)

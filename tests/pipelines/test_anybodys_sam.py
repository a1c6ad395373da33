"""Networks of the original `segment-anything` package, exported to ONNX by its own code, against that package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import original_sam
import pytest

from ovseg import create_pipeline
from ovseg.cli import main
from ovseg.errors import ConfigError, ModelError, PromptError
from ovseg.pipelines.onnx_pair import add_model
from ovseg.pipelines.open_vocabulary_segmentation import OpenVocabularySegmentationPipeline
from ovseg.samples import samples
from ovseg.stages.prompts import Prompt

segment_anything = original_sam.need()
LOGITS, IOU = 1e-3, 1e-4


@pytest.fixture(scope="module")
def sam() -> Any:
    return original_sam.network()


@pytest.fixture(scope="module")
def files(sam: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    base = tmp_path_factory.mktemp("anybody")
    kinds: dict[str, dict[str, bool]] = {
        "plain": {},
        "channels_last": {"channels_last": True},
        "single": {"single": True},
    }
    return {kind: original_sam.export(sam, base / kind, **options) for kind, options in kinds.items()}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.imread(str(next(iter(samples())).path))


@pytest.fixture(scope="module")
def predictor(sam: Any, photo: np.ndarray) -> Any:
    made = segment_anything.SamPredictor(sam)
    made.set_image(photo, image_format="BGR")
    return made


Make = Callable[..., OpenVocabularySegmentationPipeline]


@pytest.fixture
def make(files: dict[str, tuple[Path, Path]]) -> Make:
    def make(kind: str = "plain") -> OpenVocabularySegmentationPipeline:
        encoder, decoder = files[kind]
        made = create_pipeline(
            "open_vocabulary_segmentation", device="cpu", threads=1, encoder=encoder, decoder=decoder
        )
        assert isinstance(made, OpenVocabularySegmentationPipeline)
        return made

    return make


PROMPTS: dict[str, dict[str, Any]] = {
    "one point": {"points": [[210, 150]]},
    "several points": {"points": [[210, 150], [300, 220], [100, 40]], "labels": [1, 1, 0]},
    "box": {"box": [120, 60, 330, 290]},
    "box and points": {"points": [[210, 150], [140, 80]], "labels": [1, 0], "box": [120, 60, 330, 290]},
}


@pytest.mark.parametrize("with_mask", [False, True], ids=["no mask", "mask input"])
@pytest.mark.parametrize("multimask", [False, True], ids=["one mask", "three masks"])
@pytest.mark.parametrize(
    ("kind", "parts"),
    [*(("plain", parts) for parts in PROMPTS.values()), ("channels_last", PROMPTS["box and points"])],
    ids=[*PROMPTS, "channels last"],
)
def test_masks_and_scores_of_the_original(
    make: Make, predictor: Any, photo: np.ndarray, kind: str, parts: dict[str, Any], multimask: bool, with_mask: bool
) -> None:
    mask = None
    if with_mask:
        mask = np.random.default_rng(0).normal(0, 5, (1, original_sam.SIZE // 4, original_sam.SIZE // 4))
    points = parts.get("points")
    masks, scores, logits = predictor.predict(
        point_coords=None if points is None else np.array(points, dtype=float),
        point_labels=None if points is None else np.array(parts.get("labels", [1] * len(points))),
        box=None if "box" not in parts else np.array(parts["box"], dtype=float),
        mask_input=None if mask is None else mask.astype(np.float32),
        multimask_output=multimask,
    )
    with make(kind).open(photo) as image:
        result = image.segment(Prompt(**parts, mask=mask), multimask=multimask)
    ours = result.candidates(0)
    assert len(ours) == len(masks) == (3 if multimask else 1)
    for candidate, i in zip(ours, np.argsort(-scores, kind="stable"), strict=True):
        assert np.abs(candidate["logits"] - logits[i]).max() <= LOGITS
        assert abs(candidate["predicted_iou"] - scores[i]) <= IOU
        assert (candidate["mask"] != masks[i]).mean() <= 1e-4
        assert 0.001 < masks[i].mean() < 0.95, "a mask that tells nothing"


def test_refining_is_feeding_the_logits_back(make: Make, predictor: Any, photo: np.ndarray) -> None:
    _, _, first = predictor.predict(np.array([[210.0, 150.0]]), np.array([1]), multimask_output=False)
    _, scores, second = predictor.predict(
        np.array([[210.0, 150.0], [100.0, 40.0]]), np.array([1, 0]), mask_input=first, multimask_output=False
    )
    with make().open(photo) as image:
        result = image.segment(points=[[210, 150]]).refine(points=[[100, 40]], labels=[0])
    assert np.abs(result.logits - second).max() <= LOGITS
    assert result.predicted_iou == pytest.approx(scores, abs=IOU)


def test_prompts_do_not_change_each_other(make: Make, photo: np.ndarray) -> None:
    prompts = [Prompt(**parts) for parts in PROMPTS.values()]
    with make().open(photo) as image:
        together = image.segment(prompts)
        alone = [image.segment(prompt) for prompt in prompts]
    assert all(np.array_equal(together["masks"][i], alone[i]["masks"][0]) for i in range(len(prompts)))


def matched(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[float]:
    """The best IoU of each of their masks with one of ours."""
    found = []
    for mask in theirs:
        scores = [(mask & other).sum() / max(1, (mask | other).sum()) for other in ours]
        found.append(max(scores, default=0.0))
    return found


# The masks are spots all over the image, so that their boxes are much alike.
EVERYTHING: dict[str, tuple[dict[str, float], int]] = {
    "all": ({"box_nms_thresh": 1.0}, 50),
    "different boxes": ({"box_nms_thresh": 0.97}, 3),
    "crops": ({"box_nms_thresh": 0.99, "crop_nms_thresh": 0.95, "crops": 1, "crop_points_downscale": 2}, 2),
    "small regions": ({"box_nms_thresh": 1.0, "crop_nms_thresh": 0.7, "min_area": 400}, 1),
}
NAMES = {
    "crops": "crop_n_layers",
    "crop_points_downscale": "crop_n_points_downscale_factor",
    "min_area": "min_mask_region_area",
}


@pytest.mark.parametrize(("settings", "at_least"), EVERYTHING.values(), ids=list(EVERYTHING))
def test_everything_the_original_finds(
    make: Make, sam: Any, photo: np.ndarray, settings: dict[str, Any], at_least: int
) -> None:
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.5} | settings
    generator = segment_anything.SamAutomaticMaskGenerator(
        sam, **{NAMES.get(name, name): value for name, value in settings.items()}
    )
    theirs = generator.generate(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB))
    ours = make().segment_everything(photo, **settings)
    assert len(ours["masks"]) == len(theirs) >= at_least
    masks = [mask.astype(bool) for mask in ours["masks"]]
    assert min(matched(masks, [found["segmentation"] for found in theirs])) >= 0.99
    areas = [info["area"] for info in ours["mask_infos"]]
    assert areas == pytest.approx(sorted((found["area"] for found in theirs), reverse=True), rel=0.01)


def test_a_decoder_with_one_mask(make: Make, photo: np.ndarray) -> None:
    with make("single").open(photo) as image:
        assert len(image.segment(points=[[210, 150]])["masks"]) == 1
        with pytest.raises(PromptError, match="one mask for each prompt, not three"):
            image.segment(points=[[210, 150]], multimask=True)
    assert len(make("single").segment_everything(photo, 4, 0.0, 0.0)["masks"]) > 0


# Added models, and files that are not those of a SAM.


def test_an_added_model_is_found_by_its_name(
    files: dict[str, tuple[Path, Path]],
    photo: np.ndarray,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    for name, kind in (("mine", "plain"), ("other", "channels_last")):
        encoder, decoder = map(str, files[kind])
        assert main(["models", "add", name, "--encoder", encoder, "--decoder", decoder, "--licence", "MIT"]) == 0
        folder = Path(capsys.readouterr().out.strip())
        assert (folder / "encoder.onnx").is_file() and folder.name == name
        added = create_pipeline("open_vocabulary_segmentation", device="cpu", threads=1, model=name)
        (result,) = added.predict(photo, [[210, 150]], "point")
        (expected,) = make(kind).predict(photo, [[210, 150]], "point")
        assert np.array_equal(result["masks"], expected["masks"])
    assert main(["models", "list"]) == 0
    assert "added" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mine"))
    assert main(["models", "info", "mine"]) == 0 and "MIT" in capsys.readouterr().out
    assert main(["models", "add", "mine", "--encoder", encoder, "--decoder", decoder]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["models", "rm", "mine", "--yes"]) == 0 and not (tmp_path / "models" / "mine").exists()


@pytest.mark.parametrize("name", ["SAM-tiny", "a/b", ""])
def test_names_that_cannot_be_given(files: dict[str, tuple[Path, Path]], name: str) -> None:
    with pytest.raises(ConfigError):
        add_model(name, *files["plain"])


def test_what_is_not_a_sam_leaves_nothing_behind(
    files: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    encoder, decoder = files["plain"]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(encoder.read_bytes()[:1000])
    for pair, message in (
        ((encoder, encoder), "not those of a SAM decoder"),
        ((decoder, encoder), "not those of a SAM encoder"),
        ((broken, decoder), "cannot be loaded"),
        ((tmp_path / "no.onnx", decoder), "There is no encoder"),
        (("a" * 300, decoder), "There is no encoder"),
    ):
        with pytest.raises(ModelError, match=message):
            add_model("mine", *pair)
        with pytest.raises(ModelError, match=message):
            create_pipeline("open_vocabulary_segmentation", device="cpu", encoder=pair[0], decoder=pair[1])
    assert not list((tmp_path / "models").iterdir())
    with pytest.raises(ConfigError, match="The decoder is missing"):
        create_pipeline("open_vocabulary_segmentation", device="cpu", encoder=encoder)
    with pytest.raises(ConfigError, match=r"has no option (en|de)coder"):
        create_pipeline("instance_segmentation", device="cpu", encoder=encoder, decoder=decoder)

"""PP-ShiTuV2: build, append, remove, predict, as in PaddleX's guide."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from recognition_graphs import DIM, EMBEDDER, halves, plain, write_detector, write_embedder

from ovseg import ConfigError, Gallery, GalleryError, ImageError, MissingExtra, ModelError, create_pipeline, load_index
from ovseg.device import resolve_device
from ovseg.model_folder import open_model_folder
from ovseg.pipelines.embedder import Embedder
from ovseg.pipelines.image_recognition import ImageRecognitionPipeline
from ovseg.zoo import find_model

RED, GREEN, BLUE, WHITE, BLACK = (0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0)
YELLOW, PINK = (0, 255, 255), (255, 0, 255)
COLOURS = {"yellow tea": YELLOW, "pink soda": PINK, "white milk": WHITE}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"det_model_dir": write_detector(root / "det"), "model_dir": write_embedder(root / "rec")}


@pytest.fixture(scope="module")
def pipeline(models: dict[str, Path]) -> ImageRecognitionPipeline:
    made = create_pipeline("PP-ShiTuV2", device="cpu", threads=1, **models)
    assert isinstance(made, ImageRecognitionPipeline)
    return made


@pytest.fixture
def index(pipeline: ImageRecognitionPipeline) -> Any:
    return pipeline.build_index([plain(colour) for colour in COLOURS.values()], list(COLOURS))


@pytest.fixture
def drinks(tmp_path: Path) -> Path:
    """A folder with pictures and a label file, as the guide has them."""
    root = tmp_path / "drinks"
    (root / "images").mkdir(parents=True)
    for number, colour in enumerate(COLOURS.values()):
        cv2.imwrite(str(root / "images" / f"{number}.png"), plain(colour))
    lines = [f"images/{number}.png {label}\r\n" for number, label in enumerate(COLOURS)]
    (root / "gallery.txt").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    return root


def only(results: Any) -> Any:
    (result,) = results
    return result


def test_each_object_gets_the_labels_of_the_nearest_items(pipeline, index) -> None:
    image = halves(YELLOW, PINK)
    result = only(pipeline.predict(image, index=index, rec_topk=2))
    assert set(result) == {"input_path", "page_index", "boxes"}
    left, right = result["boxes"]
    assert left["labels"] == ["yellow tea", "white milk"] and right["labels"] == ["pink soda", "white milk"]
    assert left["rec_scores"] == pytest.approx([1, 1 / 3], abs=1e-5)
    assert left["det_score"] == pytest.approx(2 / 3, abs=1e-5)
    assert left["coordinate"] == pytest.approx([0, 0, 30, 20]) and right["coordinate"] == pytest.approx([30, 0, 60, 20])
    assert set(left) == {"labels", "rec_scores", "det_score", "coordinate"}
    assert [m.ids[0] for m in result.matches] == [0, 1]


def test_where_nothing_is_detected_the_whole_image_is_used(pipeline, index) -> None:
    image = halves(YELLOW, YELLOW, height=20, width=64)
    result = only(pipeline.predict(image, index=index, det_threshold=0.9))
    box = result["boxes"][0]
    assert len(result["boxes"]) == 1 and box["labels"][0] == "yellow tea"
    assert box["coordinate"] == [0, 0, 64, 20] and box["det_score"] == 0  # xmax is the width


def test_detections_below_the_threshold_are_left_out(pipeline, index) -> None:
    image = halves(WHITE, YELLOW)
    assert len(only(pipeline.predict(image, index=index))["boxes"]) == 2
    assert len(only(pipeline.predict(image, index=index, det_threshold=0.7))["boxes"]) == 1


@pytest.mark.parametrize(("metric", "near", "far"), [("IP", 0.3, 0.4), ("L2", 1.4, 1.2)])
def test_the_threshold_keeps_what_is_near_enough(pipeline, metric: str, near: float, far: float) -> None:
    # Yellow and white: similarity 1/3, squared distance 4/3.
    index = pipeline.build_index([plain(WHITE), plain(BLACK)], ["white", "black"], metric_type=metric)
    known = only(pipeline.predict(plain(YELLOW), index=index, rec_threshold=near, det_threshold=0.9))["boxes"][0]
    assert known["labels"] == ["white", "black"]  # the nearest decides for all, as in PaddleX
    assert known["rec_scores"] == sorted(known["rec_scores"], reverse=metric == "IP")
    unknown = only(pipeline.predict(plain(YELLOW), index=index, rec_threshold=far, det_threshold=0.9))
    assert unknown["boxes"][0]["labels"] == [None] and unknown["boxes"][0]["rec_scores"] == [None]
    unknown.draw()
    json.dumps(unknown.json)


def test_hamming(pipeline) -> None:
    index = pipeline.build_index([plain(WHITE), plain(RED)], ["white", "red"], "hamming", "Flat")
    assert (index.dim, index.metric) == (DIM, "hamming")
    box = only(pipeline.predict(plain(YELLOW), index=index, det_threshold=0.9))["boxes"][0]
    assert box["labels"] == ["white", "red"] and box["rec_scores"] == [8, 8]
    box = only(pipeline.predict(plain(YELLOW), index=index, det_threshold=0.9, hamming_radius=7))["boxes"][0]
    assert box["labels"] == [None]


def test_a_batch_gives_what_single_images_give(pipeline, models, index) -> None:
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (int(h), int(w), 3), np.uint8) for h, w in dice.integers(5, 90, (7, 2))]
    images[3] = halves(YELLOW, PINK)
    images[5] = plain(BLACK)
    one_by_one = [only(pipeline.predict(image, index=index, det_threshold=0.49)) for image in images]
    together = list(pipeline.predict(images, index=index, det_threshold=0.49, batch_size=4))
    single = create_pipeline(
        "PP-ShiTuV2",
        model_dir=models["model_dir"],
        det_model_dir=write_detector(models["model_dir"].parent / "one", "1"),
    )
    for results in (together, single.predict(images, index=index, det_threshold=0.49, batch_size=4)):
        for a, b in zip(results, one_by_one, strict=True):
            assert len(a["boxes"]) == len(b["boxes"])
            for x, y in zip(a["boxes"], b["boxes"], strict=True):
                assert x["labels"] == y["labels"] and x["coordinate"] == pytest.approx(y["coordinate"])
                assert x["rec_scores"] == pytest.approx(y["rec_scores"], abs=1e-5)


def test_objects_of_a_batch_share_runs_of_the_feature_model(pipeline, index, monkeypatch) -> None:
    sizes = []
    embedder = pipeline._load(pipeline.device)[1]
    run = embedder._session.run
    monkeypatch.setattr(
        embedder._session, "run", lambda feeds, names: sizes.append(len(feeds["image"])) or run(feeds, names)
    )
    results = list(pipeline.predict([halves(YELLOW, PINK)] * 10, index=index, batch_size=10))
    assert len(results) == 10 and sizes == [16, 4]


def test_a_feature_model_that_takes_one_image_gets_one_at_a_time(tmp_path, monkeypatch) -> None:
    folder = open_model_folder(write_embedder(tmp_path / "one", parity={"batch": 1}))
    embedder = Embedder(folder, resolve_device("cpu"), batch_size=8, session_options={})
    sizes = []
    run = embedder._session.run
    monkeypatch.setattr(
        embedder._session, "run", lambda feeds, names: sizes.append(len(feeds["image"])) or run(feeds, names)
    )
    assert len(embedder.embed([plain(PINK)] * 3)) == 3 and sizes == [1, 1, 1]


def test_a_feature_model_that_gives_one_embedding_for_all_is_refused(tmp_path) -> None:
    mean = EMBEDDER.replace("Sub (flat, grey)", "ReduceMean <axes = [0]> (flat)")
    assert mean != EMBEDDER
    folder = open_model_folder(write_embedder(tmp_path / "mean", mean))
    embedder = Embedder(folder, resolve_device("cpu"), batch_size=8, session_options={})
    assert len(embedder.embed([plain(PINK)])) == 1
    with pytest.raises(ModelError, match="colours gives 1 embeddings for 3 images"):
        embedder.embed([plain(PINK)] * 3)


def test_rec_topk(pipeline, index) -> None:
    for wrong in (0, -1, 2.5, "5", True):
        with pytest.raises(ConfigError, match="rec_topk is"):
            pipeline.predict(plain(WHITE), index=index, rec_topk=wrong)
    assert (
        len(only(pipeline.predict(plain(WHITE), index=index, rec_topk=99, rec_threshold=-1))["boxes"][0]["labels"]) == 3
    )


def test_an_empty_index_knows_nothing(pipeline) -> None:
    box = only(pipeline.predict(plain(WHITE), index=Gallery(DIM)))["boxes"][0]
    assert box["labels"] == [None] and box["rec_scores"] == [None]


def test_labels_and_votes(pipeline) -> None:
    images = [plain(WHITE), plain((250, 250, 250)), plain((240, 250, 255)), plain(YELLOW)]
    index = pipeline.build_index(images, ["a", "b", "b", "c"])
    ask = {"index": index, "det_threshold": 0.99, "rec_topk": 3}
    assert only(pipeline.predict(plain((252, 252, 252)), **ask, vote=True))["boxes"][0]["labels"] == ["b", "a"]
    assert only(pipeline.predict(plain((252, 252, 252)), **ask, label="a"))["boxes"][0]["labels"] == ["a"]
    for label in (5, ["a", 5], [["a"]]):
        with pytest.raises(ConfigError, match="labels to look at"):
            pipeline.predict(plain(WHITE), **ask, label=label)
    result = only(pipeline.predict(plain((252, 252, 252)), **ask, label=["a", "c"], rec_threshold=0))
    assert result["boxes"][0]["labels"] == ["a", "c"] and result.matches[0].vote()[0].label == "a"


def test_the_guides_second_script(pipeline, drinks: Path, tmp_path: Path) -> None:
    """Build, append, remove, save, and open the folder again."""
    index = pipeline.build_index(
        gallery_imgs=str(drinks), gallery_label=str(drinks / "gallery.txt"), index_type="IVF", metric_type="IP"
    )
    assert index.labels == list(COLOURS) and index.metadata[0] == {"path": "images/0.png"}
    index = pipeline.append_index(gallery_imgs=str(drinks), gallery_label=str(drinks / "gallery.txt"), index=index)
    (drinks / "remove_ids.txt").write_text("0 yellow\n4\n")
    index = pipeline.remove_index(remove_ids=str(drinks / "remove_ids.txt"), index=index)
    assert index.ids.tolist() == [1, 2, 3, 5]
    index.save(str(tmp_path / "drink_index"))
    result = only(pipeline.predict(str(drinks / "images" / "1.png"), index=str(tmp_path / "drink_index")))
    assert result["boxes"][0]["labels"][0] == "pink soda" and result["input_path"].endswith("1.png")
    again = pipeline.append_index([plain(RED)], ["red"], str(tmp_path / "drink_index"))
    assert again.ids[-1] == 6
    again = pipeline.remove_index([6], again)
    again.save()
    assert load_index(tmp_path / "drink_index", verify=True).ids.tolist() == [1, 2, 3, 5]
    with pytest.raises(GalleryError, match=r"1 of 1 ids are not in the gallery: 6\."):
        pipeline.remove_index([6], str(tmp_path / "drink_index"))


def test_all_bad_pictures_are_named(pipeline, drinks: Path, caplog) -> None:
    with (drinks / "gallery.txt").open("a") as file:
        file.write("images/none.png x\nimages/nothing.png y\nimages/text.png z\n")
    (drinks / "images" / "text.png").write_text("text")
    with pytest.raises(
        GalleryError, match=r"(?s)2 of 6 pictures.*none\.png does not exist.*nothing\.png does not exist"
    ):
        pipeline.build_index(drinks, drinks / "gallery.txt")
    (drinks / "images" / "none.png").write_text("")
    (drinks / "images" / "nothing.png").write_bytes(b"\x89PNG")
    with (drinks / "long.txt").open("w") as file:
        file.write(f"images/0.png x\n{'n' * 300}.png y\n")
    with pytest.raises(GalleryError, match=r"1 of 2 pictures.*\n.*nnn\.png cannot be read \(File name too long"):
        pipeline.build_index(drinks, drinks / "long.txt")
    index = Gallery(DIM)
    with pytest.raises(GalleryError, match=r"(?s)3 of 6 pictures.*none\.png.*nothing\.png.*text\.png.*--skip-bad"):
        pipeline.append_index(drinks, drinks / "gallery.txt", index)
    assert len(index) == 0  # all or nothing
    with caplog.at_level(logging.WARNING, "ovseg"):
        index = pipeline.build_index(drinks, drinks / "gallery.txt", skip_bad=True)
    assert index.labels == list(COLOURS) and len(caplog.records) == 3
    with pytest.raises(GalleryError, match="1 of 1 pictures"):
        pipeline.build_index([str(drinks / "no.png")], ["x"], skip_bad=True)


def test_galleries_that_cannot_be(pipeline, drinks: Path) -> None:
    with pytest.raises(GalleryError, match=r"There is no file .*labels\.txt"):
        pipeline.build_index(drinks, drinks / "labels.txt")
    with pytest.raises(GalleryError, match="There is no folder"):
        pipeline.build_index(drinks / "none", drinks / "gallery.txt")
    with pytest.raises(GalleryError, match="cannot be read"):
        pipeline.build_index("x" * 300, drinks / "gallery.txt")
    with pytest.raises(GalleryError, match="no picture"):
        pipeline.build_index([], [])
    with pytest.raises(GalleryError, match="1 of 2 pictures cannot be used:\n  A list without an image"):
        pipeline.build_index([plain(RED), []], ["red", "none"])
    with pytest.raises(ConfigError, match="2 images and 1 labels"):
        pipeline.build_index([plain(RED)] * 2, ["red"])
    with pytest.raises(ConfigError, match="gallery_imgs is a"):
        pipeline.build_index(drinks, ["red"])
    with pytest.raises(ConfigError, match="gallery_label is the file"):
        pipeline.build_index([plain(RED)], drinks / "gallery.txt")
    with pytest.raises(ConfigError, match="label 7 is not a string"):
        pipeline.build_index([plain(RED)], [7])
    for bad in ((None, None), ([plain(RED)], 5)):
        with pytest.raises(ConfigError, match="gallery_imgs is a"):
            pipeline.build_index(*bad)
    with pytest.raises(ConfigError, match="metric 'cosine'"):
        pipeline.build_index([plain(RED)], ["red"], metric_type="cosine")
    with pytest.raises(ConfigError, match="index type 'HNSW'"):
        pipeline.build_index([plain(RED)], ["red"], index_type="HNSW")


def test_a_missing_package_is_missed_before_the_work(pipeline, drinks: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert len(pipeline.build_index(drinks, drinks / "gallery.txt")) == 3  # so few are searched without it
    monkeypatch.setattr("ovseg.index.engine.GRAPH_LEAST", 2)
    monkeypatch.setattr(pipeline, "embed", None)
    with pytest.raises(MissingExtra, match=r"ovseg\[index\]"):
        pipeline.build_index(drinks, drinks / "gallery.txt")
    with pytest.raises(MissingExtra):
        pipeline.build_folder(tmp_path / "index", drinks, drinks / "gallery.txt", index_type="IVF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drinks"]


def test_an_index_of_another_model(pipeline, tmp_path: Path, caplog) -> None:
    other = Gallery(7, model="other")
    with pytest.raises(GalleryError, match=r"7 dimensions.*colours have 24.*Use the model other"):
        pipeline.predict(plain(RED), index=other)
    with pytest.raises(GalleryError, match="7 dimensions"):
        pipeline.append_index([plain(RED)], ["red"], other)
    with caplog.at_level(logging.WARNING, "ovseg"):
        pipeline.predict(plain(RED), index=Gallery(DIM, model="other"))
    assert "built with the model other" in caplog.text
    with pytest.raises(GalleryError, match="is not a gallery"):
        pipeline.predict(plain(RED), index=str(tmp_path))
    with pytest.raises(ConfigError, match="No index is named"):
        pipeline.predict(plain(RED))
    with pytest.raises(ConfigError, match="index of type dict"):
        pipeline.predict(plain(RED), index={"a": 1})


def test_bad_images_of_many_are_reported(pipeline, index, tmp_path: Path) -> None:
    errors: list[Any] = []
    results = list(pipeline.predict([plain(WHITE), str(tmp_path / "no.png")], index=index, on_error=errors.append))
    assert len(results) == 1 and isinstance(errors[0], ImageError)
    with pytest.raises(ImageError):
        list(pipeline.predict(str(tmp_path / "no.png"), index=index))


@pytest.mark.parametrize("name", ["det_threshold", "rec_threshold", "hamming_radius"])
def test_thresholds_that_cannot_be(pipeline, index, name: str) -> None:
    bits = pipeline.build_index([plain(RED)], ["red"], "hamming", "Flat")
    for wrong in ("0.5", True, float("nan")):
        with pytest.raises(ConfigError, match=r"threshold|radius"):
            pipeline.predict(plain(RED), index=bits if name == "hamming_radius" else index, **{name: wrong})


def test_results_are_saved(pipeline, index, tmp_path: Path, capsys) -> None:
    result = only(pipeline.predict(halves(YELLOW, PINK, 200, 400), index=index))
    result["input_path"] = "a/001.jpeg"
    result.save_all(tmp_path)
    assert json.loads((tmp_path / "001_res.json").read_text()) == result.json["res"]
    drawn = cv2.imread(str(tmp_path / "001_res.jpeg"))
    assert drawn.shape == (200, 400, 3) and (drawn != result.pixels).any()
    result.print()
    assert "'labels': ['yellow tea'" in capsys.readouterr().out
    result["boxes"][0]["labels"][0] = "红牛"
    result.draw()


def test_paddlexs_configuration(models, index, tmp_path: Path) -> None:
    config = {
        "pipeline_name": "PP-ShiTuV2",
        "index": "None",
        "det_threshold": 0.9,
        "rec_threshold": 0.4,
        "rec_topk": 1,
        "SubModules": {
            "Detection": {
                "module_name": "text_detection",
                "model_name": "PP-ShiTuV2_det",
                "model_dir": str(models["det_model_dir"]),
                "batch_size": 1,
            },
            "Recognition": {"module_name": "text_recognition", "model_dir": str(models["model_dir"]), "batch_size": 1},
        },
    }
    (tmp_path / "shitu.yaml").write_text(yaml.safe_dump(config))
    pipeline = create_pipeline(str(tmp_path / "shitu.yaml"))
    with pytest.raises(ConfigError, match="No index is named"):
        pipeline.predict(plain(RED))
    box = only(pipeline.predict(halves(YELLOW, YELLOW), index=index))["boxes"][0]
    assert box["det_score"] == 0 and box["labels"] == ["yellow tea"]
    index.save(tmp_path / "saved")
    config["index"] = str(tmp_path / "saved")
    assert only(create_pipeline(config=config).predict(plain(WHITE)))["boxes"][0]["labels"] == ["white milk"]
    config["rec_topk"] = 0
    with pytest.raises(ConfigError, match="rec_topk is 0"):
        create_pipeline(config=config)


def test_what_is_no_image_is_not_embedded(pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert pipeline.embed([image, image[::-1, ::2]]).shape == (2, pipeline.dim)
    grey, floats, wide = image[..., 0], image.astype(np.float32), np.dstack([image, image])
    for other in (grey, grey[..., None], floats, image.astype(np.uint16), wide, image[:0], image.tolist()):
        with pytest.raises(ImageError, match="An image to embed is"):
            pipeline.embed([image, other])


@pytest.mark.parametrize("name", ["ShiTu-tiny-det", "ShiTu-tiny-rec", "MaskSeg-tiny"])
def test_a_size_that_is_not_the_graphs_is_refused_with_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(find_model(name).path, folder)
    facts = yaml.safe_load((folder / "model.yaml").read_text())
    facts["preprocess"]["size"] = [96, 112]
    (folder / "model.yaml").write_text(yaml.safe_dump(facts))
    pipeline = "instance_segmentation" if name == "MaskSeg-tiny" else "PP-ShiTuV2"
    option = "det_model_dir" if name == "ShiTu-tiny-det" else "model_dir"
    with pytest.raises(ModelError, match=r"model\.yaml: preprocess has the size \[96, 112\].*the network takes"):
        create_pipeline(pipeline, device="cpu", **{option: folder})


def test_models_in_the_wrong_place(models) -> None:
    with pytest.raises(ModelError, match=r"family shitu_rec, .*needed is picodet"):
        create_pipeline("PP-ShiTuV2", det_model_dir=models["model_dir"], model_dir=models["model_dir"])
    with pytest.raises(ModelError, match="needed is shitu_rec or clip_vit"):
        create_pipeline("PP-ShiTuV2", det_model_dir=models["det_model_dir"], model_dir=models["det_model_dir"])


class TestBuildingInAFolder:
    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch) -> None:
        monkeypatch.setattr("ovseg.pipelines.gallery._AT_ONCE", 2)
        monkeypatch.setattr("ovseg.pipelines.gallery._SAVE_SECONDS", 0)

    @pytest.fixture
    def many(self, drinks: Path) -> Path:
        lines = [f"images/{number % 3}.png label {number // 2}\n" for number in range(9)]
        (drinks / "many.txt").write_text("".join(lines))
        return drinks

    def test_it_goes_on_after_an_interrupt(self, pipeline, many: Path, tmp_path: Path) -> None:
        folder = tmp_path / "index"
        build = (folder, many, many / "many.txt")

        def stop(done: int, total: int) -> None:
            assert total == 9
            if done >= 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipeline.build_folder(*build, progress=stop)
        assert not folder.exists() and len(load_index(tmp_path / "index.part")) == 4
        seen: list[int] = []
        said: list[str] = []
        index = pipeline.build_folder(*build, progress=lambda done, _: seen.append(done), say=said.append)
        assert seen == [6, 8, 9] and "4 of 9 are done" in said[0]
        assert not (tmp_path / "index.part").exists()
        fresh = pipeline.build_index(many, many / "many.txt")
        for gallery in (index, load_index(folder, verify=True)):
            assert gallery.labels == fresh.labels and np.array_equal(gallery.embeddings(), fresh.embeddings())
            assert gallery.metadata == fresh.metadata and gallery.settings == fresh.settings

    def test_another_list_or_metric_starts_again(self, pipeline, many: Path, tmp_path: Path) -> None:
        folder = tmp_path / "index"

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        for change in ({"gallery_label": many / "gallery.txt"}, {"metric_type": "L2"}):
            given = {"gallery_label": many / "many.txt", "replace": True} | change
            with pytest.raises(KeyboardInterrupt):
                pipeline.build_folder(folder, many, many / "many.txt", progress=stop, replace=True)
            said: list[str] = []
            index = pipeline.build_folder(folder, many, **given, say=said.append)
            assert "starting again" in said[0] and len(index) == (3 if "gallery_label" in change else 9)

    def test_arrays_have_no_names_to_go_on_with(self, pipeline, many: Path, tmp_path: Path) -> None:
        first, other = (cv2.imread(str(many / "images" / f"{number}.png")) for number in (0, 1))

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipeline.build_folder(tmp_path / "index", [first] * 3, ["tea"] * 3, progress=stop)
        assert len(load_index(tmp_path / "index.part"))
        index = pipeline.build_folder(tmp_path / "index", [other] * 3, ["tea"] * 3)
        assert np.allclose(index.embeddings(), pipeline.embed([other] * 3), atol=1e-6)

    def test_what_is_there_is_kept(self, pipeline, many: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        with pytest.raises(ConfigError, match="is not a gallery"):
            pipeline.build_folder(tmp_path / "other", many, many / "many.txt", replace=True)
        pipeline.build_folder(tmp_path / "index", many, many / "gallery.txt")
        with pytest.raises(ConfigError, match="holds a gallery already"):
            pipeline.build_folder(tmp_path / "index", many, many / "many.txt")
        reader = load_index(tmp_path / "index")
        pipeline.build_folder(tmp_path / "index", many, many / "many.txt", replace=True)
        assert len(reader) == 3 and len(load_index(tmp_path / "index")) == 9
        assert sorted(path.name for path in tmp_path.iterdir()) == ["drinks", "index", "other"]

    def test_the_folder_beside_is_not_taken_from_others(self, pipeline, many: Path, tmp_path: Path) -> None:
        (tmp_path / "index.part").mkdir()
        (tmp_path / "index.part" / "thesis.txt").write_text("mine")
        (many / "bad.txt").write_text("bad.txt label\n")
        for labels in ("many.txt", "bad.txt"):
            with pytest.raises(ConfigError, match=r"index\.part, where the work is done, holds something else"):
                pipeline.build_folder(tmp_path / "index", many, many / labels)
        assert (tmp_path / "index.part" / "thesis.txt").read_text() == "mine" and not (tmp_path / "index").exists()

    def test_an_empty_folder_is_filled_and_not_replaced(
        self, pipeline, many: Path, tmp_path: Path, monkeypatch
    ) -> None:
        (tmp_path / "index").mkdir()
        number = (tmp_path / "index").stat().st_ino
        monkeypatch.chdir(tmp_path / "index")
        for replace in (False, True):
            pipeline.build_folder(".", many, many / "many.txt", replace=replace)
            assert len(load_index(tmp_path / "index", verify=True)) == 9
        assert (tmp_path / "index").stat().st_ino == number and not (tmp_path / "index.part").exists()

    def test_a_damaged_gallery_is_not_replaced(self, pipeline, many: Path, tmp_path: Path) -> None:
        pipeline.build_folder(tmp_path / "index", many, many / "many.txt")
        (tmp_path / "index" / "manifest.json").write_text("{}")
        with pytest.raises(GalleryError, match="is damaged"):
            pipeline.build_folder(tmp_path / "index", many, many / "many.txt", replace=True)
        assert not (tmp_path / "index.part").exists()

    def test_nothing_is_left_where_nothing_was_done(self, pipeline, many: Path, tmp_path: Path) -> None:
        (many / "images" / "2.png").unlink()
        with pytest.raises(GalleryError, match="does not exist"):
            pipeline.build_folder(tmp_path / "index", many, many / "many.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["drinks"]

    def test_bad_pictures_can_be_left_out_when_it_goes_on(self, pipeline, many: Path, tmp_path: Path) -> None:
        (many / "images" / "2.png").write_text("text")
        with pytest.raises(GalleryError, match="3 of 9 pictures"):
            pipeline.build_folder(tmp_path / "index", many, many / "many.txt")
        seen: list[int] = []
        index = pipeline.build_folder(
            tmp_path / "index", many, many / "many.txt", skip_bad=True, progress=lambda done, _: seen.append(done)
        )
        assert len(index) == 6 and seen == [8, 9]  # the six are not embedded again


def test_an_index_in_milvus(pipeline, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    where = f"milvus://{tmp_path}/g.db"
    pipeline.build_index([plain(c) for c in COLOURS.values()], list(COLOURS), index=where).close()
    index = pipeline.append_index([plain(RED)], ["red"], where)
    result = only(pipeline.predict(halves(YELLOW, PINK), index=index, rec_topk=1))
    assert [box["labels"] for box in result["boxes"]] == [["yellow tea"], ["pink soda"]]
    index = pipeline.remove_index(index.ids[:1], index)
    index.close()
    result = only(pipeline.predict(halves(YELLOW, PINK), index=where, rec_topk=1))
    assert [box["labels"] for box in result["boxes"]] == [[None], ["pink soda"]]

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from file_server import write_model, write_zoo

from ovseg import zoo
from ovseg.errors import ConfigError, ModelError
from ovseg.model_folder import FAMILIES
from ovseg.zoo import find_model, load_zoo, model_spec, zoo_path

ROOT = Path(__file__).parents[1]

INSTANCE_SEGMENTATION = {
    "Mask-RT-DETR-H": 50.6,
    "Mask-RT-DETR-L": 45.7,
    "Mask-RT-DETR-M": 42.7,
    "Mask-RT-DETR-S": 41.0,
    "Mask-RT-DETR-X": 47.5,
    "Cascade-MaskRCNN-ResNet50-FPN": 36.3,
    "Cascade-MaskRCNN-ResNet50-vd-SSLDv2-FPN": 39.1,
    "MaskRCNN-ResNet50-FPN": 35.6,
    "MaskRCNN-ResNet50-vd-FPN": 36.4,
    "MaskRCNN-ResNet50": 32.8,
    "MaskRCNN-ResNet101-FPN": 36.6,
    "MaskRCNN-ResNet101-vd-FPN": 38.1,
    "MaskRCNN-ResNeXt101-vd-FPN": 39.5,
    "PP-YOLOE_seg-S": 32.5,
    "SOLOv2": 35.5,
}


def test_the_zoo_has_every_model_of_the_user_guides() -> None:
    models = load_zoo()
    by_task: dict[str, set[str]] = {}
    for spec in models.values():
        by_task.setdefault(spec.task, set()).add(spec.name)
    assert by_task["open_vocabulary_segmentation"] == {"SAM-tiny", "SAM-H_box", "SAM-H_point"}
    assert by_task["instance_segmentation"] == {"MaskSeg-tiny", *INSTANCE_SEGMENTATION}
    assert by_task["image_recognition"] == {
        "ShiTu-tiny-det",
        "ShiTu-tiny-rec",
        "PP-ShiTuV2_det",
        "PP-ShiTuV2_rec",
        "PP-ShiTuV2_rec_CLIP_vit_base",
        "PP-ShiTuV2_rec_CLIP_vit_large",
    }
    assert {spec.family for spec in models.values()} == set(FAMILIES)


def test_the_figures_are_the_published_ones() -> None:
    models = load_zoo()
    for name, mask_ap in INSTANCE_SEGMENTATION.items():
        metric = models[name].metric
        assert metric is not None and (metric.name, metric.value) == ("Mask AP", mask_ap)
        assert len(models[name].labels) == 80
        assert models[name].labels[0] == "person" and models[name].labels[79] == "toothbrush"
    assert models["SAM-H_box"].size_mb == 2433.7
    assert models["PP-ShiTuV2_det"].labels == ("mainbody",)


def test_archives_carry_the_name_of_their_model() -> None:
    for spec in load_zoo().values():
        assert spec.bundled == (not spec.archives)
        for archive in spec.archives:
            assert archive.url.startswith("https://paddle-model-ecology.bj.bcebos.com/")
            assert archive.url.endswith(f"/{spec.name}_infer.tar")


def test_the_zoo_of_the_checkout_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVSEG_ZOO", raising=False)
    assert zoo_path().samefile(ROOT / "model_zoo.yaml")


def test_the_zoo_loads_fast() -> None:
    load_zoo()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load_zoo()
        times.append(time.perf_counter() - start)
    # About 8 ms on a laptop; the limit leaves room for a busy machine and none for a slow loader.
    assert min(times) < 0.1


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ModelError, match="'sam-h-box'; did you mean 'SAM-H_box'"):
        model_spec("sam-h-box")
    with pytest.raises(ModelError, match=r"'zebra'\. "):
        model_spec("zebra")


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["models"]["tiny"].update(changes)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["models"]["tiny"].pop(key)


WRONG = [
    (entry(size_mb="big"), r"models\.tiny: key 'size_mb': expected a number above 0, found 'big'"),
    (entry(size_mb=True), r"models\.tiny: key 'size_mb'"),
    (entry(licens="MIT"), r"models\.tiny: unknown key 'licens'; did you mean 'licence'"),
    (without("licence"), r"models\.tiny: key 'licence' is missing"),
    (without("archives"), r"models\.tiny: key 'archives' is missing"),
    (entry(family="sams"), r"models\.tiny: key 'family': expected one of sam,"),
    (entry(task="image_recognition"), r"models\.tiny: key 'task': family solov2 is for instance"),
    (entry(archives=["paddel"]), r"models\.tiny\.archives\[0\]: 'paddel' is not defined; .*'paddle'"),
    (entry(archives=[{"url": "ftp://a", "format": "onnx"}]), r"archives\[0\]: key 'url'"),
    (entry(archives=[{"url": "http://a", "format": "zip"}]), r"archives\[0\]: key 'format'"),
    (entry(archives=[{"url": "http://a", "format": "onnx", "sha256": "ab"}]), r"\[0\]: key 'sha256'"),
    (entry(archives=[{"url": "http://a", "format": "onnx", "sha": "ab"}]), r"unknown key 'sha'"),
    (entry(metric={"name": "AP"}), r"models\.tiny\.metric: key 'value' is missing"),
    (entry(labels="coco"), r"models\.tiny\.labels: 'coco' is not defined"),
    (entry(labels=["cat", 3]), r"models\.tiny: key 'labels'"),
    (entry(preprocess="paddle"), r"models\.tiny\.preprocess: 'paddle' is not defined"),
    (entry(prompts=["text"]), r"models\.tiny: key 'prompts'"),
    (lambda data: data["models"].update({"../up": data["models"].pop("tiny")}), "cannot be a folder name"),
    (lambda data: data["models"].update(tiny=3), r"models\.tiny: expected a mapping, found 3"),
    (lambda data: data.update(format=2), "key 'format'"),
    (lambda data: data.pop("models"), "key 'models' is missing"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_entry_is_named(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    path = write_zoo(tmp_path / "zoo.yaml", "paddle")  # type: ignore[arg-type]
    data = yaml.safe_load(path.read_text())
    data["sources"] = {"paddle": {"format": "paddle", "url": "http://a/{name}.tar"}}
    path.write_text(yaml.safe_dump(data))
    assert load_zoo(path)["tiny"].archives[0].url == "http://a/tiny.tar"
    change(data)
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=message) as error:
        load_zoo(path)
    assert str(path) in error.value.cause and error.value.cure


def test_a_name_written_twice_is_refused(tmp_path: Path) -> None:
    path = write_zoo(tmp_path / "zoo.yaml", {"url": "http://a", "format": "onnx"})
    path.write_text(path.read_text() + "  tiny: {}\n")
    with pytest.raises(ConfigError, match=r"line \d+\): key 'tiny' is written twice"):
        load_zoo(path)


@pytest.mark.parametrize("content", [b"models: [", b"\xff\xfe\xff", b"", b"format: !!bool 1", b"format: !!int ''"])
def test_a_file_that_is_no_zoo(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"zoo\.yaml"):
        load_zoo(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_zoo(tmp_path / "nothing.yaml")


def test_a_model_dir_wins_over_the_cache(home: Path, tmp_path: Path) -> None:
    cached = write_model(home / "models" / "SOLOv2", "SOLOv2")
    mine = write_model(tmp_path / "mine", "mine")
    assert find_model("SOLOv2").path == cached
    assert find_model("SOLOv2", mine).path == mine
    assert find_model(None, str(mine)).name == "mine"


def test_a_bundled_model_wins_over_the_cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(home / "models" / "tiny", "tiny")
    shipped = write_model(tmp_path / "package" / "tiny", "tiny")
    monkeypatch.setattr(zoo, "bundled_dir", lambda name: tmp_path / "package" / name)
    assert find_model("tiny").path == shipped


def test_a_model_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelError) as error:
        find_model("SOLOv2")
    assert str(home / "models" / "SOLOv2") in error.value.cause
    assert "ovs models pull SOLOv2" in error.value.cure
    with pytest.raises(ModelError, match="Neither"):
        find_model(None)
    write_model(home / "outside", "outside")
    (home / "models").mkdir()
    for name in ("../outside", "n" * 300):
        with pytest.raises(ModelError, match="no model named"):
            find_model(name)

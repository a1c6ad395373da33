"""Where a Paddle model comes from, and every way in which it can be wrong. No Paddle needed."""

from __future__ import annotations

import datetime
import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from file_server import FileServer, tar_of, write_zoo
from ovseg_export import families
from ovseg_export.program import Port, Program, Value
from ovseg_export.source import open_source

from ovseg.errors import DownloadError, ModelError, OvsError
from ovseg.zoo import load_zoo

CONFIG = {"Global": {"model_name": "PP-ShiTuV2_rec"}, "PreProcess": {"transform_ops": []}}
FILES = {
    "inference.json": b"{}",
    "inference.pdiparams": b"weights",
    "inference.yml": yaml.safe_dump(CONFIG).encode(),
}

pytestmark = pytest.mark.usefixtures("home")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def in_folder(name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}/{path}": content for path, content in files.items()}


def zip_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "outer folder", "tar", "tar.gz", "zip", "url", "name"])
def test_a_model_is_found_whichever_way_it_is_named(
    kind: str, tmp_path: Path, file_server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = in_folder("rec_infer", FILES)
    source: str | Path = tmp_path / f"rec.{kind}"
    if kind == "folder":
        write(tmp_path / "rec.folder", FILES)
    elif kind == "outer folder":  # as fine-tuning leaves it: best_model/inference
        write(tmp_path / "rec.outer folder" / "inference", FILES)
    elif kind == "zip":
        Path(source).write_bytes(zip_of(packed))
    else:
        content = tar_of(packed, "w:gz" if kind == "tar.gz" else "w")
        Path(source).write_bytes(content)
        file_server.files["paddle3.0.0/rec_infer.tar"] = content
    if kind in ("url", "name"):
        source = file_server.url("paddle3.0.0/rec_infer.tar")
    if kind == "name":
        zoo = tmp_path / "zoo.yaml"
        write_zoo(zoo, {"url": source, "format": "paddle"}, name="rec")
        monkeypatch.setenv("OVSEG_ZOO", str(zoo))
        source = "rec"
    with open_source(source) as model:
        assert model.program.name == "inference.json"
        assert model.parameters.read_bytes() == b"weights"
        assert model.config == CONFIG
        unpacked = model.program
    assert unpacked.exists() == ("folder" in kind)  # what was unpacked is gone, what was given stays


def test_an_interrupted_download_goes_on_and_an_archive_is_downloaded_once(file_server: FileServer) -> None:
    content = tar_of(FILES | {"inference.pdiparams": bytes(300_000)})
    file_server.files["rec.tar"] = content
    file_server.cut_after = [100_000]
    url = file_server.url("rec.tar")
    for _ in range(2):
        with open_source(url) as model:
            assert model.parameters.stat().st_size == 300_000
    assert [wanted for _, wanted in file_server.log] == [None, "bytes=100000-"]


def test_a_page_in_place_of_an_archive_is_not_kept(file_server: FileServer) -> None:
    url = file_server.url("rec.tar")
    for content, expected in ((b"<html>Log in to this network</html>", "neither a tar nor a zip"), (b"", "neither")):
        file_server.files["rec.tar"] = content
        with pytest.raises(DownloadError, match=expected), open_source(url):
            raise AssertionError("not reached")
    file_server.files["rec.tar"] = tar_of(FILES)
    with open_source(url) as model:
        assert model.program.exists()
    with pytest.raises(DownloadError, match="is no address"), open_source("http://[::1/rec.tar"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("missing", ["inference.json", "inference.pdiparams", "inference.yml"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != missing}
    archive = tmp_path / "rec.tar"
    archive.write_bytes(tar_of(in_folder("rec", files)))
    with pytest.raises(ModelError, match=re.escape(missing)) as error, open_source(archive):
        raise AssertionError("not reached")
    assert "rec.tar" in error.value.cause


@pytest.mark.parametrize("program", ["inference.json", "inference.pdmodel"])
def test_an_empty_program_is_named(program: str, tmp_path: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != "inference.json"}
    archive = tmp_path / "rec.tar"
    archive.write_bytes(tar_of(in_folder("rec", files | {program: b""})))
    with pytest.raises(ModelError, match=rf"rec\.tar: {re.escape(program)} is empty"), open_source(archive):
        raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds None, not a mapping"),
        (b"just a text", "not a mapping"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: 2026-99-99", "not valid YAML"),
        (b"a: " + b"[" * 200_000, "nested too deeply"),
        (b"a: &a [*a]", "without end"),
        (
            b"a: &a0 [x, x]\n" + b"".join(b"b%d: &a%d [*a%d, *a%d]\n" % (i, i + 1, i, i) for i in range(40)),
            "without end",
        ),
    ],
)
def test_a_wrong_description_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "rec", FILES | {"inference.yml": content})
    with pytest.raises(ModelError, match=message) as error, open_source(folder):
        raise AssertionError("not reached")
    assert "inference.yml" in error.value.cause


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "rec.tar"
    archive.write_bytes(tar_of(FILES | {"inference.pdiparams": bytes(100_000)})[:60_000])
    with pytest.raises(DownloadError, match=r"rec\.tar"), open_source(archive):
        raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no file or folder"),
        ("rec.tar", "no file or folder"),
        (__file__, "is no archive"),
        ("PP-ShiTuV2_rek", "did you mean"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message), open_source(source):
        raise AssertionError("not reached")


def test_every_paddle_model_of_the_zoo_is_recognised_by_its_name() -> None:
    specs = [spec for spec in load_zoo().values() if spec.archives]
    assert len(specs) == 21
    for spec in specs:
        family, name = families.recognise({"Global": {"model_name": spec.name}}, "inference.yml")
        assert (family.name, family.task, name) == (spec.family, spec.task, spec.name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"arch": "DETR", "mask": True, "Global": {"model_name": "parts"}}, ("mask_rtdetr", "parts")),
        ({"arch": "SOLOv2"}, ("solov2", "SOLOv2")),
        ({"arch": "GFL"}, ("picodet", "GFL")),
    ],
)
def test_a_model_with_a_name_of_its_own_is_recognised_by_arch(
    config: dict[str, Any], expected: tuple[str, str]
) -> None:
    family, name = families.recognise(config, "inference.yml")
    assert (family.name, name) == expected


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ({"Global": {"model_name": "PP-ShiTuV2_rec"}}, "products", "shitu_rec"),
        ({"Global": {"model_name": "parts"}, "arch": "RCNN", "mask": True}, "parts", "mask_rcnn"),
        ({"arch": "RCNN", "mask": True}, "Cascade-MaskRCNN-ResNet50-FPN", "cascade_mask_rcnn"),
        ({"Global": {"model_name": "parts"}}, "SOLOv2", "solov2"),
        ({"Global": {"model_name": "MaskRCNN-ResNet50"}}, "SOLOv2", "model 'MaskRCNN-ResNet50', not SOLOv2"),
        ({"Global": {"model_name": "SAM-H_box"}}, "SAM-H_point", "model 'SAM-H_box', not SAM-H_point"),
        ({"arch": "RCNN", "mask": True}, "SOLOv2", "model 'RCNN', not SOLOv2"),
    ],
)
def test_the_name_must_be_what_the_folder_says(config: dict[str, Any], name: str, expected: str) -> None:
    if "not" not in expected:
        family, called = families.recognise(config, "inference.yml", name)
        assert (family.name, called) == (expected, name)
        return
    with pytest.raises(ModelError, match=expected) as error:
        families.recognise(config, "x.tar: inference.yml", name)
    assert "x.tar: inference.yml" in error.value.cause


@pytest.mark.parametrize(
    "config", [{}, {"arch": "DETR"}, {"arch": "PPLCNet", "Global": {"model_name": "PP-LCNet"}}, {"Global": 3}]
)
def test_an_unknown_family_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="of no family") as error:
        families.recognise(config, "x.tar: inference.yml")
    assert "x.tar" in error.value.cause and "mask_rcnn" in error.value.cure


RESIZE = {"type": "Resize", "target_size": [480, 640], "keep_ratio": False, "interp": 2}
NORMALISE = {
    "type": "NormalizeImage",
    "is_scale": True,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def test_preprocessing_is_translated() -> None:
    rcnn, rec = families.FAMILIES["mask_rcnn"], families.FAMILIES["shitu_rec"]
    steps: list[dict[str, Any]] = [RESIZE | {"keep_ratio": True}, NORMALISE, {"type": "Permute"}]
    facts = families.read_preprocess(rcnn, {"Preprocess": [*steps, {"type": "PadStride", "stride": 32}]}, "x")
    assert facts == {
        "type": "Resize",
        "size": [480, 640],
        "keep_ratio": True,
        "interp": "cubic",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "pad_stride": 32,
    }
    turned = families.read_preprocess(rcnn, {"Preprocess": [NORMALISE, RESIZE]}, "x")
    assert turned["normalize_first"] is True
    unit = {"type": "NormalizeImage", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "norm_type": "none"}
    assert families.read_preprocess(rcnn, {"Preprocess": [RESIZE, unit]}, "x")["std"] == [255.0, 255.0, 255.0]
    operations = [
        {"ResizeImage": {"size": [224, 200], "interpolation": "bicubic"}},
        {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 0.5]}},
        {"ToCHWImage": None},
    ]
    facts = families.read_preprocess(rec, {"PreProcess": {"transform_ops": operations}}, "x")
    assert (facts["size"], facts["interp"], facts["std"]) == ([224, 200], "linear", [255.0, 255.0, 127.5])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "key 'Preprocess' is missing"),
        ("Resize", "not a list"),
        ([RESIZE], "no step NormalizeImage"),
        ([NORMALISE], "no step Resize"),
        ([RESIZE | {"target_size": [0, 640]}, NORMALISE], r"target_size is \[0, 640\]"),
        ([RESIZE | {"target_size": 10**9}, NORMALISE], "target_size is 1000000000"),
        ([RESIZE, NORMALISE, {"type": "PadStride", "stride": 10**9}], "PadStride.stride is 1000000000"),
        ([RESIZE | {"interp": 9}, NORMALISE], "interp is 9"),
        ([RESIZE, NORMALISE | {"mean": [1, 2]}], r"mean is \[1, 2\]"),
        ([RESIZE, NORMALISE | {"mean": [0, 0, math.nan]}], r"inference.yml: NormalizeImage.mean is \[0, 0, nan\]"),
        ([RESIZE, NORMALISE | {"mean": [0, 0, 1e39]}], "NormalizeImage.mean"),
        ([RESIZE, NORMALISE | {"std": [1, 0, 1]}], "NormalizeImage.std"),
        ([RESIZE, NORMALISE | {"std": [1, 1, -1]}], "NormalizeImage.std"),
        ([RESIZE, NORMALISE | {"std": [1, 1, 1e-9]}], "NormalizeImage.std"),
        ([RESIZE, NORMALISE | {"scale": math.nan}], "NormalizeImage.scale is nan"),
        ([RESIZE, NORMALISE, {"type": "WarpAffine"}], "'WarpAffine' is not known"),
    ],
)
def test_wrong_preprocessing_is_refused_with_its_key(steps: object, message: str) -> None:
    config = {} if steps is None else {"Preprocess": steps}
    with pytest.raises(OvsError, match=message):
        families.read_preprocess(families.FAMILIES["mask_rcnn"], config, "inference.yml")


def test_statistics_of_sam_are_checked_too() -> None:
    config = {"Processor": {"size": 64, "std": [1, 1, math.inf]}}
    with pytest.raises(ModelError, match=r"inference.yml: Processor.std is \[1, 1, inf\]"):
        families.read_preprocess(families.FAMILIES["sam"], config, "inference.yml")


@pytest.mark.parametrize(
    "shapes", [{"image": (-1, 3, -1, -1), "im_id": (1,)}, {"x": (1, 10)}, {"image": (-1, 3, 8, 8), "im_shape": (2,)}]
)
def test_inputs_that_no_family_has_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    ports = tuple(Port(name, Value(i, "float32", shape)) for i, (name, shape) in enumerate(shapes.items()))
    with pytest.raises(ModelError, match=f"has {len(shapes)} inputs") as error:
        families.input_names(families.FAMILIES["picodet"], Program((), ports, (), {}), "x.tar: inference.yml")
    assert "x.tar" in error.value.cause


def test_what_model_yaml_cannot_say_is_left_out() -> None:
    config = {"NMS": {"name": "MultiClassNMS", "keep_top_k": 100, "since": datetime.date(2026, 1, 1)}}
    assert families.read_postprocess(config) == {"nms": {"name": "MultiClassNMS", "keep_top_k": 100}}

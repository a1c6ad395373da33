"""The whole way: an official archive on a server becomes an ONNX model folder that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from file_server import FileServer

pytest.importorskip("paddle", reason="needs Paddle (the export extra)")

from ovseg_export import export_model
from ovseg_export.builders import ppyoloe_seg, sam, shitu_rec
from ovseg_export.convert import convert
from ovseg_export.errors import ParityError, UnsupportedOperators
from ovseg_export.families import count_classes
from ovseg_export.lower import TABLE
from ovseg_export.lower.graph import Graph
from ovseg_export.program import Op, read_program

from ovseg.cli import main
from ovseg.errors import ConfigError, ModelError, OvsError, SaveError
from ovseg.pull import pull_model
from ovseg.session import Session
from ovseg.zoo import find_model, open_model_folder

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("home")]

Editor = Callable[[str], str]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Paddle models: rec, and the SAM models box and point of equal weights."""
    folder = tmp_path_factory.mktemp("paddle")
    shitu_rec.build(folder / "rec", image_size=64)
    for prompt in ("box", "point"):
        sam.build(folder / prompt, prompt=prompt)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """An archive in the official layout: everything in one folder."""
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, archive.name.removesuffix(".tar"))
    return archive


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edited(built: Path, target: Path, edit: Editor) -> Path:
    """A copy of the model rec with its program changed."""
    shutil.copytree(built / "rec", target)
    program = target / "inference.json"
    before = program.read_text()
    after = edit(before)
    assert after != before
    program.write_text(after)
    return target


def test_pull_downloads_exports_and_installs(
    built: Path,
    tmp_path: Path,
    home: Path,
    file_server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "PP-ShiTuV2_rec"
    served = f"paddlex/official_inference_model/paddle3.0.0/{name}_infer.tar"
    file_server.files[served] = pack(built / "rec", tmp_path / f"{name}_infer.tar").read_bytes()
    zoo = {
        "format": 1,
        "sources": {"paddle3.0.0": {"format": "paddle", "url": file_server.url(served).replace(name, "{name}")}},
        "preprocess": {},
        "models": {
            name: {
                "task": "image_recognition",
                "family": "shitu_rec",
                "archives": ["paddle3.0.0"],
                "licence": "Apache-2.0",
                "preprocess": {"type": "Resize"},
            }
        },
    }
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))
    monkeypatch.setenv("OVSEG_ZOO", str(tmp_path / "zoo.yaml"))
    assert main(["models", "pull", name]) == 0
    out, err = capsys.readouterr()
    assert out == f"{home / 'models' / name}\n"
    assert "exporting" in err and "comparing with Paddle on 6 inputs" in err
    assert left(home / "models") == [name]

    model = find_model(name)
    assert (model.name, model.family, model.labels) == (name, "shitu_rec", ())
    assert model.preprocess["size"] == [64, 64] and model.preprocess["mean"] == [123.675, 116.28, 103.53]
    assert model.facts["source"]["from"] == file_server.url(served)
    assert model.facts["postprocess"] == {"normalize_features": True}
    assert [port["name"] for side in ("inputs", "outputs") for port in model.facts[side]] == [
        "pixels",
        "unit_embedding",
    ]
    session = Session(model.files["model"], "cpu")
    assert [(item.name, item.dtype, item.shape) for item in session.inputs] == [
        ("pixels", np.uint8, ("batch", 64, 64, 3))
    ]
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    embedding = session.run({"pixels": images})["unit_embedding"]
    assert embedding.shape == (3, 512) and np.allclose(np.linalg.norm(embedding, axis=1), 1)
    report = json.loads((model.path / "parity.json").read_text())
    assert report["passed"] and report["worst"]["cosine"] >= 0.99999
    assert [case["batch"] for case in report["cases"]] == [1, 1, 1, 1, 2, 2]
    assert report["timing"]["ratio"] > 0
    assert set(report["paddle_against_itself"]) == {"optimised", "onednn"}
    assert pull_model(name).path == model.path


def test_both_sam_models_share_one_encoder(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt in ("box", "point"):
        archive = pack(built / prompt, tmp_path / f"{prompt}.tar")
        out = tmp_path / "models" / prompt
        assert main(["export", f"SAM-H_{prompt}", "--from", str(archive), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert left(tmp_path / "models") == ["box", "point"]
    box, point = (open_model_folder(tmp_path / "models" / prompt, verify=True) for prompt in ("box", "point"))
    assert (box.facts["prompts"], point.facts["prompts"]) == (["box"], ["point"])
    assert box.files["encoder"].samefile(point.files["encoder"])
    assert not box.files["decoder"].samefile(point.files["decoder"])
    for model in (box, point):
        report = json.loads((model.path / "parity.json").read_text())
        assert report["passed"] and report["worst"]["logit"] <= 1e-3 and len(report["cases"]) == 4

    # Each folder is whole: a copy of it works when the other, and the original, are gone.
    shutil.copytree(point.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "models")
    alone = open_model_folder(tmp_path / "copy", verify=True)
    encoder, decoder = (Session(alone.files[role], "cpu") for role in ("encoder", "decoder"))
    assert [item.name for item in decoder.inputs] == ["embedding", "points"]
    image = np.random.default_rng(0).normal(size=(1, 3, 256, 256)).astype(np.float32)
    embedding = encoder.run({"image": image})
    masks = [
        decoder.run(embedding | {"points": np.float32([[point]])})["low_res_masks"] for point in ([40, 50], [200, 180])
    ]
    assert masks[0].shape == (1, 1, 64, 64)
    assert np.abs(masks[0] - masks[1]).max() > 0.1


def test_conversions_are_bit_identical(built: Path) -> None:
    made = {convert(built / "box").to_model().SerializeToString(deterministic=True) for _ in range(20)}
    assert len(made) == 1


def test_a_wrong_graph_is_found_and_leaves_nothing(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(graph: Graph, op: Op) -> str:
        return graph.op("LeakyRelu", graph[op.inputs[0]], alpha=0.01)

    monkeypatch.setitem(TABLE, "relu", leaky)
    with pytest.raises(ParityError, match=r"PP-ShiTuV2_rec differs from Paddle.s: .*cosine is") as error:
        export_model(built / "rec", tmp_path / "out" / "rec")
    assert error.value.exit_code == 1
    assert left(tmp_path / "out") == []
    kept = export_model(built / "rec", tmp_path / "out" / "rec", allow_mismatch=True)
    assert left(tmp_path / "out") == [kept.name] == ["rec-mismatch"]
    assert open_model_folder(kept).facts["parity"]["passed"] is False


def test_a_detector_that_finds_nothing_is_not_proven(tmp_path: Path) -> None:
    folder = ppyoloe_seg.build(tmp_path / "yoloe", image_size=64, score_threshold=1.5)
    assert count_classes(read_program(folder / "inference.json")) == 80
    with pytest.raises(ParityError, match=r"PP-YOLOE_seg-S is not proven: Paddle detects nothing") as error:
        export_model(folder, tmp_path / "out" / "yoloe")
    assert "--images" in error.value.cure
    assert left(tmp_path / "out") == []


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model rec as Paddle 2 wrote it."""
    return shitu_rec.build(tmp_path_factory.mktemp("older") / "rec", image_size=64, fmt="pdmodel")


def test_an_older_program_is_translated(older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (older / "inference.json").exists()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))  # only the disk of the result is written to
    model = open_model_folder(export_model(older, tmp_path / "out", opset=19), verify=True)
    assert (model.facts["opset"], model.facts["source"]["program"]) == (19, "inference.pdmodel")
    assert not (older / "inference.json").exists()


def test_operators_that_paddle_does_not_know_are_named(older: Path, tmp_path: Path) -> None:
    from paddle.base import core

    folder = tmp_path / "rec"
    shutil.copytree(older, folder)
    program = core.ProgramDesc((folder / "inference.pdmodel").read_bytes())
    ops = [program.block(0).op(index) for index in range(program.block(0).op_size())]
    changed = [index for index, op in enumerate(ops) if op.type() == "relu"]
    for index in changed:
        ops[index].set_type("frobnicate")
    (folder / "inference.pdmodel").write_bytes(program.serialize_to_string())
    with pytest.raises(UnsupportedOperators) as error:
        export_model(folder, tmp_path / "out")
    place = f"frobnicate ×{len(changed)} (unknown to Paddle; at frobnicate #{changed[0]} and {len(changed) - 1} more)"
    assert len(changed) > 1 and place in error.value.cause
    assert left(tmp_path) == ["rec"]


def test_unsupported_operators_are_named_before_anything_runs(built: Path, tmp_path: Path) -> None:
    folder = edited(built, tmp_path / "rec", lambda text: text.replace('"1.relu"', '"1.frobnicate"'))
    (folder / "inference.pdiparams").write_bytes(b"")  # never read
    with pytest.raises(UnsupportedOperators) as error:
        export_model(folder, tmp_path / "out")
    count = (built / "rec" / "inference.json").read_text().count('"1.relu"')
    assert f"frobnicate ×{count} (no lowering; at frobnicate #" in error.value.cause
    assert left(tmp_path) == ["rec"]


def _break_program(folder: Path) -> None:
    (folder / "inference.json").write_text('{"base_code": {"magic": "pir", "version": 1}, "program": {}}')


def _cut_parameters(folder: Path) -> None:
    path = folder / "inference.pdiparams"
    path.write_bytes(path.read_bytes()[:-100])


def _rename(folder: Path) -> None:
    path = folder / "inference.yml"
    path.write_text(path.read_text().replace("PP-ShiTuV2_rec", "PP-LCNet_x1_0"))


def _resize_otherwise(folder: Path) -> None:
    path = folder / "inference.yml"
    path.write_text(path.read_text().replace("- 64\n", "- 96\n"))


def _spoil_an_attribute(folder: Path) -> None:
    path = folder / "inference.json"
    path.write_text(path.read_text().replace('"paddings"', '"poddings"'))


def _take_for_sam(folder: Path) -> None:
    path = folder / "inference.yml"
    path.write_text("Global: {model_name: SAM-H_box}\nProcessor: {type: SAMProcessor, size: 64}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_break_program, "does not follow the PIR format"),
        (_cut_parameters, r"inference\.pdiparams"),
        (_rename, "of no family"),
        (_take_for_sam, "program of this sam model has 1 inputs"),
        (_resize_otherwise, r"inference\.yml: its preprocessing makes images of 3 x 96 x 96, .* takes 3 x 64 x 64"),
        (_spoil_an_attribute, r"conv2d #\d+ in .* is not written as Paddle writes it \(KeyError: 'paddings'\)"),
    ],
)
def test_a_spoilt_model_is_refused(spoil: Callable[[Path], None], message: str, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    shutil.copytree(built / "rec", folder)
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        export_model(folder, tmp_path / "out")
    assert left(tmp_path) == ["rec"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 11}, "Opset 11"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"out_dir": "taken"}, "exists and is not empty"),
        ({"out_dir": "/"}, "/ cannot be replaced"),
        ({"images": "nowhere"}, "nowhere"),
        ({"precision": "int8", "calibration": "nowhere"}, "nowhere"),
        ({"calibration": "taken"}, "Nothing is calibrated in fp32"),
        ({"name": "../rec"}, r"'\.\./rec' cannot be the name"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, built: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "work").write_text("of somebody")
    out = tmp_path / arguments.pop("out_dir", "out")
    with pytest.raises(OvsError, match=message):
        export_model(built / "rec", out, **arguments)
    assert left(tmp_path) == ["taken"] and left(tmp_path / "taken") == ["work"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a file that is none")
def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="/dev/null cannot be used: Not a directory"):
        export_model("/dev/null", tmp_path / "out")
    assert left(tmp_path) == []


def test_the_working_folder_is_not_replaced(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="cannot be replaced"):
        export_model(built / "rec", ".")
    assert left(tmp_path) == ["here"] and left(Path.cwd()) == []


def test_the_home_folder_and_a_link_are_followed(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (models / "link").symlink_to("place")
    assert export_model(built / "rec", "~/models/link") == models / "place"
    assert left(models) == ["link", "place"] and (models / "place" / "model.yaml").is_file()


def test_a_folder_of_the_working_folders_name(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built / "rec", tmp_path / "mine")
    (tmp_path / "mine" / "mine-onnx").write_text("of somebody")
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["export", "."]) == 2
    assert "mine-onnx exists" in capsys.readouterr().err
    assert main(["export", ""]) == 2
    assert "is empty" in capsys.readouterr().err


def test_of_two_exports_to_one_folder_the_slower_one_fails(built: Path, tmp_path: Path) -> None:
    def be_faster(message: str) -> None:
        if message.startswith("comparing"):
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "model.yaml").write_text("of the other")

    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_model(built / "rec", tmp_path / "out", progress=be_faster)
    assert left(tmp_path) == ["out"] and left(tmp_path / "out") == ["model.yaml"]


@pytest.mark.parametrize("fmt", ["json", "pdmodel"])
def test_a_full_disk_leaves_nothing(fmt: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    model = request.getfixturevalue("built") / "rec" if fmt == "json" else request.getfixturevalue("older")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may be larger: what a full disk does
    try:
        with pytest.raises(SaveError, match="cannot be written") as error:
            export_model(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1 and str(tmp_path) in error.value.cause
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_sigterm_leaves_nothing(built: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "ovseg", "export", str(built / "rec"), "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("comparing"):
            break
    hosts = []
    while not hosts:
        hosts = psutil.Process(process.pid).children()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.endswith("ovs: terminated\n")
    assert left(tmp_path) == []
    _, alive = psutil.wait_procs(hosts, timeout=30)
    assert alive == []


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ovseg_export.export", None)  # as if it were not installed
    assert main(["export", "SAM-H_box"]) == 2
    assert 'pip install "ovseg[export]"' in capsys.readouterr().err
    assert main(["export", "SAM-H_box", "--device", "gpu"]) == 2
    assert "runs on the CPU" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        export_model("SAM-H_box", "out", opset=3)

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from file_server import model_yaml, write_model

from ovseg.errors import ModelError
from ovseg.model_folder import open_model_folder


def described(content: bytes = b"onnx", **changes: Any) -> dict[str, Any]:
    return {"path": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), **changes}


def test_a_folder_is_opened_as_described(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", "tiny", opset=17, parity={"max": 1e-5}, **{"x-mine": 1})
    folder = open_model_folder(str(path), verify=True)
    assert (folder.name, folder.family, folder.task) == ("tiny", "solov2", "instance_segmentation")
    assert folder.files == {"model": path / "model.onnx"}
    assert folder.labels == ("cat", "dog")
    assert folder.preprocess == {"type": "Resize", "size": [64, 64]}
    assert folder.facts["opset"] == 17 and folder.facts["x-mine"] == 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "key 'format'"),
    ({"family": "yolo"}, "key 'family': expected one of"),
    ({"task": "image_recognition"}, "key 'task': family solov2 is for instance_segmentation"),
    ({"lables": []}, "unknown key 'lables'; did you mean 'labels'"),
    ({"labels": "cat"}, "key 'labels': expected a list of texts"),
    ({"opset": "17"}, "key 'opset'"),
    ({"files": {}}, "key 'files'"),
    ({"files": {"net": described()}}, r"key 'files\.model' is missing: family solov2 needs it"),
    ({"files": {"model": described(path="../model.onnx")}}, r"files\.model: .* is outside of the folder"),
    ({"files": {"model": described(path="/etc/passwd")}}, "is outside of the folder"),
    ({"files": {"model": described(path="link/model.onnx")}}, "is outside of the folder"),
    ({"files": {"model": described(path="other.onnx")}}, r"files\.model: .*other\.onnx is missing"),
    ({"files": {"model": described(path="loop.onnx")}}, r"files\.model: 'loop\.onnx' cannot be read|is missing"),
    ({"files": {"model": described(path="a" * 300)}}, r"files\.model: 'aaa.* cannot be read"),
    ({"files": {"model": described(path="a\0b")}}, r"files\.model: 'a.*b' cannot be read"),
    ({"files": {"model": described(size=5)}}, r"files\.model: .* has 4 bytes, not 5"),
    ({"files": {"model": described(sha256="zz")}}, r"files\.model: key 'sha256'"),
    ({"files": {"model": described(data=[{"path": "../w", "sha256": "0" * 64}])}}, r"data\[0\]: .*outside"),
    ({"files": {"model": described(data=[{"path": "w", "sha256": "0" * 64}])}}, r"data\[0\]: .*w is missing"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_description_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", "tiny", **change)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (path / "link").symlink_to(tmp_path)
    (path / "loop.onnx").symlink_to("loop.onnx")
    with pytest.raises(ModelError, match=message) as error:
        open_model_folder(path)
    assert str(path / "model.yaml") in error.value.cause and error.value.cure


@pytest.mark.parametrize("key", ["format", "name", "family", "task", "files", "preprocess"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", "tiny")
    facts = model_yaml("tiny", b"onnx")
    del facts[key]
    (path / "model.yaml").write_text(yaml.safe_dump(facts))
    with pytest.raises(ModelError, match=f"key '{key}' is missing"):
        open_model_folder(path)


def test_a_sam_folder_needs_encoder_and_decoder(tmp_path: Path) -> None:
    task = "open_vocabulary_segmentation"
    path = write_model(tmp_path / "m", "s", family="sam", task=task, files={"encoder": described()})
    with pytest.raises(ModelError, match=r"'files\.decoder' is missing"):
        open_model_folder(path)


def test_verify_reads_the_files(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", "tiny", b"onnx")
    (path / "model.onnx").write_bytes(b"onnX")
    open_model_folder(path)
    with pytest.raises(ModelError, match="has SHA-256"):
        open_model_folder(path, verify=True)


def test_external_data_is_verified_too(tmp_path: Path) -> None:
    data = [{"path": "w", "sha256": hashlib.sha256(b"weights").hexdigest()}]
    path = write_model(tmp_path / "m", "tiny", files={"model": described(data=data)})
    (path / "w").write_bytes(b"weights")
    open_model_folder(path, verify=True)
    (path / "w").write_bytes(b"Weights")
    with pytest.raises(ModelError, match=r"data\[0\].* has SHA-256"):
        open_model_folder(path, verify=True)


def test_no_folder_and_no_description(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="~nobody of this name/model does not exist"):
        open_model_folder("~nobody of this name/model")
    with pytest.raises(ModelError, match="does not exist"):
        open_model_folder(tmp_path / "nothing")
    with pytest.raises(ModelError, match="does not exist"):
        open_model_folder("x" * 5000)
    with pytest.raises(ModelError, match=r"has no model\.yaml"):
        open_model_folder(tmp_path)

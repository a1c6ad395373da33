"""Every bundled model on the devices that are not the CPU: the same results, and the embedding that stays there.

A device whose provider is not in the installed ONNX Runtime, or that this machine does not have, is skipped.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest

from ovseg.device import TENSORRT, known_providers, resolve_device
from ovseg.doctor import device_check
from ovseg.engines import has_engines, kept_options, tensorrt_version
from ovseg.errors import ConfigError, DeviceUnavailable, OvsError
from ovseg.images import read_images
from ovseg.pipelines.sam import SamModel
from ovseg.pipelines.workloads import load_workload
from ovseg.runtime import cuda_devices
from ovseg.samples import samples
from ovseg.session import Session
from ovseg.stages.prompts import parse_boxes
from ovseg.zoo import bundled_dir, load_zoo, open_model_folder

BUNDLED = [name for name, spec in load_zoo().items() if spec.bundled]
SIZES = {"batch": 2, "prompts": 3, "masks": 3, "points": 2}
FILES = [
    pytest.param(path, id=f"{name}-{role}")
    for name in BUNDLED
    for role, path in open_model_folder(bundled_dir(name)).files.items()
]
# OpenVINO's provider 1.24 cannot run graphs with loops (ShiTu-tiny-det), and mixes up inputs of SAM-tiny's decoder.
OPENVINO_LACKS = ("ShiTu-tiny-det", "MaskSeg-tiny")


@functools.cache
def why_not(device: str) -> str:
    """Why a device cannot be tried here; "" if it can."""
    provider = next(name for name, (kind, _) in known_providers().items() if kind == device)
    if provider not in onnxruntime.get_available_providers():
        return f"{provider} is not in the installed ONNX Runtime"
    found = device_check(device)
    return "" if found.state == "ok" else found.text


def need(device: str) -> None:
    if reason := why_not(device):
        pytest.skip(reason)


@pytest.fixture(params=[pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("tensorrt", marks=pytest.mark.gpu)])
def cuda(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    need(request.param)
    return str(request.param)


@pytest.fixture
def openvino(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    need("openvino")
    return "openvino"


def feeds(session: Session) -> dict[str, np.ndarray]:
    """Give every input of a graph numbers of its kind; prompts are points inside of the image."""
    random = np.random.default_rng(0)
    found = {}
    for info in session.inputs:
        shape = [size if isinstance(size, int) else SIZES[str(size)] for size in info.shape]
        bytes_wanted = info.dtype == np.uint8
        found[info.name] = (
            random.integers(0, 256, shape, np.uint8) if bytes_wanted else random.random(shape, np.float32)
        )
    if "point_coords" in found:
        found["point_coords"] *= 512
        found["point_labels"] = np.ones_like(found["point_labels"])
        found["has_mask_input"] = np.zeros_like(found["has_mask_input"])
    return found


def assert_same_outputs(path, device: str) -> None:
    reference, other = Session(path, "cpu"), Session(path, device)
    assert other.providers[0] == resolve_device(device).providers[0].name
    given = feeds(reference)
    expected, got = reference.run(given), other.run(given)
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        scale = max(1.0, float(np.abs(array).max(initial=0)))
        np.testing.assert_allclose(got[name] / scale, array / scale, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("path", FILES)
def test_cuda_computes_what_the_cpu_does(path, cuda):
    assert_same_outputs(path, cuda)


@pytest.mark.parametrize("path", FILES)
def test_openvino_computes_what_the_cpu_does(path, openvino):
    if any(word in str(path) for word in OPENVINO_LACKS):
        with pytest.raises(OvsError) as caught:  # once it can, the list above is out of date
            assert_same_outputs(path, openvino)
        assert "OpenVINO" in caught.value.cause and caught.value.cure
    else:
        assert_same_outputs(path, openvino)


@pytest.mark.parametrize("name", BUNDLED)
def test_cuda_finds_what_the_cpu_does(name, cuda):
    folder = open_model_folder(bundled_dir(name))
    ours, theirs = (load_workload(folder, resolve_device(device), {}) for device in ("cpu", cuda))
    assert all(ours.agree(ours.run(i), theirs.run(i)) >= ours.least for i in range(ours.count))


def test_the_embedding_stays_on_the_device(cuda):
    folder = open_model_folder(bundled_dir("SAM-tiny"))
    model = SamModel(folder, resolve_device(cuda), batch=16, session_options={})
    reference = SamModel(folder, resolve_device("cpu"), batch=16, session_options={})
    sample = samples()[0]
    (image,) = read_images(str(sample.path))
    embedding = model.embed(image.pixels)
    assert {value.device_name() for value in embedding.tensors.values()} == {"cuda"}
    prompts = parse_boxes(list(sample.boxes.values()))
    expected = reference.segment(reference.embed(image.pixels), prompts)
    assert (model.segment(embedding, prompts) != expected).mean() < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("device", "option"), [("gpu", "enable_cuda_graph"), ("tensorrt", "trt_cuda_graph_enable")])
def test_a_cuda_graph_replays_with_new_inputs(device, option):
    need(device)
    path = bundled_dir("SAM-tiny") / "encoder.onnx"
    reference, graph = Session(path, device), Session(path, device, provider_options={option: "1"})
    random = np.random.default_rng(0)
    for _ in range(4):  # the first runs record
        given = {"image": random.random(reference.inputs[0].shape, dtype=np.float32)}
        expected = reference.run(given)
        for name, array in graph.run_resident(given).items():
            np.testing.assert_allclose(array, expected[name], atol=1e-3)
    with pytest.raises(ConfigError, match="no fixed shape"):
        Session(bundled_dir("ShiTu-tiny-rec") / "model.onnx", device, provider_options={option: "1"})


@pytest.mark.gpu
def test_an_index_that_no_gpu_has():
    need("gpu")
    count = len(cuda_devices() or ())
    with pytest.raises(DeviceUnavailable, match=f"There is no gpu:{count}"):
        Session(bundled_dir("ShiTu-tiny-rec") / "model.onnx", f"gpu:{count}")


@pytest.mark.gpu
def test_engines_are_kept_and_built_again_where_they_are_damaged(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    need("tensorrt")
    assert tensorrt_version() != "none"
    path = bundled_dir("SAM-tiny") / "encoder.onnx"
    given = {"image": np.ones(Session(path, "cpu").inputs[0].shape, np.float32)}
    first = Session(path, "tensorrt").run(given)
    main = resolve_device("tensorrt").providers[0]
    kept = kept_options(main, str(path), {"image": given["image"].shape})
    assert main.name == TENSORRT and has_engines(kept)
    for engine in tmp_path.rglob("*.engine"):
        engine.write_bytes(b"of another version")
    again = Session(path, "tensorrt").run(given)
    assert "builds them again" in caplog.text
    for name, array in first.items():
        np.testing.assert_allclose(again[name], array, atol=1e-3)

from __future__ import annotations

import subprocess
import sys

import pytest

from ovseg import runtime
from ovseg.device import CPU, CUDA, Provider, is_elsewhere, no_such_index, resolve_device, unavailable
from ovseg.errors import ConfigError, DeviceUnavailable


@pytest.mark.parametrize(
    ("text", "kind", "index", "names"),
    [
        ("cpu", "cpu", 0, [CPU]),
        ("gpu", "gpu", 0, [CUDA, CPU]),
        ("gpu:1", "gpu", 1, [CUDA, CPU]),
        (" GPU:12 ", "gpu", 12, [CUDA, CPU]),
        ("npu:0", "npu", 0, ["CANNExecutionProvider", CPU]),
        ("tensorrt:1", "tensorrt", 1, ["TensorrtExecutionProvider", CUDA, CPU]),
        ("OpenVINO", "openvino", 0, ["OpenVINOExecutionProvider", CPU]),
        ("dml:0", "dml", 0, ["DmlExecutionProvider", CPU]),
        ("coreml", "coreml", 0, ["CoreMLExecutionProvider", CPU]),
    ],
)
def test_device_string(text, kind, index, names):
    device = resolve_device(text)
    assert (device.kind, device.index, device.named) == (kind, index, True)
    assert [provider.name for provider in device.providers] == names


def test_index_reaches_every_provider_that_takes_one():
    trt, cuda, cpu = resolve_device("tensorrt:3").providers
    assert trt.options["device_id"] == cuda.options["device_id"] == "3"
    assert "device_id" not in cpu.options
    assert "device_id" not in resolve_device("openvino").providers[0].options


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpu",
        "gpu:",
        "gpu:-1",
        "gpu:a",
        "gpu 0",
        "gpu:0,",
        "cpu:0",
        "auto:1",
        "gpu:\u0661",
        "gpu:" + 5000 * "1",
        0,
        ["gpu"],
    ],
)
def test_malformed_device_lists_the_right_forms(text):
    with pytest.raises(ConfigError) as caught:
        resolve_device(text)
    said = repr(text)
    assert said[:10] in caught.value.cause and (said in caught.value.cause) == (len(said) < 30)
    assert len(caught.value.cause) < 100
    assert "gpu:<index>" in caught.value.cure


@pytest.mark.parametrize("text", ["xpu", "mlu:0", "dcu", "XPU:1,2", "iluvatar_gpu:0"])
def test_paddle_only_device(text):
    with pytest.raises(DeviceUnavailable, match="no execution provider") as caught:
        resolve_device(text)
    assert "gpu:<index>" in caught.value.cure


def test_list_of_devices_is_refused_with_the_first_as_cure():
    with pytest.raises(ConfigError) as caught:
        resolve_device("gpu:2,3")
    assert "'gpu:2'" in caught.value.cure


def test_providers_replace_those_of_the_device():
    device = resolve_device(providers=[("CUDAExecutionProvider", {"device_id": 2, "do_copy": True}), CPU])
    assert device.kind == "gpu"
    assert device.index == 2
    assert device.named
    assert device.providers == (
        Provider(CUDA, {"device_id": "2", "do_copy": "True"}),
        Provider(CPU),
    )


def test_providers_take_the_index_of_the_device():
    device = resolve_device("gpu:1", providers=["TensorrtExecutionProvider"])
    assert device.kind == "tensorrt"
    assert device.providers[0].options == {"device_id": "1"}
    assert device.providers[-1].name == CPU


@pytest.mark.parametrize(
    ("text", "part"),
    [("openvino", "CPU"), ("openvino:cpu", "CPU"), ("OpenVINO:GPU.1", "GPU.1"), ("openvino:npu", "NPU")],
)
def test_part_of_openvino(text, part):
    device = resolve_device(text)
    assert (device.kind, device.providers[0].options["device_type"]) == ("openvino", part)


@pytest.mark.parametrize("text", ["openvino:", "openvino:0", "openvino:tpu", "openvino:gpu.", "openvino:gpu.x"])
def test_part_that_openvino_lacks(text):
    with pytest.raises(ConfigError, match=r"CPU\|GPU\|NPU\|AUTO") as caught:
        resolve_device(text)
    assert repr(text) in caught.value.cause


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "cpu", "providers": [CUDA]},
        {"device": "gpu", "providers": [CPU]},
        {"device": "openvino", "providers": ["CoreMLExecutionProvider"]},
        {"device": "gpu:1", "provider_options": {"device_id": 0}},
        {"device": "gpu:1", "providers": [(CUDA, {"device_id": 2})]},
    ],
)
def test_contradictions_are_refused(arguments):
    with pytest.raises(ConfigError, match="Leave one of them out"):
        resolve_device(**arguments)


def test_defaults_give_the_results_of_the_cpu():
    assert resolve_device("gpu").providers[0].options["use_tf32"] == "0"
    trt, cuda, _ = resolve_device("tensorrt").providers
    assert (trt.options["trt_fp16_enable"], cuda.options["use_tf32"]) == ("0", "0")
    assert resolve_device("npu").providers[0].options["dump_om_model"] == "0"


def test_index_that_no_cuda_device_has(monkeypatch):
    device = resolve_device("gpu:2")
    assert no_such_index(device) is None or runtime.cuda_devices()
    monkeypatch.setattr("ovseg.device.cuda_devices", lambda: ("NVIDIA A", "NVIDIA B"))
    error = no_such_index(device)
    assert error is not None and "There is no gpu:2" in error.cause and "1 (NVIDIA B)" in error.cause
    assert no_such_index(resolve_device("gpu:1")) is None
    assert no_such_index(resolve_device("openvino")) is None


def test_provider_that_the_table_lacks_is_passed_on():
    device = resolve_device(providers=["XnnpackExecutionProvider"])
    assert device.kind == "xnnpack"
    assert device.providers == (Provider("XnnpackExecutionProvider"), Provider(CPU))


def test_provider_options_lie_over_the_defaults():
    default = resolve_device("gpu").providers[0].options
    flat = resolve_device("gpu", provider_options={"gpu_mem_limit": 1024}).providers[0].options
    by_name = resolve_device("gpu", provider_options={CUDA: {"gpu_mem_limit": 1024}}).providers[0].options
    assert flat == by_name == {**default, "gpu_mem_limit": "1024"}
    assert "gpu_mem_limit" not in resolve_device("gpu").providers[0].options  # the table is not written to
    over = resolve_device("gpu", provider_options={"cudnn_conv_algo_search": "DEFAULT"}).providers[0]
    assert over.options["cudnn_conv_algo_search"] == "DEFAULT" != default["cudnn_conv_algo_search"]


@pytest.mark.parametrize(("value", "on"), [(1, True), (True, True), ("true", True), (0, False), (False, False)])
def test_an_option_is_on_however_it_is_written(value, on):
    main = resolve_device("gpu", provider_options={"enable_cuda_graph": value}).providers[0]
    assert main.is_on("enable_cuda_graph") is on


def test_device_id_option_is_the_index():
    assert resolve_device("gpu", provider_options={"device_id": 4}).index == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"providers": []},
        {"providers": "CPUExecutionProvider"},
        {"providers": [3]},
        {"providers": [(CPU, "fast")]},
        {"providers": [(CPU, {"a": None})]},
        {"providers": [""]},
        {"providers": [CUDA, CUDA]},
        {"providers": [CPU, CUDA]},
        {"providers": [CUDA, (CPU, {"a": 1})]},
        {"device": "cpu", "provider_options": {"enable_cuda_graph": 1}},
        {"device": "gpu", "provider_options": [{"use_tf32": 1}]},
        {"device": "gpu", "provider_options": 0},
        {"device": "gpu", "provider_options": {"device_id": "٢"}},
        {"device": "gpu", "provider_options": {"device_id": "one"}},
        {"device": "gpu", "provider_options": {CUDA: {}, "device_id": 1}},
        {"device": "gpu", "provider_options": {"TensorrtExecutionProvider": {"a": 1}}},
        {"device": "auto", "provider_options": {"device_id": 1}},
        {"providers": [("", {})]},
        {"device": "auto", "provider_options": {"CudaExecutionProvider": {"device_id": 1}}},
    ],
)
def test_wrong_providers_and_options(arguments):
    with pytest.raises(ConfigError) as caught:
        resolve_device(**arguments)
    assert caught.value.cure


@pytest.mark.parametrize("text", [None, "auto", "AUTO"])
def test_auto_is_not_named_and_ends_on_the_cpu(text):
    device = resolve_device(text, provider_options={"CANNExecutionProvider": {"precision_mode": "force_fp16"}})
    assert not device.named
    assert device.providers[-1].name == CPU
    assert all("precision_mode" not in provider.options for provider in device.providers)


def test_a_named_device_is_resolved_without_loading_onnxruntime():
    code = "import sys, ovseg.device as d; d.resolve_device('gpu'); print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("text", "system"), [("dml", "Windows"), ("coreml", "macOS")])
@pytest.mark.skipif(sys.platform != "linux", reason="it may be there")
def test_no_package_brings_what_is_of_another_system(text, system):
    provider = resolve_device(text).providers[0].name
    assert is_elsewhere(provider) and not is_elsewhere(CUDA) and not is_elsewhere(CPU)
    error = unavailable(provider, "not compiled in", reinstall=True)
    assert f"needs {system}" in error.cure and "pip" not in error.cure

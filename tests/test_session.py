from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ovseg.device import CPU, CUDA, Provider, resolve_device
from ovseg.errors import ConfigError, DeviceUnavailable, ModelError
from ovseg.runtime import usable_cpus
from ovseg.session import PROBE, RunError, Session, TensorInfo, _not_loaded, _Replay, _turns, check_fixed

HAS_CUDA = CUDA in onnxruntime.get_available_providers()
CPU_BUILD = pytest.mark.skipif(HAS_CUDA, reason="holds for the CPU build of ONNX Runtime")
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def build(nodes, inputs, outputs, initializers=()) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def linear() -> bytes:
    """`y = x @ WEIGHT` and `s = y + y` for x float32 [n, 4]."""
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "y"], ["s"])],
        [("x", TensorProto.FLOAT, ["n", 4])],
        [("y", TensorProto.FLOAT, ["n", 3]), ("s", TensorProto.FLOAT, ["n", 3])],
        [("w", WEIGHT)],
    )


@pytest.fixture(scope="module")
def filler() -> bytes:
    """Fill an array of the shape given with zeros: a small model that can ask for any amount of memory."""
    return build(
        [helper.make_node("ConstantOfShape", ["shape"], ["filled"])],
        [("shape", TensorProto.INT64, [2])],
        [("filled", TensorProto.FLOAT, ["h", None])],
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )


def test_runs_from_bytes_and_from_a_file(linear, tmp_path):
    path = tmp_path / "modèle.onnx"
    path.write_bytes(linear)
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    for model in (linear, path, str(path)):
        got = Session(model, "cpu").run({"x": x})
        assert list(got) == ["y", "s"]
        np.testing.assert_allclose(got["y"], x @ WEIGHT, rtol=1e-5)
        np.testing.assert_allclose(got["s"], 2 * (x @ WEIGHT), rtol=1e-5)


def test_outputs_come_in_the_order_asked(linear):
    session = Session(linear, "cpu")
    x = np.ones((1, 4), np.float32)
    assert list(session.run({"x": x}, ["s"])) == ["s"]
    got = session.run({"x": x}, ["s", "y"])
    assert list(got) == ["s", "y"]
    np.testing.assert_allclose(got["s"], 2 * got["y"])
    assert session.run({"x": x}, []) == {}


def test_a_view_that_is_not_contiguous_is_read_rightly(linear):
    x = np.arange(40, dtype=np.float32).reshape(4, 10).T[::2]
    np.testing.assert_allclose(Session(linear, "cpu").run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


def test_tensor_infos(linear, filler):
    session = Session(linear, "cpu")
    assert session.inputs == (TensorInfo("x", np.dtype("float32"), ("n", 4)),)
    assert [info.name for info in session.outputs] == ["y", "s"]
    assert session.providers == (CPU,)
    session = Session(filler, "cpu")
    assert session.inputs == (TensorInfo("shape", np.dtype("int64"), (2,)),)
    assert session.outputs[0].shape == ("h", None)


@pytest.mark.parametrize("name", ["float16", "float64", "bool", "uint8", "int32", "uint64"])
def test_every_dtype_goes_through(name):
    dtype = np.dtype(name)
    element = helper.np_dtype_to_tensor_dtype(dtype)
    model = build([helper.make_node("Identity", ["a"], ["b"])], [("a", element, [2])], [("b", element, [2])])
    session = Session(model, "cpu")
    assert session.inputs[0].dtype == session.outputs[0].dtype == dtype
    array = np.array([0, 1], dtype)
    got = session.run({"a": array})["b"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, array)


def test_type_that_numpy_lacks():
    element = TensorProto.BFLOAT16
    model = build([helper.make_node("Identity", ["a"], ["b"])], [("a", element, [2])], [("b", element, [2])])
    with pytest.raises(ModelError, match=r"tensor\(\w+\), which numpy lacks"):
        Session(model, "cpu")


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, ["['x']"]),
        ({"z": np.ones((1, 4), np.float32)}, ["'z'", "['x']"]),
        ({"x": np.ones((1, 4), np.float32), "w": WEIGHT}, ["'w'", "['x']"]),
        ({"x": np.ones((1, 4))}, ["float64 [1, 4]", "float32 [n, 4]"]),
        ({"x": np.ones(4, np.float32)}, ["float32 [4]", "float32 [n, 4]"]),
        ({"x": np.ones((1, 5), np.float32)}, ["float32 [1, 5]", "float32 [n, 4]"]),
        ({"x": [[1.0, 2.0, 3.0, 4.0]]}, ["list", "numpy array"]),
    ],
)
def test_wrong_feeds_name_what_is_given_and_what_is_due(linear, feeds, words):
    with pytest.raises(ConfigError) as caught:
        Session(linear, "cpu").run(feeds)
    assert all(word in str(caught.value) for word in words)


def test_wrong_output_name(linear):
    with pytest.raises(ConfigError, match=r"no output 'mask'.*y, s"):
        Session(linear, "cpu").run({"x": np.ones((1, 4), np.float32)}, ["mask"])


def test_want_of_memory_tells_shapes_and_prints_nothing(filler, capfd):
    session = Session(filler, "cpu")
    with pytest.raises(RunError, match=r"shape int64\[2\]") as caught:
        session.run({"shape": np.array([1 << 40, 4])})
    assert "smaller images" in caught.value.cure
    assert caught.value.exit_code == 1
    assert capfd.readouterr() == ("", "")
    assert session.run({"shape": np.array([2, 3])})["filled"].shape == (2, 3)  # the session lives on


def test_want_of_memory_tells_the_batch():
    model = build(
        [helper.make_node("Expand", ["a", "shape"], ["b"])],
        [("a", TensorProto.FLOAT, ["n", 1]), ("shape", TensorProto.INT64, [2])],
        [("b", TensorProto.FLOAT, [None, None])],
    )
    with pytest.raises(
        RunError, match=r"ran out of memory on \w+ with a batch of 8, given a float32\[8, 1\]"
    ) as caught:
        Session(model, "cpu").run({"a": np.ones((8, 1), np.float32), "shape": np.array([8, 1 << 40])})
    assert "less than 8" in caught.value.cure


def test_tensors_of_onnxruntime_are_fed_as_arrays_are(linear):
    session = Session(linear, "cpu")
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    arrays = session.run({"x": x})
    kept = dict(zip("ys", session._run_bound({"x": x}, ["y", "s"], ("cpu", 0)), strict=True))
    assert all(isinstance(value, onnxruntime.OrtValue) for value in kept.values())
    np.testing.assert_array_equal(kept["s"].numpy(), arrays["s"])
    further = Session(build([helper.make_node("Neg", ["a"], ["b"])], [("a", 1, ["n", 3])], [("b", 1, ["n", 3])]), "cpu")
    np.testing.assert_array_equal(further.run({"a": kept["y"]})["b"], -arrays["y"])
    with pytest.raises(ConfigError, match=r"'x' .* is float32 \[5, 3\]"):
        session.run({"x": kept["y"]})


def test_results_of_the_cpu_stay_arrays(linear):
    kept = Session(linear, "cpu").run_resident({"x": np.ones((2, 4), np.float32)}, ["y"])
    assert isinstance(kept["y"], np.ndarray)


def test_a_cuda_graph_wants_fixed_shapes():
    fixed = TensorInfo("x", np.dtype("float32"), (1, 4))
    check_fixed("m", [fixed], "enable_cuda_graph")
    for shape in ((1, "n"), (None, 4), ()):
        with pytest.raises(ConfigError, match="enable_cuda_graph is set, and 'y' of m has no fixed shape"):
            check_fixed("m", [fixed, TensorInfo("y", np.dtype("float32"), shape)], "enable_cuda_graph")


def test_a_replay_takes_what_lies_on_a_device_and_leaves_earlier_results_alone():
    # The CPU has no CUDA graphs; where inputs are copied to and outputs from is the same.
    session = Session(PROBE, "cpu")
    session._replay = _Replay(session._session, session.outputs, ("cpu", 0))
    given = np.random.default_rng(0).random((4, 2, 3), dtype=np.float32)
    expected = [Session(PROBE, "cpu").run({"x": x})["y"] for x in given]
    resident = onnxruntime.OrtValue.ortvalue_from_numpy(given[1].copy())
    feeds = [given[0], resident, np.asfortranarray(given[2]), np.repeat(given[3], 2, axis=1)[:, ::2]]
    found = [session.run_resident({"x": x})["y"] for x in feeds]
    np.testing.assert_array_equal(found, expected)
    session._memory = ("cuda", 0)  # also where others would leave them there
    last = session.run_resident({"x": given[1]})["y"]
    assert isinstance(last, np.ndarray) and np.array_equal(last, expected[1])


def test_waiting_threads_do_not_keep_the_cores(linear):
    options = Session(linear, "cpu")._session.get_session_options()
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 26):
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "20"
    else:
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_other_failure_while_running():
    model = build(
        [helper.make_node("Reshape", ["a", "shape"], ["b"])],
        [("a", TensorProto.FLOAT, ["n"]), ("shape", TensorProto.INT64, [2])],
        [("b", TensorProto.FLOAT, [None, None])],
    )
    with pytest.raises(RunError, match=r"a float32\[5\], shape int64\[2\]") as caught:
        Session(model, "cpu").run({"a": np.ones(5, np.float32), "shape": np.array([2, 3])})
    assert "OVSEG_DEBUG" in caught.value.cure


def test_one_session_serves_many_threads(linear):
    session = Session(linear, "cpu", threads=1)

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x = rng.random((int(rng.integers(1, 200)), 4), dtype=np.float32)
            got = session.run({"x": x}, ["y"])["y"]
            if got.shape != (len(x), 3) or not np.allclose(got, x @ WEIGHT, rtol=1e-4):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_no_caller_waits_while_another_runs_again_and_again(linear):
    cpus = usable_cpus()
    session = Session(linear, "cpu", threads=cpus)
    x = np.ones((5_000, 4), np.float32)
    end = time.perf_counter() + 1

    def work(_: int) -> int:
        runs = 0
        while time.perf_counter() < end:
            session.run({"x": x})
            runs += 1
        return runs

    callers = 4 * cpus  # twice as many as may be inside
    with ThreadPoolExecutor(callers) as pool:
        runs = list(pool.map(work, range(callers)))
    assert min(runs) > 0.02 * max(runs)


@pytest.mark.parametrize("wrong", [None, 3, ["model.onnx"]])
def test_a_model_that_is_no_path(wrong):
    with pytest.raises(ConfigError, match="The model is"):
        Session(wrong, "cpu")


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_callers_at_once_than_there_is_memory_for(at_once):
    turns, inside, most = _turns(at_once), [], []

    def work(number: int) -> None:
        with contextlib.suppress(ZeroDivisionError), next(turns):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.001)
            inside.remove(number)
            raise ZeroDivisionError

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(work, range(90)))
    assert len(most) == 90 and max(most) == at_once


def test_callers_of_a_session_are_bounded(linear):
    session = Session(linear, "cpu")
    x = np.ones((1, 4), np.float32)
    with contextlib.ExitStack() as stack:
        for _ in range(2 * usable_cpus()):
            stack.enter_context(next(session._turns))
        ran = threading.Thread(target=session.run, args=({"x": x},), daemon=True)
        ran.start()
        ran.join(0.2)
        assert ran.is_alive()
    ran.join(10)
    assert not ran.is_alive()


def test_a_model_that_does_not_fit_into_memory_is_not_called_damaged(linear, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from a.onnx failed:std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(RunError, match=r"not enough memory to load the model given as bytes: .*bad_alloc\..*ulimit"):
        Session(linear, "cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts by a timer")
def test_ctrl_c_leaves_a_session_to_its_other_callers(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    code = f"""
import os, random, signal, threading
import numpy as np
from ovseg.runtime import usable_cpus
from ovseg.session import Session
session = Session({str(path)!r}, "cpu", threads=2)
x = np.ones((20_000, 4), np.float32)
def work():
    while True:
        session.run({{"x": x}})
for _ in range(3 * usable_cpus()):  # with this thread more than may be inside
    threading.Thread(target=work, daemon=True).start()
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for _ in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
        work()
    except KeyboardInterrupt:
        pass
    other = threading.Thread(target=session.run, args=({{"x": x}},), daemon=True)
    other.start()
    other.join(10)
    if other.is_alive():
        print("stuck", flush=True)
        os._exit(0)
print("alive", flush=True)
os._exit(0)
"""
    assert python(code).stdout.split() == ["alive"]


@pytest.mark.skipif(sys.platform != "linux", reason="the policies are those of Linux")
def test_threads_of_a_session_give_way_and_no_others(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    code = f"""
import os
from ovseg.errors import OvsError
from ovseg.session import Session
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
names = {{os.SCHED_OTHER: "other", os.SCHED_BATCH: "batch", os.SCHED_IDLE: "idle"}}
def policy(task):
    return names[os.sched_getscheduler(task)]
def policies():
    before = set(os.listdir("/proc/self/task"))
    session = Session({str(path)!r}, "cpu", threads=3)
    print(*(policy(int(task)) for task in set(os.listdir("/proc/self/task")) - before), "caller", policy(0))
Session({str(path)!r}, "cpu", threads=1)  # ONNX Runtime, imported, has a thread too
policies()
try:
    Session(b"no model", "cpu")
except OvsError as error:
    print(type(error).__name__, "caller", policy(0))
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
policies()
"""
    assert python(code).stdout.splitlines() == [
        "batch batch caller other",
        "ModelError caller other",
        "idle idle caller idle",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc and sets the affinity")
def test_threads_are_honoured(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    code = f"""
import os, sys
from ovseg.session import Session
def threads_of(**options):
    before = len(os.listdir("/proc/self/task"))
    session = Session({str(path)!r}, "cpu", **options)
    return len(os.listdir("/proc/self/task")) - before + 1  # the calling thread works too
import onnxruntime
print(threads_of(threads=1), threads_of(threads=3))
os.environ["OVSEG_THREADS"] = "4"
print(threads_of(), threads_of(threads=3))
del os.environ["OVSEG_THREADS"]
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(threads_of())
"""
    assert python(code).stdout.split() == ["1", "3", "4", "3", "1"]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 1025, 2**40])
def test_wrong_threads(linear, threads):
    with pytest.raises(ConfigError, match="threads"):
        Session(linear, "cpu", threads=threads)


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1025", "9" * 5000])
def test_wrong_threads_of_the_environment(linear, monkeypatch, threads):
    monkeypatch.setenv("OVSEG_THREADS", threads)
    with pytest.raises(ConfigError, match=f"OVSEG_THREADS is '{threads}'"):
        Session(linear, "cpu")
    Session(linear, "cpu", threads=1)


def test_a_large_model_sets_no_memory_aside_for_the_next_run(linear, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(linear)
    (tmp_path / "model.onnx.data").write_bytes(bytes(2000))
    for limit, kept in ((len(linear) + 2000, True), (len(linear) + 1999, False)):
        monkeypatch.setattr("ovseg.session._LARGE", limit)
        session = Session(tmp_path / "model.onnx", "cpu")
        assert session._session.get_session_options().enable_mem_pattern is kept
        np.testing.assert_allclose(session.run({"x": np.ones((2, 4), np.float32)})["y"], [WEIGHT.sum(0)] * 2)


def test_optimization_levels_change_the_graph_and_not_the_result():
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in ("ab", "bc")]
    model = build(nodes, [("a", TensorProto.FLOAT, [2])], [("c", TensorProto.FLOAT, [2])])
    for level in ("off", "basic", "extended", "all"):
        session = Session(model, "cpu", optimization=level)
        np.testing.assert_array_equal(session.run({"a": np.float32([1, 2])})["c"], [1, 2])
        options = session._session.get_session_options()
        assert (options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL) == (
            level == "off"
        )
    for wrong in ("max", None, []):
        with pytest.raises(ConfigError, match="off, basic, extended, all"):
            Session(model, "cpu", optimization=wrong)


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_corrupt_file_is_named(content, tmp_path, capfd):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    for device in ("cpu", None):
        with pytest.raises(ModelError) as caught:
            Session(path, device)
        assert str(path) in caught.value.cause
        assert "whole ONNX file" in caught.value.cure
    assert capfd.readouterr() == ("", "")


def test_truncated_file_missing_file_and_folder(linear, tmp_path):
    (tmp_path / "half.onnx").write_bytes(linear[: len(linear) // 2])
    for name in ("half.onnx", "nothing.onnx", "."):
        with pytest.raises(ModelError) as caught:
            Session(tmp_path / name, "cpu")
        assert str(tmp_path / name) in caught.value.cause


def test_missing_external_data_is_a_model_error(linear, tmp_path):
    model = onnx.load_model_from_string(linear)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert Session(path, "cpu").run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 3)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"model\.data"):
        Session(path, "cpu")


@CPU_BUILD
@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("gpu", CUDA),
        ("gpu:1", CUDA),
        ("npu:0", "CANNExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_named_device_that_is_not_compiled_in(linear, device, provider, capfd):
    with pytest.raises(DeviceUnavailable) as caught:
        Session(linear, device)
    assert provider in caught.value.cause
    assert f"ONNX Runtime {onnxruntime.__version__} has only" in caught.value.cause
    assert "pip uninstall -y onnxruntime && pip install" in caught.value.cure
    assert "--device cpu" in caught.value.cure
    assert caught.value.exit_code == 2
    assert capfd.readouterr() == ("", "")


def test_named_provider_that_does_not_exist(linear):
    with pytest.raises(DeviceUnavailable, match="BogusExecutionProvider"):
        Session(linear, providers=["BogusExecutionProvider", CPU])


def test_the_providers_asked_for_are_the_ones_used(linear):
    assert Session(linear, providers=[(CPU, {})]).providers == (CPU,)
    device = resolve_device("cpu")
    session = Session(linear, device)
    assert session.device is device
    with pytest.raises(ConfigError, match="resolve_device"):
        Session(linear, device, providers=[CPU])


AUTO = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from ovseg.session import Session
for device in (None, "auto", None):
    session = Session(sys.argv[1], device)
print(session.providers[-1], session.device.kind)
"""


@CPU_BUILD
def test_auto_runs_on_the_cpu_and_says_so_once(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    done = subprocess.run([sys.executable, "-c", AUTO, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["INFO Device auto: running on cpu.", f"{CPU} cpu"]
    assert done.stderr == ""


@CPU_BUILD
def test_auto_warns_where_another_build_lies_over_that_of_a_device(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    both = "import ovseg.runtime, ovseg.session\n"
    both += "ovseg.runtime.installed_runtimes = lambda: ('onnxruntime', 'onnxruntime-gpu')\n"
    both += "ovseg.session.libraries = lambda provider: ['libonnxruntime_providers_cuda.so']\n"
    done = subprocess.run([sys.executable, "-c", both + AUTO, path], capture_output=True, text=True, check=True)
    warning, last = done.stdout.splitlines()
    assert warning.startswith(
        "WARNING Device auto: running on cpu. CUDAExecutionProvider cannot be used: onnxruntime and onnxruntime-gpu "
        "are installed together and overwrite each other's files. Run: pip uninstall -y onnxruntime onnxruntime-gpu && "
    )
    assert last == f"{CPU} cpu"


def test_a_device_that_works_and_does_not_take_a_model_is_told_apart(linear, tmp_path, monkeypatch):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    start = onnxruntime.InferenceSession
    refused = [str(path)]

    def without(model, *arguments, providers, **options):
        if providers[0][0] != CPU and model in refused:
            raise RuntimeError("[ONNXRuntimeError] : " + "here and there " * 100 + "no loops")
        session = start(model, *arguments, providers=[CPU], **options)
        session.get_providers = lambda: [name for name, _ in providers]
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", without)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["DmlExecutionProvider", CPU])
    with pytest.raises(DeviceUnavailable, match=r"^DmlExecutionProvider works, but not with .*linear\.onnx") as caught:
        Session(path, "dml")
    assert caught.value.cause.endswith(" here and there no loops.") and len(caught.value.cause) < 400 + len(str(path))
    assert caught.value.cure.startswith("Use another device for this model")
    refused.append(PROBE)
    with pytest.raises(DeviceUnavailable, match=r"DmlExecutionProvider cannot be used") as caught:
        Session(path, "dml")
    assert "Check that the device exists" in caught.value.cure


@pytest.mark.skipif(not HAS_CUDA or Path("/dev/nvidiactl").exists(), reason="needs a GPU build without a GPU")
def test_auto_with_a_gpu_build_that_cannot_work_warns_once(linear, tmp_path):
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear)
    done = subprocess.run([sys.executable, "-c", AUTO, path], capture_output=True, text=True, check=True)
    warning, last = done.stdout.splitlines()
    assert warning.startswith("WARNING Device auto: running on cpu. CUDAExecutionProvider cannot be used")
    assert last == f"{CPU} cpu"
    with pytest.raises(DeviceUnavailable):
        Session(linear, "gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists() or not HAS_CUDA, reason="needs a CUDA device")
def test_gpu_is_really_used(linear):
    session = Session(linear, "gpu")
    assert session.providers[0] == CUDA
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHT, rtol=1e-2)


def test_warm_up_runs_the_model(linear):
    Session(linear, "cpu").warm_up()
    Session(linear, "cpu").warm_up({"x": (7, 4)})
    with pytest.raises(ConfigError, match=r"\[7, 5\]"):
        Session(linear, "cpu").warm_up({"x": (7, 5)})
    with pytest.raises(ConfigError, match="'z'"):
        Session(linear, "cpu").warm_up({"z": (1,)})


def test_a_model_in_a_folder_that_may_not_be_listed(filler, tmp_path, monkeypatch):
    (tmp_path / "filler.onnx").write_bytes(filler)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert Session(tmp_path / "filler.onnx", "cpu").outputs


def test_a_provider_whose_library_was_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr("ovseg.runtime.provider_folder", lambda: tmp_path)
    monkeypatch.setattr("ovseg.session.provider_folder", lambda: tmp_path)
    error = _not_loaded(Provider("CUDAExecutionProvider"), "ONNX Runtime could not start it")
    assert f"its library is not in {tmp_path}" in error.cause
    assert 'pip install "ovseg[gpu]"' in error.cure


@pytest.mark.skipif(sys.platform != "linux", reason="files of ELF")
def test_a_provider_whose_library_is_cut_off_is_not_given_to_the_loader(linear, tmp_path, monkeypatch):
    sound = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_shared.so"
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(sound.read_bytes()[:-1])
    monkeypatch.setattr("ovseg.runtime.provider_folder", lambda: tmp_path)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr("ovseg.session._said", set())
    start, tried = onnxruntime.InferenceSession, set()

    def noted(*arguments, providers, **options):
        tried.update(name for name, _ in providers)
        return start(*arguments, providers=providers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    with pytest.raises(DeviceUnavailable, match=r"libonnxruntime_providers_cuda\.so is cut off") as caught:
        Session(linear, "gpu")
    assert 'pip install "ovseg[gpu]"' in caught.value.cure
    assert Session(linear).providers == ("CPUExecutionProvider",)
    assert tried == {"CPUExecutionProvider"}


def test_a_name_that_is_too_long():
    with pytest.raises(ModelError, match="no model file aaa"):
        Session("a" * 300, "cpu")


def test_debug_lets_the_log_through(filler, tmp_path):
    path = tmp_path / "filler.onnx"
    path.write_bytes(filler)
    code = f"from ovseg.session import Session; Session({str(path)!r}, 'cpu')"
    assert python(code, OVSEG_DEBUG="0").stderr == ""
    assert "onnxruntime" in python(code, OVSEG_DEBUG="1").stderr

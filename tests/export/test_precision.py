"""fp16 and int8 on small graphs: outputs stay close, files shrink, and what must stay float32 does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from ovseg_export.precision import (
    FolderFeeds,
    PrecisionError,
    choose_method,
    compare_models,
    convert_precision,
    detection_metric,
    embedding_metric,
    mask_metric,
    simulate_fp16,
    to_fp16,
    to_int8_dynamic,
    to_int8_static,
)

from ovseg.errors import ConfigError, ImageError
from ovseg.session import Session

Shape = list[int | str]


def build(
    nodes: list[NodeProto],
    constants: dict[str, np.ndarray],
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
) -> ModelProto:
    def infos(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return Session(model.SerializeToString(), "cpu", threads=1).run(feeds)


def ops(model: ModelProto) -> Counter[str]:
    return Counter(item.op_type for item in model.graph.node)


def relative_error(model: ModelProto, other: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Largest root-mean-square error of an output, relative to its own."""
    first, second = run(model, feeds), run(simulate_fp16(other), feeds)
    assert all(second[name].dtype == np.float32 for name in first)
    return max(float(np.sqrt(np.mean((first[k] - second[k]) ** 2) / np.mean(first[k] ** 2))) for k in first)


@pytest.fixture
def conv_net() -> ModelProto:
    """A stem, a residual pair, an upsampling, and a head of four channels beside one of sixteen."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "image w0 b0", "c0", strides=[2, 2], **pads),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1 b1", "c1", **pads),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", **pads),
        node("Add", "c2 r0", "sum"),
        node("Resize", "sum  scales", "up", mode="linear"),
        node("Conv", "up w3", "c3", **pads),
        node("Relu", "c3", "r3"),
        node("Conv", "r3 w_wide", "logits"),
        node("Sigmoid", "logits", "wide"),
        node("Conv", "r3 w_few", "few"),
    ]
    nodes[6] = helper.make_node("Resize", ["sum", "", "scales"], ["up"], mode="linear")
    constants = {
        "w0": weight(24, 3, 3, 3),
        "b0": rng.normal(size=24).astype(np.float32),
        "w1": weight(24, 24, 3, 3),
        "b1": rng.normal(size=24).astype(np.float32),
        "w2": weight(24, 24, 3, 3),
        "w3": weight(32, 24, 3, 3),
        "w_wide": weight(16, 32, 1, 1),
        "w_few": weight(4, 32, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    sizes: dict[str, Shape] = {"wide": ["n", 16, 32, 32], "few": ["n", 4, 32, 32]}
    return build(nodes, constants, {"image": ["n", 3, 32, 32]}, sizes)


@pytest.fixture
def transformer() -> ModelProto:
    """One block: normalisation, attention of one head, a Gemm-like pair, and a head of three outputs."""
    rng = np.random.default_rng(1)
    nodes = [
        node("LayerNormalization", "tokens scale shift", "normal"),
        *[node("MatMul", f"normal w_{x}", x) for x in "qkv"],
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Mul", "scores factor", "scaled"),
        node("Softmax", "scaled", "weights"),
        node("MatMul", "weights v", "mixed"),
        node("Add", "mixed tokens", "sum"),
        node("MatMul", "sum w_up", "up"),
        node("Relu", "up", "hidden"),
        node("MatMul", "hidden w_down", "down"),
        node("ReduceMean", "down", "pooled", axes=[1], keepdims=0),
        node("Gemm", "pooled w_out b_out", "embedding", transB=1),
    ]
    shapes = {
        "q": (64, 64),
        "k": (64, 64),
        "v": (64, 64),
        "up": (64, 128),
        "down": (128, 64),
        "out": (32, 64),
    }
    constants = {f"w_{name}": (rng.normal(size=shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    constants |= {
        "b_out": rng.normal(size=32).astype(np.float32),
        "scale": np.ones(64, np.float32),
        "shift": np.zeros(64, np.float32),
        "factor": np.array(0.125, np.float32),
    }
    return build(nodes, constants, {"tokens": ["n", 10, 64]}, {"embedding": ["n", 32]})


def pictures(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"image": rng.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(count)]


def tokens() -> dict[str, np.ndarray]:
    return {"tokens": np.random.default_rng(8).normal(size=(2, 10, 64)).astype(np.float32)}


@pytest.mark.parametrize("with_feeds", [False, True])
def test_fp16_of_a_convolutional_net(conv_net: ModelProto, with_feeds: bool) -> None:
    before = conv_net.SerializeToString()
    half = to_fp16(conv_net, pictures() if with_feeds else ())
    onnx.checker.check_model(half)
    assert conv_net.SerializeToString() == before
    assert 0 < relative_error(conv_net, half, pictures()[0]) < 2e-3
    assert half.ByteSize() < 0.6 * conv_net.ByteSize()
    # One cast in, one for each output: none in between.
    assert ops(half)["Cast"] == 3


def test_fp16_keeps_normalisation_and_softmax_in_float32(transformer: ModelProto) -> None:
    half = to_fp16(transformer)
    onnx.checker.check_model(half)
    assert relative_error(transformer, half, tokens()) < 2e-3
    assert half.ByteSize() < 0.6 * transformer.ByteSize()
    written = {item.op_type: item.output[0] for item in half.graph.node}
    assert not written["LayerNormalization"].endswith("_fp16")
    assert not written["Softmax"].endswith("_fp16")
    assert written["Relu"].endswith("_fp16")


def test_fp16_keeps_what_is_large_on_the_feeds_in_float32() -> None:
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a a", "squared"), node("MatMul", "squared w", "y")]
    weight = np.eye(32, dtype=np.float32)
    model = build(nodes, {"w": weight}, {"x": [1, 4, 32]}, {"y": [1, 4, 32]})
    feed = {"x": np.full((1, 4, 32), 300.0, np.float32)}  # its square is beyond 65504
    assert not np.isfinite(run(simulate_fp16(to_fp16(model)), feed)["y"]).any()
    small = {"x": np.zeros((1, 4, 32), np.float32)}
    half = to_fp16(model, [small, feed])
    np.testing.assert_allclose(run(simulate_fp16(half), feed)["y"], 90000.0, rtol=1e-3)
    np.testing.assert_allclose(run(half, feed)["y"], 90000.0, rtol=1e-3)


def test_simulation_rounds_as_numpy_does() -> None:
    weight = np.eye(32, dtype=np.float32)
    model = build([node("MatMul", "x w", "y")], {"w": weight}, {"x": [4, 32]}, {"y": [4, 32]})
    x = (np.random.default_rng(2).normal(size=(4, 32)) * 10.0 ** np.arange(-1, 3)[:, None]).astype(np.float32)
    x[3, 0] = 65504
    np.testing.assert_array_equal(run(simulate_fp16(to_fp16(model)), {"x": x})["y"], x.astype(np.float16))
    assert simulate_fp16(model) is model


@pytest.mark.parametrize("optimization", ["off", "basic", "extended", "all"])
def test_simulation_agrees_with_numpy_in_float16(transformer: ModelProto, optimization: str) -> None:
    """No fusion of ONNX Runtime may undo the rounding, or make it overflow."""
    half, feed = to_fp16(transformer), tokens()
    (truth,) = ReferenceEvaluator(half).run(None, feed)
    session = Session(simulate_fp16(half).SerializeToString(), "cpu", threads=1, optimization=optimization)
    exact = run(transformer, feed)["embedding"]
    ours = session.run(feed)["embedding"]
    assert 0.5 < np.abs(ours - exact).mean() / np.abs(truth - exact).mean() < 1.5


def test_fp16_keeps_coordinates_and_fourier_features_in_float32() -> None:
    """Two points 0.3 pixels apart near 2000 are one in float16; their features must differ."""
    rng = np.random.default_rng(3)
    nodes = [
        node("Div", "points size", "unit"),
        node("MatMul", "unit fourier", "angle"),
        node("Sin", "angle", "features"),
        node("MatMul", "features w", "tokens"),
    ]
    constants = {
        "size": np.array(2048, np.float32),
        "fourier": (rng.normal(size=(2, 32)) * 200).astype(np.float32),
        "w": (rng.normal(size=(32, 32)) / 6).astype(np.float32),
    }
    model = build(nodes, constants, {"points": ["n", 2]}, {"tokens": ["n", 32]})
    half = to_fp16(model)
    written = {item.op_type: item.output[0] for item in half.graph.node if item.op_type != "Cast"}
    assert written == {"Div": "unit", "MatMul": "tokens_fp16", "Sin": "features"}
    feed = {"points": np.array([[1999.2, 1001.1], [1999.5, 1001.1]], np.float32)}
    assert relative_error(model, half, feed) < 2e-3


@pytest.mark.parametrize("shape", [["n", 2], ["n", 5, 4]])
def test_fp16_keeps_what_follows_points_or_boxes_in_float32(shape: Shape) -> None:
    """Up to the first product with a wide matrix."""
    nodes = [
        node("Div", "points size", "unit"),
        node("MatMul", "unit narrow", "spread"),
        node("Relu", "spread", "positive"),
        node("MatMul", "positive w", "tokens"),
        node("Sigmoid", "tokens", "y"),
    ]
    constants = {
        "size": np.array(640, np.float32),
        "narrow": np.ones((int(shape[-1]), 32), np.float32),
        "w": np.ones((32, 32), np.float32),
    }
    half = to_fp16(build(nodes, constants, {"points": shape}, {"y": [*shape[:-1], 32]}))
    assert [item.output[0] for item in half.graph.node if item.op_type != "Cast"] == [
        "unit",
        "spread",
        "positive",
        "tokens_fp16",
        "y_fp16",
    ]


def test_fp16_keeps_what_leads_to_a_sine_in_float32() -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Sigmoid", "a", "unit"),
        node("Mul", "unit frequency", "angle"),
        node("Sin", "angle", "y"),
    ]
    constants = {"w": np.ones((32, 32), np.float32), "frequency": np.array(6.25, np.float32)}
    half = to_fp16(build(nodes, constants, {"x": [1, 4, 32]}, {"y": [1, 4, 32]}))
    written = {item.op_type: item.output[0] for item in half.graph.node if item.op_type != "Cast"}
    assert written == {"MatMul": "a_fp16", "Sigmoid": "unit", "Mul": "angle", "Sin": "y"}


def test_fp16_leaves_a_nested_graph_and_what_it_reads_in_float32() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 32])
        return helper.make_graph([node(op, "a shared", name)], name, [], [output])

    nodes = [
        node("MatMul", "x w", "a"),
        node("Mul", "a shared", "b"),
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node(
            "If", ["positive"], ["c"], then_branch=branch("added", "Add"), else_branch=branch("less", "Sub")
        ),
        node("Add", "b c", "y"),
    ]
    rng = np.random.default_rng(4)
    constants = {
        "w": rng.normal(size=(32, 32)).astype(np.float32),
        "shared": np.full(32, 0.1, np.float32),
        "zero": np.array(0, np.float32),
    }
    model = build(nodes, constants, {"x": [2, 32]}, {"y": [2, 32]})
    half = to_fp16(model)
    stored = {item.name: item.data_type for item in half.graph.initializer}
    # Each side has the constant in its own type: the nested graph's is not rounded.
    assert (stored["shared"], stored["shared_fp16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    for sign in (1, -1):
        feed = {"x": sign * np.abs(rng.normal(size=(2, 32))).astype(np.float32)}
        assert relative_error(model, half, feed) < 2e-3


def test_int8_static_of_a_convolutional_net(conv_net: ModelProto) -> None:
    before = conv_net.SerializeToString()
    small = to_int8_static(conv_net, pictures())
    assert conv_net.SerializeToString() == before
    assert 0.001 < relative_error(conv_net, small, pictures()[0]) < 0.05
    assert small.ByteSize() < 0.5 * conv_net.ByteSize()
    quantised = {item.output[0] for item in small.graph.node if item.op_type == "DequantizeLinear"}
    float_inputs = {
        item.output[0]: item.input[1] not in quantised for item in small.graph.node if item.op_type == "Conv"
    }
    # Both heads write what the user sees, so they stay; the four convolutions before them do not.
    assert sum(float_inputs.values()) == 2
    assert float_inputs["logits"] and float_inputs["few"]
    # The residual sum and the upsampling lie between convolutions: their results are quantised too.
    read = {item.input[0] for item in small.graph.node if item.op_type == "QuantizeLinear"}
    assert {"sum", "up"} <= read
    weights = [numpy_helper.to_array(item) for item in small.graph.initializer if item.data_type == TensorProto.INT8]
    assert max(int(np.abs(array.astype(int)).max()) for array in weights if array.ndim == 4) <= 64


def test_int8_static_leaves_out_what_it_is_told_to(conv_net: ModelProto) -> None:
    small = to_int8_static(conv_net, pictures(), leave=["c2", "sum"])
    quantised = {item.output[0] for item in small.graph.node if item.op_type == "DequantizeLinear"}
    left = [i.output[0] for i in small.graph.node if i.op_type == "Conv" and i.input[1] not in quantised]
    assert sorted(left) == ["c2", "few", "logits"]


def test_int8_dynamic_of_a_transformer(transformer: ModelProto) -> None:
    before = transformer.SerializeToString()
    small = to_int8_dynamic(transformer)
    assert transformer.SerializeToString() == before
    assert 1e-4 < relative_error(transformer, small, tokens()) < 0.05
    assert small.ByteSize() < 0.45 * transformer.ByteSize()
    # q, k, v, up and down; the two products of activations and the last projection stay.
    assert ops(small)["MatMulInteger"] == 5
    assert ops(small)["MatMul"] + ops(small)["Gemm"] == 3


def test_int8_dynamic_quantises_gemm_too() -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "r"), node("Gemm", "r w b", "y", transB=1)]
    model = build(nodes, {"w": weight, "b": weight[0]}, {"x": [2, 64]}, {"y": [2, 64]})
    assert ops(to_int8_dynamic(model))["MatMulInteger"] == 1


def test_method_follows_where_the_weights_are(conv_net: ModelProto, transformer: ModelProto) -> None:
    assert choose_method(conv_net, "int8") == "int8 static"
    assert choose_method(transformer, "int8") == "int8 dynamic"
    assert choose_method(conv_net, "int8", "decoder") == "fp32"
    assert choose_method(conv_net, "fp16", "decoder") == "fp16"


def test_method_leaves_heads_out() -> None:
    """An embedding's last product holds most of the weights, and stays float32."""
    rng = np.random.default_rng(7)
    nodes = [
        node("Conv", "image w", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "c2"),
        node("GlobalAveragePool", "c2", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat head", "y"),
    ]
    shapes = {"w": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "head": (16, 512)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = build(nodes, constants, {"image": [1, 3, 8, 8]}, {"y": [1, 512]})
    assert choose_method(model, "int8") == "int8 static"
    results, _ = convert_precision(
        {"model": model}, "int8", [{"image": x["image"][:1, :, :8, :8]} for x in pictures(3)]
    )
    assert ops(results["model"])["QuantizeLinear"] > 0
    only_head = build([node("MatMul", "flat head", "y")], constants, {"flat": [1, 16]}, {"y": [1, 512]})
    assert choose_method(only_head, "int8") == "fp32"


def test_convert_precision_chains_graphs_and_reports(conv_net: ModelProto) -> None:
    nodes = [node("Conv", "wide w", "low_res_masks"), node("Mul", "low_res_masks gain", "scaled")]
    weight = np.random.default_rng(6).normal(size=(1, 16, 1, 1)).astype(np.float32)
    constants = {
        "w": weight - weight.mean(),  # for logits of both signs
        "gain": np.array(2, np.float32),
    }
    sizes: dict[str, Shape] = {"low_res_masks": ["n", 1, 32, 32], "scaled": ["n", 1, 32, 32]}
    decoder = build(nodes, constants, {"wide": ["n", 16, 32, 32]}, sizes)
    models = {"encoder": conv_net, "decoder": decoder}
    results, report = convert_precision(models, "int8", pictures(3), metric=mask_metric)
    assert report.method == {"encoder": "int8 static", "decoder": "fp32"}
    assert results["decoder"] is decoder
    assert report.size["encoder"] == (conv_net.ByteSize(), results["encoder"].ByteSize())
    assert report.kept["encoder"] == {"Conv": 2}
    assert report.pictures == 3
    iou = report.difference["mask_iou"]
    assert 0.9 < iou["min"] <= iou["mean"] < 1.0
    exact, same = convert_precision(models, "fp32", pictures(2), metric=mask_metric)
    assert same.difference["mask_iou"] == {"mean": 1.0, "min": 1.0, "max": 1.0}
    assert exact["encoder"] is conv_net
    half, fine = convert_precision(models, "fp16", pictures(2), metric=mask_metric)
    assert fine.difference["mask_iou"]["min"] > iou["min"]
    assert fine.kept == {"encoder": {}, "decoder": {}}
    # Without a metric each output's largest difference is reported.
    assert set(compare_models(models, half, pictures(2))) == {"low_res_masks", "scaled"}


def test_bad_requests_say_what_to_do(conv_net: ModelProto, transformer: ModelProto) -> None:
    with pytest.raises(ConfigError, match=r"'int4'.*fp32, fp16, int8"):
        convert_precision({"model": conv_net}, "int4")
    with pytest.raises(ConfigError, match="calibration"):
        convert_precision({"model": conv_net}, "int8")
    with pytest.raises(ConfigError, match="calibration"):
        to_int8_static(conv_net, [])
    with pytest.raises(PrecisionError, match="no convolution"):
        to_int8_static(transformer, [tokens()])
    with pytest.raises(PrecisionError, match="no matrix"):
        to_int8_dynamic(conv_net)
    plain = build([node("Relu", "x", "y")], {}, {"x": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]})
    with pytest.raises(PrecisionError, match="no weights"):
        to_fp16(plain)
    with pytest.raises(PrecisionError, match="gains by int8"):
        convert_precision({"model": plain}, "int8")


def test_calibration_folder_is_read_one_picture_at_a_time(tmp_path: Path) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 6, 3), 10 * i, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    seen: list[int] = []

    def prepare(pixels: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(int(pixels[0, 0, 0]))
        return {"image": pixels}

    feeds = FolderFeeds(tmp_path, prepare, limit=3)
    assert seen == []
    assert len(feeds) == 3
    assert [int(feed["image"].max()) for feed in feeds] == [0, 10, 30]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError):
        FolderFeeds(empty, prepare)


def test_masks_of_two_runs_are_compared_by_iou() -> None:
    logits = np.full((2, 1, 2, 4), -1.0, np.float32)
    logits[0, 0, :, :2] = 1
    other = logits.copy()
    other[0, 0, 0, 0] = -1
    assert mask_metric({"low_res_masks": logits}, {"low_res_masks": other}) == {"mask_iou": [0.75, 1.0]}


def test_embeddings_are_compared_by_cosine() -> None:
    first = np.array([[1, 0], [3, 4]], np.float32)
    second = np.array([[0, 2], [6, 8]], np.float32)
    assert embedding_metric({"e": first}, {"e": second})["embedding_cosine"] == pytest.approx([0.0, 1.0])


def test_detections_are_matched_by_class_and_overlap() -> None:
    reference = np.array([[0, 0.9, 0, 0, 10, 10], [1, 0.8, 20, 20, 30, 30], [0, 0.2, 50, 50, 60, 60]], np.float32)
    found = np.array([[1, 0.9, 0, 0, 10, 10], [0, 0.7, 0, 0, 10, 12]], np.float32)
    masks, others = np.zeros((3, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    masks[0, :, :2], others[1, :, :1] = 1, 1
    values = detection_metric("b", "m")({"b": reference, "m": masks}, {"b": found, "m": others})
    assert values["found"] == [1.0, 0.0]
    assert values["box_difference"] == [2.0]
    assert values["score_difference"] == pytest.approx([0.2])
    assert values["mask_iou"] == [0.5]

"""Models in fewer bits: float16, and int8 with ranges of activations known ahead (static) or not (dynamic).

models in float32 + feeds → convert or quantise → run both on the feeds → models + report

What stays float32, and why:

- **fp16** has 11 significant bits and ends at 65504: a value near 2048 is exact to one pixel only, and
  sin(2 pi f x) makes an error of x f times larger. So coordinates stay float32: what follows a graph
  input that is no picture or embedding (points, boxes, labels, scales), and what leads to the arguments in
  `_COORDINATES`, both up to the next product with a matrix of weights. So do operators that sum, exponentiate
  or sort (`_FP32_OPS`: normalisation, softmax, ...), operators with nested graphs, and every operator with a
  value above `_LARGE`, among its constants or on the feeds.
- **int8 static** takes convolutions, and between two of them the operators that are exact on integers or
  nearly so (`_BETWEEN`); anything else would cost casts and errors for no speed. The last convolution before
  an output or a selection writes coordinates, scores or embeddings, for which 8 bits are too few: it stays
  float32, as do products with few inputs or outputs (`_FEW`). Matrices of weights are treated as in int8
  dynamic.
- **int8 dynamic** takes MatMul and Gemm with constant weights, under the same two rules. Products of two
  activations stay float32: they hold no weights, and take little time.

Weights are int8 with one scale for each output channel, in 7 bits: x86 processors without VNNI add two
products u8 x s8 in 16 bits, which full ones overflow. Activations are uint8, for which ONNX Runtime has its
fastest x86 kernels.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ovseg.errors import ConfigError, ImageError, MissingExtra, ModelError
from ovseg.images import read_images
from ovseg.session import Session
from ovseg_export.errors import NO_ROOM
from ovseg_export.half import restore_from_half
from ovseg_export.lower.graph import node_graphs
from ovseg_export.tidy import reads

PRECISIONS = ("fp32", "fp16", "int8")

Feeds = Mapping[str, np.ndarray]
# Of one picture: outputs in float32, those in the other precision → name → a value for each mask, row or box.
Metric = Callable[[Feeds, Feeds], Mapping[str, Sequence[float]]]

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FP32_OPS = frozenset(
    [
        "Bernoulli",
        "Cos",
        "CumSum",
        "Einsum",
        "Exp",
        "EyeLike",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "NonMaxSuppression",
        "OneHot",
        "Pow",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Reciprocal",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "RoiAlign",
        "ScatterElements",
        "ScatterND",
        "Sin",
        "Softmax",
        "Sqrt",
        "TopK",
    ]
)
# Operators that take coordinates or scores to sort by, and the inputs that do; None: all.
_COORDINATES: dict[str, tuple[int, ...] | None] = {
    "Cos": None,
    "GridSample": (1,),
    "NonMaxSuppression": None,
    "RoiAlign": (1,),
    "Sin": None,
    "TopK": (0,),
}
_SELECTIONS = frozenset({*_COORDINATES, "GatherND", "If", "Loop", "Scan"})
_BETWEEN = frozenset(
    [
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
_LARGE = 2048.0
_FEW = 16
_FIRST = 10
"""One in so many convolutions, the first ones, stays float32: all others see the picture through them."""
_HALF = "_fp16"
# Protobuf cannot hold 2 GiB; the rest is for the graph itself.
_INLINE_LIMIT = 1_900_000_000


class PrecisionError(ModelError):
    """A model that cannot be had in the wanted precision."""


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        precision: one of `PRECISIONS`.
        method: role to `fp32`, `fp16`, `int8 static` or `int8 dynamic`.
        size: role to (bytes before, bytes after).
        kept: role to the number of operators that stay float32, by type: for int8 those with weights.
        difference: name of the task's metric to its mean, min and max over everything compared.
        pictures: how many pictures were compared.
    """

    precision: str
    method: dict[str, str]
    size: dict[str, tuple[int, int]]
    kept: dict[str, dict[str, int]]
    difference: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON and YAML take it, for `parity.json` and `model.yaml`."""
        return {
            "precision": self.precision,
            "method": dict(self.method),
            "size": {role: list(pair) for role, pair in self.size.items()},
            "kept_in_fp32": {role: dict(count) for role, count in self.kept.items()},
            "difference_to_fp32": {name: dict(values) for name, values in self.difference.items()},
            "pictures": self.pictures,
        }


class FolderFeeds(Sequence[Feeds]):
    """The pictures of a folder as feeds, read and prepared when asked for, so that memory holds one."""

    def __init__(self, folder: str | Path, prepare: Callable[[np.ndarray], Feeds], *, limit: int | None = 32) -> None:
        """List the pictures.

        Args:
            folder: folder of pictures.
            prepare: the model's own preprocessing: HxWx3 uint8 BGR to the inputs of its graphs, those left
                out that an earlier graph computes.
            limit: largest number of pictures, taken at even distances; None takes all.

        Raises:
            ImageError: if the folder does not exist or has no picture that can be read.
        """
        bad: list[ImageError] = []
        found = dict.fromkeys(
            str(image.path) for image in read_images(str(folder), on_error=bad.append) if image.page_index in (None, 0)
        )
        if not found:
            raise ImageError(
                f"The calibration folder {folder} has no picture that can be read ({len(bad)} cannot).",
                "Give a folder of some 30 pictures like those that the model will see.",
            )
        paths = list(found)
        if limit is not None and len(paths) > limit:
            paths = [paths[i * len(paths) // limit] for i in range(limit)]
        self._paths, self._prepare = paths, prepare

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._prepare(next(iter(read_images(self._paths[index]))).pixels)


def convert_precision(
    models: Mapping[str, ModelProto],
    precision: str,
    calibration: Sequence[Feeds] = (),
    *,
    metric: Metric | None = None,
    check: Sequence[Feeds] | None = None,
    methods: Mapping[str, str] | None = None,
) -> tuple[dict[str, ModelProto], Report]:
    """Convert the graphs of a model, and measure the difference to float32 on the model's own task.

    Args:
        models: role to model, in the order in which they run: an input of a later one may be an output of an
            earlier one. They are not changed.
        precision: one of `PRECISIONS`.
        calibration: for each picture the inputs of all graphs, those that an earlier graph computes left out.
            Needed for int8 where a graph has convolutions; fp16 finds operators of large range with it.
        metric: compares the outputs of two runs, such as `mask_metric`; None for the largest difference
            of each output.
        check: feeds to measure the difference on; None for `calibration`.
        methods: role to a method, where `choose_method` shall not choose it.

    Returns:
        Role to model of the wanted precision, with float32 inputs and outputs as before; and what was done.

    Raises:
        ConfigError: if the precision is not known, or int8 needs calibration pictures and has none.
        PrecisionError: if nothing in the models can be converted, or ONNX Runtime's tools fail on them.
        MissingExtra: if they are not installed.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"The precision {precision!r} is not known.", f"Use one of {', '.join(PRECISIONS)}.")
    given = models
    models = {role: restore_from_half(model) for role, model in models.items()}
    chosen = {
        role: (methods or {}).get(role) or choose_method(model, precision, role) for role, model in models.items()
    }
    if precision != "fp32" and not any(method != "fp32" for method in chosen.values()):
        raise PrecisionError(f"No graph of the model gains by {precision}.", "Export it with --precision fp32.")
    wants_feeds = [role for role, method in chosen.items() if method == "int8 static"]
    if wants_feeds and not calibration:
        raise ConfigError(
            f"int8 of the convolutions in {wants_feeds[0]} needs calibration pictures.",
            "Give --calibration a folder of some 30 pictures like those that the model will see.",
        )
    results: dict[str, ModelProto] = {}
    kept: dict[str, dict[str, int]] = {}
    for role, model in models.items():
        feeds = _feeds_of(models, calibration, role) if calibration else ()
        if chosen[role] == "fp16":
            results[role] = to_fp16(model, feeds)
        elif chosen[role] == "int8 static":
            results[role] = to_int8_static(model, feeds)
        elif chosen[role] == "int8 dynamic":
            results[role] = to_int8_dynamic(model)
        else:
            results[role] = given[role]
        kept[role] = _kept(model, results[role], chosen[role])
    size = {role: (given[role].ByteSize(), results[role].ByteSize()) for role in models}
    checked = calibration if check is None else check
    difference = compare_models(models, results, checked, metric) if checked else {}
    return results, Report(precision, chosen, size, kept, difference, len(checked))


def choose_method(model: ModelProto, precision: str, role: str = "model") -> str:
    """How to bring a graph to a precision: `fp32` (leave it), `fp16`, `int8 static` or `int8 dynamic`.

    Static where most of the work (but of heads) is in convolutions, else dynamic. The decoder of a promptable model
    stays float32 in int8: it is small, and its outputs are the masks themselves.
    """
    if precision in ("fp32", "fp16"):
        return precision
    if role == "decoder":
        return "fp32"
    types = _types(model)
    graph = _Graph(model, types)
    work: Counter[str] = Counter()
    for node in graph.products():
        if not graph.is_head(node):
            work[node.op_type] += int(np.prod(graph.initializers[node.input[1]].dims)) * _places(node, types)
    in_matrices = work["MatMul"] + work["Gemm"]
    in_convolutions = work["Conv"]
    if not in_matrices and not in_convolutions:
        return "fp32"
    return "int8 static" if in_convolutions > in_matrices else "int8 dynamic"


def _places(node: NodeProto, types: Mapping[str, tuple[int, tuple[int, ...] | None]]) -> int:
    """How often a product uses each of its weights for one picture: 1 for each pixel or row of its output."""
    _, shape = types.get(node.output[0], (0, None))
    sides = (shape[2:] if node.op_type == "Conv" else shape[1:-1]) if shape else ()
    return math.prod(side or 1 for side in sides)


def to_fp16(model: ModelProto, feeds: Iterable[Feeds] = ()) -> ModelProto:
    """Convert to float16, with float32 inputs and outputs and the islands of float32 that the module names.

    ONNX Runtime's converter is not used: it names two casts alike where two islands read one tensor, rounds
    constants that an island shares with the rest, and does not see what nested graphs read from outside.

    Args:
        model: a float32 model.
        feeds: inputs, of which the first four show the operators of large range; without, constants alone do.

    Raises:
        PrecisionError: if the model has nothing to convert.
    """
    types = _types(model)
    graph = _Graph(model, types)
    islands = graph.fp32_islands(_ranges(model, types, islice(feeds, 4)))
    floats = {name for name, (element, _) in types.items() if element == TensorProto.FLOAT}
    weights = graph.initializers
    nodes: list[NodeProto] = []
    constants: dict[str, TensorProto] = {}
    there = {value.name for value in model.graph.input}

    def want(name: str, half: bool) -> str:
        """Name of a tensor in the wanted type; a cast or a constant is added the first time."""
        wanted = name + _HALF if half else name
        if name in weights:
            if wanted not in constants:
                constants[wanted] = _half(weights[name], wanted) if half else weights[name]
        elif wanted not in there:
            source, to = (name, TensorProto.FLOAT16) if half else (name + _HALF, TensorProto.FLOAT)
            nodes.append(helper.make_node("Cast", [source], [wanted], name=f"cast_{wanted}", to=to))
            there.add(wanted)
        return wanted

    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        half = original.output[0] not in islands
        for i, name in enumerate(original.input):
            if name in floats:
                # The scales of Resize are float32 by definition.
                node.input[i] = want(name, half and not (node.op_type == "Resize" and i == 2))
            elif name in weights:
                constants[name] = weights[name]
        for name in sorted(reads(original) - set(original.input)):  # by nested graphs
            if name in floats:
                want(name, False)
            elif name in weights:
                constants[name] = weights[name]
        if half:
            _halve_attributes(node)
            for i, name in enumerate(original.output):
                node.output[i] = name + _HALF if name in floats else name
        nodes.append(node)
        there.update(node.output)
    for value in model.graph.output:
        if value.name in floats:
            want(value.name, False)
    if not any(name.endswith(_HALF) for name in constants):
        raise PrecisionError("The model has no weights that float16 could hold.", "Use --precision fp32.")
    return _with_graph(model, nodes, constants)


def simulate_fp16(model: ModelProto) -> ModelProto:
    """Compute in float32 what `to_fp16` made float16, each result rounded to a float16 value.

    Without float16 kernels, as on most CPUs, ONNX Runtime computes whole stretches of a float16 model in
    float32 and rounds nothing in between: its outputs there say little about those on a GPU. Tensor cores
    add up in float32 and round results, as is done here.

    Args:
        model: a model from `to_fp16`; one without float16 is returned as it is.
    """
    constants = {item.name: item for item in model.graph.initializer}
    if not any(item.data_type == TensorProto.FLOAT16 for item in constants.values()):
        return model
    for name, item in constants.items():
        if item.data_type == TensorProto.FLOAT16:
            constants[name] = numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float32), name)
    # 8193 x - (8193 x - x) keeps 11 bits of 24 (Dekker 1971); 65536 times 2^112 is more than float32 holds.
    for name, value in (("split", 8193.0), ("up", 2.0**112), ("down", 2.0**-112)):
        constants[f"round_{name}"] = numpy_helper.from_array(np.array(value, np.float32), f"round_{name}")
    nodes: list[NodeProto] = []
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT16:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        nodes.append(node)
        for i, name in enumerate(original.output):
            if name.endswith(_HALF):
                node.output[i] = f"{name}_exact"
                steps = (
                    ("Mul", f"{name}_exact", "round_split", f"{name}_large"),
                    ("Sub", f"{name}_large", f"{name}_exact", f"{name}_rest"),
                    ("Sub", f"{name}_large", f"{name}_rest", f"{name}_short"),
                    ("Mul", f"{name}_short", "round_up", f"{name}_up"),
                    ("Mul", f"{name}_up", "round_down", f"{name}_same"),
                    # A last product would be fused into the next MatMul, and overflow.
                    ("Sub", f"{name}_short", f"{name}_same", f"{name}_zero"),
                    ("Sub", f"{name}_short", f"{name}_zero", name),
                )
                nodes += [helper.make_node(op, [first, second], [to]) for op, first, second, to in steps]
    return _with_graph(model, nodes, constants)


def to_int8_dynamic(model: ModelProto, *, reduce_range: bool = True) -> ModelProto:
    """Store the weights of MatMul and Gemm as int8; activations are quantised as they come.

    Args:
        model: a float32 model.
        reduce_range: 7 bits for weights, right on every processor; False: 8 bits, which need VNNI.

    Raises:
        PrecisionError: if there are no such weights, or ONNX Runtime's quantiser fails.
        MissingExtra: if it is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        prepared = _prepare(model, Path(scratch))
        names = _matrices(_Graph(prepared))
        if not names:
            raise PrecisionError("The model has no matrix of weights to quantise.", "Use --precision fp32.")
        return _quantise_matrices(prepared, names, Path(scratch), reduce_range)


def to_int8_static(
    model: ModelProto, feeds: Iterable[Feeds], *, leave: Sequence[str] = (), reduce_range: bool = True
) -> ModelProto:
    """Quantise convolutions with the ranges that feeds show (QDQ), and matrices of weights dynamically.

    The first tenth of the convolutions is left: with SAM-tiny it makes 0.987 of a mean IoU of 0.963.

    Args:
        model: a float32 model.
        feeds: its inputs, for some 30 pictures.
        leave: names of tensors whose operators shall stay float32.
        reduce_range: as in `to_int8_dynamic`.

    Raises:
        ConfigError: if there are no feeds.
        PrecisionError: if there is no convolution to quantise, or ONNX Runtime's quantiser fails.
        MissingExtra: if it is not installed.
    """
    quantization = _tool("onnxruntime.quantization")
    stream = iter(feeds)
    first = next(stream, None)
    if first is None:
        raise ConfigError("There are no calibration pictures.", "Give a folder of some 30 pictures.")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rest = chain([first], stream)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.rest, None)
            return None if feed is None else dict(feed)

    with tempfile.TemporaryDirectory() as scratch:
        prepared = _prepare(model, Path(scratch))
        graph = _Graph(prepared)
        chosen = [node for node in graph.products() if node.op_type == "Conv" and not graph.is_head(node)]
        chosen = chosen[len(chosen) // _FIRST :]
        chosen = [node for node in [*chosen, *graph.between(chosen)] if not set(node.output) & set(leave)]
        if not any(node.op_type == "Conv" for node in chosen):
            raise PrecisionError("The model has no convolution to quantise.", "Use --precision fp32 or fp16.")
        source, target = Path(scratch) / "prepared.onnx", Path(scratch) / "static.onnx"
        onnx.save(prepared, str(source))
        with _quantiser("static"):
            quantization.quantize_static(
                str(source),
                str(target),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=sorted({node.op_type for node in chosen}),
                nodes_to_quantize=[node.name for node in chosen],
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        names = [name for name in _matrices(graph) if not set(graph.named[name].output) & set(leave)]
        result = onnx.load(str(target))
        return _quantise_matrices(result, names, Path(scratch), reduce_range) if names else result


def compare_models(
    reference: Mapping[str, ModelProto],
    models: Mapping[str, ModelProto],
    feeds: Iterable[Feeds],
    metric: Metric | None = None,
) -> dict[str, dict[str, float]]:
    """Run two versions of a model on the same pictures.

    Args:
        reference: role to float32 model, in the order in which they run.
        models: the same roles, converted. What is float16 in them is computed as `simulate_fp16` does.
        feeds: as `calibration` of `convert_precision`.
        metric: as in `convert_precision`.

    Returns:
        Name of a measure to its `mean`, `min` and `max`.
    """
    measure = metric or _output_differences
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        first = _sessions(reference, Path(scratch) / "reference")
        simulated = {role: simulate_fp16(model) for role, model in models.items()}
        second = _sessions(simulated, Path(scratch) / "converted")
        for feed in feeds:
            for name, values in measure(_run(first, feed), _run(second, feed)).items():
                found[name] += [float(value) for value in values]
    return {
        name: {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
        for name, values in found.items()
        if values
    }


def mask_metric(reference: Feeds, outputs: Feeds) -> dict[str, list[float]]:
    """IoU of the first masks of `low_res_masks` [N, M, h, w] (logits), by prompt; two empty masks have 1."""
    pairs = zip(reference["low_res_masks"][:, 0] > 0, outputs["low_res_masks"][:, 0] > 0, strict=True)
    return {"mask_iou": [_mask_iou(first, second) for first, second in pairs]}


def embedding_metric(reference: Feeds, outputs: Feeds) -> dict[str, list[float]]:
    """Cosine of each row of every output [N, D]."""
    cosines: list[float] = []
    for name, first in reference.items():
        if first.ndim == 2 and first.dtype == np.float32:
            a, b = first.astype(np.float64), outputs[name].astype(np.float64)
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines += list((a * b).sum(1) / np.maximum(norms, 1e-12))
    return {"embedding_cosine": cosines}


def detection_metric(boxes: str = "boxes", masks: str | None = None, *, threshold: float = 0.5) -> Metric:
    """A metric of detections: those of float32 that are found again, and how much they differ.

    Args:
        boxes: output [N, 6] of rows class, score, xmin, ymin, xmax, ymax in pixels.
        masks: output [N, h, w] of the same rows, 0 and 1 or probabilities.
        threshold: least score of a detection that counts, and least IoU of a match, which has the same class.

    Returns:
        A metric with `found` (1 or 0 for each detection of float32), and for those found `box_difference` in
        pixels, `score_difference` and `mask_iou`.
    """

    def measure(reference: Feeds, outputs: Feeds) -> dict[str, list[float]]:
        values: dict[str, list[float]] = defaultdict(list)
        rows, others = reference[boxes], outputs[boxes]
        free = set(range(len(others)))
        for i in np.argsort(-rows[:, 1], kind="stable"):
            if rows[i, 1] < threshold:
                break
            overlaps = {j: _box_iou(rows[i, 2:6], others[j, 2:6]) for j in free if others[j, 0] == rows[i, 0]}
            j = max(overlaps, key=lambda j: overlaps[j], default=-1)
            if j < 0 or overlaps[j] < threshold:
                values["found"].append(0.0)
                continue
            free.remove(j)
            values["found"].append(1.0)
            values["box_difference"].append(float(np.abs(rows[i, 2:6] - others[j, 2:6]).max()))
            values["score_difference"].append(float(abs(rows[i, 1] - others[j, 1])))
            if masks is not None:
                values["mask_iou"].append(_mask_iou(reference[masks][i] > 0.5, outputs[masks][j] > 0.5))
        return values

    return measure


def _output_differences(reference: Feeds, outputs: Feeds) -> dict[str, list[float]]:
    differences = {}
    for name, first in reference.items():
        if first.shape != outputs[name].shape:
            differences[name] = [float("inf")]
        elif first.size:
            differences[name] = [float(np.abs(first.astype(np.float64) - outputs[name]).max())]
    return differences


def _mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    union = int(np.logical_or(first, second).sum())
    return int(np.logical_and(first, second).sum()) / union if union else 1.0


def _box_iou(first: np.ndarray, second: np.ndarray) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common
    return common / union if union > 0 else 0.0


class _Graph:
    """A model's nodes with their neighbours; a node's key is its first output."""

    def __init__(
        self, model: ModelProto, types: Mapping[str, tuple[int, tuple[int, ...] | None]] | None = None
    ) -> None:
        self.types = types or {}
        self.nodes = list(model.graph.node)
        self.named = {node.name: node for node in self.nodes}
        self.inputs = [value.name for value in model.graph.input]
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in sorted(reads(node)):
                self.readers[name].append(node)
        self._products = {node.output[0] for node in self.nodes if self._is_product(node)}

    def _is_product(self, node: NodeProto) -> bool:
        """Whether a node multiplies by constant weights with enough inputs and outputs to be worth it."""
        weight = self.initializers.get(node.input[1]) if node.op_type in _PRODUCTS else None
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            return False
        attributes = {item.name: item.i for item in node.attribute}
        group, dims = attributes.get("group", 1), list(weight.dims)
        if node.op_type == "Conv":
            outputs, inputs = dims[0], int(np.prod(dims[1:])) * (group if group == dims[0] else 1)
        elif node.op_type == "ConvTranspose":
            outputs, inputs = dims[1] * group, dims[0]
        else:
            inputs, outputs = dims[-2:] if not attributes.get("transB") else dims[::-1]
        return inputs >= _FEW and outputs >= _FEW

    def products(self) -> list[NodeProto]:
        """Convolutions, MatMul and Gemm with constant weights, those with few inputs or outputs left out."""
        return [node for node in self.nodes if node.output[0] in self._products]

    def after(self, node: NodeProto) -> Iterator[NodeProto]:
        for name in node.output:
            yield from self.readers[name]

    def before(self, node: NodeProto, indices: tuple[int, ...] | None = None) -> Iterator[NodeProto]:
        for i, name in enumerate(node.input):
            if name in self.makers and (indices is None or i in indices):
                yield self.makers[name]

    def is_head(self, node: NodeProto) -> bool:
        """Whether nothing but outputs and selections comes after a product: no other product."""
        waiting, seen = list(self.after(node)), set()
        while waiting:
            other = waiting.pop()
            if other.output[0] in self._products:
                return False
            if other.output[0] not in seen and other.op_type not in _SELECTIONS:
                seen.add(other.output[0])
                waiting += self.after(other)
        return True

    def between(self, products: Sequence[NodeProto]) -> list[NodeProto]:
        """The nodes that join these products to one another through operators in `_BETWEEN` alone."""
        ends = {node.output[0] for node in products}

        def reach(step: Callable[[NodeProto], Iterator[NodeProto]]) -> set[str]:
            waiting = [other for node in products for other in step(node)]
            seen: set[str] = set()
            while waiting:
                node = waiting.pop()
                if node.op_type in _BETWEEN and node.output[0] not in seen | ends:
                    seen.add(node.output[0])
                    waiting += step(node)
            return seen

        both = reach(self.after) & reach(self.before)
        return [node for node in self.nodes if node.output[0] in both]

    def fp32_islands(self, ranges: Mapping[str, float]) -> set[str]:
        """Keys of the nodes that float16 must leave alone."""
        islands = set()
        for node in self.nodes:
            names = [name for name in (*node.input, *node.output) if name]
            if (
                node.op_type in _FP32_OPS
                or next(node_graphs(node), None) is not None
                or any(ranges.get(name, 0.0) > _LARGE for name in names)
                or not all(name in self.types for name in names)
            ):
                islands.add(node.output[0])
        for name in self.inputs:
            _, shape = self.types.get(name, (0, None))
            if shape is not None and (len(shape) <= 2 or 0 < shape[-1] <= 8):
                islands |= self._walk(self.readers[name], self.after)
        for node in self.nodes:
            if node.op_type in _COORDINATES:
                islands |= self._walk(self.before(node, _COORDINATES[node.op_type]), self.before)
        return islands

    def _walk(self, start: Iterable[NodeProto], step: Callable[[NodeProto], Iterator[NodeProto]]) -> set[str]:
        """Keys of the nodes from `start` on, up to products."""
        waiting = list(start)
        seen: set[str] = set()
        while waiting:
            node = waiting.pop()
            if node.output[0] not in seen | self._products:
                seen.add(node.output[0])
                waiting += step(node)
        return seen


def _types(model: ModelProto) -> dict[str, tuple[int, tuple[int, ...] | None]]:
    """Element type and shape (0 where open; None if unknown) of every tensor whose type is known."""
    skeleton = ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.graph.name = model.graph.name
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.input.extend(model.graph.input)
    skeleton.graph.output.extend(model.graph.output)
    for item in model.graph.initializer:
        if item.ByteSize() < 4096:
            skeleton.graph.initializer.append(item)
        else:
            skeleton.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    inferred = shape_inference.infer_shapes(skeleton).graph
    types: dict[str, tuple[int, tuple[int, ...] | None]] = {
        item.name: (item.data_type, tuple(item.dims)) for item in model.graph.initializer
    }
    for value in chain(inferred.input, inferred.value_info, inferred.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            shape = tuple(side.dim_value for side in kind.shape.dim) if kind.HasField("shape") else None
            types[value.name] = (kind.elem_type, shape)
    return types


def _ranges(
    model: ModelProto, types: Mapping[str, tuple[int, tuple[int, ...] | None]], feeds: Iterable[Feeds]
) -> dict[str, float]:
    """Largest absolute value of every float tensor: constants, and what the feeds show."""
    ranges = {}
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            ranges[item.name] = float(np.abs(values).max()) if values.size else 0.0
    stream = list(feeds)
    if not stream:
        return ranges
    watched = ModelProto()
    watched.CopyFrom(model)
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "range_zero")
    flat = numpy_helper.from_array(np.array([-1], np.int64), "range_flat")
    watched.graph.initializer.extend([zero, flat])
    names: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.output:
            if types.get(name, (0, None))[0] == TensorProto.FLOAT:
                # With a zero added, for a tensor may be empty.
                tag = names[name] = f"range_{len(names)}"
                watched.graph.node.extend(
                    [
                        helper.make_node("Reshape", [name, "range_flat"], [f"{tag}_flat"]),
                        helper.make_node("Abs", [f"{tag}_flat"], [f"{tag}_abs"]),
                        helper.make_node("Concat", [f"{tag}_abs", "range_zero"], [f"{tag}_all"], axis=0),
                        helper.make_node("ReduceMax", [f"{tag}_all"], [tag], keepdims=0),
                    ]
                )
                watched.graph.output.append(helper.make_tensor_value_info(tag, TensorProto.FLOAT, []))
    with tempfile.TemporaryDirectory() as scratch:
        session = _open(watched, Path(scratch) / "ranges.onnx")
        for feed in stream:
            found = session.run(feed, list(names.values()))
            for name, tag in names.items():
                ranges[name] = max(ranges.get(name, 0.0), float(found[tag]))
    for value in model.graph.input:
        arrays = [feed[value.name] for feed in stream]
        if arrays[0].dtype == np.float32:
            ranges[value.name] = max(float(np.abs(array).max(initial=0.0)) for array in arrays)
    return ranges


def _half(item: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), name)


def _halve_attributes(node: NodeProto) -> None:
    """Make a node write float16 where its attributes say float32."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t, attribute.t.name))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


def _with_graph(model: ModelProto, nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> ModelProto:
    result = ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    result.metadata_props.extend(model.metadata_props)
    result.graph.name = model.graph.name
    result.graph.input.extend(model.graph.input)
    result.graph.output.extend(model.graph.output)
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants.values())
    return result


def _matrices(graph: _Graph) -> list[str]:
    return [node.name for node in graph.products() if node.op_type in ("Gemm", "MatMul") and not graph.is_head(node)]


def _prepare(model: ModelProto, scratch: Path) -> ModelProto:
    """Fuse and name the nodes as the quantiser likes them.

    It is given a file: from a model in memory `quant_pre_process` moves the constants away.
    """
    pre_process = _tool("onnxruntime.quantization.shape_inference").quant_pre_process
    source, target = scratch / "float.onnx", scratch / "fused.onnx"
    large = _save(model, source)
    with _quantiser("preparing"):
        pre_process(str(source), str(target), skip_symbolic_shape=True, save_as_external_data=large)
    prepared = onnx.load(str(target))
    for i, node in enumerate(prepared.graph.node):
        node.name = f"{node.op_type}_{i}"
    return prepared


def _quantise_matrices(model: ModelProto, names: Sequence[str], scratch: Path, reduce_range: bool) -> ModelProto:
    quantization = _tool("onnxruntime.quantization")
    source, target = scratch / "matrices.onnx", scratch / "dynamic.onnx"
    large = _save(model, source)
    with _quantiser("dynamic"):
        quantization.quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["Gemm", "MatMul"],
            # Gemm is made MatMul first.
            nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=large,
        )
    return onnx.load(str(target))


def _tool(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"int8 needs ONNX Runtime's quantiser, which cannot be imported: {error}.",
            'Install it with pip install "ovseg[cpu,export]".',
        ) from error


@contextmanager
def _quantiser(step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # not the quantiser's fault
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PrecisionError(
            f"ONNX Runtime's quantiser ({step}) failed: {first}.", "Use --precision fp32 or fp16."
        ) from error


def _kept(before: ModelProto, after: ModelProto, method: str) -> dict[str, int]:
    """Operators that stay float32, by type."""
    if method == "fp16":
        floats = {name for name, (element, _) in _types(before).items() if element == TensorProto.FLOAT}
        left = [n for n in after.graph.node if n.op_type != "Cast" and n.output[0] in floats]
    else:
        weights = {item.name for item in after.graph.initializer if item.data_type == TensorProto.FLOAT}
        left = [n for n in after.graph.node if n.op_type in _PRODUCTS and n.input[1] in weights]
    return dict(sorted(Counter(node.op_type for node in left).items()))


def _save(model: ModelProto, path: Path) -> bool:
    """Write a model, with its constants in a file beside it if it is large; return whether it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    large: bool = sum(item.ByteSize() for item in model.graph.initializer) > _INLINE_LIMIT
    if large:
        copy = ModelProto()  # saving moves the constants out of the model that is given
        copy.CopyFrom(model)
        onnx.save_model(copy, str(path), save_as_external_data=True, location=path.name + ".data")
    else:
        onnx.save(model, str(path))
    return large


def _open(model: ModelProto, path: Path) -> Session:
    _save(model, path)
    return Session(path, "cpu")


def _sessions(models: Mapping[str, ModelProto], folder: Path) -> list[Session]:
    return [_open(model, folder / f"{role}.onnx") for role, model in models.items()]


def _run(sessions: Sequence[Session], feeds: Feeds) -> dict[str, np.ndarray]:
    """Run graphs one after the other; what one computes, the next may read."""
    known = dict(feeds)
    outputs: dict[str, np.ndarray] = {}
    for session in sessions:
        outputs = session.run({info.name: known[info.name] for info in session.inputs})
        known.update(outputs)
    return outputs


def _feeds_of(models: Mapping[str, ModelProto], feeds: Sequence[Feeds], role: str) -> Iterator[Feeds]:
    """For each picture the inputs of one graph, with what the graphs before it compute."""
    roles = list(models)
    earlier = roles[: roles.index(role)]
    wanted = [value.name for value in models[role].graph.input]
    with tempfile.TemporaryDirectory() as scratch:
        need = {name for name in wanted if name not in feeds[0]}
        sessions = _sessions({name: models[name] for name in earlier}, Path(scratch)) if need else []
        for feed in feeds:
            known = dict(feed)
            for session in sessions:
                known.update(session.run({info.name: known[info.name] for info in session.inputs}))
            yield {name: known[name] for name in wanted}

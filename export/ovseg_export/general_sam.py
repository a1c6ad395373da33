"""One general SAM decoder of PaddleX's two archives: points with labels, boxes, both together, and all four masks.

The archives fix one kind of prompt each and hold the same weights. The decoder for boxes becomes general by three
changes: the tokens of its prompt come from points and labels of any number, with the embeddings of points that only
the other archive has; what was fixed at two tokens is free; and the masks are not cut to the first. Two parts of SAM
are in neither archive, and in no decoder made of them: the head that predicts the IoU, and the branch for a mask as a
prompt.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ovseg.download import file_sha256
from ovseg.errors import ModelError
from ovseg.model_folder import ModelFolder, open_model_folder
from ovseg.session import Session
from ovseg_export.errors import ParityError
from ovseg_export.export import _beside, _check_place, _put, export_model, target
from ovseg_export.lower.graph import node_graphs
from ovseg_export.tidy import reads

TOLERANCE = 1e-3
_CASES = 8
_MASKS = 4
Say = Callable[[str], None]


def export_general(
    boxes: str | Path,
    points: str | Path,
    out_dir: str | Path,
    *,
    name: str = "SAM-H",
    opset: int = 17,
    progress: Say | None = None,
    received: Any = None,
) -> Path:
    """Make a model folder with a general decoder of PaddleX's two SAM models.

    Each is exported and proven against Paddle first; the general decoder is then compared with both.

    Args:
        boxes: the model for boxes, as `export_model` takes it.
        points: the model for a point, of the same weights.
        out_dir: the folder to make; it must not exist, or be empty.
        name: name of the model.
        opset: ONNX operator set, 17 to 21.
        progress: told in words what happens.
        received: told the bytes of a download.

    Returns:
        The folder.

    Raises:
        ModelError: the two are not one model, or a part is not found in them.
        ParityError: the general decoder differs from them.
        OvsError: all that `export_model` raises.
    """
    say = progress or (lambda message: None)
    out_dir = target(out_dir)
    _check_place(out_dir)
    with _beside(out_dir) as scratch:
        folders = {}
        for kind, source in (("boxes", boxes), ("points", points)):
            found = export_model(source, scratch / kind, opset=opset, progress=say, received=received)
            folders[kind] = open_model_folder(found)
            _require_prompt(folders[kind], kind)
        say("joining both decoders")
        folder = _join(folders["boxes"], folders["points"], scratch / "folder", name)
        _put(folder, out_dir)
    say(f"wrote {out_dir}")
    return out_dir


def _require_prompt(found: ModelFolder, kind: str) -> None:
    inputs = [item["name"] for item in found.facts.get("inputs", [])]
    if found.family != "sam" or kind not in inputs:
        raise ModelError(f"{found.name} is no SAM for {kind}.", "Give SAM-H_box with --from, SAM-H_point with --point.")


def _join(boxes: ModelFolder, points: ModelFolder, folder: Path, name: str) -> Path:
    if _sums(boxes, "encoder") != _sums(points, "encoder") or boxes.preprocess != points.preprocess:
        raise ModelError(
            f"{boxes.name} and {points.name} have different encoders.", "Give two models of the same weights."
        )
    decoders = [onnx.load(str(found.files["decoder"])) for found in (boxes, points)]
    made = general_decoder(*decoders, size=boxes.preprocess["size"])
    folder.mkdir(mode=0o755)
    entries = {"encoder": boxes.facts["files"]["encoder"]}
    for entry in (entries["encoder"], *entries["encoder"].get("data", [])):
        shutil.move(boxes.path / entry["path"], folder / entry["path"])
    path = folder / "decoder.onnx"
    onnx.save(made, str(path))
    onnx.checker.check_model(str(path))
    entries["decoder"] = {"path": path.name, "sha256": file_sha256(path), "size": path.stat().st_size}
    report = compare(path, boxes.files["decoder"], points.files["decoder"], boxes.preprocess["size"])
    (folder / "parity.json").write_text(json.dumps({"name": name, **report}, indent=1), encoding="utf-8")
    facts = {
        "format": 1,
        "name": name,
        "family": "sam",
        "task": boxes.task,
        "files": entries,
        "preprocess": dict(boxes.preprocess),
        "labels": [],
        "prompts": ["box", "point"],
        "opset": boxes.facts["opset"],
        "licence": boxes.facts["licence"],
        "source": {"boxes": boxes.facts["source"], "points": points.facts["source"]},
        "parity": report | {"file": "parity.json"},
    }
    text = yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=False, allow_unicode=True, width=110)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    open_model_folder(folder)
    return folder


def _sums(folder: ModelFolder, role: str) -> list[str]:
    entry = folder.facts["files"][role]
    return [item["sha256"] for item in (entry, *entry.get("data", []))]


def general_decoder(boxes: ModelProto, points: ModelProto, *, size: int) -> ModelProto:
    """Make the general decoder of the two decoders of one SAM.

    Args:
        boxes: from `embedding` and `boxes` [N, 4] to `low_res_masks` [N, 1, L, L].
        points: from `embedding` and `points` [1, 1, 2] to the same, [1, 1, L, L].
        size: side of the network's frame, in pixels.

    Returns:
        A graph from `embedding`, `point_coords` [N, P, 2] and `point_labels` [N, P] (SAM's: -1 to 3) to
        `low_res_masks` [N, 4, L, L].

    Raises:
        ModelError: a part is not found.
    """
    graph = boxes.graph
    constants = _constants(boxes)
    made = {name: node for node in graph.node for name in node.output}

    tokens = _output_tokens(graph.node, made, constants)
    sparse = tokens.input[1]
    encoding = list(_upstream(made, sparse))
    frequencies = [constants[n] for node in encoding if node.op_type == "MatMul" for n in node.input if n in constants]
    if len(frequencies) != 1 or frequencies[0].ndim != 2:
        raise _missing("frequencies of the positions")
    width = 2 * frequencies[0].shape[1]
    # In the order of the graph: top left, then bottom right.
    corners = [
        constants[name].reshape(-1)
        for node in graph.node
        if node.op_type == "Add" and any(node is found for found in encoding)
        for name in node.input
        if name in constants and constants[name].size == width
    ]
    if len(corners) != 2:
        raise _missing("embeddings of a box's corners")
    labels = [*_label_embeddings(points, width), *corners]  # padding, negative, positive, corner, corner

    nodes, weights = _encode(frequencies[0], labels, size, sparse)
    count = "token_count"
    for node in graph.node:
        if any(node is found for found in encoding) and sparse in node.output:
            continue
        copy = NodeProto()
        copy.CopyFrom(node)
        if copy.op_type == "Shape":
            copy.input[:] = ["point_coords" if name == "boxes" else name for name in copy.input]
        nodes.append(copy)
        if node is tokens:
            nodes += [
                helper.make_node("Shape", [tokens.output[0]], [count], start=1, end=2),
            ]
    _free_token_count(nodes, constants, count, fixed=_output_token_count(tokens, made, constants) + 2)
    masks = _all_masks(nodes, constants)
    nodes[-1:] = []
    nodes.append(helper.make_node("Identity", [masks], ["low_res_masks"]))

    side = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    floats = TensorProto.FLOAT
    inputs = [
        next(value for value in graph.input if value.name not in ("boxes",)),
        helper.make_tensor_value_info("point_coords", floats, ["prompts", "points", 2]),
        helper.make_tensor_value_info("point_labels", floats, ["prompts", "points"]),
    ]
    outputs = [helper.make_tensor_value_info("low_res_masks", floats, ["prompts", _MASKS, side, side])]
    kept = _needed(nodes, "low_res_masks")
    read = {name for node in kept for name in reads(node)}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    initializers += [numpy_helper.from_array(value, key) for key, value in weights.items()]
    part = helper.make_graph(kept, graph.name, inputs, outputs, initializers)
    model = helper.make_model(part, opset_imports=boxes.opset_import, producer_name="ovseg")
    model.ir_version = boxes.ir_version
    return model


def compare(general: Path, boxes: Path, points: Path, size: int) -> dict[str, Any]:
    """Compare a general decoder with the two that it is made of, on the same embeddings and prompts.

    Raises:
        ParityError: a logit differs by more than `TOLERANCE`.
    """
    sessions = {kind: Session(path, "cpu") for kind, path in (("all", general), ("boxes", boxes), ("points", points))}
    shape = next(item.shape for item in sessions["all"].inputs if item.name == "embedding")
    rng = np.random.default_rng(0)
    worst = {"boxes": 0.0, "points": 0.0}
    for _ in range(_CASES):
        embedding = rng.normal(0, 1, shape).astype(np.float32)
        corners = np.sort(rng.uniform(0, size, (3, 2, 2)), axis=1).astype(np.float32)
        point = rng.uniform(0, size, (1, 1, 2)).astype(np.float32)
        given = {
            "boxes": (corners, np.tile(np.float32([2, 3]), (3, 1)), corners.reshape(3, 4)),
            "points": (np.pad(point, ((0, 0), (0, 1), (0, 0))), np.float32([[1, -1]]), point),
        }
        for kind, (coords, labels, prompt) in given.items():
            feeds = {"embedding": embedding, "point_coords": coords, "point_labels": labels}
            ours = sessions["all"].run(feeds)["low_res_masks"][:, :1]
            theirs = sessions[kind].run({"embedding": embedding, kind: prompt})["low_res_masks"]
            worst[kind] = max(worst[kind], float(np.abs(ours - theirs).max()))
    report = {"passed": max(worst.values()) <= TOLERANCE, "tolerance": TOLERANCE, "cases": _CASES, "worst_logit": worst}
    if not report["passed"]:
        raise ParityError(f"The general decoder differs from the two it is made of: {worst}.", "Report the model.")
    return report


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _upstream(made: Mapping[str, NodeProto], tensor: str) -> Iterator[NodeProto]:
    """The nodes that a tensor is computed by, nearest first."""
    todo, seen = deque([tensor]), set()
    while todo:
        name = todo.popleft()
        node = made.get(name)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        todo += reads(node)


def _output_tokens(nodes: Any, made: Mapping[str, NodeProto], constants: Mapping[str, np.ndarray]) -> NodeProto:
    """The node that puts SAM's own tokens before those of the prompt."""
    for node in nodes:
        if node.op_type == "Concat" and len(node.input) == 2 and node.input[0] in made:
            first = made[node.input[0]]
            if first.op_type == "Expand" and first.input[0] in constants and constants[first.input[0]].ndim == 3:
                found: NodeProto = node
                return found
    raise _missing("tokens of the decoder")


def _output_token_count(tokens: NodeProto, made: Mapping[str, NodeProto], constants: Mapping[str, np.ndarray]) -> int:
    return int(constants[made[tokens.input[0]].input[0]].shape[1])


def _label_embeddings(points: ModelProto, width: int) -> list[np.ndarray]:
    """The embeddings of padding, a negative and a positive point.

    Each is added in a branch of its own, to the points of a mask that is a constant, since the graph fixes the
    labels at one positive point and its padding.
    """
    constants = _constants(points)
    made = {name: node for node in points.graph.node for name in node.output}
    found: dict[str, np.ndarray] = {}
    kinds = {(False, True): "padding", (False, False): "negative", (True, False): "positive"}
    for node in points.graph.node:
        if node.op_type != "If":
            continue
        inner = {
            tensor.name: numpy_helper.to_array(tensor) for graph in node_graphs(node) for tensor in graph.initializer
        }
        known = constants | inner
        vectors = [
            known[name] for name in sorted(reads(node) | set(inner)) if name in known and known[name].size == width
        ]
        # The branch is taken if the tensor has an entry where the mask is set; that mask is the indices' one.
        gather = next((above for above in _upstream(made, node.input[0]) if above.op_type == "GatherND"), None)
        indices = [] if gather is None else _upstream(made, gather.input[1])
        mask = next((constants.get(above.input[0]) for above in indices if above.op_type == "NonZero"), None)
        if len(vectors) == 1 and mask is not None and mask.size == 2:
            found[kinds.get(tuple(mask.reshape(-1).tolist()), "")] = vectors[0].reshape(-1)
    try:
        return [found[kind] for kind in ("padding", "negative", "positive")]
    except KeyError as failure:
        raise _missing(f"embedding of a {failure.args[0]} point") from failure


def _encode(
    frequencies: np.ndarray, labels: list[np.ndarray], size: int, sparse: str
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Nodes that make the tokens of points with labels -1 to 3, and their weights."""
    weights = {
        "g_half": np.float32(0.5),
        "g_scale": np.float32(2 / size),
        "g_minus_one": np.float32(-1),
        "g_turn": np.float32(2 * np.pi),
        "g_frequencies": frequencies.astype(np.float32),
        "g_last": np.array([-1], np.int64),
    }
    weights |= {f"g_label_{i}": np.float32(i - 1) for i in range(len(labels))}
    weights |= {f"g_embedding_{i}": vector.reshape(1, 1, -1).astype(np.float32) for i, vector in enumerate(labels)}
    steps = [
        ("Add", ["point_coords", "g_half"], "g_centre"),
        ("Mul", ["g_centre", "g_scale"], "g_scaled"),
        ("Add", ["g_scaled", "g_minus_one"], "g_unit"),
        ("MatMul", ["g_unit", "g_frequencies"], "g_waves"),
        ("Mul", ["g_waves", "g_turn"], "g_angle"),
        ("Sin", ["g_angle"], "g_sin"),
        ("Cos", ["g_angle"], "g_cos"),
    ]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    nodes.append(helper.make_node("Concat", ["g_sin", "g_cos"], ["g_position"], axis=-1))
    nodes.append(helper.make_node("Unsqueeze", ["point_labels", "g_last"], ["g_labels"]))
    last = "g_position"
    for i in range(len(labels)):
        nodes.append(helper.make_node("Equal", ["g_labels", f"g_label_{i}"], [f"g_is_{i}"]))
        # A padding point has no place, the others have one besides what they are.
        added = f"g_embedding_{i}"
        if i:
            added = f"g_added_{i}"
            nodes.append(helper.make_node("Add", [last, f"g_embedding_{i}"], [added]))
        output = sparse if i == len(labels) - 1 else f"g_sparse_{i}"
        nodes.append(helper.make_node("Where", [f"g_is_{i}", added, last], [output]))
        last = output
    return nodes, weights


def _free_token_count(nodes: list[NodeProto], constants: Mapping[str, np.ndarray], count: str, fixed: int) -> None:
    """Let shapes that were computed for a fixed number of tokens take the number there is."""
    shapes = {node.input[1] for node in nodes if node.op_type == "Reshape"}
    freed = 0
    for node in nodes:
        if node.op_type == "Concat" and node.output[0] in shapes and len(node.input) >= 3:
            second = node.input[1]
            if second in constants and constants[second].tolist() == [fixed]:
                node.input[1] = count
                freed += 1
    if not freed:
        raise _missing("number of tokens")


def _all_masks(nodes: list[NodeProto], constants: Mapping[str, np.ndarray]) -> str:
    """The tensor with the masks of all tokens, which the fixed graph cuts to the first."""
    made = {name: node for node in nodes for name in node.output}
    last = made["low_res_masks"]
    while last.op_type == "Identity":
        last = made[last.input[0]]
    cut = last.op_type == "Slice" and [constants.get(name, np.array([])).tolist() for name in last.input[1:4]]
    if cut != [[0], [1], [1]]:
        raise _missing("masks of all tokens")
    return str(last.input[0])


def _needed(nodes: list[NodeProto], output: str) -> list[NodeProto]:
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    return kept[::-1]


def _missing(what: str) -> ModelError:
    return ModelError(
        f"The {what} cannot be found in the graphs.", "Use the two models for boxes and points as they are."
    )

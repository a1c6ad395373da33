"""What is known of each family: how to recognise it, its documented names, how parity is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovseg import schema
from ovseg.errors import ModelError
from ovseg.model_folder import FAMILIES as PIPELINES
from ovseg.zoo import load_zoo, shipped_zoo
from ovseg_export.program import Port, Program


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as in `model.yaml`.
        prefixes: beginnings of PaddleX's model names; the longest one that fits decides.
        archs: PaddleDetection's `arch`, for a model with a name of its own.
        outputs: documented output names, in Paddle's order.
        compared: how outputs are judged: `instances`, `embedding` or `mask_logits`.
        tolerances: limit by figure; see `parity`.
        batch: whether the graph takes several images at once where Paddle's does.
        inputs: Paddle's input name to the documented one, where they differ.

    """

    name: str
    prefixes: tuple[str, ...]
    outputs: tuple[str, ...]
    compared: str
    tolerances: Mapping[str, float]
    archs: tuple[str, ...] = ()
    batch: bool = True
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The pipeline that runs it."""
        return PIPELINES[self.name][0]


_MOST_PIXELS = 4096
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_DETECTION = ("boxes", "counts")
_INSTANCES = ("boxes", "counts", "masks")
_FOUND = {"box": 0.05, "score": 1e-4, "mask_iou": 0.999, "unmatched": 0.0}
_EMBEDDING = {"cosine": 0.99999}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "sam",
            ("SAM-",),
            ("low_res_masks",),
            "mask_logits",
            {"logit": 1e-3, "mask_iou": 0.999},
            batch=False,
        ),
        Family("mask_rtdetr", ("Mask-RT-DETR-",), _INSTANCES, "instances", _FOUND, ("DETR",)),
        Family("mask_rcnn", ("MaskRCNN-",), _INSTANCES, "instances", _FOUND, ("RCNN",)),
        Family("cascade_mask_rcnn", ("Cascade-MaskRCNN-",), _INSTANCES, "instances", _FOUND, ("RCNN",)),
        Family(
            "ppyoloe_seg",
            ("PP-YOLOE_seg-", "MaskSeg-tiny"),
            _INSTANCES,
            "instances",
            _FOUND,
            ("PPYOLOE", "YOLO"),
            batch=False,
        ),
        Family(
            "solov2",
            ("SOLOv2",),
            ("counts", "labels", "scores", "masks"),
            "instances",
            _FOUND,
            ("SOLOv2",),
            batch=False,
        ),
        Family("picodet", ("PP-ShiTuV2_det", "ShiTu-tiny-det"), _DETECTION, "instances", _FOUND, ("GFL", "PicoDet")),
        Family(
            "shitu_rec",
            ("PP-ShiTuV2_rec", "ShiTu-tiny-rec"),
            ("embedding",),
            "embedding",
            _EMBEDDING,
            inputs={"x": "image"},
        ),
        Family(
            "clip_vit",
            ("PP-ShiTuV2_rec_CLIP_vit_",),
            ("embedding",),
            "embedding",
            _EMBEDDING,
            inputs={"x": "image"},
        ),
    )
}


def recognise(config: Mapping[str, Any], where: str, name: str | None = None) -> tuple[Family, str]:
    """Tell a model's family and name from its `inference.yml`.

    `Global.model_name` decides; where that is not PaddleX's, `arch`, and `name` among several of one `arch`.

    Args:
        config: content of `inference.yml`.
        where: its path, for messages.
        name: what the user calls the model.

    Raises:
        ModelError: it is of no family that ovseg runs, or `name` is that of another of PaddleX's models.

    """
    entry = config.get("Global")
    stated = entry.get("model_name") if isinstance(entry, dict) else None
    stated = stated if isinstance(stated, str) else None
    arch = config.get("arch")
    called, described = _family_of_name(name), _family_of_name(stated)
    possible = [described] if described else _families_of_arch(config)
    if not possible and called is None:
        raise ModelError(
            f"{where} describes the model {schema.shown(stated)} with arch {schema.shown(arch)}, "
            "which is of no family that ovseg runs.",
            "Families: " + ", ".join(FAMILIES) + ".",
        )
    official = load_zoo(shipped_zoo())
    if (called and possible and called not in possible) or (name != stated and {name, stated} <= official.keys()):
        raise ModelError(
            f"{where} describes the model {schema.shown(stated or arch)}, not {name}.",
            "Give the right model, or a name of your own.",
        )
    return called or possible[0], name or str(stated or arch)


def _family_of_name(name: object) -> Family | None:
    fitting = [
        (len(prefix), family)
        for family in FAMILIES.values()
        for prefix in family.prefixes
        if isinstance(name, str) and name.startswith(prefix)
    ]
    return max(fitting, key=lambda item: item[0])[1] if fitting else None


def _families_of_arch(config: Mapping[str, Any]) -> list[Family]:
    arch, with_masks = config.get("arch"), bool(config.get("mask"))
    return [
        family
        for family in FAMILIES.values()
        if arch in family.archs and (with_masks == ("masks" in family.outputs) or arch == "SOLOv2")
    ]


def input_names(family: Family, program: Program, where: str) -> dict[str, str]:
    """Map Paddle's input names to the documented ones.

    SAM's two inputs are told apart by rank: the image has four axes, boxes two, points three.

    Raises:
        ModelError: the program has not the inputs of the family.

    """
    ports = program.inputs
    if family.name != "sam":
        names = {port.name: family.inputs.get(port.name, port.name) for port in ports}
        if "image" not in names.values():
            if len(ports) != 1:
                raise _wrong_ports(family, where, "inputs", list(names))
            names = {ports[0].name: "image"}
        ranks = {"image": 4, "im_shape": 2, "scale_factor": 2}
        if any(port.value.rank != ranks.get(names[port.name]) for port in ports):
            raise _wrong_ports(family, where, "inputs", _shown_ports(ports))
        return names
    by_rank = {port.value.rank: port.name for port in ports}
    prompts = {2: "boxes", 3: "points"}.get(sum(by_rank) - 4)
    if len(ports) != 2 or 4 not in by_rank or prompts is None:
        raise _wrong_ports(family, where, "inputs", _shown_ports(ports))
    return {port.name: "image" if port.value.rank == 4 else prompts for port in ports}


def output_names(family: Family, program: Program, where: str) -> list[str]:
    """The documented names of the outputs; the number of Paddle's decides how many of them there are.

    Raises:
        ModelError: the program has another number of outputs.

    """
    if len(program.outputs) != len(family.outputs):
        raise _wrong_ports(family, where, "outputs", [port.name for port in program.outputs])
    return list(family.outputs)


def dimensions(family: Family, program: Program, names: Mapping[str, str]) -> dict[str, list[int | str]]:
    """Names of the axes that Paddle leaves open, by documented input name; the batch is 1 without `batch`."""
    sizes: dict[str, list[int | str]] = {}
    for port in program.inputs:
        name = names[port.name]
        axes: list[int | str] = ["batch", "channels", "height", "width"]
        if name in ("boxes", "points"):
            axes = ["prompts", "points", "coordinates"]
        shape = [size if size >= 0 else axes[i] for i, size in enumerate(port.value.shape)]
        if not family.batch and shape[0] == "batch":
            shape[0] = 1
        sizes[name] = shape
    return sizes


def read_preprocess(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Translate the steps of `inference.yml` to `preprocess` of `model.yaml`.

    Args:
        family: the family.
        config: content of `inference.yml`.
        where: its path, for messages.

    Returns:
        `type`, `size` ([height, width]; SAM: the long side), `mean` and `std` in units of pixels, 0 to 255,
        R, G, B; where they apply `keep_ratio`, `interp`, `pad_stride`, `normalize_first`.

    Raises:
        ModelError: a key is missing, wrong, or a step is not known.

    """
    if family.name == "sam":
        steps = _need(config, "Processor", dict, where)
        size = _whole(steps.get("size", 1024), where, "Processor.size")
        steps = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]} | steps
        return {"type": "SAMProcessor", "size": size} | _normalisation(steps, 1.0, where, "Processor")
    if family.compared == "embedding":
        pre = _need(config, "PreProcess", dict, where)
        raw = _need(pre, "transform_ops", list, where)
        steps = [next(iter(step.items())) for step in raw if isinstance(step, dict) and len(step) == 1]
    else:
        raw = _need(config, "Preprocess", list, where)
        steps = [(step.get("type"), step) for step in raw if isinstance(step, dict)]
    if len(steps) != len(raw):
        raise _wrong_key(where, "Preprocess", raw, "a list of steps")
    facts: dict[str, Any] = {"type": "Resize"}
    order = []
    for kind, step in steps:
        order.append(kind)
        arguments = step if isinstance(step, dict) else {}
        if kind == "Resize":
            facts["size"] = _two(arguments.get("target_size"), where, "Resize.target_size")
            facts["keep_ratio"] = bool(arguments.get("keep_ratio", False))
            facts["interp"] = _interpolation(arguments.get("interp", 2), where)
        elif kind == "ResizeImage":
            # PaddleX takes no notice of `interpolation` and resizes linearly.
            facts |= {
                "size": _two(arguments.get("size"), where, "ResizeImage.size"),
                "keep_ratio": False,
                "interp": "linear",
            }
        elif kind == "NormalizeImage":
            scale = _scale(arguments, where)
            facts |= _normalisation({"mean": _MEAN, "std": _STD} | arguments, scale, where, kind)
        elif kind == "PadStride":
            stride = arguments.get("stride")
            if stride not in (-1, 0):  # no padding
                facts["pad_stride"] = _whole(stride, where, "PadStride.stride")
        elif kind not in ("Permute", "ToCHWImage"):
            raise ModelError(f"{where}: the preprocessing step {schema.shown(kind)} is not known.", "Report it.")
    for key in ("size", "mean"):
        if key not in facts:
            missing = "Resize" if key == "size" else "NormalizeImage"
            raise ModelError(f"{where}: the preprocessing has no step {missing}.", "Use the model's own file.")
    if order.index("NormalizeImage") < max(order.index(k) for k in order if k in ("Resize", "ResizeImage")):
        facts["normalize_first"] = True
    return facts


def read_labels(family: Family, config: Mapping[str, Any], where: str) -> list[str]:
    """Class names, `label_list`; empty for families without classes.

    Raises:
        ModelError: they are missing or not texts.

    """
    if family.compared != "instances":
        return []
    labels = _need(config, "label_list", list, where)
    if not labels or not all(isinstance(label, str | int | float) for label in labels):
        raise _wrong_key(where, "label_list", labels, "a list of class names")
    return [str(label) for label in labels]


def check_labels(labels: Sequence[str], program: Program, where: str) -> None:
    """Raise ModelError if the program tells its number of classes, and there are fewer labels."""
    classes = count_classes(program)
    if labels and classes is not None and len(labels) < classes:
        raise ModelError(
            f"{where}: label_list has {len(labels)} labels, and the program has {classes} classes.",
            "Use the inference.yml that was saved together with the program.",
        )


def count_classes(program: Program) -> int | None:
    """The number of classes that a detector tells apart; None where its program does not tell, or not clearly.

    The operators that number the classes tell: `multiclass_nms3` takes scores by class; Mask-RT-DETR has the
    remainder by it, of places in a list of all scores; SOLOv2 looks for scores in a table, cells by classes.
    """
    makers = {value.id: op for op in program.walk() for value in op.outputs}
    counts = set()
    for op in program.walk():
        if op.name == "multiclass_nms3" and op.inputs[1] is not None:
            classes = op.inputs[1].shape[1]
            counts.add(classes - (0 <= op.attributes["background_label"] < classes))
        elif op.name == "remainder" and op.inputs[1] is not None:
            divisor = makers.get(op.inputs[1].id)
            counts.add(int(divisor.attributes["value"]) if divisor is not None and divisor.name == "full" else -1)
        elif op.name == "nonzero" and op.inputs[0] is not None and op.inputs[0].rank == 2:
            counts.add(op.inputs[0].shape[1])
    counts -= {-1}
    return counts.pop() if len(counts) == 1 else None


def read_postprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `inference.yml` says of scores and suppression: for the reader, the graph does it already."""
    facts: dict[str, Any] = {}
    if schema.is_number(config.get("draw_threshold")):
        facts["draw_threshold"] = config["draw_threshold"]
    if isinstance(config.get("NMS"), dict):
        facts["nms"] = {str(k): v for k, v in config["NMS"].items() if isinstance(v, str | int | float)}
    post = config.get("PostProcess")
    if isinstance(post, dict) and "NormalizeFeatures" in post:
        facts["normalize_features"] = True
    return facts


def _need(config: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(config.get(key), kind):
        expected = {dict: "a mapping", list: "a list"}[kind]
        if key not in config:
            raise ModelError(
                f"{where}: key '{key}' is missing; it should be {expected}.",
                "Use the inference.yml of this model.",
            )
        raise _wrong_key(where, key, config[key], expected)
    return config[key]


def _wrong_key(where: str, key: str, value: object, expected: str) -> ModelError:
    return ModelError(f"{where}: {key} is {schema.shown(value)}, not {expected}.", "Correct it.")


def _shown_ports(ports: Sequence[Port]) -> list[str]:
    return [f"{port.name} {list(port.value.shape)}" for port in ports]


def _wrong_ports(family: Family, where: str, kind: str, found: Sequence[str]) -> ModelError:
    expected = ", ".join(family.outputs) if kind == "outputs" else "those of the family"
    return ModelError(
        f"{where}: the program of this {family.name} model has {len(found)} {kind} ({', '.join(found)}); "
        f"expected: {expected}.",
        "Export the model for inference as PaddleX does.",
    )


def _whole(value: Any, where: str, key: str) -> int:
    return _sizes([value], 1, value, where, key)[0]


def _two(value: Any, where: str, key: str) -> list[int]:
    return _sizes(value if isinstance(value, list) else [value, value], 2, value, where, key)


def _sizes(sizes: list[Any], count: int, value: object, where: str, key: str) -> list[int]:
    if len(sizes) != count or not all(schema.COUNT.accepts(size) and 0 < size <= _MOST_PIXELS for size in sizes):
        expected = "a whole number" if count == 1 else "height and width"
        raise _wrong_key(where, key, value, f"{expected}, from 1 to {_MOST_PIXELS}")
    return list(sizes)


def _interpolation(value: object, where: str) -> str:
    names = {0: "nearest", 1: "linear", 2: "cubic", 3: "area", 4: "lanczos4"}
    name = names.get(value) if isinstance(value, int) else str(value).lower().replace("bicubic", "cubic")
    if name not in names.values():
        raise _wrong_key(where, "Resize.interp", value, "one of 0 to 4")
    return str(name)


def _scale(step: Mapping[str, Any], where: str) -> float:
    if "scale" not in step:
        return 1 / 255 if step.get("is_scale", True) else 1.0
    scale = step["scale"]
    if isinstance(scale, str) and scale.replace(" ", "") in ("1./255.", "1.0/255.0", "1/255"):
        return 1 / 255
    if not _is_positive(scale):
        raise _wrong_key(where, "NormalizeImage.scale", scale, "a number above 0")
    return float(scale)


def _normalisation(step: Mapping[str, Any], scale: float, where: str, key: str) -> dict[str, Any]:
    """Mean and deviation in pixels: (x · scale - mean) / std = (x - mean / scale) / (std / scale)."""
    facts = {}
    for name, accepts, expected in (("mean", _is_finite, "numbers"), ("std", _is_positive, "numbers above 0")):
        values = step[name]
        if isinstance(values, list) and len(values) == 3 and all(map(accepts, values)):
            facts[name] = [round(value / scale, 6) for value in values]
        if not all(map(accepts, facts.get(name, [None]))):
            raise _wrong_key(where, f"{key}.{name}", values, f"three {expected}")
    return facts


def _is_finite(value: object) -> bool:
    """Whether it is a number, also as the float32 that it becomes."""
    return schema.is_number(value) and abs(value) < 1e30  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_finite(value) and value > 0  # type: ignore[operator]

"""What is known of each family: how to recognise it, its documented names, how parity is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovseg import schema
from ovseg.errors import ModelError
from ovseg.model_folder import FAMILIES as PIPELINES
from ovseg_export.program import Program


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
        Family("cascade_mask_rcnn", ("Cascade-MaskRCNN-",), _INSTANCES, "instances", _FOUND),
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

    The name decides, `Global.model_name` before `name`; a name that is not PaddleX's leaves it to `arch`.

    Args:
        config: content of `inference.yml`.
        where: its path, for messages.
        name: what the user calls the model.

    Raises:
        ModelError: it is of no family that ovseg runs.

    """
    entry = config.get("Global")
    stated = entry.get("model_name") if isinstance(entry, dict) else None
    arch = config.get("arch")
    for candidate in (stated, name):
        fitting = [
            (len(prefix), family)
            for family in FAMILIES.values()
            for prefix in family.prefixes
            if isinstance(candidate, str) and candidate.startswith(prefix)
        ]
        if fitting:
            return max(fitting, key=lambda item: item[0])[1], name or str(candidate)
    for family in FAMILIES.values():
        with_masks = "masks" in family.outputs
        if arch in family.archs and (bool(config.get("mask")) == with_masks or arch == "SOLOv2"):
            return family, name or str(stated or arch)
    raise ModelError(
        f"{where} describes the model {stated!r} with arch {arch!r}, which is of no family that ovseg runs.",
        "Families: " + ", ".join(FAMILIES) + ".",
    )


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
        return names
    by_rank = {port.value.rank: port.name for port in ports}
    prompts = {2: "boxes", 3: "points"}.get(sum(by_rank) - 4)
    if len(ports) != 2 or 4 not in by_rank or prompts is None:
        raise _wrong_ports(family, where, "inputs", [f"{port.name} {list(port.value.shape)}" for port in ports])
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
        size = steps.get("size", 1024)
        if not isinstance(size, int) or size < 1:
            raise _wrong_key(where, "Processor.size", size, "a whole number")
        mean = _three(steps.get("mean", [123.675, 116.28, 103.53]), where, "Processor.mean")
        std = _three(steps.get("std", [58.395, 57.12, 57.375]), where, "Processor.std")
        return {"type": "SAMProcessor", "size": size, "mean": mean, "std": std}
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
            if "size" not in arguments:
                raise _wrong_key(where, "ResizeImage.size", arguments.get("size"), "height and width")
            # PaddleX takes no notice of `interpolation` and resizes linearly.
            facts |= {
                "size": _two(arguments["size"], where, "ResizeImage.size"),
                "keep_ratio": False,
                "interp": "linear",
            }
        elif kind == "NormalizeImage":
            facts |= _normalisation(arguments, where)
        elif kind == "PadStride":
            stride = arguments.get("stride")
            if not isinstance(stride, int):
                raise _wrong_key(where, "PadStride.stride", stride, "a whole number")
            if stride > 1:
                facts["pad_stride"] = stride
        elif kind not in ("Permute", "ToCHWImage"):
            raise ModelError(f"{where}: the preprocessing step {kind!r} is not known.", "Report it.")
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


def read_postprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `inference.yml` says of scores and suppression: for the reader, the graph does it already."""
    facts: dict[str, Any] = {}
    if schema.is_number(config.get("draw_threshold")):
        facts["draw_threshold"] = config["draw_threshold"]
    if isinstance(config.get("NMS"), dict):
        facts["nms"] = dict(config["NMS"])
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


def _wrong_ports(family: Family, where: str, kind: str, found: Sequence[str]) -> ModelError:
    expected = ", ".join(family.outputs) if kind == "outputs" else "those of the family"
    return ModelError(
        f"{where}: the program of this {family.name} model has {len(found)} {kind} ({', '.join(found)}); "
        f"expected: {expected}.",
        "Export the model for inference as PaddleX does.",
    )


def _three(value: object, where: str, key: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 3 or not all(schema.is_number(item) for item in value):
        raise _wrong_key(where, key, value, "three numbers")
    return [float(item) for item in value]


def _two(value: object, where: str, key: str) -> list[int]:
    sizes = [value, value] if isinstance(value, int) else value
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise _wrong_key(where, key, value, "height and width")
    return list(sizes)


def _interpolation(value: object, where: str) -> str:
    names = {0: "nearest", 1: "linear", 2: "cubic", 3: "area", 4: "lanczos4"}
    name = names.get(value) if isinstance(value, int) else str(value).lower().replace("bicubic", "cubic")
    if name not in names.values():
        raise _wrong_key(where, "Resize.interp", value, "one of 0 to 4")
    return str(name)


def _normalisation(step: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Mean and deviation in pixels: (x · scale - mean) / std = (x - mean / scale) / (std / scale)."""
    if "scale" in step:
        scale = step["scale"]
        if isinstance(scale, str) and scale.replace(" ", "") in ("1./255.", "1.0/255.0", "1/255"):
            scale = 1 / 255
        if not schema.is_number(scale) or scale <= 0:
            raise _wrong_key(where, "NormalizeImage.scale", scale, "a number above 0")
    else:
        scale = 1 / 255 if step.get("is_scale", True) else 1.0
    mean = _three(step.get("mean", [0.485, 0.456, 0.406]), where, "NormalizeImage.mean")
    std = _three(step.get("std", [0.229, 0.224, 0.225]), where, "NormalizeImage.std")
    if not all(std):
        raise _wrong_key(where, "NormalizeImage.std", std, "numbers above 0")
    return {"mean": [_short(m / scale) for m in mean], "std": [_short(s / scale) for s in std]}


def _short(value: float) -> float:
    return round(value, 6)

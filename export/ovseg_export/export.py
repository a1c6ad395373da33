"""Export a Paddle model: read, convert, cut, check, prove, describe, and put the folder in place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from ovseg.cache import ensure_space, expand, models_dir
from ovseg.download import Progress, file_sha256
from ovseg.errors import ConfigError, ModelError, SaveError
from ovseg.model_folder import open_model_folder
from ovseg.session import Session
from ovseg.zoo import is_name, load_zoo
from ovseg_export import families, feeds, parity
from ovseg_export.convert import OPSETS, Converted, convert_program, load
from ovseg_export.ends import take_pixels
from ovseg_export.errors import NO_ROOM
from ovseg_export.families import Family
from ovseg_export.masks import cut_pasting
from ovseg_export.paddle_host import require_paddle
from ovseg_export.program import Program
from ovseg_export.source import PaddleModel, open_source
from ovseg_export.split import split_converted

PRECISIONS = ("fp32", "fp16", "int8")

_CALIBRATION_PICTURES = 32

Say = Callable[[str], None]
Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class _Settings:
    """What `export_model` was told."""

    name: str | None
    opset: int
    precision: str
    calibration: str | Path | None
    images: Images | None


def export_model(
    source: str | Path,
    out_dir: str | Path,
    *,
    name: str | None = None,
    opset: int = 17,
    precision: str = "fp32",
    calibration: str | Path | None = None,
    allow_mismatch: bool = False,
    images: Images | None = None,
    origin: str | None = None,
    progress: Say | None = None,
    received: Progress | None = None,
) -> Path:
    """Make an ONNX model folder of a Paddle model, and prove that it computes the same.

    Args:
        source: zoo name, model folder, archive or address; see `source.open_source`.
        out_dir: the folder to make; it must not exist, or be empty. It appears when everything is done.
        name: name of the model; what `inference.yml` says if left out.
        opset: ONNX operator set, 17 to 21.
        precision: `fp32`, `fp16` or `int8`. The proof is that of the fp32 graph, which the others are made
            from.
        calibration: folder of images that int8 of convolutional models is calibrated on.
        allow_mismatch: keep a model that differs from Paddle, as `<out_dir>-mismatch`, instead of raising.
        images: pictures, or folders of them, to compare on. With fewer than four, synthetic ones fill up; a
            detector that finds nothing in them is compared on the sample photographs as well.
        origin: what `model.yaml` names as the source; `source` itself if left out.
        progress: told in words what happens.
        received: told the bytes of a download.

    Returns:
        The folder: `out_dir`, or `<out_dir>-mismatch`.

    Raises:
        ModelError, DownloadError: the source cannot be used; see `source` and `families`.
        UnsupportedOperators: the program uses operators that have no lowering; all are named.
        ParityError: the ONNX model differs from Paddle's, or nothing is proven: a detector finds nothing
            in any picture; nothing is left behind.
        PaddleFailure: Paddle fails or crashes.
        MissingExtra: Paddle is missing or of a version that cannot host.
        ConfigError: an argument has no meaning, or `out_dir` is taken.
        SaveError: the folder cannot be written.

    """
    say = progress or (lambda message: None)
    out_dir = target(out_dir)
    settings = _Settings(name, opset, precision, calibration, images)
    _check_settings(settings)
    _check_place(out_dir)
    require_paddle()
    with _beside(out_dir) as scratch:
        with open_source(source, scratch=scratch, say=say, progress=received) as model:
            model = replace(model, origin=origin or model.origin)
            folder = scratch / "folder"
            folder.mkdir(mode=0o755)
            report = _export(model, folder, scratch, settings, say)
        place = out_dir
        if not report["passed"]:
            if not allow_mismatch:
                parity.require_parity(report, report["name"])
            place = out_dir.with_name(f"{out_dir.name}-mismatch")
        open_model_folder(folder, verify=False)
        _put(folder, place)
    say(f"wrote {place}")
    return place


def _check_settings(settings: _Settings) -> None:
    name, opset, precision = settings.name, settings.opset, settings.precision
    if name is not None and not is_name(name):
        raise ConfigError(f"{name!r} cannot be the name of a model.", "Use letters, digits and . _ + - only.")
    if opset not in OPSETS:
        raise ConfigError(f"Opset {opset} is not supported.", f"Choose {OPSETS.start} to {OPSETS.stop - 1}.")
    if precision not in PRECISIONS:
        raise ConfigError(f"There is no precision {precision!r}.", f"Choose one of {', '.join(PRECISIONS)}.")
    if settings.calibration is not None:
        if precision == "fp32":
            raise ConfigError("Nothing is calibrated in fp32.", "Leave the calibration out, or choose fp16 or int8.")
        feeds.pictures(settings.calibration, most=1, at_least=0)  # raises where there is none


def target(out_dir: str | Path) -> Path:
    """The folder to make: `~` is the home folder, and a link is followed, as nothing can take its place."""
    place = expand(out_dir)
    return place.resolve() if place.is_symlink() else place


def _check_place(out_dir: Path) -> None:
    if out_dir.name in ("", "..") or os.path.ismount(out_dir):
        raise ConfigError(f"The folder {out_dir} cannot be replaced.", "Give a new folder in it.")
    try:
        taken = out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir()))
    except OSError as failure:
        raise ConfigError(f"{out_dir} cannot be used: {failure.strerror}.", "Give another folder.") from failure
    if taken:
        raise ConfigError(f"{out_dir} exists and is not empty.", "Remove it or give another folder.")


@contextmanager
def _beside(out_dir: Path) -> Iterator[Path]:
    """Give an empty folder beside `out_dir`, on its disk, and remove it with what is left in it.

    All temporary files go there meanwhile, those of ONNX Runtime's quantiser too: so one disk needs the room.

    Raises:
        SaveError: it cannot be made, or the disk is full.
        ModelError: the memory is, or a file cannot be read.

    """
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out_dir.name.lstrip('.')}.tmp-", dir=out_dir.parent))
    except OSError as failure:
        raise SaveError(
            f"Nothing can be written in {out_dir.parent}: {failure.strerror}.", "Give another folder."
        ) from failure
    usual, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        yield scratch
    except OSError as failure:
        if failure.errno in NO_ROOM:
            raise SaveError(
                f"The export cannot be written in {out_dir.parent}: {failure.strerror}.",
                "Free some space or give a folder on another disk.",
            ) from failure
        if failure.filename is None:
            raise
        raise ModelError(
            f"{failure.filename} cannot be used: {failure.strerror}.", "Check that it is there and may be read."
        ) from failure
    except MemoryError as failure:
        raise ModelError("The export needs more memory than there is.", "Use a machine with more.") from failure
    finally:
        tempfile.tempdir = usual
        shutil.rmtree(scratch, ignore_errors=True)


def _put(folder: Path, place: Path) -> None:
    """Give the finished folder its place, unless another export has been faster."""
    _check_place(place)
    try:
        if place.exists():
            place.rmdir()  # empty; Windows does not rename over it
        folder.rename(place)
    except OSError as failure:
        raise SaveError(f"{place} cannot be written: {failure.strerror}.", "Give another folder.") from failure


def _export(
    model: PaddleModel,
    folder: Path,
    scratch: Path,
    settings: _Settings,
    say: Say,
) -> dict[str, Any]:
    """Write everything into `folder`; return the parity report."""
    where = f"{model.origin}: {model.config_path.name}"
    family, model_name = families.recognise(model.config, where, settings.name)
    preprocess = families.read_preprocess(family, model.config, where)
    labels = families.read_labels(family, model.config, where)
    size = model.parameters.stat().st_size
    at_least = feeds.AT_LEAST_LARGE if size > parity.LARGE else feeds.AT_LEAST
    chosen = feeds.pictures(settings.images, at_least=at_least)
    ensure_space(scratch, size)

    say(f"converting {model_name} ({family.name}) to ONNX, opset {settings.opset}")
    program, parameters = load(model.program)
    families.check_labels(labels, program, where)
    input_names = families.input_names(family, program, where)
    shapes = families.dimensions(family, program, input_names)
    batched = family.batch and isinstance(shapes["image"][0], str)
    cases = list(feeds.cases(preprocess, shapes, chosen, batched=batched))
    feeds.check_sizes(cases, shapes, where)
    converted = convert_program(
        _with_names(program, input_names),
        parameters,
        opset=settings.opset,
        output_names=families.output_names(family, program, where),
        dimensions=shapes,
    )
    parts = {"model": converted}
    if family.name == "sam":
        parts = dict(zip(("encoder", "decoder"), split_converted(converted), strict=True))
    say(f"writing {converted.nbytes / 1e6:.0f} MB")
    files = {role: _write(part, folder / f"{role}.onnx") for role, part in parts.items()}

    graphs = parity.Graphs(tuple(folder / f"{role}.onnx" for role in parts))
    if settings.precision == "fp32":
        # Gigabytes, mapped: they are not needed again.
        del converted, parts, parameters
    what = family, model.program, model.parameters, input_names, graphs
    report = parity.prove(*what, cases, scratch, say)
    more = feeds.pictures(settings.images, photographs=True, at_least=at_least)
    if parity.found_nothing(report) and len(more) > len(chosen):
        say("nothing is detected in these pictures: comparing on the sample photographs as well")
        chosen = more
        cases = list(feeds.cases(preprocess, shapes, chosen, batched=batched))
        report = parity.prove(*what, cases, scratch, say)
    report = {"name": model_name, **report}
    if settings.precision != "fp32":
        say(f"converting to {settings.precision}")
        single = [case.feeds for case in cases if case.batch == 1]
        calibration = single
        if settings.calibration is not None:
            chosen = feeds.pictures(settings.calibration, most=_CALIBRATION_PICTURES)
            calibration = [case.feeds for case in feeds.cases(preprocess, shapes, chosen, batched=False)]
        files, report["precision"] = _convert_precision(parts, folder, settings.precision, calibration, single, family)
    (folder / "parity.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    pasting = None
    if "masks" in family.outputs and "data" not in files["model"]:
        path = folder / "model.onnx"
        pasting = cut_pasting(path, [case.feeds for case in cases if case.batch == 1])
        files["model"] = _file_entry(path)
        graphs = parity.Graphs((path,))
    if family.compared == "embedding":
        path = folder / "model.onnx"
        if take_pixels(path, preprocess, [case.feeds for case in cases]):
            files["model"] |= _file_entry(path)
            graphs = parity.Graphs((path,))

    facts: dict[str, Any] = {
        "format": 1,
        "name": model_name,
        "family": family.name,
        "task": family.task,
        "files": files,
        "preprocess": preprocess,
        "labels": labels,
    }
    postprocess = families.read_postprocess(model.config) | ({"masks": pasting} if pasting else {})
    if postprocess:
        facts["postprocess"] = postprocess
    if family.name == "sam":
        facts["prompts"] = ["box" if "boxes" in shapes else "point"]
    facts |= {
        "inputs": _ports(graphs, "inputs"),
        "outputs": _ports(graphs, "outputs"),
        "opset": settings.opset,
        "licence": _licence(model_name),
        "source": _source(model),
        "parity": {key: report[key] for key in ("passed", "tolerances", "worst", "versions")}
        | {"cases": len(report["cases"]), "batch": report["batch"]["proven"], "file": "parity.json"},
    }
    if settings.precision != "fp32":
        facts["x-precision"] = report["precision"]
    text = yaml.safe_dump(
        json.loads(json.dumps(facts)), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    if family.name == "sam":
        _share(folder, files["encoder"], [folder.parents[1], models_dir()], say)
    return report


def _with_names(program: Program, names: Mapping[str, str]) -> Program:
    """The program with documented input names."""
    return replace(program, inputs=tuple(replace(port, name=names[port.name]) for port in program.inputs))


def _write(part: Converted, path: Path) -> dict[str, Any]:
    """Write a graph, check it, and return its entry of `files`."""
    written = part.save(path)
    try:
        # From the path: a graph with external data is more than the checker takes as a message.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as failure:
        raise ModelError(f"The exported {path.name} is no valid ONNX: {failure}.", "Report the model.") from failure
    entries = [_file_entry(file) for file in written]
    return entries[0] | ({"data": entries[1:]} if len(entries) > 1 else {})


def _file_entry(path: Path) -> dict[str, Any]:
    return {"path": path.name, "sha256": file_sha256(path), "size": path.stat().st_size}


def _ports(graphs: parity.Graphs, side: str) -> list[dict[str, Any]]:
    """Name, type and sizes of the inputs or outputs of all graphs."""
    return [
        {"name": item.name, "dtype": str(item.dtype), "shape": list(item.shape)}
        for session in graphs.sessions
        for item in getattr(session, side)
    ]


def _licence(name: str) -> str:
    spec = load_zoo().get(name)
    return spec.licence if spec is not None else "as the source states"


def _source(model: PaddleModel) -> dict[str, str]:
    return {
        "from": model.origin,
        "program": model.program.name,
        "program_sha256": file_sha256(model.program),
        "parameters_sha256": file_sha256(model.parameters),
    }


def _share(folder: Path, encoder: Mapping[str, Any], places: Sequence[Path], say: Say) -> None:
    """Replace the encoder's files by hard links to equal ones of a SAM folder beside it or in the cache.

    Each folder stays whole: a copy of it holds the encoder, and removing one leaves the other. Where the file
    system has no hard links, the encoder is stored twice.
    """
    wanted = [encoder, *encoder.get("data", [])]
    candidates = {file.parent.resolve() for place in places for file in place.glob("*/model.yaml")}
    for candidate in sorted(candidates - {folder.resolve()}):
        if not all(_is_equal(candidate / entry["path"], entry) for entry in wanted):
            continue
        for entry in wanted:
            link = folder / f"{entry['path']}.link"
            try:
                os.link(candidate / entry["path"], link)
            except OSError:  # another disk, or no hard links there
                return
            link.replace(folder / entry["path"])
        say(f"the encoder is that of {candidate.name}, stored once")
        return


def _is_equal(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and file_sha256(path) == entry["sha256"]


def _convert_precision(
    parts: Mapping[str, Converted],
    folder: Path,
    precision: str,
    calibration: Sequence[Mapping[str, np.ndarray]],
    pictures: Sequence[Mapping[str, np.ndarray]],
    family: Family,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the graphs in another precision over those of fp32; return their entries, and a report."""
    from ovseg_export import precision as precisions

    metric = None
    if family.compared == "mask_logits":
        metric = precisions.mask_metric
    elif family.compared == "embedding":
        metric = precisions.embedding_metric
    elif "boxes" in family.outputs:
        metric = precisions.detection_metric(masks="masks" if "masks" in family.outputs else None)
    models = {role: part.to_model() for role, part in parts.items()}
    made, report = precisions.convert_precision(models, precision, calibration, metric=metric, check=pictures)
    files = {}
    for role, model in made.items():
        path = folder / f"{role}.onnx"
        onnx.save(model, str(path))
        Session(path, "cpu")
        files[role] = _file_entry(path)
    return files, asdict(report)

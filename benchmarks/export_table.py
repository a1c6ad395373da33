"""The 21 models of the zoo, each exported from its builder's Paddle model: the table of docs/export.md.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/export_table.py work
    python benchmarks/export_table.py work --only-draw
    python benchmarks/export_table.py work --times

What was measured stands in `work/rows.json` and is not measured again, but with `--times`: then every model that was
built is exported and timed anew, for a moment when the machine does nothing else. Needs the export
extra. Restrict the process to one core: then both sides compute with one thread.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "export"))

import yaml  # noqa: E402
from ovseg_export import export_model  # noqa: E402
from ovseg_export.convert import load  # noqa: E402
from ovseg_export.lower import control, detection  # noqa: E402

BEGIN, END = "<!-- drawn by benchmarks/export_table.py -->\n", "<!-- end of the drawing -->\n"
FORMATS = ("json", "pdmodel")

_NAMED = [
    *(("mask_rtdetr", f"Mask-RT-DETR-{size}") for size in "SMLXH"),
    ("mask_rcnn", "MaskRCNN-ResNet50"),
    ("mask_rcnn", "MaskRCNN-ResNet50-FPN"),
    ("mask_rcnn", "MaskRCNN-ResNet50-vd-FPN"),
    ("mask_rcnn", "MaskRCNN-ResNet101-FPN"),
    ("mask_rcnn", "MaskRCNN-ResNet101-vd-FPN"),
    ("mask_rcnn", "MaskRCNN-ResNeXt101-vd-FPN"),
    ("cascade_mask_rcnn", "Cascade-MaskRCNN-ResNet50-FPN"),
    ("cascade_mask_rcnn", "Cascade-MaskRCNN-ResNet50-vd-SSLDv2-FPN"),
]
# Name of the zoo → builder and its options.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAM-H_box": ("sam", {"prompt": "box"}),
    "SAM-H_point": ("sam", {"prompt": "point"}),
    **{name: (builder, {"model_name": name}) for builder, name in _NAMED},
    "PP-YOLOE_seg-S": ("ppyoloe_seg", {}),
    "SOLOv2": ("solov2", {}),
    "PP-ShiTuV2_det": ("picodet", {}),
    "PP-ShiTuV2_rec": ("shitu_rec", {}),
    "PP-ShiTuV2_rec_CLIP_vit_base": ("clip", {"size": "small"}),
    "PP-ShiTuV2_rec_CLIP_vit_large": ("clip", {"size": "small_large"}),
}
# Operators that ONNX has nothing like, or that paddle2onnx converts wrongly or with conditions.
SPECIAL = {*detection.TABLE, *control.TABLE, "pad", "pad3d", "grid_sample"}


def measure(name: str, fmt: str, work: Path, *, built: bool = False) -> dict[str, Any]:
    """Build (unless it is `built`), export and prove one model; the row of it."""
    builder, options = MODELS[name]
    source, out = work / f"{name}-{fmt}", work / f"{name}-{fmt}-onnx"
    for folder in (out, out.with_name(out.name + "-mismatch")):
        shutil.rmtree(folder, ignore_errors=True)
    if not built:
        shutil.rmtree(source, ignore_errors=True)
        importlib.import_module(f"ovseg_export.builders.{builder}").build(source, fmt=fmt, **options)
    config = yaml.safe_load((source / "inference.yml").read_text())
    assert config["Global"]["model_name"] == name
    start = time.perf_counter()
    folder = export_model(source, out, allow_mismatch=True)
    seconds = time.perf_counter() - start
    report = json.loads((folder / "parity.json").read_text())
    facts = yaml.safe_load((folder / "model.yaml").read_text())
    counted = Counter(op.name.removesuffix("_") for op in load(source)[0].walk())
    return {
        "name": name,
        "builder": builder,
        "options": options,
        "format": fmt,
        "opset": facts["opset"],
        "bytes": sum(path.stat().st_size for path in folder.glob("*.onnx*")),
        "special": {op: count for op, count in counted.items() if {op, f"{op}_"} & SPECIAL},
        "seconds": round(seconds, 1),
        **{key: report[key] for key in ("passed", "failures", "worst", "batch", "timing", "versions")},
    }


def draw(rows: list[dict[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = [
        "| name | builder | formats | opset | ONNX, MB | difference to Paddle | found | batch | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lowered: dict[str, set[str]] = {}
    for name, (builder, options) in MODELS.items():
        of_name = sorted((row for row in rows if row["name"] == name), key=lambda row: row["format"])
        if not of_name:
            lines.append(f"| {name} | `{builder}` | not run |" + " |" * 6)
            continue
        given = ", ".join(str(value) for value in options.values() if value != name)
        for row in of_name:
            lowered.setdefault(builder, set()).update(row["special"])
        lines.append(
            " | ".join(
                (
                    f"| {name}",
                    f"`{builder}`" + (f", {given}" if given else ""),
                    ", ".join(row["format"] + ("" if row["passed"] else " (fails)") for row in of_name),
                    ", ".join(sorted({str(row["opset"]) for row in of_name})),
                    f"{of_name[0]['bytes'] / 1e6:.1f}",
                    _differences([row["worst"] for row in of_name]),
                    _spread([row["worst"].get("detections", "") for row in of_name]),
                    _spread([row["batch"]["proven"] for row in of_name]),
                    _spread([row["timing"]["ratio"] for row in of_name], ".2f") + " |",
                )
            )
        )
    lines += [
        "",
        "| builder | operators that ONNX has nothing like, or that paddle2onnx gets wrong |",
        "|---|---|",
    ]
    for builder, names in lowered.items():
        lines.append(f"| `{builder}` | {', '.join(f'`{op}`' for op in sorted(names)) or 'none'} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[Any], form: str = "") -> str:
    """One value, or the least and the largest of the formats."""
    texts = [format(value, form) for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _differences(worst: list[dict[str, float]]) -> str:
    """The largest difference of each figure over the formats."""
    parts = []
    for figure, text in (("box", "{:.1e} px"), ("score", "score {:.1e}"), ("logit", "logit {:.1e}")):
        if figure in worst[0]:
            parts.append(text.format(max(item[figure] for item in worst)))
    if "unmatched" in worst[0] and any(item["unmatched"] or item["at_cut"] for item in worst):
        at_cut, alone = (max(item[key] for item in worst) for key in ("at_cut", "unmatched"))
        parts.append(f"{at_cut:.0f} at the cut, {alone:.1%} unmatched")
    if "cosine" in worst[0]:
        parts.append(f"cosine 1 - {1 - min(item['cosine'] for item in worst):.0e}")
    if "mask_iou" in worst[0]:
        parts.append(f"IoU {min(item['mask_iou'] for item in worst):.5f}")
        if "mask_iou_least" in worst[0]:
            parts[-1] += f" (least {min(item['mask_iou_least'] for item in worst):.3f})"
    return ", ".join(parts)


def main() -> None:
    """Export what is missing in `work`, and write the table into docs/export.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for models and rows.json")
    parser.add_argument("--also", nargs="*", type=Path, default=[], help="draw rows of other such folders too")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only-draw", action="store_true", help="measure nothing")
    parser.add_argument("--times", action="store_true", help="measure again what was measured")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    place = work / "rows.json"
    rows = json.loads(place.read_text()) if place.exists() else []
    failed = []
    for name in [] if arguments.only_draw else arguments.models:
        for fmt in arguments.formats:
            known = any((row["name"], row["format"]) == (name, fmt) for row in rows)
            if known != arguments.times:
                continue
            try:
                row = measure(name, fmt, work, built=known)
            except Exception as failure:  # the others go on; the exit code and the table tell
                failed.append(name)
                print(f"{name} {fmt}: {type(failure).__name__}: {failure}", flush=True)
                continue
            rows = [other for other in rows if (other["name"], other["format"]) != (name, fmt)] + [row]
            place.write_text(json.dumps(rows, indent=1))
            print(
                f"{name} {fmt}: {row['seconds']} s, {row['passed']}, {_differences([row['worst']])}",
                flush=True,
            )
            for problem in row["failures"]:
                print(f"  {problem}", flush=True)
    for other in arguments.also:
        rows += json.loads((other / "rows.json").read_text())
    page = ROOT / "docs" / "export.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(before + BEGIN + draw(rows) + END + rest.split(END)[1], encoding="utf-8")
    sys.exit(1 if failed or not all(row["passed"] for row in rows) else 0)


if __name__ == "__main__":
    main()

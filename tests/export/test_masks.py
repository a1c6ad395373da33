"""Graphs that paste their masks are cut before they do, where the runtime does the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ovseg_export import masks as module
from ovseg_export.masks import cut_pasting

from ovseg.session import Session

MODE = 'coordinate_transformation_mode = "pytorch_half_pixel"'
SIGMOID = "probable = Sigmoid (spread) over = Greater (probable, half)"
RNG = np.random.default_rng(5)
FEEDS = [
    {"logits": RNG.normal(size=(1, 4, 6, 5)).astype(np.float32), "size": np.array([1, 4, *size], np.int64)}
    for size in ((30, 40), (7, 5))
]


def write(path: Path, *, mode: str = MODE, end: str = SIGMOID, half: float = 0.5) -> bytes:
    """A graph that resizes and thresholds its masks, and finds boxes that depend on nothing."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    detector (float[1,4,h,w] logits, int64[4] size) => (float[4,6] boxes, int32[k,high,wide] masks)
    <float[4,6] found = {{{", ".join(["1.0"] * 24)}}}, float half = {{{half}}}, int64[1] axis = {{0}}>
    {{
        boxes = Identity (found)
        spread = Resize <mode = "linear", {mode}> (logits, , , size)
        {end}
        whole = Cast <to = 6> (over)
        masks = Squeeze (whole, axis)
    }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("end", "half", "threshold"), [(SIGMOID, 0.5, 0.0), ("over = Greater (spread, half)", 0.4, 0.4)]
)
def test_masks_that_are_resized(tmp_path: Path, end: str, half: float, threshold: float) -> None:
    path = tmp_path / "model.onnx"
    write(path, end=end, half=half)
    facts = cut_pasting(path, FEEDS)
    assert facts is not None and facts["paste"] == "resize"
    assert facts["threshold"] == pytest.approx(threshold, abs=1e-7)
    session = Session(path, "cpu")
    assert [item.name for item in session.outputs] == ["boxes", "low_res_masks", "mask_size"]
    found = session.run(FEEDS[0])
    assert np.array_equal(found["low_res_masks"], FEEDS[0]["logits"])
    assert found["mask_size"].tolist() == [1, 4, 30, 40]
    assert not any(node.op_type == "Resize" for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": 'coordinate_transformation_mode = "align_corners"'},
        {"end": "less = Greater (spread, half) over = Not (less)"},
        {"end": "probable = Sigmoid (spread) doubled = Mul (probable, probable) over = Greater (doubled, half)"},
    ],
)
def test_other_ends_stay(tmp_path: Path, changes: dict[str, str]) -> None:
    path = tmp_path / "model.onnx"
    before = write(path, **changes)  # type: ignore[arg-type]
    assert cut_pasting(path, FEEDS) is None
    assert path.read_bytes() == before


def test_a_cut_that_changes_masks_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    before = write(path)
    resize = module.resize_masks
    monkeypatch.setattr(module, "resize_masks", lambda *a, threshold: resize(*a, threshold=threshold + 0.01))
    assert cut_pasting(path, FEEDS) is None
    assert path.read_bytes() == before

"""`ovs export`: where the folder goes; what is in it is tested in tests/export."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ovseg.cli import main


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["Mask-RT-DETR-S"], "Mask-RT-DETR-S"),
        (["Mask-RT-DETR-S", "--precision", "fp16"], "Mask-RT-DETR-S-fp16"),
        (["mine", "--from", "there", "--precision", "int8"], "mine-int8"),
        (["./my_model"], "my_model-onnx"),
        (["./my_model", "--precision", "fp16"], "my_model-onnx-fp16"),
        # A folder that is named is taken as it is.
        (["Mask-RT-DETR-S", "--precision", "fp16", "--out", "Mask-RT-DETR-S"], "Mask-RT-DETR-S"),
        (["./my_model", "--precision", "fp16", "--out", "."], "."),
    ],
)
def test_the_folder_that_is_made(arguments: list[str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    exporter: Any = ModuleType("ovseg_export.export")
    exporter.export_model = lambda where, out, **_: made.append(out)
    monkeypatch.setitem(sys.modules, "ovseg_export", ModuleType("ovseg_export"))
    monkeypatch.setitem(sys.modules, "ovseg_export.export", exporter)
    assert main(["export", *arguments]) == 0
    assert made == [Path(folder)]

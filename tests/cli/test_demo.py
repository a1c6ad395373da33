from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from ovseg.cli import main
from ovseg.samples import samples


def test_demo_segments_the_samples(
    tmp_path: Path, sam_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    arguments = [
        "demo",
        "--save-path",
        str(output),
        "--device",
        "cpu",
        "--model-dir",
        str(sam_folders["general"]),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for sample in samples():
        original = cv2.imread(str(sample.path))
        for kind in ("box", "point"):
            picture = output / f"{sample.name}_{kind}_res.jpg"
            assert str(picture) in printed
            drawn = cv2.imread(str(picture))
            assert drawn.shape == original.shape and cv2.norm(drawn, original, cv2.NORM_L1) > 0

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import yaml

from ovseg.cli import main
from ovseg.samples import gallery_path, samples


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
    for scene in sorted((gallery_path() / "scenes").glob("*.jpg")):
        picture = output / f"{scene.stem}_instances_res.jpg"
        assert str(picture) in printed
        assert cv2.imread(str(picture)).shape == cv2.imread(str(scene)).shape
    assert "donut" in printed
    scenes = yaml.safe_load((gallery_path() / "scenes" / "scenes.yaml").read_text("utf-8"))
    right = total = 0
    for scene in scenes:
        picture = output / f"{Path(scene['file']).stem}_res.jpg"
        line = next(line for line in printed.splitlines() if str(picture) in line)
        labels = [item["label"] for item in scene["objects"]]
        right, total = right + sum(label in line for label in labels), total + len(labels)
        assert cv2.imread(str(picture)) is not None
    assert right >= 0.75 * total

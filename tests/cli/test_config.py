from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ovseg.cli import main
from ovseg.pipelines import PIPELINES


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("save_path", ["new/folder", "mine.yaml"])
def test_config_writes_the_yaml(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    save_path: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", name, "--save_path", save_path]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == (Path("mine.yaml") if save_path.endswith("yaml") else Path(save_path, f"{name}.yaml"))
    assert yaml.safe_load(written.read_text(encoding="utf-8"))["pipeline_name"] == name


def test_config_does_not_write_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "open_vocabulary_segmentation.yaml"
    mine.write_text("mine")
    arguments = ["config", "open_vocabulary_segmentation", "--save-path", str(tmp_path)]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err and mine.read_text() == "mine"
    assert main([*arguments, "--force"]) == 0
    assert mine.read_text() != "mine"


def test_config_of_an_unknown_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "OCR"]) == 2
    assert "There is no pipeline 'OCR'" in capsys.readouterr().err

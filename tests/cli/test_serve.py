from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovseg.cli import main
from ovseg.pipelines import PIPELINES


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `ovs serve` would serve: the last step, which does not return, is left out."""
    given: dict[str, Any] = {}

    def run(app: Any, settings: Any, host: str, port: int) -> None:
        given.update(settings=settings, host=host, port=port)

    def create_app(pipelines: Any, settings: Any) -> None:
        given.update(pipelines=pipelines)

    monkeypatch.setattr("ovseg.serve.run", run)
    monkeypatch.setattr("ovseg.serve.create_app", create_app)
    return given


@pytest.fixture
def config(tmp_path: Path, instance_folders: dict[str, Path]) -> Path:
    path = tmp_path / "mine.yaml"
    module = {"InstanceSegmentation": {"model_dir": str(instance_folders["batch"])}}
    path.write_text(yaml.safe_dump({"pipeline_name": "instance_segmentation", "SubModules": module}))
    return path


def test_safe_defaults(served: dict[str, Any], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    assert main(["serve", "--pipeline", str(config), "--device", "cpu"]) == 0
    settings = served["settings"]
    assert (served["host"], served["port"]) == ("127.0.0.1", 8080)
    assert not settings.allow_url and settings.literal_hosts and settings.token is None and settings.visualize
    assert settings.index_dir == tmp_path / "indexes"
    assert list(served["pipelines"]) == ["instance_segmentation"]


def test_options(served: dict[str, Any], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSEG_TOKEN", "from the environment")
    options = (
        "--host 0.0.0.0 --port 9000 --device cpu --allow-url --workers 3 --queue 5 --max-batch 2 --batch-window 20"
    )
    limits = "--max-body 0.5 --max-pixels 1000 --max-prompts 7 --deadline 2.5"
    folder = ["--index-dir", str(tmp_path / "here")]
    assert main(["serve", "--pipeline", str(config), *options.split(), *limits.split(), *folder]) == 0
    settings = served["settings"]
    assert (served["host"], served["port"]) == ("0.0.0.0", 9000)
    assert (settings.allow_url, settings.literal_hosts, settings.token) == (True, False, "from the environment")
    assert (settings.workers, settings.queue, settings.max_batch, settings.batch_window) == (3, 5, 2, 0.02)
    assert (settings.max_body, settings.max_pixels, settings.max_prompts) == (2**19, 1000, 7)
    assert (settings.deadline, settings.index_dir) == (2.5, tmp_path / "here")
    assert "environment" not in repr(settings)


def test_several_pipelines(served: dict[str, Any], config: Path) -> None:
    assert (
        main(["serve", "--pipeline", str(config), "--pipeline", "open_vocabulary_segmentation", "--device", "cpu"]) == 0
    )
    assert list(served["pipelines"]) == ["instance_segmentation", "open_vocabulary_segmentation"]


def test_all_pipelines_with_the_models_that_ship(
    served: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    assert main(["serve", "--device", "cpu"]) == 0
    assert list(served["pipelines"]) == list(PIPELINES)
    assert "broccoli" in served["pipelines"]["instance_segmentation"].labels


def test_a_pipeline_that_was_named_has_its_own_model(
    served: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path))
    assert main(["serve", "--pipeline", "instance_segmentation", "--device", "cpu"]) == 2
    assert "Mask-RT-DETR-S is not on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(("serving", "visualize"), [({"visualize": False}, False), ({}, True), (None, True)])
def test_paddlex_key_for_services(served: dict[str, Any], config: Path, serving: Any, visualize: bool) -> None:
    config.write_text(config.read_text() + yaml.safe_dump({"Serving": serving}))
    assert main(["serve", "--pipeline", str(config), "--device", "cpu"]) == 0
    assert served["settings"].visualize is visualize


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pipeline", "nothing"], "no pipeline 'nothing'"),
        (["--pipeline", "missing.yaml"], "missing.yaml"),
        (["--pipeline", "CONFIG", "--pipeline", "CONFIG"], "named twice"),
        (["--pipeline", "CONFIG", "--workers", "0"], "workers is 0"),
        (["--pipeline", "CONFIG", "--deadline", "-1"], "deadline is -1"),
        (["--pipeline", "CONFIG", "--deadline", "nan"], "deadline is nan"),
        (["--pipeline", "CONFIG", "--deadline", "inf"], "deadline is inf"),
        (["--pipeline", "CONFIG", "--batch-window", "nan"], "--batch-window is nan"),
        (["--pipeline", "CONFIG", "--batch-window", "-1"], "Give milliseconds"),
        (["--pipeline", "CONFIG", "--token", " "], "token"),
        (["--pipeline", "CONFIG", "--port", "70000"], "65535"),
        (["--pipeline", "CONFIG", "--max-body", "nan"], "--max-body is nan"),
        (["--pipeline", "CONFIG", "--max-body", "inf"], "--max-body is inf"),
        (["--pipeline", "CONFIG", "--max-body", "-1"], "Give megabytes"),
        (["--model", "x"], "one --pipeline"),
    ],
)
def test_bad_options(
    served: dict[str, Any], config: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--device", "cpu", *(str(config) if o == "CONFIG" else o for o in options)]) == 2
    assert words in capsys.readouterr().err
    assert "pipelines" not in served or "settings" not in served


def test_an_address_that_is_taken(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--pipeline", str(config), "--device", "cpu", "--port", port]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers=0", "--workers=100000", "--host=no such host", "--index-dir=FILE"])
def test_options_are_looked_at_before_models_are_loaded(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = option.replace("FILE", __file__)
    assert main(["serve", "--pipeline", "instance_segmentation", "--model-dir", str(tmp_path), option]) == 2
    named = option[2:6] if "index" not in option else __file__
    assert named in capsys.readouterr().err.splitlines()[0]

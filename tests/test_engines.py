from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from ovseg.cache import engines_dir
from ovseg.device import TENSORRT, Provider, resolve_device
from ovseg.engines import (
    give_up_engines,
    give_up_profiles,
    has_engines,
    kept_options,
    profiles,
    telling_of_build,
)
from ovseg.errors import ModelError
from ovseg.zoo import bundled_dir

SHAPES = {"image": ("batch", 3, 288, 288), "scale_factor": ("batch", 2), "fixed": (1, 4)}
PATH = "trt_engine_cache_path"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, on a machine that has TensorRT."""
    monkeypatch.setenv("OVSEG_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ovseg.engines.tensorrt_version", lambda: "101400")


def tensorrt(**options: str) -> Provider:
    return resolve_device("tensorrt", provider_options=options).providers[0]


def test_profiles_name_every_free_input():
    assert profiles(SHAPES, {"batch": (1, 2, 8)}) == {
        "trt_profile_min_shapes": "image:1x3x288x288,scale_factor:1x2",
        "trt_profile_opt_shapes": "image:2x3x288x288,scale_factor:2x2",
        "trt_profile_max_shapes": "image:8x3x288x288,scale_factor:8x2",
    }


@pytest.mark.parametrize("shape", [("batch", 3, "height", "width"), ("batch", None)])
def test_no_profiles_for_an_axis_of_unknown_range(shape):
    assert profiles({**SHAPES, "other": shape}, {"batch": (1, 2, 8)}) == {}


def test_no_profiles_where_nothing_is_free():
    assert profiles({"image": (1, 3, 512, 512)}, {}) == {}


def test_the_model_folder_gives_the_ranges(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled_dir("ShiTu-tiny-det"), folder)
    model, described = str(folder / "model.onnx"), folder / "model.yaml"
    assert kept_options(tensorrt(), model, SHAPES)["trt_profile_max_shapes"].startswith("image:16x3")
    text = described.read_text()
    described.write_text(text + "profiles: {batch: [1, 4, 32]}\n")
    assert kept_options(tensorrt(), model, SHAPES)["trt_profile_max_shapes"].startswith("image:32x3")
    described.write_text(text + "profiles: {batch: [4, 1, 32]}\n")
    with pytest.raises(ModelError, match=r"profiles\.batch is \[4, 1, 32\]"):
        kept_options(tensorrt(), model, SHAPES)
    for wrong in ("{batch: [1, four, 32]}", "{batch: [1, 2.5, 32]}", "[1, 4, 32]"):
        described.write_text(text + f"profiles: {wrong}\n")
        with pytest.raises(ModelError, match="profiles"):
            kept_options(tensorrt(), model, SHAPES)
    described.write_text("- of another tool\n")
    assert kept_options(tensorrt(), model, SHAPES)["trt_profile_max_shapes"].startswith("image:16x3")


def test_without_tensorrt_no_folder_is_made(monkeypatch):
    monkeypatch.setattr("ovseg.engines.tensorrt_version", lambda: "none")
    assert kept_options(tensorrt(), b"one", SHAPES) == {} and not engines_dir().exists()


def test_engines_of_other_models_options_and_devices():
    paths = [
        kept_options(provider, model, SHAPES)[PATH]
        for provider in (tensorrt(), tensorrt(trt_fp16_enable="1"))
        for model in (b"one", b"other")
    ]
    assert len(set(paths)) == 4
    assert all(Path(path).is_relative_to(engines_dir()) and Path(path).is_dir() for path in paths)
    assert kept_options(resolve_device("tensorrt:1").providers[0], b"one", SHAPES)[PATH] == paths[0]


def test_what_the_user_set_stays():
    assert PATH not in kept_options(tensorrt(trt_engine_cache_path="/here"), b"one", SHAPES)
    assert kept_options(tensorrt(trt_engine_cache_enable="0"), b"one", SHAPES) == {}
    assert kept_options(Provider(TENSORRT), b"one", SHAPES) == {}
    assert kept_options(resolve_device("gpu").providers[0], b"one", {}) == {}
    assert Path(kept_options(resolve_device("openvino").providers[0], b"one", {})["cache_dir"]).is_dir()


def test_engines_that_do_not_load_are_removed(tmp_path):
    kept = kept_options(tensorrt(), b"one", SHAPES)
    assert not has_engines(kept)
    engine = Path(kept[PATH]) / "part_0_sm90.engine"
    engine.write_bytes(b"of another version")
    assert has_engines(kept)
    give_up_engines(kept)
    assert not engine.exists() and Path(kept[PATH]).is_dir()
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.engine").touch()
    give_up_engines({PATH: str(own)})
    assert (own / "a.engine").exists()


def test_a_graph_that_takes_no_profiles_is_remembered():
    kept = kept_options(tensorrt(), b"one", SHAPES)
    assert "trt_profile_min_shapes" in kept
    give_up_profiles(kept)
    later = kept_options(tensorrt(), b"one", SHAPES)
    assert "trt_profile_min_shapes" not in later and later[PATH] != kept[PATH]
    assert "trt_profile_min_shapes" in kept_options(tensorrt(), b"other", SHAPES)


def test_a_build_is_told_and_an_engine_that_is_there_is_not(caplog):
    kept = kept_options(tensorrt(), b"one", SHAPES)
    with caplog.at_level(logging.INFO, "ovseg"):
        with telling_of_build("encoder", kept):
            pass
        assert "building an engine for encoder" in caplog.text and kept[PATH] in caplog.text
        caplog.clear()
        (Path(kept[PATH]) / "a.engine").touch()
        with telling_of_build("encoder", kept):
            pass
        with telling_of_build("encoder", {}):
            pass
    assert caplog.text == ""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from ovseg.stages.masks import decode_rle

BOXES = "[[20, 10, 120, 90.5], [100, 60, 159, 119]]"
OVS = [sys.executable, "-m", "ovseg"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def after(statement: str, command: list[str]) -> list[str]:
    """The command, run in a process in which `statement` was run first.

    `preexec_fn` would do with less, but forks this process: the handlers of libraries with threads of their own (gRPC)
    then run in the child, and can abort it.
    """
    program = f"import os, resource, signal, sys; {statement}; os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", program, *command]


@pytest.fixture
def run(sam_folders: dict[str, Path], tmp_path: Path) -> Run:
    """Run `ovs run open_vocabulary_segmentation` in its own process and in `tmp_path`."""

    def run(
        *arguments: str | Path, model: str = "general", first: str = "", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [*OVS, "run", "open_vocabulary_segmentation", "--device", "cpu"]
        command += ["--model-dir", str(sam_folders[model]), *map(str, arguments)]
        if first:
            command = after(first, command)
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120} | options
        return subprocess.run(command, **options)

    return run


def test_a_users_first_command(run: Run, image_file: Path, tmp_path: Path) -> None:
    done = run("--input", image_file, "--prompt_type", "box", "--prompt", BOXES, "--save_path", "./output")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{{'res': {{'input_path': '{image_file}'")
    assert "'masks': '...'" in done.stdout
    output = tmp_path / "output"
    assert sorted(path.name for path in output.iterdir()) == ["a_res.json", "a_res.png"]
    saved = json.loads((output / "a_res.json").read_text())
    assert [mask.shape for mask in decode_rle(saved["masks"])] == [(120, 160)] * 2
    assert cv2.imread(str(output / "a_res.png")).shape == (120, 160, 3)


def test_mask_format_list(run: Run, image_file: Path, tmp_path: Path) -> None:
    arguments = ["--input", image_file, "--prompt", BOXES, "--quiet", "-o", "output"]
    assert run(*arguments, "--mask-format", "list").stdout == ""
    listed = json.loads((tmp_path / "output" / "a_res.json").read_text())["masks"]
    assert run(*arguments).returncode == 0
    encoded = json.loads((tmp_path / "output" / "a_res.json").read_text())["masks"]
    assert np.array_equal(np.array(listed), np.stack(decode_rle(encoded)))


def test_json_prints_one_object_a_line_and_nothing_else(run: Run, image_file: Path) -> None:
    done = run(
        "--input",
        image_file,
        "--input",
        image_file,
        "--prompt",
        "[[80, 60]]",
        "--prompt-type",
        "point",
        "--json",
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["prompts"] for result in results] == [{"point_prompt": [[80, 60]]}] * 2


def test_standard_input(run: Run, image_file: Path) -> None:
    done = run("--input", "-", "--prompt", BOXES, "--json", text=False, input=image_file.read_bytes())
    assert done.returncode == 0
    assert json.loads(done.stdout)["input_path"] == "-"


@pytest.mark.parametrize("name", ["paddlex", "ours"])
def test_pipeline_by_yaml(image_file: Path, sam_folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    if name == "ours":
        done = subprocess.run([*OVS, "config", "open_vocabulary_segmentation"], cwd=tmp_path, text=True, stdout=-1)
        assert (done.returncode, done.stdout) == (0, "open_vocabulary_segmentation.yaml\n")
        settings = yaml.safe_load((tmp_path / "open_vocabulary_segmentation.yaml").read_text())
    else:
        settings = {
            "pipeline_name": "open_vocabulary_segmentation",
            "SubModules": {
                "BoxPromptSegmentation": {"module_name": "box_prompt_segmentation", "batch_size": 1},
                "PointPromptSegmentation": {"module_name": "point_prompt_segmentation", "batch_size": 1},
            },
        }
    for module in settings["SubModules"].values():
        module["model_dir"] = str(sam_folders["general"])
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    command = [*OVS, "run", "--pipeline", "x.yaml", "--input", str(image_file), "--prompt", BOXES]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "[1, 2, 3, 4]"], "flat list of numbers"),
        (["--prompt", "[[1, 2, 3]]"], "has 3 numbers"),
        (["--prompt", '[["a", 2, 3, 4]]'], "'a', which is not a number"),
        (["--prompt", "[[NaN, 2, 3, 4]]"], "nan, which is not finite"),
        (["--prompt", "[[1e999, 2, 3, 4]]"], "inf, which is not finite"),
        (["--prompt", "[]"], "empty list"),
        (["--prompt", "[[50, 2, 30, 4]]"], "is not a box"),
        (["--prompt", "[[500, 2, 600, 4]]"], "is outside images/a.png (160x120 pixels)"),
        (["--prompt", "[[1, 2, 3, 4"], "cannot be read"),
        (["--prompt", "the cat"], "--prompt 'the cat' cannot be read"),
        (["--prompt", BOXES, "--prompt-type", "circle"], "'circle' is not known"),
        (["--prompt", BOXES, "--prompt-type", "text"], "There are no text prompts"),
        ([], "No prompt was given"),
        (["--prompt", BOXES, "--mask-format", "png"], "'png'"),
        (["--prompt", BOXES, "--device", "npu:0"], "cannot be used"),
        (["--prompt", BOXES, "--device", "toaster"], "toaster"),
        (["--prompt", BOXES, "--model-dir", "nowhere"], "nowhere does not exist"),
        (["--prompt", BOXES, "--pipeline", "x.yaml"], "Two pipelines"),
        (["--prompt", BOXES, "--no-such-option"], "no-such-option"),
    ],
)
def test_bad_arguments_exit_with_2(
    run: Run, image_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("--input", image_file.relative_to(tmp_path), "--save-path", "output", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not (tmp_path / "output").exists()


def test_wrong_kind_of_prompt_for_the_model(run: Run, image_file: Path) -> None:
    done = run("--input", image_file, "--prompt", "[[3, 4]]", "--prompt-type", "point", model="boxes")
    assert done.returncode == 2 and "SAM-H_point" in done.stderr


@pytest.mark.parametrize("source", ["missing.jpg", "empty", "text.jpg", "zero.jpg"])
def test_bad_inputs_exit_with_2_and_the_others_are_done(
    run: Run, image_file: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "zero.jpg").write_bytes(b"")
    alone = run("--input", source, "--prompt", BOXES, "--json")
    assert alone.returncode == 2 and source in alone.stderr and alone.stdout == ""
    done = run("--input", source, "--input", image_file, "--prompt", BOXES, "--json")
    assert done.returncode == 2 and source in done.stderr
    assert json.loads(done.stdout)["input_path"] == str(image_file)


def test_inputs_of_one_name_have_files_of_their_own(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    for name in ("a.png", "b/a.png", "b/a.jpg", "a_2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / name), pixels)
    done = run("--input", "images", "--prompt", BOXES, "-o", "output", "--json")
    assert done.returncode == 0
    inputs = [json.loads(line)["input_path"] for line in done.stdout.splitlines()]
    saved = [json.loads(file.read_text("utf-8"))["input_path"] for file in (tmp_path / "output").glob("*.json")]
    assert len(inputs) == 4 and sorted(saved) == sorted(inputs)
    assert len(list((tmp_path / "output").iterdir())) == 8


def test_a_save_path_that_cannot_be_written(run: Run, image_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = run("--input", image_file, "--input", image_file, "--prompt", BOXES, "-o", "taken", "--json")
    assert done.returncode == 1
    assert done.stderr.count("could not be written") == 2
    assert len(done.stdout.splitlines()) == 2


def test_disk_full_leaves_no_half_file(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    small, large = pixels[:40, :40], np.tile(pixels, (8, 8, 1))
    (tmp_path / "images").mkdir()
    for name, image in (("1_large", large), ("2_small", small)):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.bmp"), image)
    limit = 400_000  # a file that grows beyond it fails as on a full disk
    done = run(
        *("--input", "images", "--prompt", "[[2, 2, 30, 30]]", "-o", "output", "--quiet"),
        first=f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
    )
    assert done.returncode == 1
    assert "1_large_res.bmp could not be written: File too large" in done.stderr
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [
        "1_large_res.json",
        "2_small_res.bmp",
        "2_small_res.json",
    ]


def test_ctrl_c_ends_cleanly(image_file: Path, sam_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(500):
        (image_file.parent / f"b{i}.png").symlink_to(image_file)
    command = [
        *OVS,
        "run",
        "open_vocabulary_segmentation",
        "--input",
        str(image_file.parent),
        "--prompt",
        BOXES,
    ]
    command += ["--save-path", "output", "--model-dir", str(sam_folders["general"]), "--device", "cpu"]
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    command = after("signal.signal(signal.SIGINT, signal.SIG_DFL)", command)
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    while not any((tmp_path / "output").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "ovs: interrupted\n"
    saved = list((tmp_path / "output").iterdir())
    assert 0 < len(saved) < 1000
    for path in saved:
        assert not path.name.startswith(".")
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert cv2.imread(str(path)) is not None


@pytest.mark.parametrize(("count", "shown"), [(1, False), (3, True)])
def test_progress_on_a_terminal(image_file: Path, sam_folders: dict[str, Path], count: int, shown: bool) -> None:
    command = [*OVS, "run", "open_vocabulary_segmentation", "--quiet", "--prompt", BOXES]
    command += ["--model-dir", str(sam_folders["general"]), *["--input", str(image_file)] * count]
    terminal, terminal_of_child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal_of_child, env=environment)
    os.close(terminal_of_child)
    seen = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how a closed terminal reads on Linux
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out == b""
    assert (f"{count}/{count}".encode() in seen) == shown


def test_debug_shows_the_traceback(run: Run, image_file: Path) -> None:
    done = run("--input", image_file, "--prompt", "[]", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and "PromptError" in done.stderr
    done = run("--input", "none.png", "--prompt", "[[0, 0, 9, 9]]", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and "ovs: none.png does not exist." in done.stderr
    done = run("--input", image_file, "--prompt", "[]", env=os.environ | {"OVSEG_DEBUG": "0"})
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_standard_output_closed_or_full(run: Run, image_file: Path, tmp_path: Path) -> None:
    arguments = ["--input", image_file, "--prompt", BOXES, "-o", "output"]
    done = run(*arguments, capture_output=False, stderr=subprocess.PIPE, first="os.close(1)")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["a_res.json", "a_res.png"]
    with Path("/dev/full").open("w") as full:
        done = run(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    first, _ = done.stderr.splitlines()
    assert first == "ovs: The output could not be written: No space left on device."


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [*OVS, "--help"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ovs: interrupted\n")


@pytest.fixture
def run_instances(instance_folders: dict[str, Path], tmp_path: Path) -> Run:
    """Run `ovs run instance_segmentation` in its own process and in `tmp_path`."""
    for i, value in enumerate((255, 250, 240)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40 + i // 2, 60, 3), value, np.uint8))

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*OVS, "run", "instance_segmentation", "--device", "cpu"]
        command += ["--model-dir", str(instance_folders["batch"]), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, **options)

    return run


def test_instances_first_command(run_instances: Run, tmp_path: Path) -> None:
    done = run_instances("--input", "0.png", "--threshold", "0.5", "--save_path", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{'res': {'input_path': '0.png', 'page_index': None, 'boxes': [{'cls_id': 2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0_res.json", "0_res.png"]
    saved = json.loads((tmp_path / "out" / "0_res.json").read_text())
    assert [box["label"] for box in saved["boxes"]] == ["traffic light", "person"]
    assert [mask.shape for mask in decode_rle(saved["masks"])] == [(40, 60)] * 2


def test_instances_in_batches_with_thresholds_by_class(run_instances: Run, tmp_path: Path) -> None:
    inputs = ["--input", "0.png", "--input", "missing.png", "--input", "1.png", "--input", "2.png"]
    thresholds = '{"person": 0.1, "traffic light": 0.7}'
    done = run_instances(*inputs, "--batch_size", "2", "--threshold", thresholds, "--json")
    assert done.returncode == 2 and "missing.png" in done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["input_path"] for result in results] == ["0.png", "1.png", "2.png"]
    assert [[box["label"] for box in result["boxes"]] for result in results] == [["traffic light", "person"]] * 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_on_a_terminal_of_any_encoding(run_instances: Run, tmp_path: Path, encoding: str) -> None:
    name = "\u00fc \u732b \U0001f431.png"
    (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = run_instances("--input", name, "--json", env=environment, encoding=encoding)
    assert json.loads(done.stdout)["input_path"] == name


@pytest.mark.parametrize("what_is_saved", [(), ("--format", "coco"), ("--format", "geojson")])
def test_a_file_name_that_is_not_utf8(run_instances: Run, tmp_path: Path, what_is_saved: tuple[str, ...]) -> None:
    name = os.fsdecode(b"\xff.png")
    (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    done = run_instances("--input", name, "--input", "0.png", "--json", "-o", "out", *what_is_saved)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["input_path"] for line in done.stdout.splitlines()] == [name, "0.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1.5"], "The threshold is 1.5"),
        (["--threshold", "half"], "--threshold 'half' cannot be read"),
        (["--threshold", "[" * 10_000], "cannot be read"),
        (["--threshold", '{"cat": 0.5}'], "the class 'cat'"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--prompt", BOXES], "--prompt is not an option of instance_segmentation"),
        (["--prompt-type", "box"], "--prompt-type is not an option of instance_segmentation"),
        (["--mask-format", "png"], "'png'"),
    ],
)
def test_bad_arguments_of_instances(run_instances: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_instances("--input", "0.png", "--save-path", "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_an_option_of_another_pipeline(run: Run, image_file: Path) -> None:
    done = run("--input", image_file, "--prompt", BOXES, "--threshold", "0.5")
    assert done.returncode == 2
    assert "--threshold is not an option of open_vocabulary_segmentation" in done.stderr

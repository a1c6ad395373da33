"""`ovs run` with every prompt, everything mode, examples, formats and videos, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from recognition_graphs import write_embedder

from ovseg.cli import main

Run = Callable[..., int]
EVERYTHING = ["--everything", "--points-per-side", "4", "--stability-score-thresh", "0.5", "--box-nms-thresh", "0.6"]


@pytest.fixture
def run(sam_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, model: str = "general") -> int:
        fixed = ["--device", "cpu", "--model-dir", str(sam_folders[model])]
        return main(["run", "open_vocabulary_segmentation", *fixed, *map(str, arguments)])

    return run


@pytest.fixture
def video(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (160, 120))
    for i in range(3):
        writer.write(np.roll(pixels, 20 * i, axis=1))
    writer.release()
    return path


def test_prompts_of_several_parts(run: Run, image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = '[{"box": [20, 20, 140, 100], "points": [[70, 60]], "labels": [0]}, {"points": [[50, 60]]}]'
    assert run("-i", image_file, "--prompt", prompt, "--multimask", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["masks"]) == 2 and result["mask_infos"][0]["prompt"]["point_labels"] == [0]
    assert all(info["predicted_iou"] > 0 for info in result["mask_infos"])


def test_everything(run: Run, image_file: Path, tmp_path: Path) -> None:
    assert run("-i", image_file, *EVERYTHING, "-o", "out", "-q", model="points") == 0
    result = json.loads((tmp_path / "out" / "a_res.json").read_text())
    assert len(result["masks"]) == 16 and result["prompts"]["everything"]["points_per_side"] == 4
    assert result["masks"][0]["size"] == [120, 160]


def test_several_formats(run: Run, image_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "b.png"
    again.write_bytes(image_file.read_bytes())
    formats = ["--format", "coco", "--format", "png-index"]
    assert run("-i", image_file, "-i", again, "--prompt", "[[20, 20, 140, 100]]", "-o", "out", "-q", *formats) == 0
    coco = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"] and len(coco["annotations"]) == 2
    assert sorted(path.name for path in (tmp_path / "out" / "png-index").iterdir()) == ["a_index.png", "b_index.png"]
    assert run("-i", image_file, "--prompt", "[[20, 20, 140, 100]]", "-o", "one", "-q", "--format", "yolo") == 0
    assert (tmp_path / "one" / "labels" / "a.txt").is_file()


def test_a_video(run: Run, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-i", video, "--prompt", "[[20, 20, 140, 100]]", "-o", "out", "--video", "out/drawn.mp4", "--json") == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["frame_index"] for result in results] == [0, 1, 2]
    assert {result["input_path"] for result in results} == {str(video)}
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["clip_000000_res.json", "clip_000000_res.png"] + [
        f"clip_00000{i}_res.{kind}" for i in (1, 2) for kind in ("json", "png")
    ] + ["drawn.mp4"]
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "drawn.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12 and drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    there, frame = drawn.read()
    assert there and frame.shape == (120, 160, 3) and np.abs(frame.astype(int) - 120).max() > 40, "nothing is drawn"


def test_a_folder_of_frames_becomes_a_video(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "frames").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{i:03d}.png"), pixels)
    assert run("-i", "frames", "--prompt", "[[20, 20, 140, 100]]", "--video", "out.avi", "-q") == 0
    assert cv2.VideoCapture(str(tmp_path / "out.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    cv2.imwrite(str(tmp_path / "frames" / "009.png"), pixels[:60])
    assert run("-i", "frames", "--prompt", "[[20, 20, 140, 50]]", "--video", "out.avi", "-q") == 1
    assert not list(tmp_path.glob(".*part*"))


def test_what_looks_like_a_picture(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = np.full((120, 160, 3), 120, np.uint8)
    scene[10:50, 10:50], scene[60:110, 100:150] = (20, 20, 220), (220, 60, 20)
    cv2.imwrite(str(tmp_path / "scene.png"), scene)
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((30, 30, 3), (220, 60, 20), np.uint8))
    embedder = write_embedder(tmp_path / "embedder")
    common = ["-i", "scene.png", "--embedding-model-dir", embedder, "--points-per-side", 4, "--json"]
    common += ["--stability-score-thresh", 0.1, "--box-nms-thresh", 0.9]
    for like, where in (("blue.png", (125, 85)), ("[10, 10, 50, 50]", (30, 30))):
        assert run(*common, "--like", like, "--top", 3, model="points") == 0
        infos = json.loads(capsys.readouterr().out)["mask_infos"]
        similarities = [info["similarity"] for info in infos]
        assert len(infos) == 3 and similarities == sorted(similarities, reverse=True)
        x1, y1, x2, y2 = infos[0]["coordinate"]
        assert x1 <= where[0] < x2 and y1 <= where[1] < y2, like


BAD = [
    (["--prompt-type", "text", "--prompt", "a cup"], "no text prompts"),
    (["--prompt", '[{"colour": 1}]'], "has no 'colour'"),
    (["--prompt", '[{"box": [1, 2, 3]}]'], "has 3 numbers"),
    (["--everything", "--crops", "9"], "crops is 9"),
    (["--everything", "--prompt", "[[1, 2, 3, 4]]"], "--prompt is not an option"),
    (["--everything", "--like", "a.png"], "--everything and --like"),
    (["--like", "no.png"], "no.png does not exist"),
    (["--like", "[1, 2, 3]"], "has 3 numbers"),
    (["--like", "[1, 2"], "cannot be read"),
    (["--like", "a.png", "--top", "0"], "top is 0"),
    (["--points-per-side", "4"], "--points-per-side is not an option"),
    (["--format", "voc", "-o", "out", "--prompt", "[[1, 2, 3, 4]]"], "no format 'voc'"),
    (["--format", "coco"], "without --save-path"),
    (["--video", "out.gif", "--prompt", "[[1, 2, 3, 4]]"], "out.gif is not a video"),
    (["--encoder", "e.onnx"], "The decoder is missing"),
    (["--encoder", "e.onnx", "--decoder", "d.onnx"], "no encoder e.onnx"),
    (["-i", "broken.mp4", "--prompt", "[[1, 2, 3, 4]]"], "not a video that OpenCV can read"),
    (["-i", "no.mp4", "--prompt", "[[1, 2, 3, 4]]"], "no.mp4 does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input(
    run: Run, image_file: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "a.png").write_bytes(image_file.read_bytes())
    assert run("-i", image_file, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 2 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_other_pipelines_have_no_everything(image_file: Path, instance_folders: dict[str, Path]) -> None:
    folder = str(next(iter(instance_folders.values())))
    arguments = ["run", "instance_segmentation", "--device", "cpu", "--model-dir", folder, "-i", str(image_file)]
    assert main([*arguments, "--everything"]) == 2
    assert main([*arguments, "--multimask"]) == 2
    assert main([*arguments, "--encoder", "a.onnx", "--decoder", "b.onnx"]) == 2

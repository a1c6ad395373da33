"""Detectors alone: which images share a run, and that they find the same as alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recognition_graphs import write_detector

from ovseg.device import resolve_device
from ovseg.model_folder import open_model_folder
from ovseg.pipelines.detector import Detector

THRESHOLDS = np.full(1, 0.2, np.float32)


@pytest.mark.parametrize(
    ("batch", "threads", "together"), [("batch", 1, 1), ("batch", 2, 1), ("batch", 6, 3), ("1", 6, 1)]
)
def test_images_share_a_run_as_threads_share_the_work(tmp_path: Path, batch: str, threads: int, together: int) -> None:
    folder = open_model_folder(write_detector(tmp_path / "halves", batch))
    detector = Detector(folder, resolve_device("cpu"), {"threads": threads})
    assert detector.together == together
    images = [np.full((40 + 3 * i, 60, 3), 80 + 20 * i, np.uint8) for i in range(7)]
    found = detector.detect(images, THRESHOLDS)
    assert len(found) == 7
    for image, one in zip(images, found, strict=True):
        (alone,) = detector.detect([image], THRESHOLDS)
        assert len(one.boxes) == 2
        assert np.array_equal(one.boxes, alone.boxes) and np.allclose(one.scores, alone.scores, atol=1e-6)
    assert len({one.scores[0] for one in found}) == 7

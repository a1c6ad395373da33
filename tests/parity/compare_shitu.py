"""Compare PP-ShiTuV2 with PaddleX 3.7.2, object by object, on the same weights, gallery and queries.

    python tests/parity/compare_shitu.py --paddlex PYTHON

The models of the builders are made and exported here, a gallery of 200 pictures and 50 queries are composed of the
photographs in tests/data, and PaddleX runs in an interpreter of its own. Limits: embeddings to a cosine of 0.99999,
Flat indexes to the same labels in the same order with scores to 1e-4, HNSW32 to a recall@5 of 0.99. The exit status is
1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg import Gallery, create_pipeline
from ovseg.index.engine import make_engine

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "export"))

COSINE, SCORE, RECALL = 0.99999, 1e-4, 0.99
# PaddleX runs oneDNN, whose sums are other than plain Paddle's; against that one, the export proves 0.05 pixels.
COORDINATE = 0.5
GALLERY, QUERIES, OBJECTS = 200, 50, 4
# Two scores of one object that are nearer than this may change places: float32 has no more digits.
TIE = 2e-6


def compose(folder: Path) -> tuple[list[str], list[str]]:
    """Write gallery and queries; return their paths.

    A gallery picture is a part of a photograph, turned, in other colours; a query shows some of them on another one.
    """
    dice = np.random.default_rng(5)
    files = [*sorted((ROOT / "tests/data/photos").glob("*.jpg")), *sorted((ROOT / "tests/data").glob("*/*/*.jpg"))]
    photos = [cv2.imread(str(path)) for path in files]
    gallery, queries, parts = [], [], []
    for number in range(GALLERY):
        photo = photos[dice.integers(len(photos))]
        height, width = (int(dice.uniform(0.2, 0.6) * side) for side in photo.shape[:2])
        y, x = (int(dice.integers(0, side - size)) for side, size in zip(photo.shape, (height, width), strict=False))
        part = np.rot90(photo[y : y + height, x : x + width], int(dice.integers(4)))
        part = np.clip(part[..., dice.permutation(3)] * dice.uniform(0.7, 1.3, 3), 0, 255).astype(np.uint8)
        parts.append(np.ascontiguousarray(part))
        gallery.append(str(folder / f"gallery{number:03}.png"))
        cv2.imwrite(gallery[-1], part)
    for number in range(QUERIES):
        scene = photos[dice.integers(len(photos))].copy()
        for part in (parts[i] for i in dice.integers(0, len(parts), dice.integers(1, 4))):
            scale = min(1.0, *(0.6 * side / size for side, size in zip(scene.shape, part.shape[:2], strict=False)))
            small = cv2.resize(part, None, fx=scale, fy=scale)
            y, x = (int(dice.integers(0, s - p + 1)) for s, p in zip(scene.shape, small.shape[:2], strict=False))
            scene[y : y + small.shape[0], x : x + small.shape[1]] = small
        queries.append(str(folder / f"query{number:02}.png"))
        cv2.imwrite(queries[-1], scene)
    return gallery, queries


def make_models(folder: Path) -> dict[str, Path]:
    """Build both archives and export them."""
    from ovseg_export import export_model
    from ovseg_export.builders import picodet, shitu_rec

    picodet.build(folder / "px_det")
    shitu_rec.build(folder / "px_rec")
    export_model(folder / "px_det", folder / "det")
    export_model(folder / "px_rec", folder / "rec")
    return {name: folder / name for name in ("px_det", "px_rec", "det", "rec")}


def least_score(pipeline: Any, queries: list[str]) -> float:
    """Return a detection threshold that leaves about OBJECTS objects a query, between two scores."""
    results = pipeline.predict(queries, index=Gallery(pipeline.dim), det_threshold=0.0)
    scores = sorted((box["det_score"] for result in results for box in result["boxes"]), reverse=True)
    start = min(OBJECTS * QUERIES, len(scores) - 1)
    gaps = [(a - b, (a + b) / 2) for a, b in zip(scores[start:], scores[start + 1 : start + 50], strict=False)]
    return max(gaps)[1]


def compare(name: str, theirs: list[list[dict[str, Any]]], ours: list[Any]) -> bool:
    """Print the differences of one index; return whether they are within the limits."""
    objects = wrong = ties = 0
    score = coordinate = det_score = 0.0
    for boxes, result in zip(theirs, ours, strict=True):
        objects += len(boxes)
        wrong += abs(len(boxes) - len(result["boxes"]))
        for a, b in zip(boxes, result["boxes"], strict=False):
            coordinate = max(coordinate, float(np.abs(np.subtract(a["coordinate"], b["coordinate"])).max()))
            det_score = max(det_score, abs(a["det_score"] - b["det_score"]))
            if len(a["labels"]) != len(b["labels"]) or (a["labels"][0] is None) != (b["labels"][0] is None):
                wrong += 1
                continue
            if a["labels"][0] is None:
                continue
            score = max(score, float(np.abs(np.subtract(a["rec_scores"], b["rec_scores"])).max()))
            if a["labels"] != b["labels"]:
                places = [i for i, (x, y) in enumerate(zip(a["labels"], b["labels"], strict=True)) if x != y]
                apart = max(abs(a["rec_scores"][i] - b["rec_scores"][i]) for i in places)
                near = all(min(abs(a["rec_scores"][i] - s) for j, s in enumerate(a["rec_scores"]) if j != i) < TIE
                           for i in places)  # fmt: skip
                ties += near and apart < TIE
                wrong += not (near and apart < TIE)
    passed = objects > 0 and wrong == 0 and score <= SCORE and coordinate <= COORDINATE and det_score <= SCORE
    print(
        f"{name}: {objects} objects, {wrong} wrong, {ties} equal scores in another order, score {score:.1e}, "
        f"det_score {det_score:.1e}, coordinate {coordinate:.4f} px: {'passed' if passed else 'FAILED'}",
        flush=True,
    )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--paddlex", required=True, help="Python with paddlex==3.7.2 and paddlepaddle")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder)
        gallery, queries = compose(folder)
        labels = [f"item {number}" for number in range(len(gallery))]
        pipeline: Any = create_pipeline(
            "PP-ShiTuV2", device="cpu", det_model_dir=models["det"], model_dir=models["rec"]
        )
        options = {"det_threshold": least_score(pipeline, queries), "rec_topk": 5}
        # PaddleX drops what is nearer than the threshold for L2: with 0 it drops nothing.
        indexes = [
            {"metric": "IP", "type": "Flat", "options": {**options, "rec_threshold": 0.5}},
            {"metric": "IP", "type": "Flat", "options": {**options, "rec_threshold": 0.95}},
            {"metric": "L2", "type": "Flat", "options": {**options, "rec_threshold": 0.0}},
            # Nothing is detected: the whole image.
            {"metric": "IP", "type": "Flat", "options": {**options, "rec_threshold": 0.5, "det_threshold": 1.0}},
        ]
        request = folder / "request.json"
        request.write_text(
            json.dumps(
                {
                    "detection": str(models["px_det"]),
                    "recognition": str(models["px_rec"]),
                    "gallery": gallery,
                    "labels": labels,
                    "queries": queries,
                    "indexes": indexes,
                }
            )
        )
        subprocess.run(
            [arguments.paddlex, str(Path(__file__).with_name("run_paddlex_shitu.py")), str(request)], check=True
        )

        theirs = np.load(folder / "embeddings.npy")
        built = pipeline.build_index(gallery, labels, index_type="Flat")
        ours = built.embeddings()
        cosine = float((ours * theirs).sum(1).min())
        passed = cosine >= COSINE
        print(f"embeddings of {len(gallery)} pictures: cosine {cosine:.9f}: {'passed' if passed else 'FAILED'}")
        for number, index in enumerate(indexes):
            found = json.loads((folder / f"found.{number}.json").read_text())
            made = pipeline.build_index(gallery, labels, index["metric"], index["type"])
            wanted = dict(index["options"])
            if index["metric"] == "L2":
                wanted["rec_threshold"] = math.inf
            results = list(pipeline.predict(queries, index=made, **wanted))
            same = compare(f"Flat {index['metric']}, {index['options']}", found, results)
            passed = passed and same

        # A gallery of this size is searched exactly, whatever its type: the graph itself is asked.
        engine = make_engine("HNSW", pipeline.index_settings("IP", "HNSW32"))
        engine.add(built.ids, ours)
        crops = np.concatenate([pipeline.embed([cv2.imread(query)]) for query in queries])
        exact = built.search(crops, 5)
        candidates = engine.candidates(crops, 5)
        recall = float(np.mean([len(set(m.ids) & set(c.tolist())) / 5 for m, c in zip(exact, candidates, strict=True)]))
        print(f"HNSW32: recall@5 {recall:.4f}: {'passed' if recall >= RECALL else 'FAILED'}")
        return 0 if passed and recall >= RECALL else 1


if __name__ == "__main__":
    sys.exit(main())

r"""What MaskSeg-tiny is measured on: composites in a style and over photographs that no weight has seen.

    python -m ovseg_export.maskseg_tiny.protocol --assets export/work/assets --out export/work/maskseg-test
    ovs eval instance_segmentation --model MaskSeg-tiny --annotations export/work/maskseg-test/annotations.json \
        --images export/work/maskseg-test

Written before training. Seeded: 200 scenes of `scenes.compose`, 384 pixels to a side, of two to seven objects. Four
fifths of the objects are of the model's classes, each class as often as any other; the others, shapes and cut-outs
are there to be left alone. The test draws Noto Emoji over the photographs of the validation split; OpenMoji drawings
are there for choices during training. Annotations are in COCO's format: what is visible of each object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg.stages.masks import encode_rle
from ovseg_export.scenes.compose import Mix, Scene, compose
from ovseg_export.scenes.pregenerate import write as write_whole

from . import LABELS
from .things import STYLES, Things, label_of

SEED, SCENES, SIDE = 40_000, 200, 384
MIX = Mix(0.9, 0.06, 0.04, 1.0, max_instances=7, sides=(60, 320), filling=0.08, min_visible=0.6)


def scenes(library: Things, count: int = SCENES) -> Iterator[Scene]:
    """The scenes of a library, in their order."""
    for index in range(count):
        yield compose(np.random.default_rng([SEED, index]), library, SIDE, MIX)


def labelled(scene: Scene) -> list[tuple[int, int]]:
    """Id in the scene's map, and class, of each object of a class."""
    named = [(instance.id, label_of(instance)) for instance in scene.instances]
    return [(number, LABELS.index(label)) for number, label in named if label]


def write(library: Things, out: Path, count: int = SCENES, quality: int = 95) -> None:
    """Write the pictures of scenes, and `annotations.json` in COCO's format, into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes(library, count)):
        name = f"{index:03d}.jpg"
        write_whole(out / name, cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
        images.append({"id": index, "file_name": name, "height": SIDE, "width": SIDE})
        for number, label in labelled(scene):
            [outline] = encode_rle([scene.ids == number])
            entry = {"id": len(annotations) + 1, "image_id": index, "category_id": label, "segmentation": outline}
            annotations.append(entry)
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS)]
    whole = {"images": images, "categories": categories, "annotations": annotations}
    write_whole(out / "annotations.json", json.dumps(whole).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("export/work/assets"), help="the prepared store")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures and their annotations")
    parser.add_argument("--style", choices=sorted(STYLES), default="test")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="photographs, instead of the store's")
    parser.add_argument("--count", type=int, default=SCENES)
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files")
    args = parser.parse_args()
    write(Things(args.assets, "val", STYLES[args.style], args.photos), args.out, args.count, args.quality)


if __name__ == "__main__":
    main()

"""Write paddlex_sam.npz and paddlex_sam.json: what PaddleX 3.7.2's own SAM classes make of small inputs.

Run it where paddlex==3.7.2 and paddlepaddle are installed: `python tests/parity/make_paddlex_sam.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
from paddlex.inference.models.open_vocabulary_segmentation.processors import SAMProcessor
from paddlex.inference.models.open_vocabulary_segmentation.results import SAMSegResult

SIZE = 64
SHAPES = ((48, 64), (64, 48), (100, 37), (19, 90), (64, 64), (7, 5))


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return HxW float32 noise, smooth enough to have edges."""
    small = PIL.Image.fromarray(rng.standard_normal((5, 5)).astype(np.float32))
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.BICUBIC))


def main() -> None:
    rng = np.random.default_rng(7)
    arrays = {}
    for height, width in SHAPES:
        processor = SAMProcessor(SIZE)
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        boxes = np.sort(rng.uniform(0, 1, (3, 2, 2)), axis=1).reshape(3, 4) * [width, height, width, height]
        image, scaled_boxes = processor.preprocess([rgb], box_prompt=boxes)
        _, scaled_point = processor.preprocess([rgb], point_prompt=boxes[:1, :2])
        logits = np.stack([smooth(rng, SIZE // 4, SIZE // 4) for _ in boxes])[:, None] * 5
        masks = processor.postprocess([logits])[0]
        name = f"{height}x{width}"
        arrays |= {
            f"{name}.rgb": rgb,
            f"{name}.image": image,
            f"{name}.boxes": boxes,
            f"{name}.scaled_boxes": scaled_boxes,
            f"{name}.scaled_point": scaled_point,
            f"{name}.logits": logits,
            f"{name}.masks": masks,
        }
    here = Path(__file__).parent
    np.savez_compressed(here / "paddlex_sam.npz", **arrays)

    data = {
        "input_path": "folder/caf\u00e9.jpg",
        "input_img": arrays["7x5.rgb"],
        "prompts": {"box_prompt": [[0.5, 1, 4, 6.25], [1, 1, 3, 3]]},
        "masks": arrays["7x5.masks"][:2],
    }
    SAMSegResult(data).save_to_json(str(here / "paddlex_sam.json"))


if __name__ == "__main__":
    main()

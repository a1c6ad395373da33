r"""Train the main-body detector on composite scenes: one command, seeded, resumable.

    python -m ovseg_export.shitu_tiny.train_det --assets work/assets --scenes work/scenes/train \
        --out work/shitu-det

From EfficientNet-Lite0 pretrained on ImageNet. One class, one map of cells (Tian et al. 2019, "FCOS"); which cells
answer for an object follows how well they do already (Feng et al. 2021, "TOOD"). The score is trained to be the IoU of
the cell's own box (Li et al. 2020, "Generalized focal loss"), the box by generalised IoU. More things, mostly small,
are pasted into the scenes and on windows of photographs. Writes `objects.npz` (decoded once), `checkpoint.pt`,
`curve.jsonl` and, at the end, `weights.npz`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from ovseg_export.scenes.compose import cutout, photo_crop, premultiplied, shape
from ovseg_export.scenes.library import Library

from ..mixed import autocast
from . import DET_STRIDE
from .protocol import ap50, not_suppressed, trainable, visible_boxes
from .render import hue_matrix, kept_objects, recolour
from .training import Run, adam_for_trunk_and_rest, frames, generalised_iou
from .twin import Det, cell_centres, det_to_train

SIDE = 512  # of a scene, pixels
SPRITE = 144  # of a decoded object, pixels
PASTED = (0.1, 0.5)  # long side of what is pasted, share of the picture's
PHASES = ((0.3, 224, 16), (1.01, 256, 14))  # until this share of the time: pixels, pictures of a step
MOST = 12  # boxes of a picture
HELD_BACK = 80  # first scenes, for the curve
CENTRE = 0.6  # share of an object's width and height in which cells may answer for it
ANSWERS = 10  # cells that answer for an object, at most
LR_HEAD = 2e-3

Draw = Callable[[np.random.Generator], np.ndarray]


class Scenes:
    """Scenes of a folder that may still grow, as JPEG files in memory, with the boxes of what is visible in each.

    Args:
        folder: of `pregenerate`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []  # [12, 4] each, in pixels of the scene, padded with zeros
        self._seen: set[Path] = set()
        self.read()

    def read(self) -> None:
        """Take up what has been written since.

        Raises:
            FileNotFoundError: a scene cannot be read, or there are too few.
        """
        for path in sorted(self.folder.glob("*.jpg")):
            if path in self._seen:
                continue
            self._seen.add(path)
            ids = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_UNCHANGED)
            if ids is None or ids.shape != (SIDE, SIDE):
                raise FileNotFoundError(f"the scene {path} has no map of {SIDE} pixels")
            boxes = np.zeros((MOST, 4), np.float32)
            found = visible_boxes(ids)[:MOST]
            boxes[: len(found)] = found
            self.files.append(np.fromfile(path, np.uint8))
            self.boxes.append(boxes)
        if len(self.files) <= HELD_BACK:
            raise FileNotFoundError(f"{self.folder} has too few scenes: {len(self.files)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return cv2.imdecode(self.files[index], cv2.IMREAD_COLOR), self.boxes[index]


class Sprites:
    """Things to paste: objects, cut-outs of photographs, plain shapes; and windows of photographs to paste them on.

    Args:
        assets: the prepared store.
        kept: file of the decoded objects.
    """

    def __init__(self, assets: Path, kept: Path) -> None:
        self.library = Library(assets, "train", trainable(assets), cache=1)
        self.objects = kept_objects(self.library, kept, SPRITE)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Premultiplied [H, W, 4] uint8."""
        kind = rng.random()
        if kind < 0.7:
            return self.objects[int(rng.integers(len(self.objects)))]
        side = float(rng.uniform(40, 160))
        return premultiplied(cutout(rng, self.library, side) if kind < 0.93 else shape(rng, side))

    def window(self, rng: np.random.Generator) -> np.ndarray:
        """Part of a photograph, from most of it to a detail, [512, 512, 3] uint8."""
        return photo_crop(rng, self.library, SIDE, SIDE, zoom=(0.1, 1.0))


def augment(
    rng: np.random.Generator, picture: np.ndarray, boxes: np.ndarray, size: int, draw: Draw, most: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Scaled, moved, mirrored, at times turned, recoloured; boxes [12, 4] follow, those cut too far go."""
    scale = size / SIDE * (1.0 if rng.random() < 0.3 else np.exp(rng.uniform(np.log(0.65), np.log(1.5))))
    stretch = np.exp(rng.normal(0, 0.08))
    matrix = np.diag([scale * stretch * rng.choice([-1, 1]), scale / stretch])
    if rng.random() < 0.2:
        matrix = np.array([[0, 1], [1, 0]]) @ matrix
    room = np.maximum(0, scale * SIDE - size) / 2 + 0.05 * size
    shift = size / 2 - matrix @ [SIDE / 2, SIDE / 2] + rng.uniform(-room, room, 2)
    warp = np.column_stack([matrix, shift])
    # Not mirrored at the border: a mirrored object would be one that no box is for.
    mode = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    finely = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(
        picture, warp, (size, size), flags=finely, borderMode=mode, borderValue=rng.uniform(0, 255, 3)
    )
    valid = boxes[:, 2] > boxes[:, 0]
    ends = boxes.reshape(-1, 2, 2) @ matrix.T + shift
    moved = np.concatenate([ends.min(1), ends.max(1)], 1)
    inside = np.clip(moved, 0, size)
    area = (inside[:, 2:] - inside[:, :2]).prod(1)
    whole = (moved[:, 2:] - moved[:, :2]).prod(1)
    valid &= (area > 0.35 * whole) & ((inside[:, 2:] - inside[:, :2]).min(1) > 6)
    if rng.random() < 0.8:
        gain = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.08, 3))
        level = np.arange(256)[:, None]
        table = np.clip((level - 128) * gain + 128 + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
        picture = cv2.LUT(picture, table[None])
    matrix = random_hue(rng, 0.35)  # few photographs, so their colours vary
    picture = picture if matrix is None else cv2.transform(picture, matrix)
    boxes = np.where(valid[:, None], inside, 0).astype(np.float32)
    picture = paste(rng, picture, boxes, draw, most)
    if rng.random() < 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.9))
    return picture, boxes


def paste(rng: np.random.Generator, picture: np.ndarray, boxes: np.ndarray, draw: Draw, most: int) -> np.ndarray:
    """Up to `most` more things where they hide little of the others; fills empty rows of `boxes`, gives the picture.

    Args:
        rng: the source of randomness.
        picture: [S, S, 3] uint8.
        boxes: [12, 4], changed.
        draw: gives premultiplied pictures [H, W, 4] uint8.
        most: things.
    """
    size = len(picture)
    for row in np.flatnonzero(boxes[:, 2] <= boxes[:, 0])[: rng.integers(0, most + 1)]:
        source = draw(rng)
        height, width = source.shape[:2]
        scale = np.exp(rng.uniform(*np.log(PASTED))) * size / max(height, width)
        angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.2 else rng.normal(0, 0.3)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = turn * scale * np.exp(rng.normal(0, 0.15, 2)) * [rng.choice([-1, 1]), 1]
        at = rng.uniform(0.06, 0.94, 2) * size
        warp = np.column_stack([turn, at - turn @ [width / 2, height / 2]])
        cover = cv2.warpAffine(source, warp, (size, size))
        x, y, width, height = cv2.boundingRect((cover[..., 3] >= 128).astype(np.uint8))
        box = np.array([x, y, x + width, y + height], np.float32)
        shared = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(1)
        if min(width, height) < 8 or (shared > 0.2 * (boxes[:, 2:] - boxes[:, :2]).prod(1)).any():
            continue
        part = np.s_[y : y + height, x : x + width]
        colour = recolour(cover[part][..., :3].astype(np.float32), random_hue(rng, 0.5))
        rest = 1 - cover[part][..., 3:].astype(np.float32) / 255
        picture[part] = np.clip(picture[part] * rest + colour, 0, 255).astype(np.uint8)
        boxes[row] = box
    return picture


def random_hue(rng: np.random.Generator, chance: float) -> np.ndarray | None:
    """A colour matrix, with this chance."""
    return hue_matrix(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)) if rng.random() < chance else None


@torch.no_grad()
def assign(
    logits: torch.Tensor, found: torch.Tensor, boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which cells answer [N, M], for which box [N, M, 4], and the score that each is to have [N, M].

    Of the cells in the middle of an object the ten answer that do so best already (Feng et al. 2021, "TOOD").
    """
    centres = cell_centres(*[int(logits.shape[1] ** 0.5)] * 2)[None, :, None]  # [1, M, 1, 2]
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    middle, half = (low + high) / 2, ((high - low) / 2 * CENTRE).clamp(min=0.75 * DET_STRIDE)
    within = ((centres - middle).abs() <= half).all(-1) & (high > low).all(-1)  # [N, M, G]
    iou, _ = generalised_iou(found[:, :, None], boxes[:, None])
    fitness = (logits.sigmoid()[..., None].sqrt() * iou**4).masked_fill(~within, -1.0)
    best, cells = fitness.topk(ANSWERS, 1)
    chosen = torch.zeros_like(within).scatter_(1, cells, best > 0)
    fitness = fitness.masked_fill(~chosen, 0.0)
    of_best = fitness / fitness.amax(1, keepdim=True).clamp(min=1e-9)
    quality = of_best * (iou * chosen).amax(1, keepdim=True)
    fitness, index = fitness.max(2)
    quality = quality.gather(2, index[..., None])[..., 0]
    return fitness > 0, boxes.gather(1, index[..., None].expand(-1, -1, 4)), quality


def detection_loss(logits: torch.Tensor, found: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    positive, targets, quality = assign(logits, found, boxes)
    _, general = generalised_iou(found[positive], targets[positive])
    quality = torch.where(positive, quality.clamp(min=0.05), 0.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = ((quality - logits.sigmoid()).abs() ** 2 * entropy).sum()
    weight = quality[positive].clamp(min=0.1)
    total = weight.sum().clamp(min=1.0)
    return 2 * focal / total + 2 * ((1 - general) * weight).sum() / total


def select(scores: np.ndarray, boxes: np.ndarray, threshold: float = 0.6, most: int = 100) -> np.ndarray:
    """Greedy non-maximum suppression; rows [K, 5]: score and box."""
    order = np.argsort(-scores)[:300]
    order = order[scores[order] > 0.025]
    kept = order[not_suppressed(boxes[order], threshold)[:most]]
    return np.column_stack([scores[kept], boxes[kept]])


@torch.no_grad()
def evaluate(network: Det, scenes: Scenes, size: int) -> float:
    """AP at IoU 0.5 of the scenes that are held back."""

    def detect(picture: np.ndarray) -> np.ndarray:
        resized = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)
        with autocast():
            logits, found = network(frames(resized[None]))
        return select(logits[0].sigmoid().numpy(), found[0].numpy() * (SIDE / size))

    held = (scenes[i] for i in range(HELD_BACK))
    return ap50(((picture, b[b[:, 2] > b[:, 0]].astype(np.float64)) for picture, b in held), detect)


def example(
    rng: np.random.Generator, ordinary: Scenes, crowded: Scenes, sprites: Sprites, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A picture [size, size, 3] and its boxes [12, 4]: of a scene, or of a photograph with things pasted on it."""
    kind = rng.random()
    if kind < 0.3:
        return augment(rng, sprites.window(rng), np.zeros((MOST, 4), np.float32), size, sprites.draw, 7)
    scenes = crowded if kind < 0.5 else ordinary
    return augment(rng, *scenes[int(rng.integers(HELD_BACK, len(scenes)))], size, sprites.draw)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    ordinary, crowded = Scenes(args.scenes / "ordinary"), Scenes(args.scenes / "crowded")
    sprites = Sprites(args.assets, args.out / "objects.npz")
    run = Run(lambda: det_to_train(args.weights), args.out, args.seed, adam_for_trunk_and_rest(args.lr, LR_HEAD), 0.995)
    rng = np.random.default_rng([args.seed, run.progress.step])
    limit, tick = args.minutes * 60, time.monotonic()
    losses, saved = [], run.progress.elapsed
    while run.progress.elapsed < limit:
        share = run.progress.elapsed / limit
        _, size, count = next(phase for phase in PHASES if share < phase[0])
        items = [example(rng, ordinary, crowded, sprites, size) for _ in range(count)]
        with autocast():
            logits, found = run.network(frames(np.stack([item[0] for item in items])))
        loss = detection_loss(logits, found, torch.from_numpy(np.stack([item[1] for item in items])))
        run.step(loss, share)
        losses.append(float(loss.detach()))
        now = time.monotonic()
        run.progress.elapsed += now - tick
        tick = now
        if run.progress.step % 25 == 0:
            row = {"size": size, "loss": round(float(np.mean(losses)), 4), "cpu": round(time.process_time(), 1)}
            losses = []
            if run.progress.step % 250 == 0:
                row["held_back"] = round(evaluate(run.ema, ordinary, PHASES[-1][1]), 4)
            run.log(**row, scenes=len(ordinary) + len(crowded))
        if run.progress.elapsed - saved > 120:
            saved = run.progress.elapsed
            run.save()
            ordinary.read()
            crowded.read()
    run.save()
    run.export()
    run.log(**{f"held_back_{size}": round(evaluate(run.ema, ordinary, size), 4) for size in (256, 288, 320, 352)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="the prepared store")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of `ordinary` and `crowded` scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; resumes what is there")
    parser.add_argument("--weights", type=Path, help="weights.npz of an earlier training to start from")
    parser.add_argument("--minutes", type=float, default=40, help="length of the whole training")
    parser.add_argument("--lr", type=float, default=4e-4, help="of the trunk")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

r"""Train the main-body detector on composite scenes: one command, seeded, resumable.

    python -m ovseg_export.shitu_tiny.train_det --assets work/assets --scenes work/scenes/train/ordinary \
        --out work/shitu-det

One class, one map of cells (Tian et al. 2019, "FCOS"): a cell near the middle of an object answers for it. The score
is trained to be the IoU of the cell's own box (Li et al. 2020, "Generalized focal loss"), the box by generalised IoU.
More objects are pasted into the scenes, which are few. Writes `scenes.npz` and `objects.npz` (decoded once),
`checkpoint.pt`, `curve.jsonl` and, at the end, `weights.npz`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from ovseg_export.scenes.library import Library

from . import DET_STRIDE
from .protocol import ap50, box_iou, trainable, visible_boxes
from .render import hue_matrix, kept_objects, recolour
from .training import Run, frames, muon_and_adam
from .twin import Det, cell_centres

SIDE = 320  # of a kept scene, pixels
PHASES = ((0.45, 160, 24), (1.01, 256, 16))  # until this share of the time: pixels, scenes of a step
MOST = 12  # boxes of a scene
HELD_BACK = 80  # last scenes of the folder, for the curve
CENTRE = 0.5  # share of an object's width and height that answers for it


def load_scenes(folder: Path, kept: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes [N, 320, 320, 3] and their boxes [N, 12, 4] in pixels of these, padded with zeros."""
    if not kept.exists():
        paths = sorted(folder.glob("*.png"))[:count]
        pictures, boxes = np.empty((len(paths), SIDE, SIDE, 3), np.uint8), np.zeros((len(paths), MOST, 4), np.float32)
        for i, path in enumerate(paths):
            ids, picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.imread(str(path.with_suffix(".jpg")))
            if ids is None or picture is None:
                raise FileNotFoundError(f"the scene {path} cannot be read")
            pictures[i] = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            ids = ids[::2, ::2]  # two pixels of 512 matter less than the time
            found = visible_boxes(ids)[:MOST] * (SIDE / len(ids))
            boxes[i, : len(found)] = found
        np.savez(kept, pictures=pictures, boxes=boxes)
    data = np.load(kept)
    return data["pictures"], data["boxes"]


def augment(
    rng: np.random.Generator, picture: np.ndarray, boxes: np.ndarray, size: int, objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scaled, moved, mirrored, at times turned, recoloured; boxes [12, 4] follow, those cut too far go."""
    scale = size / SIDE * (1.0 if rng.random() < 0.3 else np.exp(rng.uniform(np.log(0.75), np.log(1.6))))
    stretch = np.exp(rng.normal(0, 0.08))
    matrix = np.diag([scale * stretch * rng.choice([-1, 1]), scale / stretch])
    if rng.random() < 0.2:
        matrix = np.array([[0, 1], [1, 0]]) @ matrix
    room = np.maximum(0, scale * SIDE - size) / 2 + 0.05 * size
    shift = size / 2 - matrix @ [SIDE / 2, SIDE / 2] + rng.uniform(-room, room, 2)
    warp = np.column_stack([matrix, shift])
    # Not mirrored at the border: a mirrored object would be one that no box is for.
    mode = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    picture = cv2.warpAffine(picture, warp, (size, size), borderMode=mode, borderValue=rng.uniform(0, 255, 3))
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
    matrix = random_hue(rng)  # few photographs, so their colours vary
    picture = picture if matrix is None else cv2.transform(picture, matrix)
    boxes = np.where(valid[:, None], inside, 0).astype(np.float32)
    return paste(rng, picture, boxes, objects), boxes


def paste(rng: np.random.Generator, picture: np.ndarray, boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Up to three more objects where they hide little of the others; fills empty rows of `boxes`, gives the picture.

    Args:
        rng: the source of randomness.
        picture: [S, S, 3] uint8.
        boxes: [12, 4], changed.
        objects: premultiplied pictures [N, 96, 96, 4] uint8.
    """
    size, side = len(picture), objects.shape[1]
    for row in np.flatnonzero(boxes[:, 2] <= boxes[:, 0])[: rng.integers(0, 4)]:
        source = objects[int(rng.integers(len(objects)))]
        scale, angle = np.exp(rng.uniform(np.log(0.1), np.log(0.55))) * size / side, rng.normal(0, 0.3)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = turn * scale * np.exp(rng.normal(0, 0.15, 2)) * [rng.choice([-1, 1]), 1]
        at = rng.uniform(0.08, 0.92, 2) * size
        warp = np.column_stack([turn, at - turn @ [side / 2, side / 2]])
        cover = cv2.warpAffine(source, warp, (size, size))
        x, y, width, height = cv2.boundingRect((cover[..., 3] >= 128).astype(np.uint8))
        box = np.array([x, y, x + width, y + height], np.float32)
        shared = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(1)
        if min(width, height) < 8 or (shared > 0.2 * (boxes[:, 2:] - boxes[:, :2]).prod(1)).any():
            continue
        colour = recolour(cover[..., :3].astype(np.float32), random_hue(rng))
        rest = 1 - cover[..., 3:].astype(np.float32) / 255
        picture = np.clip(picture * rest + colour, 0, 255).astype(np.uint8)
        boxes[row] = box
    return picture


def random_hue(rng: np.random.Generator) -> np.ndarray | None:
    """A colour matrix half of the time."""
    return hue_matrix(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)) if rng.random() < 0.5 else None


@torch.no_grad()
def assign(boxes: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells answer [N, M], and for which box [N, M, 4]: the smallest whose middle they are in."""
    centres = cell_centres(rows, columns)[None, :, None]  # [1, M, 1, 2]
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    middle, half = (low + high) / 2, ((high - low) / 2 * CENTRE).clamp(min=0.6 * DET_STRIDE)
    within = ((centres - middle).abs() <= half).all(-1) & (high > low).all(-1)
    area = (high - low).prod(-1).expand_as(within).masked_fill(~within, float("inf"))
    smallest, index = area.min(2)
    return smallest.isfinite(), boxes.gather(1, index[..., None].expand(-1, -1, 4))


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalised IoU of rows of boxes."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    outer = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    iou = inner / union.clamp(min=1e-6)
    return iou, iou - (outer - union) / outer.clamp(min=1e-6)


def detection_loss(logits: torch.Tensor, found: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    side = int(logits.shape[1] ** 0.5)
    positive, targets = assign(boxes, side, side)
    iou, general = generalised_iou(found[positive], targets[positive])
    quality = torch.zeros_like(logits)
    quality[positive] = iou.detach().clamp(min=0.05)
    entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = ((quality - logits.sigmoid()).abs() ** 2 * entropy).sum()
    weight = iou.detach().clamp(min=0.2)
    count = max(1.0, float(positive.sum()))
    return focal / count * 2 + 2 * ((1 - general) * weight).sum() / weight.sum().clamp(min=1.0)


def select(scores: np.ndarray, boxes: np.ndarray, threshold: float = 0.6, most: int = 100) -> np.ndarray:
    """Greedy non-maximum suppression; rows [K, 5]: score and box."""
    order = np.argsort(-scores)[:300]
    order = order[scores[order] > 0.025]
    kept: list[int] = []
    iou = box_iou(boxes[order], boxes[order])
    for i in range(len(order)):
        if len(kept) < most and (not kept or iou[i, kept].max() <= threshold):
            kept.append(i)
    return np.column_stack([scores[order[kept]], boxes[order[kept]]])


@torch.no_grad()
def evaluate(network: Det, pictures: np.ndarray, boxes: np.ndarray, size: int) -> float:
    """AP at IoU 0.5 of scenes."""

    def detect(picture: np.ndarray) -> np.ndarray:
        resized = cv2.resize(picture, (size, size))
        with torch.autocast("cpu", torch.bfloat16):
            logits, found = network(frames(resized[None]))
        return select(logits[0].sigmoid().numpy(), found[0].numpy() * (SIDE / size))

    truths = (b[b[:, 2] > b[:, 0]].astype(np.float64) for b in boxes)
    return ap50(zip(pictures, truths, strict=True), detect)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures, boxes = load_scenes(args.scenes, args.out / "scenes.npz", args.count)
    if args.prepare:
        return
    objects = kept_objects(Library(args.assets, "train", trainable(args.assets), cache=1), args.out / "objects.npz")
    run = Run(Det, args.out, args.seed, 0.995, partial(muon_and_adam, lr=args.lr, lr_rest=2e-3))
    rng = np.random.default_rng([args.seed, run.progress.step])
    usable = len(pictures) - HELD_BACK
    limit, tick = args.minutes * 60, time.monotonic()
    losses, saved = [], run.progress.elapsed
    while run.progress.elapsed < limit:
        share = run.progress.elapsed / limit
        _, size, count = next(phase for phase in PHASES if share < phase[0])
        items = [augment(rng, pictures[i], boxes[i], size, objects) for i in rng.integers(0, usable, count)]
        with torch.autocast("cpu", torch.bfloat16):
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
                row["held_back"] = round(evaluate(run.ema, pictures[usable:], boxes[usable:], PHASES[-1][1]), 4)
            run.log(**row)
        if run.progress.elapsed - saved > 120:
            saved = run.progress.elapsed
            run.save()
    run.save()
    run.export()
    sizes = (256, 288, 320)
    run.log(**{f"held_back_{s}": round(evaluate(run.ema, pictures[usable:], boxes[usable:], s), 4) for s in sizes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="the prepared store")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of training scenes")
    parser.add_argument("--count", type=int, default=5000, help="scenes to use, at most")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; resumes what is there")
    parser.add_argument("--prepare", action="store_true", help="only decode the scenes")
    parser.add_argument("--minutes", type=float, default=40, help="length of the whole training")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

r"""Train MaskSeg-tiny on composites made on the fly: one command, seeded, resumable.

    python -m ovseg_export.maskseg_tiny.train --assets export/work/assets --out export/work/maskseg \
        --development export/work/maskseg-dev

The trunk begins as EfficientNet-Lite0 trained on ImageNet, its first blocks stay as they are. Cells answer for the
objects that they find best (Feng et al. 2021, "TOOD"), distances are distributions (Li et al. 2020, "Generalized
focal loss"), masks are sums of prototypes (Bolya et al. 2019, "YOLACT"). Writes `checkpoint.pt`, `curve.jsonl` and,
at the end, `weights.npz`. The folder of `--development` is one of `protocol.py`'s, in the style for choices: its AP
goes into the curve.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional

from ovseg.evaluation import judge, read_annotations
from ovseg.stages.masks import encode_rle
from ovseg_export.efficientnet_lite import pretrained
from ovseg_export.muon import Muon, by_shape
from ovseg_export.scenes.compose import compose
from ovseg_export.shitu_tiny.protocol import not_suppressed
from ovseg_export.shitu_tiny.training import Run, frames, generalised_iou

from ..mixed import autocast
from . import BINS, MASK_STRIDE, NMS, SIZE
from .protocol import MIX, labelled
from .things import TRAINING, Things
from .twin import MaskSeg, Raw, boxes_of, cell_centres

PHASES = ((0.5, 192, 20), (0.8, 256, 16), (1.01, SIZE, 12))  # until this share of the time: pixels, scenes of a step
FROZEN = 5  # blocks of the trunk, and its stem
MOST = 8  # objects of a scene
CELLS = 10  # that answer for an object, and whose masks of a scene are compared


class Batch(NamedTuple):
    """Scenes, and what there is to find: `labels` is -1 where there is nothing.

    Attributes:
        pictures: [N, 3, S, S], normalised.
        labels: [N, MOST] int64.
        boxes: [N, MOST, 4], pixels.
        masks: [N, MOST, S / 4, S / 4], the share of each cell that is covered.
    """

    pictures: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


def batch(rng: np.random.Generator, library: Things, size: int, count: int) -> Batch:
    """Make scenes."""
    side = size // MASK_STRIDE
    pictures = np.empty((count, size, size, 3), np.uint8)
    labels = np.full((count, MOST), -1, np.int64)
    boxes = np.zeros((count, MOST, 4), np.float32)
    masks = np.zeros((count, MOST, side, side), np.float32)
    for i in range(count):
        scene = compose(rng, library, size, MIX)
        pictures[i] = scene.image
        for k, (number, label) in enumerate(labelled(scene)[:MOST]):
            visible = (scene.ids == number).astype(np.float32)
            x, y, width, height = cv2.boundingRect(visible.astype(np.uint8))
            labels[i, k], boxes[i, k] = label, (x, y, x + width, y + height)
            masks[i, k] = cv2.resize(visible, (side, side), interpolation=cv2.INTER_AREA)
    return Batch(frames(pictures), *map(torch.from_numpy, (labels, boxes, masks)))


def mirrored(truth: Batch) -> Batch:
    """The same scenes, left and right exchanged."""
    left, top, right, bottom = truth.boxes.unbind(-1)
    side = truth.pictures.shape[-1]
    boxes = torch.stack([side - right, top, side - left, bottom], -1) * (truth.labels >= 0)[..., None]
    pictures = truth.pictures.flip(3).contiguous(memory_format=torch.channels_last)
    return Batch(pictures, truth.labels, boxes, truth.masks.flip(3))


@torch.no_grad()
def assign(
    scores: torch.Tensor, boxes: torch.Tensor, centres: torch.Tensor, truth: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which object [N, M] each cell answers for, -1 for none, and how well it does [N, M], 0 to 1."""
    real = truth.labels >= 0
    low, high = truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:]
    inside = ((centres > low) & (centres < high)).all(-1) & real[..., None]
    iou = generalised_iou(boxes[:, None], truth.boxes[:, :, None])[0].clamp(min=0) * inside  # [N, K, M]
    index = truth.labels.clamp(min=0)[:, None].expand(-1, scores.shape[1], -1)
    fit = scores.gather(2, index).transpose(1, 2).sqrt() * iou**4 + 1e-9 * inside
    least = fit.topk(CELLS, 2).values[..., -1:]
    chosen = (fit >= least) & inside
    fit, iou = fit * chosen, iou * chosen
    quality = fit / fit.amax(2, keepdim=True).clamp(min=1e-9) * iou.amax(2, keepdim=True)
    best, owner = (iou + 1e-6 * chosen).max(1)
    taken = best > 0
    return owner.masked_fill(~taken, -1), quality.gather(1, owner[:, None])[:, 0] * taken


def loss_of(raw: Raw, truth: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss, and its parts."""
    side = truth.pictures.shape[-1]
    centres, strides = cell_centres(side, side)
    boxes = boxes_of(raw.bins, centres, strides)
    scores = raw.logits.sigmoid()
    owner, quality = assign(scores.detach(), boxes.detach(), centres, truth)
    n, m = torch.nonzero(owner >= 0, as_tuple=True)
    k = owner[n, m]
    weight = quality[n, m]
    total = weight.sum().clamp(min=1.0)

    wanted = torch.zeros_like(scores)
    wanted[n, m, truth.labels[n, k]] = weight
    classes = functional.binary_cross_entropy_with_logits(raw.logits, wanted, reduction="sum") / total
    # Which class it is, apart from whether there is anything: learnt several times as fast.
    named = functional.cross_entropy(raw.logits[n, m], truth.labels[n, k], reduction="none")
    named = (named * weight).sum() / total

    target = truth.boxes[n, k]
    boxed = ((1 - generalised_iou(boxes[n, m], target)[1]) * weight).sum() / total
    ends = torch.cat([centres[m] - target[:, :2], target[:, 2:] - centres[m]], -1) / strides[m, None]
    ends = ends.clamp(0, BINS - 1.01)
    below = ends.long()
    share = ends - below
    logs = raw.bins[n, m].log_softmax(-1)
    nearest = logs.gather(-1, below[..., None])[..., 0] * (1 - share)
    nearest = nearest + logs.gather(-1, below[..., None] + 1)[..., 0] * share
    spread = -(nearest.mean(-1) * weight).sum() / total

    masked = mask_loss(raw, truth, n, m, k)
    parts = {"classes": classes, "named": named, "boxes": boxed, "spread": spread, "masks": masked}
    whole = classes + named + 2.5 * boxed + 0.5 * spread + 2.0 * masked
    return whole, {name: float(part.detach()) for name, part in parts.items()}


def mask_loss(raw: Raw, truth: Batch, n: torch.Tensor, m: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice of the masks of some cells, within their objects' boxes."""
    count = len(raw.logits)
    order = torch.randperm(len(n))
    rows: list[torch.Tensor] = [order[n[order] == i][:CELLS] for i in range(count)]
    picked = torch.cat(rows)
    if not len(picked):
        return raw.prototypes.sum() * 0
    found = torch.cat([raw.coefficients[i, m[row]] @ raw.prototypes[i].flatten(1) for i, row in enumerate(rows)])
    wanted = truth.masks[n[picked], k[picked]].flatten(1)
    side = truth.masks.shape[-1]
    area = within(truth.boxes[n[picked], k[picked]], side, side).flatten(1)
    entropy = functional.binary_cross_entropy_with_logits(found, wanted, reduction="none")
    entropy = (entropy * area).sum(1) / area.sum(1)
    shown = found.sigmoid() * area
    dice = 1 - 2 * ((shown * wanted).sum(1) + 1) / ((shown**2).sum(1) + (wanted**2 * area).sum(1) + 2)
    return (entropy + dice).mean()


def within(boxes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """1.0 for cells of a mask [K, rows, columns] whose middle is in a box, or not farther from it than a cell."""
    y = (torch.arange(rows) + 0.5) * MASK_STRIDE
    x = (torch.arange(columns) + 0.5) * MASK_STRIDE
    low, high = boxes[:, :2] - MASK_STRIDE, boxes[:, 2:] + MASK_STRIDE
    across = (x >= low[:, :1]) & (x <= high[:, :1])
    down = (y >= low[:, 1:]) & (y <= high[:, 1:])
    return (down[:, :, None] & across[:, None]).float()


@torch.no_grad()
def find(network: MaskSeg, picture: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes [K], scores [K] and masks [K, H, W] of a BGR picture."""
    with autocast():
        raw = network(frames(cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)[None]))
    boxes = boxes_of(raw.bins, *cell_centres(size, size))[0].numpy()
    scores = raw.logits[0].sigmoid().numpy()
    cells, classes = np.nonzero(scores > NMS["score_threshold"])
    kept: list[tuple[float, int, int]] = []
    for label in np.unique(classes):
        order = cells[classes == label]
        order = order[np.argsort(-scores[order, label])][: int(NMS["nms_top_k"])]
        chosen = order[not_suppressed(boxes[order], NMS["nms_threshold"])]
        kept += [(float(scores[cell, label]), int(label), int(cell)) for cell in chosen]
    kept = sorted(kept, reverse=True)[: int(NMS["keep_top_k"])]
    rows = torch.tensor([cell for _, _, cell in kept], dtype=torch.long)
    side = raw.prototypes.shape[-1]
    logits = (raw.coefficients[0, rows] @ raw.prototypes[0].flatten(1)).unflatten(1, (side, side))
    logits = torch.where(within(torch.from_numpy(boxes)[rows], side, side) > 0, logits, -10.0).numpy()
    height, width = picture.shape[:2]
    masks = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) > 0 for one in logits]
    found = np.array([(label, score) for score, label, _ in kept]).reshape(-1, 2)
    return found[:, 0].astype(int), found[:, 1], np.array(masks, bool).reshape(-1, height, width)


def evaluate(network: MaskSeg, folder: Path, size: int) -> dict[str, float | None]:
    """AP and AP50 of masks."""
    annotations = read_annotations(folder / "annotations.json")
    images, rows = annotations.dataset["images"], []
    for image in images:
        classes, scores, masks = find(network, cv2.imread(str(folder / image["file_name"])), size)
        for label, score, outline in zip(classes, scores, encode_rle(list(masks)), strict=True):
            row = {"image_id": image["id"], "category_id": int(label), "score": float(score)}
            rows.append({**row, "segmentation": outline, "bbox": coco_mask.toBbox(outline).tolist()})
    ids = [image["id"] for image in images]
    found = judge(annotations, rows, ids, sorted(annotations.categories.values()), len(ids))
    return {name: found.mask[name] for name in ("AP", "AP50")}


def begun() -> MaskSeg:
    """The network with its trunk trained on ImageNet; what the trunk sees first is no longer trained."""
    network = MaskSeg()
    network.trunk.load_state_dict({name: torch.from_numpy(array) for name, array in pretrained().items()})
    for part in (network.trunk.stem, *network.trunk.blocks[:FROZEN]):
        part.requires_grad_(False)
    return network


def optimisers(network: torch.nn.Module, lr: float) -> tuple[list[torch.optim.Optimizer], list[torch.nn.Parameter]]:
    """Muon for the new kernels, Adam for the rest, whose gradients are clipped.

    The trunk, trained already and without normalisations that would bear large steps, learns slowly.
    """
    new: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    trunk: list[torch.nn.Parameter] = []
    for name, p in network.named_parameters():
        if p.requires_grad:
            (trunk if name.startswith("trunk.") else new if p.ndim == 4 else rest).append(p)
    groups = [{"params": rest, "lr": 2e-3}, {"params": trunk, "lr": 1e-4}]
    return [
        Muon(new, lr, weight_decay=0.0, scale=by_shape),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0),
    ], rest + trunk


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    library = Things(args.assets, TRAINING, small=True)
    run = Run(begun, args.out, args.seed, partial(optimisers, lr=args.lr), 0.998, clip=10.0)
    rng = np.random.default_rng([args.seed, run.progress.step])
    limit, tick, saved = args.minutes * 60, time.process_time(), run.progress.elapsed
    losses: list[dict[str, float]] = []
    truth: Batch | None = None
    while run.progress.elapsed < limit:
        share = run.progress.elapsed / limit
        _, size, count = next(phase for phase in PHASES if share < phase[0])
        # Each scene serves twice: to make it takes half as long as to learn from it.
        truth = mirrored(truth) if truth is not None and run.progress.step % 2 else batch(rng, library, size, count)
        with autocast():
            raw = run.network(truth.pictures)
        loss, parts = loss_of(raw, truth)
        run.step(loss, share)
        losses.append(parts | {"loss": float(loss.detach())})
        now = time.process_time()
        run.progress.elapsed += now - tick
        tick = now
        if run.progress.step % 25 == 0:
            means = {name: round(float(np.mean([row[name] for row in losses])), 3) for name in losses[0]}
            run.log(size=size, **means)
            losses = []
        if run.progress.step % args.every == 0:
            run.log(development=evaluate(run.ema, args.development, SIZE))
        if run.progress.elapsed - saved > 120:
            saved = run.progress.elapsed
            run.save()
    run.save()
    run.export()
    run.log(development=evaluate(run.ema, args.development, SIZE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="the prepared store")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; resumes what is there")
    parser.add_argument("--development", type=Path, required=True, help="annotated scenes, for the curve")
    parser.add_argument("--minutes", type=float, default=20, help="length of the whole training, of processor time")
    parser.add_argument("--every", type=int, default=500, help="steps between two figures of the development set")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

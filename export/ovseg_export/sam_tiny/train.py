"""Train SAM-tiny on composite scenes: one command, seeded, resumable.

    python -m ovseg_export.sam_tiny.train --scenes work/scenes/train --val work/scenes/val --out work/sam-tiny

Each step shows the network a few scenes with several prompts each, in two or three rounds: a box or a click, then
clicks that correct the mask so far, as in Segment Anything (appendix A). Writes `checkpoint.pt`, `curve.jsonl` and,
at the end, `weights.npz`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from ..efficientnet_lite import pretrained
from ..mixed import autocast
from ..muon import Muon
from . import MASKS, MEAN, SIZE, STD
from .auxiliary import INSTANCES, Auxiliary
from .twin import SamTiny


@dataclass(frozen=True)
class Phase:
    """Part of a training: frames of `size` px, `scenes` x `prompts` a step."""

    size: int
    scenes: int
    prompts: int
    crop: tuple[float, float]  # sides of the part of a scene that is shown, as a share of the scene's


# Small frames first: most of what a promptable segmenter learns does not need resolution. They show a part of the
# scene, so that things keep their size.
SMALL, WHOLE = Phase(256, 12, 4, (0.45, 0.9)), Phase(SIZE, 5, 5, (0.6, 1.3))
BOXES = 0.6  # share of the prompts that are boxes
TRUNK = 0.2  # of the rate, for what was pretrained
HELD = 0.55  # the share of the time after which the rate is let down
WARM_UP = 100  # steps
EMA = 0.998  # decay of the averaged weights, which are the ones that ship


class Scenes(torch.utils.data.IterableDataset):
    """Endless stream of scenes.

    Each is (frame [3, S, S], soft masks [K, S/4, S/4], boxes [K, 4], points [K, 2], ids [S, S], extents [32, 4]).
    """

    def __init__(self, folder: Path, phase: Phase, seed: int) -> None:
        self.folder, self.phase, self.seed = folder, phase, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        cv2.setNumThreads(1)
        # The trainer may be pinned to one core; this worker is not.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            paths = sorted(self.folder.rglob("*.png"))
            if not paths:
                raise FileNotFoundError(f"no scene in {self.folder}: run ovseg_export.scenes.pregenerate first")
            for i in rng.permutation(len(paths))[:2000]:
                image, ids = read_scene(paths[i])
                item = self.sample(*augment(image, ids, self.phase.crop, rng), rng)
                if item is not None:
                    yield item

    def sample(self, image: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, ...] | None:
        """One item, or None where no instance is large enough."""
        size, count = self.phase.size, self.phase.prompts
        scale = size / max(ids.shape)
        height, width = (int(side * scale + 0.5) for side in ids.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame = np.zeros((size, size, 3), np.float32)
        frame[:height, :width] = normalise(cv2.resize(image, (width, height), interpolation=how))
        full = np.zeros((size, size), np.uint8)
        full[:height, :width] = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST)
        areas = np.bincount(full.ravel(), minlength=256)
        areas[0] = 0
        found = np.flatnonzero(areas >= max(40, size * size // 3500))
        if not len(found):
            return None
        chosen = rng.permutation(found)[:count]
        chosen = np.concatenate([chosen, rng.choice(found, count - len(chosen))])
        extents = np.zeros((INSTANCES, 4), np.float32)
        for instance in np.flatnonzero(areas[:INSTANCES]):
            extents[instance] = bounding_box((full == instance).astype(np.uint8)) / size
        masks, boxes, points = [], [], []
        for instance in chosen:
            mask = (full == instance).astype(np.uint8)
            box = bounding_box(mask)
            masks.append(cv2.resize(mask.astype(np.float32), (size // 4, size // 4), interpolation=cv2.INTER_AREA))
            boxes.append(np.clip(box + box_noise(box, rng), 0, size))
            points.append(random_click(mask, box, rng))
        arrays = (frame.transpose(2, 0, 1), np.stack(masks), np.stack(boxes), np.stack(points), full, extents)
        return tuple(torch.from_numpy(np.ascontiguousarray(array, np.float32)) for array in arrays)


def read_scene(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image HxWx3 uint8 BGR and instance ids HxW uint8 of the scene whose ids are at `path`."""
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(path.with_suffix(".jpg")))
    if ids is None or image is None:
        raise FileNotFoundError(f"the scene {path} cannot be read")
    return image, ids


def here(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor on the device of the training."""
    return torch.from_numpy(array).to(torch.get_default_device())


def normalise(image: np.ndarray) -> np.ndarray:
    """BGR uint8 to normalised RGB float32."""
    return (image[:, :, ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)


def bounding_box(mask: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(mask)
    return np.array([x, y, x + width, y + height], np.float32)


def box_noise(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        return np.zeros(4)
    sides = np.tile(box[2:] - box[:2], 2)
    return np.clip(rng.normal(0, 0.05, 4), -0.12, 0.12) * sides


def random_click(mask: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A point of the mask, more often than not well inside."""
    x0, y0, x1, y1 = box.astype(int)
    crop = np.pad(mask[y0:y1, x0:x1], 1)
    if rng.random() < 0.6:
        depth = cv2.distanceTransform(crop, cv2.DIST_L2, 3)
        inside = np.flatnonzero(depth >= depth.max() * rng.choice([0.5, 0.8, 0.99]))
    else:
        inside = np.flatnonzero(crop)
    y, x = divmod(int(rng.choice(inside)), crop.shape[1])
    return x - 1 + x0 + rng.random(), y - 1 + y0 + rng.random()


def augment(
    image: np.ndarray, ids: np.ndarray, crop: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A crop of random size and aspect (the rest of the frame is then padding, as in use), mirrored, recoloured."""
    height, width = ids.shape
    side = int(min(1.0, rng.uniform(*crop)) * height)
    aspect = 1.0 if rng.random() < 0.4 else rng.uniform(0.55, 1.0)
    tall = rng.random() < 0.35
    rows, columns = (side, int(side * aspect)) if tall else (int(side * aspect), side)
    y, x = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    image, ids = image[y : y + rows, x : x + columns], ids[y : y + rows, x : x + columns]
    if rng.random() < 0.5:
        image, ids = image[:, ::-1], ids[:, ::-1]
    if rng.random() < 0.15:
        turns = int(rng.integers(1, 4))
        image, ids = np.rot90(image, turns), np.rot90(ids, turns)
    return recolour(np.ascontiguousarray(image), rng), np.ascontiguousarray(ids)


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = image.astype(np.float32)
    if rng.random() < 0.8:
        x = x * rng.uniform(0.6, 1.4) + rng.uniform(-25, 25)
    if rng.random() < 0.4:
        x = x * rng.uniform(0.8, 1.2, 3)
    if rng.random() < 0.4:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * rng.uniform(0, 1.5)
    if rng.random() < 0.1:
        x = x[:, :, rng.permutation(3)]
    if rng.random() < 0.15:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.15:
        x = x + rng.normal(0, rng.uniform(2, 12), x.shape)
    x = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:  # as an older camera would have seen it, all of it alike
        height, width = x.shape[:2]
        scale = rng.uniform(0.4, 0.9)
        small = cv2.resize(x, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        x = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.35:
        _, file = cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 85))])
        x = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return x


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal (gamma 1, over the object's area) plus dice loss, and the IoU, of each mask.

    Both tensors are [..., H, W]; `target` is the covered share of each low-resolution pixel.
    """
    p = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    area = target.sum((-1, -2))
    focal = (entropy * (p - target).abs()).sum((-1, -2)) / (area + 150)
    dice = 1 - (2 * (p * target).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + area + 1)
    with torch.no_grad():
        ours, theirs = logits > 0, target > 0.5
        iou = (ours & theirs).sum((-1, -2)) / (ours | theirs).sum((-1, -2)).clamp(min=1)
    return focal + dice, iou


@torch.no_grad()
def corrective_click(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A click in the larger error, more likely deep inside it.

    Args:
        logits: [N, h, w] masks so far, at a quarter of the frame.
        target: [N, h, w].

    Returns:
        Coordinates [N, 1, 2] in pixels of the frame, and labels [N, 1]: 1 for a missed part, 0 for a wrong one.
    """
    count, _, width = target.shape
    ours, theirs = logits > 0, target > 0.5
    missed, wrong = (theirs & ~ours).float(), (ours & ~theirs).float()
    positive = missed.sum((1, 2)) >= wrong.sum((1, 2))
    error = torch.where(positive[:, None, None], missed, wrong)
    perfect = error.sum((1, 2)) == 0
    error = torch.where(perfect[:, None, None], theirs.float(), error)
    positive = positive | perfect
    depth = functional.avg_pool2d(error[:, None], 5, 1, 2)[:, 0]
    weight = (depth**3 * error).flatten(1) + 1e-9 * (theirs.float().flatten(1) + 1e-9)
    at = torch.multinomial(weight, 1)[:, 0]
    xy = torch.stack([at % width, at // width], 1).float() * 4 + 4 * torch.rand(count, 2)
    return xy[:, None], positive.float()[:, None]


def first_prompts(boxes: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes and single points, a tenth of the boxes with a click. Returns coords, labels, is_box."""
    count = len(boxes)
    is_box = torch.rand(count) < BOXES
    both = is_box & (torch.rand(count) < 0.1)
    coords, labels = torch.zeros(count, 3, 2), torch.full((count, 3), -1.0)
    coords[:, 0] = torch.where(is_box[:, None], boxes[:, :2], points)
    labels[:, 0] = torch.where(is_box, 2.0, 1.0)
    coords[is_box, 1], labels[is_box, 1] = boxes[is_box, 2:], 3.0
    coords[both, 2], labels[both, 2] = points[both], 1.0
    if random.random() < 0.5:  # as in use: two corners, or one point and padding
        coords, labels = coords[:, :2], labels[:, :2]
    return coords, labels, is_box


def step_loss(
    network: SamTiny, auxiliary: Auxiliary | None, batch: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one batch, and the IoU that it saw by kind of prompt."""
    frame, masks, boxes, points, ids, extents = batch
    if auxiliary:
        auxiliary.reset()
    prompts, size = masks.shape[1], frame.shape[-1]
    target = masks.flatten(0, 1)
    coords, labels, is_box = first_prompts(boxes.flatten(0, 1), points.flatten(0, 1))
    count = len(target)
    mask_input, has_mask = torch.zeros(count, 1, size // 4, size // 4), torch.zeros(count)
    total, seen = torch.zeros(()), {}
    with autocast(frame.device.type):
        frame = frame.contiguous(memory_format=torch.channels_last)
        *embeddings, pixels = network.encoder(frame)
        embeddings = [*(e.repeat_interleave(prompts, 0) for e in embeddings), pixels]
        rounds = random.choices((1, 2, 3), (0.45, 0.4, 0.15))[0]
        for turn in range(rounds):
            single, iou_1, several, iou_n = network.decode(embeddings, coords, labels, mask_input, has_mask)
            logits = torch.cat([single, several], 1).float()
            predicted = torch.cat([iou_1, iou_n], 1).float()
            loss, iou = mask_loss(logits, target[:, None].expand(-1, MASKS, -1, -1))
            best = loss[:, 1:].min(1).values.mean()
            total = total + loss[:, 0].mean() + (0.5 if turn == 0 else 0.2) * best
            total = total + 0.5 * functional.mse_loss(predicted, iou.float())
            if turn == 0:
                seen.update(box=iou[is_box, 0], point=iou[~is_box, 0])
            elif turn == 1:
                seen["second"] = iou[:, 0]
            if turn + 1 < rounds:
                click, label = corrective_click(logits[:, 0].detach(), target)
                coords, labels = torch.cat([coords, click], 1), torch.cat([labels, label], 1)
                has_mask = (torch.rand(count) < 0.7).float()
                mask_input = logits[:, :1].detach() * has_mask[:, None, None, None]
        total = total / rounds
        if auxiliary:
            dense, coarse = auxiliary.encoder_loss(ids, extents), auxiliary.decoder_loss(target)
            seen.update(dense=dense.detach()[None], coarse=coarse.detach()[None])
            total = total + 0.3 * dense + 0.5 * coarse
    return total, seen


@torch.no_grad()
def average_into(ema: SamTiny, network: SamTiny, step: int) -> None:
    decay = min(EMA, (1 + step) / (10 + step))
    for kept, new in zip(ema.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


@torch.no_grad()
def evaluate(network: SamTiny, folder: Path, scenes: int) -> dict[str, float]:
    """Mean IoU on whole frames: exact boxes, then one click at the deepest point of the object."""
    ious: dict[str, list[float]] = {"val_box": [], "val_point": []}
    no_mask = torch.zeros(1, 1, SIZE // 4, SIZE // 4), torch.zeros(1)
    for path in sorted(folder.rglob("*.png"))[:scenes]:
        image, ids = read_scene(path)
        scale = SIZE / len(image)  # scenes are square
        frame = here(normalise(cv2.resize(image, (SIZE, SIZE)))).permute(2, 0, 1)[None]
        with autocast(frame.device.type):
            embeddings = [e.float() for e in network.encoder(frame.contiguous(memory_format=torch.channels_last))]
        masks = [(ids == k).astype(np.uint8) for k in np.unique(ids) if k]
        if not masks:
            continue
        truth = here(np.stack(masks)).bool()
        boxes = here(np.stack([bounding_box(m) for m in masks])).reshape(-1, 2, 2) * scale
        clicks = torch.tensor([deepest_point(m) for m in masks])[:, None] * scale
        corners = torch.tensor([[2.0, 3.0]]).expand(len(masks), -1)
        for key, coords, labels in (
            ("val_box", boxes, corners),
            ("val_point", clicks, torch.ones(len(masks), 1)),
        ):
            logits = network.decode(embeddings, coords, labels, *no_mask)[0]
            size = ids.shape
            full = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0] > 0
            iou = (full & truth).sum((1, 2)) / (full | truth).sum((1, 2)).clamp(min=1)
            ious[key] += iou.tolist()
    return {key: round(float(np.mean(values)), 4) for key, values in ious.items()}


def deepest_point(mask: np.ndarray) -> tuple[float, float]:
    """The point of a mask that is farthest from its outside, in pixels."""
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)
    y, x = divmod(int(depth.argmax()), depth.shape[1])
    return x - 0.5, y - 0.5


@dataclass
class Progress:
    """How far a training is."""

    elapsed: float = 0.0  # seconds
    step: int = 0


def optimisers(network: SamTiny, auxiliary: Auxiliary | None) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels; AdamW for embeddings, depthwise kernels, normalisations, biases, the trunk."""
    matrices, rest = [], []
    trunk = [weight for weight in network.encoder.trunk.parameters() if weight.requires_grad]
    pretrained_modules = set(network.encoder.trunk.modules())
    for module in filter(None, (network, auxiliary)):
        for owner in module.modules():
            if owner in pretrained_modules:
                continue
            dense = isinstance(owner, torch.nn.Linear) or (isinstance(owner, torch.nn.Conv2d) and owner.groups == 1)
            for name, weight in owner.named_parameters(recurse=False):
                (matrices if dense and name == "weight" else rest).append(weight)
    groups = [{"params": rest, "share": 1.0}, {"params": trunk, "share": TRUNK}]
    return [Muon(matrices, lr=1e-3), torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)]


@torch.no_grad()
def start_from(network: SamTiny, weights: Path | None) -> None:
    """Take over an earlier training, or the trunk alone as ImageNet taught it."""
    arrays = dict(np.load(weights)) if weights else {f"encoder.trunk.{k}": v for k, v in pretrained().items()}
    state = network.state_dict()
    for name, array in arrays.items():
        state[name].copy_(here(array))


class Run:
    """A training in a folder: the network, its average, the optimiser, the curve."""

    def __init__(self, out: Path, seed: int, weights: Path | None = None, fine: bool = False) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.checkpoint = out, out / "checkpoint.pt"
        self.network = SamTiny()
        start_from(self.network, weights)
        trunk = self.network.encoder.trunk
        for fixed in (trunk,) if fine else (trunk.stem, trunk.blocks[0]):
            fixed.requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        self.auxiliary = None if fine else Auxiliary(self.network)
        self.ema = SamTiny().eval()
        self.ema.load_state_dict(self.network.state_dict())
        self.optimisers = optimisers(self.network, self.auxiliary)
        self.progress = Progress()
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location=torch.get_default_device())
            self.network.load_state_dict(saved["net"])
            self.ema.load_state_dict(saved["ema"])
            if self.auxiliary:
                self.auxiliary.load_state_dict(saved["auxiliary"])
            for optimiser, state in zip(self.optimisers, saved["opt"], strict=True):
                optimiser.load_state_dict(state)
            self.progress = Progress(**saved["state"])
            print("resumed at", self.progress, flush=True)

    def save(self) -> None:
        state = {"net": self.network.state_dict(), "ema": self.ema.state_dict()}
        if self.auxiliary:
            state["auxiliary"] = self.auxiliary.state_dict()
        part = self.checkpoint.with_suffix(".part")
        state["opt"] = [optimiser.state_dict() for optimiser in self.optimisers]
        torch.save({**state, "state": asdict(self.progress)}, part)
        part.replace(self.checkpoint)

    def log(self, **row: object) -> None:
        row = {"step": self.progress.step, "minutes": round(self.progress.elapsed / 60, 2), **row}
        print(row, flush=True)
        with (self.out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def export(self) -> None:
        """Write the averaged weights under the names that network.py reads."""
        weights = {k: v.cpu().numpy() for k, v in self.ema.state_dict().items() if "num_batches" not in k}
        weights = {k: v.astype(np.float16) if v.ndim > 1 else v for k, v in weights.items()}
        np.savez(self.out / "weights.npz", **weights)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    run = Run(args.out, args.seed, args.weights, args.fine)
    limit = args.minutes * 60
    phase, loader, tick = None, None, time.monotonic()
    means: dict[str, list[float]] = {}
    saved = evaluated = run.progress.elapsed
    while run.progress.elapsed < limit:
        share = run.progress.elapsed / limit
        current = SMALL if share < args.small else WHOLE
        if current is not phase:
            phase = current
            scenes = Scenes(args.scenes, phase, args.seed + run.progress.step)
            # Spawned: a process that is forked off one with OpenMP's threads may wait for a lock of theirs for ever.
            loader = iter(
                torch.utils.data.DataLoader(
                    scenes,
                    batch_size=phase.scenes * args.scale,
                    num_workers=args.workers,
                    prefetch_factor=4,
                    multiprocessing_context="spawn",
                )
            )
        rate = args.lr * min(1.0, (run.progress.step + 1) / WARM_UP)
        fallen = max(0.0, (share - HELD) / (1 - HELD))
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen))
        for group in [group for optimiser in run.optimisers for group in optimiser.param_groups]:
            group["lr"] = rate * group.get("share", 1.0)
        batch = [tensor.to(args.device) for tensor in next(loader)]
        loss, seen = step_loss(run.network, run.auxiliary, batch)
        for optimiser in run.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 2.0)
        for optimiser in run.optimisers:
            optimiser.step()
        average_into(run.ema, run.network, run.progress.step)
        now = time.monotonic()
        run.progress.elapsed += now - tick
        run.progress.step += 1
        tick = now
        for key, value in {"loss": loss.detach()[None], **seen}.items():
            means.setdefault(key, []).extend(value.tolist())
        if run.progress.step % 50 == 0:
            run.log(
                size=phase.size,
                lr=round(rate, 6),
                **{k: round(float(np.mean(v)), 4) for k, v in means.items()},
            )
            means = {}
        if run.progress.elapsed - saved > 120:
            saved = run.progress.elapsed
            run.save()
        if args.val and run.progress.elapsed - evaluated > args.eval_minutes * 60:
            evaluated = run.progress.elapsed
            run.log(**evaluate(run.ema, args.val, 30))
            tick = time.monotonic()
    run.save()
    run.export()
    if args.val:
        run.log(**evaluate(run.ema, args.val, 300))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder of training scenes")
    parser.add_argument("--val", type=Path, help="folder of scenes for the curve")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; resumes what is there")
    parser.add_argument("--weights", type=Path, help="weights.npz of an earlier training to start from")
    parser.add_argument("--fine", action="store_true", help="leave the trunk as it is, and the auxiliary losses out")
    parser.add_argument("--minutes", type=float, default=80, help="length of the whole training")
    parser.add_argument("--small", type=float, default=0.55, help="share of the time on frames of 256 px")
    parser.add_argument("--eval-minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="PyTorch's name, such as cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare scenes")
    parser.add_argument("--scale", type=int, default=1, help="times as many scenes a step, for a GPU")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

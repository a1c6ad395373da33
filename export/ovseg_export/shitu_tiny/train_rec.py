"""Train the embedding network on views of objects: one command, seeded, resumable.

    python -m ovseg_export.shitu_tiny.train_rec --assets work/assets --scenes work/scenes/train --out work/shitu-rec

Each step shows a few dozen identities: the picture of a gallery and two views of each. The loss asks that each is
nearer to the two others of its identity than to everything else in the batch (Khosla et al. 2020, "Supervised
contrastive learning"). At the end the last layer is fitted anew (`refit.py`). Writes `objects.npz` (decoded once),
`checkpoint.pt`, `curve.jsonl` and `weights.npz`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from ..mixed import autocast
from . import REC_SIZE
from .protocol import STYLES, Retrieval, recall_at_1, retrieval
from .refit import refit
from .render import Objects
from .training import Run, frames, muon_and_adam
from .twin import Rec

IDENTITIES, VIEWS = 64, 3  # of a step
TEMPERATURE = 0.07


def batch(objects: Objects, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, S, S, 3] and the object of each.

    Half of the identities are of one set: what looks alike teaches most.
    """
    chosen = rng.choice(objects.sets)
    alike = np.flatnonzero(objects.sets == chosen)
    indices = np.concatenate(
        [rng.choice(alike, IDENTITIES // 2, replace=False), rng.integers(0, len(objects.sets), IDENTITIES // 2)]
    )
    pictures = np.empty((IDENTITIES * VIEWS, size, size, 3), np.uint8)
    for i, index in enumerate(indices):
        identity = objects.identity(rng, int(index))
        pictures[VIEWS * i] = objects.clean(rng, identity, size)
        for view in range(1, VIEWS):
            pictures[VIEWS * i + view] = objects.query(rng, identity, size)
    return pictures, np.repeat(indices, VIEWS)


def contrast(found: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of views of one identity of minus the log-probability of the other, against the batch."""
    logits = found @ found.T / TEMPERATURE
    group = torch.arange(len(found)) // VIEWS
    same = group[:, None] == group[None]
    # An object drawn twice may have been recoloured, or not: neither right nor wrong.
    against = torch.logsumexp(logits.masked_fill(owners[:, None] == owners[None], float("-inf")), 1, keepdim=True)
    pairs = same & ~torch.eye(len(found), dtype=torch.bool)
    return functional.softplus(against - logits)[pairs].mean()


@torch.no_grad()
def evaluate(network: Rec, data: Retrieval, size: int) -> float:
    def embed(pictures: list[np.ndarray]) -> np.ndarray:
        resized = np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_LINEAR) for p in pictures])
        with autocast():
            return np.concatenate([network(frames(part)).numpy() for part in np.array_split(resized, 8)])

    return recall_at_1(data, embed)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    objects = Objects(args.assets, args.out / "objects.npz", args.scenes)
    development = retrieval(args.assets, STYLES["development"], 2)
    print(len(objects.sets), "objects", flush=True)
    run = Run(Rec, args.out, args.seed, muon_and_adam(args.lr, 2e-3), 0.99)
    rng = np.random.default_rng([args.seed, run.progress.step])
    limit, tick = args.minutes * 60, time.monotonic()
    losses, saved = [], run.progress.elapsed
    while run.progress.elapsed < limit:
        share = run.progress.elapsed / limit
        pictures, indices = batch(objects, rng, args.size)
        with autocast():
            found = run.network(frames(pictures))
        loss = contrast(found, torch.from_numpy(indices))
        run.step(loss, share)
        losses.append(float(loss.detach()))
        now = time.monotonic()
        run.progress.elapsed += now - tick
        tick = now
        if run.progress.step % 25 == 0:
            row = {"size": args.size, "loss": round(float(np.mean(losses)), 4), "cpu": round(time.process_time(), 1)}
            losses = []
            if run.progress.step % 100 == 0:
                row["development"] = round(evaluate(run.ema, development, args.size), 4)
            run.log(**row)
        if run.progress.elapsed - saved > 120:
            saved = run.progress.elapsed
            run.save()
    run.save()
    figures = refit(run.ema, objects, development, args.size)
    run.export()
    run.log(**figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="the prepared store")
    parser.add_argument("--scenes", type=Path, help="folder of training scenes, as further backgrounds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; resumes what is there")
    parser.add_argument("--minutes", type=float, default=40, help="length of the whole training")
    parser.add_argument("--size", type=int, default=REC_SIZE, help="side of the pictures, pixels")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

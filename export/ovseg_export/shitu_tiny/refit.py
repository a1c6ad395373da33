"""Fit the last layer of the embedding network anew, in closed form, when its training has ended.

    python -m ovseg_export.shitu_tiny.refit --assets work/assets --scenes work/scenes/train --out work/shitu-rec

Linear discriminant analysis (Fisher 1936) on the features of thousands of identities, a gallery picture and three views
of each: features are whitened by how views of one identity differ, then the 256 directions are kept in which identities
differ most. How much of the identity matrix steadies the whitening is chosen on the development style, and so is
whether the new layer is kept. Rewrites `weights.npz`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from ..mixed import autocast
from . import EMBEDDING, REC_SIZE
from .protocol import STYLES, Retrieval, recall_at_1, retrieval
from .render import Objects
from .training import Run, frames, muon_and_adam
from .twin import Rec

VIEWS = 4
STEADY = (0.03, 0.1, 0.3, 1.0)  # of the mean variance, added to the diagonal


@torch.no_grad()
def features(network: Rec, pictures: np.ndarray) -> torch.Tensor:
    """Features [N, 3024] of pictures [N, S, S, 3]."""
    parts = np.array_split(pictures, max(1, len(pictures) // 128))
    with autocast():
        return torch.cat([network.features(frames(part)).float() for part in parts])


def discriminant(found: torch.Tensor, steady: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix [256, F] and bias [256] from features [identities, views, F]."""
    centres = found.mean(1)
    inner = (found - centres[:, None]).flatten(0, 1)
    within = inner.T @ inner / len(inner)
    within.diagonal().add_(steady * within.diagonal().mean())
    root = torch.linalg.cholesky(within)
    mean = centres.mean(0)
    whitened = torch.linalg.solve_triangular(root, (centres - mean).T, upper=False)  # [F, identities]
    basis = torch.randn(len(whitened), EMBEDDING + 64, generator=torch.Generator().manual_seed(0))
    for _ in range(6):  # subspace iteration: the leading directions are enough
        basis = torch.linalg.qr(whitened @ (whitened.T @ basis)).Q
    left, _, _ = torch.linalg.svd(basis.T @ whitened, full_matrices=False)
    matrix = torch.linalg.solve_triangular(root.T, basis @ left[:, :EMBEDDING], upper=True).T
    matrix = matrix / matrix.norm(dim=1).mean()
    return matrix, -matrix @ mean


def refit(
    network: Rec, objects: Objects, development: Retrieval, size: int, identities: int = 5000
) -> dict[str, float]:
    """Give a network a new last layer, if that is better on the development style; returns the figures of all."""
    rng = np.random.default_rng(1)
    chosen = rng.permutation(len(objects.pixels))[:identities]
    found = []
    for start in range(0, len(chosen), 64):
        pictures = []
        for index in chosen[start : start + 64]:
            identity = objects.identity(rng, int(index))
            pictures.append(objects.clean(rng, identity, size))
            pictures += [objects.query(rng, identity, size) for _ in range(VIEWS - 1)]
        found.append(features(network, np.stack(pictures)))
    views = torch.cat(found).unflatten(0, (-1, VIEWS))

    def shrink(pictures: list[np.ndarray]) -> torch.Tensor:
        return features(network, np.stack([cv2.resize(p, (size, size)) for p in pictures]))

    seen = {id(pictures): shrink(pictures) for pictures in (development.gallery, development.queries)}
    layers = {"trained": (network.embed.weight.detach().clone(), network.embed.bias.detach().clone())}
    layers |= {f"refit_{steady}": discriminant(views, steady) for steady in STEADY}
    figures = {
        name: round(recall_at_1(development, lambda p, m=m, b=b: (seen[id(p)] @ m.T + b).numpy()), 4)
        for name, (m, b) in layers.items()
    }
    matrix, bias = layers[max(figures, key=lambda name: figures[name])]
    with torch.no_grad():
        network.embed.weight.copy_(matrix)
        network.embed.bias.copy_(bias)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="the prepared store")
    parser.add_argument("--scenes", type=Path, help="folder of training scenes, as further backgrounds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--identities", type=int, default=5000)
    parser.add_argument("--size", type=int, default=REC_SIZE, help="side of the pictures, pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    began = time.process_time()
    objects = Objects(args.assets, args.out / "objects.npz", args.scenes)
    development = retrieval(args.assets, STYLES["development"], 2)
    run = Run(Rec, args.out, 0, muon_and_adam(0.0, 0.0), 0.0)
    figures = refit(run.ema, objects, development, args.size, args.identities)
    run.export()
    run.log(**figures, identities=args.identities, cpu=round(time.process_time() - began, 1))


if __name__ == "__main__":
    main()

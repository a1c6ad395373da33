"""What the trainings share: optimisers, averaged weights, a folder that a training resumes from, IoU of boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..muon import Muon, by_shape
from . import MEAN, STD

Optimisers = Callable[[nn.Module], tuple[list[torch.optim.Optimizer], list[nn.Parameter]]]
"""A network to its optimisers, and the parameters whose gradients are clipped."""


def muon_and_adam(lr: float, lr_rest: float) -> Optimisers:
    """Muon for the convolutions, Adam for the rest: to train from nothing."""

    def make(network: nn.Module) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
        matrices = [p for p in network.parameters() if p.ndim == 4]
        rest = [p for p in network.parameters() if p.ndim != 4]
        return [
            Muon(matrices, lr, weight_decay=0.0, scale=by_shape),
            torch.optim.AdamW(rest, lr_rest, (0.9, 0.98), weight_decay=0.0),
        ], rest

    return make


def adam_for_trunk_and_rest(lr: float, lr_rest: float) -> Optimisers:
    """AdamW, at a lower rate for what is named `trunk`: to go on from there."""

    def make(network: nn.Module) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
        named = [(name.startswith("trunk."), p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for of, p in named if of == side], "lr": lr if side else lr_rest} for side in (True, False)
        ]
        return [torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01)], [p for _, p in named]

    return make


@dataclass
class Progress:
    """How far a training is."""

    elapsed: float = 0.0  # seconds
    step: int = 0


class Run:
    """A training in a folder: the network, its average, the optimisers, the curve."""

    def __init__(
        self,
        make: Callable[[], nn.Module],
        out: Path,
        seed: int,
        optimisers: Optimisers,
        ema: float,
        clip: float = 2.0,
    ) -> None:
        torch.manual_seed(seed)
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.checkpoint, self.decay, self.clip = out, out / "checkpoint.pt", ema, clip
        self.network = make().to(memory_format=torch.channels_last)
        self.ema = make().eval()
        self.ema.load_state_dict(self.network.state_dict())
        self.optimisers, self.clipped = optimisers(self.network)
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.progress = Progress()
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint)
            self.network.load_state_dict(saved["net"])
            self.ema.load_state_dict(saved["ema"])
            for optimiser, state in zip(self.optimisers, saved["opt"], strict=True):
                optimiser.load_state_dict(state)
            self.progress = Progress(**saved["state"])
            print("resumed at", self.progress, flush=True)

    def step(self, loss: torch.Tensor, share: float, warm_up: int = 60) -> None:
        """One step of the optimisers at this share of the training."""
        factor = min(1.0, (self.progress.step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.clipped, self.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(self.decay, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for kept, new in zip(self.ema.state_dict().values(), self.network.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)
        self.progress.step += 1

    def save(self) -> None:
        state = {"net": self.network.state_dict(), "ema": self.ema.state_dict(), "state": asdict(self.progress)}
        part = self.checkpoint.with_suffix(".part")
        torch.save({**state, "opt": [optimiser.state_dict() for optimiser in self.optimisers]}, part)
        part.replace(self.checkpoint)

    def log(self, **row: object) -> None:
        row = {"step": self.progress.step, "minutes": round(self.progress.elapsed / 60, 2), **row}
        print(row, flush=True)
        with (self.out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def export(self) -> None:
        """Write the averaged weights under the names that network.py reads."""
        weights = {k: v.numpy() for k, v in self.ema.state_dict().items() if "num_batches" not in k}
        np.savez(self.out / "weights.npz", **weights)


def frames(pictures: np.ndarray) -> torch.Tensor:
    """BGR uint8 [N, H, W, 3] to normalised RGB [N, 3, H, W], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures[..., ::-1])).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalised IoU of boxes [..., 4] that broadcast."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    iou = inner / union.clamp(min=1e-6)
    return iou, iou - (outer - union) / outer.clamp(min=1e-6)

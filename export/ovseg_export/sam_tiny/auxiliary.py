"""Losses that see every pixel of a scene, for training only: a few prompts alone teach an encoder slowly.

From its features the encoder has to tell objects from background and where the boundaries run, and, for each cell
of an object, the box of that object (as FCOS does, Tian et al. 2019, with its IoU loss). From the decoder's tokens
and image cells after each layer, the share of each cell that the mask covers has to follow. None of it ships.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import DIM
from .twin import SamTiny

INSTANCES = 32  # ids above this are left out of the box loss


class Auxiliary(nn.Module):
    """Heads on features that it picks up while `network` runs."""

    def __init__(self, network: SamTiny) -> None:
        super().__init__()
        encoder, layers = network.encoder, network.decoder.layers
        self.at32 = nn.Conv2d(encoder.out32.in_channels, 4 * 5, 1)  # for each quarter of a cell
        self.at16, self.at8 = nn.Conv2d(128, 5, 1), nn.Conv2d(64, 5, 1)
        self.at4 = nn.Conv2d(32, 2, 1)
        self.coarse = nn.ModuleList([nn.Linear(DIM, DIM) for _ in layers])
        for head in (self.at32, self.at16, self.at8):
            nn.init.constant_(head.bias, -2.0)
        self.features: dict[str, torch.Tensor] = {}
        self.decoded: list[tuple[torch.Tensor, torch.Tensor]] = []
        places = {"at32": encoder.context32, "at16": encoder.mix16, "at8": encoder.mix8, "at4": encoder.mix4}
        for name, place in places.items():
            place.register_forward_hook(self._keep(name))
        for layer in layers:
            layer.register_forward_hook(lambda module, inputs, output: self.decoded.append(output))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self.features[name] = output

        return hook

    def reset(self) -> None:
        """Forget what was picked up; call it before each step."""
        self.features.clear()
        self.decoded.clear()

    def encoder_loss(self, ids: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        """Loss of the encoder's features.

        Args:
            ids: [B, S, S] instance of each pixel of the frame, 0 for none.
            extents: [B, INSTANCES, 4] visible box of each instance, as shares of S.
        """
        total = self._boxes(functional.pixel_shuffle(self.at32(self.features["at32"]), 2), ids, extents)
        total = total + self._boxes(self.at16(self.features["at16"]), ids, extents)
        total = total + self._boxes(self.at8(self.features["at8"]), ids, extents)
        fine = self.at4(self.features["at4"]).float()
        there = ids[:, 2::4, 2::4].float()
        low = -functional.max_pool2d(-there[:, None], 3, 1, 1)[:, 0]
        high = functional.max_pool2d(there[:, None], 3, 1, 1)[:, 0]
        edge, inside = (low != high).float(), (there > 0).float()
        total = total + functional.binary_cross_entropy_with_logits(fine[:, 0], inside)
        return total + functional.binary_cross_entropy_with_logits(fine[:, 1], edge, pos_weight=torch.tensor(3.0))

    def _boxes(self, output: torch.Tensor, ids: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        output = output.float()
        side = output.shape[-1]
        step = ids.shape[-1] // side
        there = ids[:, step // 2 :: step, step // 2 :: step].long()
        loss = functional.binary_cross_entropy_with_logits(output[:, 0], (there > 0).float())
        batch, row, column = torch.nonzero((there > 0) & (there < INSTANCES), as_tuple=True)
        if not len(batch):
            return loss
        x, y = (column + 0.5) / side, (row + 0.5) / side
        left, top, right, bottom = output[batch, 1:, row, column].clamp(-8, 1).exp().unbind(1)
        x0, y0, x1, y1 = extents[batch, there[batch, row, column]].unbind(1)
        wide = torch.minimum(left, x - x0) + torch.minimum(right, x1 - x)
        tall = torch.minimum(top, y - y0) + torch.minimum(bottom, y1 - y)
        shared = wide.clamp(min=0) * tall.clamp(min=0)
        both = (left + right) * (top + bottom) + (x1 - x0) * (y1 - y0) - shared
        return loss + (1 - shared / both.clamp(min=1e-6)).mean()

    def decoder_loss(self, target: torch.Tensor) -> torch.Tensor:
        """Loss of the decoder's cells after each layer of each round; target is [N, S/4, S/4]."""
        covered = functional.avg_pool2d(target[:, None], 8)[:, 0].flatten(1)
        total = torch.zeros(())
        for turn, (tokens, image) in enumerate(self.decoded):
            query = self.coarse[turn % len(self.coarse)](tokens[:, 1])
            logits = (image @ query[:, :, None])[:, :, 0].float() * DIM**-0.5
            p = torch.sigmoid(logits)
            dice = 1 - (2 * (p * covered).sum(1) + 1) / (p.sum(1) + covered.sum(1) + 1)
            entropy = functional.binary_cross_entropy_with_logits(logits, covered, reduction="none")
            weight = (entropy * (p - covered).abs()).sum(1) / (covered.sum(1) + 3)
            total = total + (dice + weight).mean()
        return total / max(1, len(self.decoded))

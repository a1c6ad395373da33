"""Mixed precision for the trainings: bfloat16 where the processor has it, else float32.

Other processors imitate bfloat16, at a tenth of the speed of float32.
"""

from __future__ import annotations

import torch


def dtype(device: str = "cpu") -> torch.dtype:
    """The fastest type for products on a kind of device."""
    # There is no public name for it yet.
    return torch.bfloat16 if device != "cpu" or torch.cpu._is_avx512_bf16_supported() else torch.float32


def autocast(device: str = "cpu") -> torch.autocast:
    """A context in which products are computed in that type."""
    return torch.autocast(device, torch.bfloat16, enabled=dtype(device) is torch.bfloat16)

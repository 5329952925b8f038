"""What moves the weights, and in which precision the way there is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

Optimiser: TypeAlias = Literal["adam", "adamw"]
"""Adam (Kingma and Ba, ICLR 2015), or with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""


def new_optimiser(
    kind: Optimiser, parameters: Sequence[nn.Parameter], *, rate: float, decay: float
) -> torch.optim.Optimizer:
    """An optimiser that decays weights, but neither biases nor the scales of normalisations.

    Args:
        kind: which.
        parameters: to move.
        rate: learning rate.
        decay: of parameters with more than one dimension.
    """
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    make = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return make([group for group in groups if group["params"]], lr=rate)


def mixed_type(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that a device is faster with: bfloat16 where it has it; a card without it float16, a CPU None.

    On two cores with AVX-512 BF16 both U-Nets were measured to train twice as fast with it.
    """
    if device.type != "cuda":
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

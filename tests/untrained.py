"""Checkpoints of networks that nobody trained."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from models.unet.build import new_unet


def write_untrained_unet(path: Path, architecture: str, seed: int) -> None:
    """Store a network's first weights as a training stores its last: `.safetensors`, in float16."""
    tensors = new_unet(architecture, seed).state_dict()
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(halved, path)

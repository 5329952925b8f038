"""Writing weights and whole training states so that no reader ever sees half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.training.errors import CannotTrain


def write_weights(file: Path, tensors: Mapping[str, Tensor], *, half: bool, metadata: Mapping[str, str]) -> None:
    """Write a checkpoint.

    Args:
        file: `.safetensors`, replaced at once.
        tensors: by name; on any device.
        half: store floating-point tensors as float16.
        metadata: stored in the file's header as JSON under the one key "pomona": the library writes several keys in
            no fixed order, and the same weights would not have the same hash.

    Raises:
        CannotTrain: a weight is too large for float16.
        OSError: the file cannot be written.
    """
    stored = {name: _stored(name, tensor, half=half) for name, tensor in tensors.items()}
    part = file.with_name(f"{file.name}.part")
    # Not the library's save_file: that makes files which only their owner may read.
    part.write_bytes(save(stored, metadata={"pomona": json.dumps(dict(metadata), sort_keys=True)}))
    part.replace(file)


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write what a run needs to go on: tensors, numbers, texts, lists and mappings of them.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as out:
        torch.save(dict(state), out)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)


def read_state(file: Path) -> dict[str, Any]:
    """Read what `write_state` wrote, onto the CPU; never runs code that a file may carry.

    Raises:
        CannotTrain: it is not such a file.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever they trip over
        raise CannotTrain(f"{file}: is no state of a run ({type(error).__name__}); start anew elsewhere.") from error
    if not isinstance(state, dict):
        raise CannotTrain(f"{file}: is no state of a run; start anew elsewhere.")
    return state


def _stored(name: str, tensor: Tensor, *, half: bool) -> Tensor:
    kept = tensor.detach().to("cpu", torch.float16 if half and tensor.is_floating_point() else None).contiguous()
    if half and tensor.is_floating_point() and not bool(torch.isfinite(kept).all()):
        raise CannotTrain(f"{name}: a weight is no number or too large for float16; use the float32 checkpoint.")
    return kept

"""Reading a checkpoint file into tensors; torch is imported only when one is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BadCheckpoint

if TYPE_CHECKING:
    import torch


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict onto the CPU, never running code that a file may carry.

    Args:
        path: a `.safetensors` file, or one that torch.save wrote (any other suffix).

    Returns:
        Tensors by parameter name.

    Raises:
        BadCheckpoint: the file cannot be read, or holds something other than named tensors.
    """
    try:
        content = _read(path)
    except Exception as error:  # unpicklers raise whatever they trip over
        raise BadCheckpoint(
            f"{path}: not a readable checkpoint ({_first_line(error)}); expected a .safetensors "
            "file, or a state dict of plain tensors written by torch.save"
        ) from error
    return _named_tensors(path, content)


def _read(path: Path) -> object:
    # Imported here: the serving process imports this module and may hold no torch.
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path, device="cpu")

    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, dict) or not content:
        raise BadCheckpoint(f"{path}: holds {_kind(content)}, not a state dict; save model.state_dict() alone")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise BadCheckpoint(f"{path}: {name!r} is {_kind(tensor)}, not a tensor; save model.state_dict() alone")
    return content


def _kind(content: object) -> str:
    return "nothing" if content == {} else f"a {type(content).__name__}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

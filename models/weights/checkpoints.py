"""Reads and hashes checkpoint files. PyTorch is imported only when a checkpoint is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import BadCheckpoint

if TYPE_CHECKING:
    import torch


def sha256_of(path: Path) -> str:
    """Hash a file with SHA-256 without reading it into memory at once.

    Returns:
        64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state_dict(path: Path, within: str | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict onto the CPU, without running code that the file may carry.

    Args:
        path: a `.safetensors` file, or a file written by torch.save (any other suffix).
        within: key under which the file may hold the state dict.

    Returns:
        Tensors by parameter name.

    Raises:
        BadCheckpoint: the file cannot be read, or does not hold named tensors.
    """
    try:
        content = _read(path)
    except Exception as error:  # unpicklers raise anything
        raise BadCheckpoint(
            f"{path} must be a .safetensors file, or a state dict of plain tensors written by torch.save; "
            f"reading it failed ({_first_line(error)})"
        ) from error
    if within is not None and isinstance(content, dict):
        content = content.get(within, content)
    return _named_tensors(path, content)


def write_fine_tuned(checkpoint: Path, tensors: Path, into: Path) -> None:
    """Write a checkpoint in which the tensors of another file replace its own, in its types.

    Equal inputs give equal files, so that the file can be verified by its hash.

    Args:
        checkpoint: file of the original.
        tensors: file of the tensors to replace.
        into: `.safetensors` file to write.

    Raises:
        BadCheckpoint: a file cannot be read, or a tensor to replace is not in the original, or of another shape.
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    whole = load_state_dict(checkpoint)
    for name, tensor in load_state_dict(tensors).items():
        if name not in whole or whole[name].shape != tensor.shape:
            raise BadCheckpoint(f"{tensors}: {name} must be a tensor of {checkpoint}, of the same shape")
        whole[name] = tensor.to(whole[name].dtype)
    into.write_bytes(save({name: tensor.contiguous() for name, tensor in whole.items()}))


def mismatch(architecture: str, error: RuntimeError, advice: str = "") -> BadCheckpoint:
    """Make the error for a checkpoint whose tensors do not fit an architecture.

    Args:
        architecture: the architecture's name.
        error: exception of `load_state_dict`; its text may list hundreds of tensors.
        advice: further advice to the user, after a comma.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:300] + " …"
    return BadCheckpoint(
        f"The checkpoint does not fit the architecture {architecture}: {text} "
        f"Name the architecture that it was trained with{advice}."
    )


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path, device="cpu")

    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(content, dict) or not content:
        raise BadCheckpoint(f"{path} must hold a state dict, got {_kind(content)}; save model.state_dict() alone")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise BadCheckpoint(
                f"{path}: {name!r} must be a tensor, got {_kind(tensor)}; save model.state_dict() alone"
            )
    return content


def _kind(content: object) -> str:
    return "nothing" if content == {} else f"a {type(content).__name__}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

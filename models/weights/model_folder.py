"""Finds checkpoints in the one folder from which a running service may load them."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from models.errors import UnusableFile
from models.weights.run_folder import RunFolder

LONGEST_NAME: Final = 512
"""Most characters of a name."""

_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".onnx")


def file_in(folder: Path, name: str) -> Path:
    """Return the checkpoint of that name in a folder.

    Links are followed as long as they end within the folder, as those of mounted volumes do.

    Args:
        folder: the folder.
        name: relative path in it, with `/`; of a checkpoint, or of the folder of a training run.

    Returns:
        Its absolute path without links.

    Raises:
        UnusableFile: the name leads out of the folder, or there is no such file, or none of a checkpoint.
    """
    parts = PurePosixPath(name).parts
    if not name.strip() or "\0" in name or "\\" in name or len(name) > LONGEST_NAME:
        raise UnusableFile(f"file must be a relative path of at most {LONGEST_NAME} characters, got {name[:80]!r}.")
    if name.startswith("/") or ".." in parts or ":" in parts[0]:
        raise UnusableFile(
            f"file must be a relative path in POMONA_MODELS_DIR without .., and is never a URL, got {name!r}."
        )
    try:
        root = folder.resolve(strict=True)
        path = (root / name).resolve(strict=True)
        if path.is_dir():
            path = RunFolder(path).model.resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "its links form a circle"
        raise UnusableFile(
            f"There is no readable file {name!r} in POMONA_MODELS_DIR ({reason}): name a checkpoint in it, or the "
            "folder of a training run with its model.safetensors."
        ) from error
    if not path.is_relative_to(root):
        raise UnusableFile(f"{name!r} is a link that leads out of POMONA_MODELS_DIR: copy the file into it.")
    if not stat.S_ISREG(mode) or path.suffix not in _SUFFIXES:
        raise UnusableFile(f"{name!r} must be a file that ends in {', '.join(_SUFFIXES)}.")
    return path

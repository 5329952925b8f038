"""The converted OpenVINO models of a checkpoint: where they lie and how they are made, once."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import filelock

import models
from models.entries import Family
from models.errors import BackendError, DiskFull
from models.zoo import CatalogueEntry

ENCODER: Final = "encoder.xml"
DECODER: Final = "decoder.xml"
MASK_DECODER: Final = "mask_decoder.xml"
"""The decoder for prompts that bring a mask."""
POSITION_MATRIX: Final = "position_matrix.npy"
"""What `models.sam.positions` needs of the checkpoint."""

UNET: Final = "unet.xml"

_OPTIONS: Final[Mapping[Family, str]] = {"sam": "dynamic-fp32", "unet": "unet-uint8-fp32"}
_CONVERTERS: Final[Mapping[Family, str]] = {
    "sam": "models.backends.openvino_convert",
    "unet": "models.backends.unet_convert",
}
_LOG = logging.getLogger("pomona.openvino")


def converted_folder(entry: CatalogueEntry, cache_dir: Path) -> Path:
    """Where the converted models of `entry` lie, keyed by checkpoint, OpenVINO version and options."""
    options = _OPTIONS[entry.architecture.family]
    return cache_dir / entry.revision / f"openvino-{version('openvino')}-{options}"


def ensure_converted(entry: CatalogueEntry, checkpoint: Path, cache_dir: Path) -> Path:
    """Convert `checkpoint` unless that was done before, and return the folder of the converted models.

    The conversion runs in a process of its own, so that PyTorch's memory is not held afterwards; it is finished or
    leaves nothing.

    Raises:
        BackendError: the conversion failed.
        DiskFull: there is no room for the converted models.
    """
    folder = converted_folder(entry, cache_dir)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            _convert(entry, checkpoint, folder)
    return folder


def _convert(entry: CatalogueEntry, checkpoint: Path, folder: Path) -> None:
    _LOG.info("converting %s for OpenVINO, once (half a minute for MobileSAM, longer for larger ones)", entry.name)
    started = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    command = [sys.executable, "-m", _CONVERTERS[entry.architecture.family]]
    try:
        result = subprocess.run(  # noqa: S603 (our own module)
            [*command, entry.architecture, str(checkpoint.resolve()), str(unfinished.resolve())],
            cwd=Path(models.__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            _explain(result.stderr, folder)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _LOG.info("converted %s in %.0f s to %s", entry.name, time.monotonic() - started, folder)


def _explain(stderr: str, folder: Path) -> None:
    if os.strerror(errno.ENOSPC) in stderr:
        raise DiskFull(f"No room for the converted models in {folder.parent}: free some and start again.")
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    raise BackendError(f"The conversion for OpenVINO failed: {last[0]} POMONA_BACKEND=torch serves without it.")

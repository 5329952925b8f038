"""The converted OpenVINO models of a checkpoint: where they lie and how they are made, once."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import filelock

import models
from models.backends.cpu_features import multiplies_int8
from models.catalog import CatalogueEntry, Family
from models.errors import BackendError, DiskFull

ENCODER: Final = "encoder.xml"
DECODER: Final = "decoder.xml"
MASK_DECODER: Final = "mask_decoder.xml"
"""The decoder for prompts that bring a mask."""
POSITION_MATRIX: Final = "position_matrix.npy"
"""What `models.sam.positions` needs of the checkpoint."""

UNET: Final = "unet.xml"
PRECISION: Final = "precision.json"
"""How it was decided whether `UNET` is int8; only where int8 was tried."""

UNetPrecision: TypeAlias = Literal["auto", "fp32", "int8"]
"""What a U-Net computes in on OpenVINO. "auto" is bfloat16, in which networks are trained too, where the processor has
instructions for it, else float32. "int8" is int8 where the processor has instructions for that, and where int8 is
measured to be faster than float32 and to answer as it does, see `models.backends.unet_precision`; else as "auto"."""

NNCF: Final = "3.4.0"
"""The version that pyproject.toml pins, said here for machines that find converted models and need no NNCF."""

TRY_INT8: Final = "int8"
"""Last argument of `models.backends.unet_convert`."""

_CONVERTERS: Final[Mapping[Family, str]] = {
    "sam": "models.backends.openvino_convert",
    "unet": "models.backends.unet_convert",
}
_LOG = logging.getLogger("pomona.openvino")


def converted_folder(entry: CatalogueEntry, cache_dir: Path, precision: UNetPrecision) -> Path:
    """Where the converted models of `entry` lie, keyed by checkpoint, OpenVINO version and options.

    Where int8 was tried is another folder than where it was not, also if float32 was kept: machines without
    instructions for int8 may share `cache_dir`.
    """
    if entry.architecture.family == "sam":
        options = "dynamic-fp32"
    elif _tries_int8(entry, precision):
        options = f"unet-uint8-int8-nncf-{NNCF}"
    else:
        options = "unet-uint8-fp32"
    return cache_dir / entry.revision / f"openvino-{version('openvino')}-{options}"


def is_int8(folder: Path) -> bool:
    """Whether a folder of `ensure_converted` has a U-Net that was found good enough in int8."""
    account = folder / PRECISION
    return account.is_file() and json.loads(account.read_text())["precision"] == "int8"


def ensure_converted(entry: CatalogueEntry, checkpoint: Path, cache_dir: Path, precision: UNetPrecision) -> Path:
    """Convert `checkpoint` unless that was done before, and return the folder of the converted models.

    The conversion runs in a process of its own, so that the memory of PyTorch and NNCF is not held afterwards; it is
    finished or leaves nothing. What it prints is logged.

    Args:
        entry: what the checkpoint is of.
        checkpoint: its file.
        cache_dir: of converted models.
        precision: of U-Nets.

    Raises:
        BackendError: the conversion failed.
        DiskFull: there is no room for the converted models.
    """
    folder = converted_folder(entry, cache_dir, precision)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            _convert(entry, checkpoint, folder, try_int8=_tries_int8(entry, precision))
    return folder


def _tries_int8(entry: CatalogueEntry, precision: UNetPrecision) -> bool:
    return entry.architecture.family == "unet" and precision == "int8" and multiplies_int8()


def _convert(entry: CatalogueEntry, checkpoint: Path, folder: Path, *, try_int8: bool) -> None:
    _LOG.info(
        "converting %s for OpenVINO, once (%s)",
        entry.name,
        "about a minute, as int8 is tried" if try_int8 else "half a minute for MobileSAM, longer for larger ones",
    )
    started = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    arguments = [entry.architecture, str(checkpoint.resolve()), str(unfinished.resolve())]
    if try_int8:
        arguments.append(TRY_INT8)
    try:
        _run(["-m", _CONVERTERS[entry.architecture.family], *arguments], entry.name, folder)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _LOG.info("converted %s in %.0f s to %s", entry.name, time.monotonic() - started, folder)


def _run(arguments: list[str], name: str, folder: Path) -> None:
    """Run Python in the project's folder, log its output line by line, and raise what it failed with."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(  # noqa: S603 (our own module)
            [sys.executable, *arguments],
            cwd=Path(models.__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                _LOG.info("%s: %s", name, line.rstrip())
        except BaseException:
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            _explain(errors.read(), folder)


def _explain(stderr: str, folder: Path) -> None:
    if os.strerror(errno.ENOSPC) in stderr:
        raise DiskFull(f"No room for the converted models in {folder.parent}: free some and start again.")
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    raise BackendError(f"The conversion for OpenVINO failed: {last[0]} POMONA_BACKEND=torch serves without it.")

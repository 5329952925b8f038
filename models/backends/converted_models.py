"""The converted OpenVINO models of a checkpoint: their files, and their conversion in a process of its own.

Serving never loads PyTorch or NNCF: only that process, `models.backends.convert`, imports them.
"""

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
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import filelock

import models
from models.backends.cpu import has_int8_instructions
from models.catalog import CatalogueEntry
from models.errors import BackendError, DiskFull

ENCODER: Final = "encoder.xml"
DECODER: Final = "decoder.xml"
MASK_DECODER: Final = "mask_decoder.xml"
"""The decoder for prompts that have a mask."""
POSITION_MATRIX: Final = "position_matrix.npy"
"""The checkpoint's frequencies for `models.sam.prompts.position_grid`."""

UNET: Final = "unet.xml"
PRECISION: Final = "precision.json"
"""Report of the trial that decided whether `UNET` is int8; only written if int8 was tried."""

UNetPrecision: TypeAlias = Literal["auto", "fp32", "int8"]
"""Precision of U-Nets on OpenVINO. "auto" is bfloat16, as in training, if the processor has instructions for it, else
float32. "int8" is int8 if the processor has instructions for it and if, measured on this machine, it is faster than
float32 and agrees with it, see `models.backends.precision`; else as "auto"."""

NNCF: Final = "3.4.0"
"""The version in pyproject.toml, repeated here for machines that only load converted models and have no NNCF."""

TRY_INT8: Final = "int8"
"""Optional last argument of the converting process."""

_LOG = logging.getLogger("pomona.openvino")


def converted_folder(entry: CatalogueEntry, cache_dir: Path, precision: UNetPrecision) -> Path:
    """Return the folder of the converted models of `entry`, keyed by checkpoint, OpenVINO version and options.

    Models for which int8 was tried have a folder of their own, even if float32 was kept: machines without int8
    instructions may share `cache_dir`.
    """
    if entry.architecture.family == "sam":
        options = "dynamic-fp32"
    elif _tries_int8(entry, precision):
        options = f"unet-uint8-int8-nncf-{NNCF}"
    else:
        options = "unet-uint8-fp32"
    return cache_dir / entry.revision / f"openvino-{version('openvino')}-{options}"


def is_int8(folder: Path) -> bool:
    """Return whether a folder of `ensure_converted` holds a U-Net in int8."""
    report = folder / PRECISION
    return report.is_file() and json.loads(report.read_text())["precision"] == "int8"


def ensure_converted(entry: CatalogueEntry, checkpoint: Path, cache_dir: Path, precision: UNetPrecision) -> Path:
    """Convert `checkpoint` in a process of its own, unless that was done before; what the process prints is logged.

    Args:
        entry: catalogue entry of the checkpoint.
        checkpoint: its file.
        cache_dir: folder of converted models.
        precision: precision of U-Nets.

    Returns:
        The folder of the converted models; it is complete, or does not exist.

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
            _convert_once(entry, checkpoint, folder, try_int8=_tries_int8(entry, precision))
    return folder


def _tries_int8(entry: CatalogueEntry, precision: UNetPrecision) -> bool:
    return entry.architecture.family == "unet" and precision == "int8" and has_int8_instructions()


def _convert_once(entry: CatalogueEntry, checkpoint: Path, folder: Path, *, try_int8: bool) -> None:
    expected = "about a minute, as int8 is tried" if try_int8 else "half a minute for MobileSAM, longer for larger ones"
    _LOG.info("converting %s for OpenVINO, once (%s)", entry.name, expected)
    started = time.monotonic()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    arguments = [entry.architecture, str(checkpoint.resolve()), str(unfinished.resolve())]
    if try_int8:
        arguments.append(TRY_INT8)
    try:
        _run(["-m", "models.backends.convert", *arguments], entry.name, folder)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _LOG.info("converted %s in %.0f s to %s", entry.name, time.monotonic() - started, folder)


def _run(arguments: list[str], name: str, folder: Path) -> None:
    """Run Python in the project's folder, log its output line by line, and raise an error if it failed."""
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
        if not process.wait():
            return
        errors.seek(0)
        stderr = errors.read()
    if os.strerror(errno.ENOSPC) in stderr:
        raise DiskFull(f"{folder.parent} has no room for the converted models. Free some and start again.")
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    raise BackendError(f"The conversion for OpenVINO failed: {last[0]} POMONA_BACKEND=torch serves without it.")

"""The converted OpenVINO models of a checkpoint: their files and hashes, and their conversion in a process of its own.

Serving never loads PyTorch or NNCF: only that process, `models.backends.convert`, imports them.
"""

from __future__ import annotations

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
from models.errors import NO_ROOM, BackendError, DiskFull, WeightsError
from models.weights.checkpoints import sha256_of

ENCODER: Final = "encoder.xml"
DECODER: Final = "decoder.xml"
MASK_DECODER: Final = "mask_decoder.xml"
"""The decoder for prompts that have a mask."""
POSITION_MATRIX: Final = "position_matrix.npy"
"""The checkpoint's frequencies for `models.sam.prompts.position_grid`."""

UNET: Final = "unet.xml"
PRECISION: Final = "precision.json"
"""Report of the trial that decided whether `UNET` is int8; only written if int8 was tried."""

HASHES: Final = "sha256.json"
"""SHA-256 of every other file of the folder, by name, as they were right after the conversion."""

UNetPrecision: TypeAlias = Literal["auto", "fp32", "int8"]
"""Precision of U-Nets on OpenVINO. "auto" is bfloat16, as in training, if the processor has instructions for it, else
float32. "int8" is int8 if the processor has instructions for it and if, measured on this machine, it is faster than
float32 and finds rendered fruit and lesions as well, see `models.backends.precision`; else as "auto"."""

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
    elif entry.architecture.family == "sam2":
        options = "sam2-fp32"
    elif _tries_int8(entry, precision):
        options = f"unet-uint8-int8-nncf-{NNCF}"
    else:
        options = "unet-uint8-fp32"
    return cache_dir / entry.revision / f"openvino-{version('openvino')}-{options}"


def is_int8(folder: Path) -> bool:
    """Return whether a folder of `ensure_converted` holds a U-Net in int8."""
    report = folder / PRECISION
    return report.is_file() and json.loads(report.read_text())["precision"] == "int8"


def fault_of(folder: Path) -> str | None:
    """Compare the converted models in a folder with their hashes.

    Args:
        folder: from `converted_folder`.

    Returns:
        What is wrong with the first file that is not as it was converted, or None if the models may be served.
    """
    hashes = folder / HASHES
    try:
        expected = json.loads(hashes.read_text())
        if not (isinstance(expected, dict) and expected):
            return f"{hashes} names no files"
        for name, digits in expected.items():
            if sha256_of(folder / name) != digits:
                return f"{folder / name} is not as it was converted: its SHA-256 differs"
    except OSError as error:
        return f"{error.filename or hashes} cannot be read ({error.strerror or error})"
    except ValueError:
        return f"{hashes} is damaged"
    return None


def ensure_converted(entry: CatalogueEntry, checkpoint: Path, cache_dir: Path, precision: UNetPrecision) -> Path:
    """Convert `checkpoint` in a process of its own, unless intact models are there; what the process prints is logged.

    Args:
        entry: catalogue entry of the checkpoint.
        checkpoint: its file.
        cache_dir: folder of converted models.
        precision: precision of U-Nets.

    Returns:
        The folder of the converted models, complete and verified.

    Raises:
        BackendError: the conversion failed.
        DiskFull: there is no room for the converted models.
        WeightsError: the cache cannot be written.
    """
    folder = converted_folder(entry, cache_dir, precision)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir() or fault_of(folder) is not None:  # else another process was faster
                _convert_once(entry, checkpoint, folder, try_int8=_tries_int8(entry, precision))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _disk_full(folder) from error
        raise WeightsError(
            f"{error.filename or folder}: {error.strerror or error}; converted models are kept there. Make it writable "
            "for the user that runs Pomona, set POMONA_CACHE_DIR to a folder that is, or run "
            "`python -m service.prepare` where it is."
        ) from error
    return folder


def _disk_full(folder: Path) -> DiskFull:
    return DiskFull(f"{folder.parent} has no room for the converted models. Free some and start again.")


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
        hashes = {path.name: sha256_of(path) for path in sorted(unfinished.iterdir())}
        (unfinished / HASHES).write_text(json.dumps(hashes, indent=1) + "\n")
        if folder.is_dir():
            shutil.rmtree(folder)  # damaged
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
    if any(os.strerror(number) in stderr for number in NO_ROOM):
        raise _disk_full(folder)
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    raise BackendError(f"The conversion for OpenVINO failed: {last[0]} POMONA_BACKEND=torch serves without it.")

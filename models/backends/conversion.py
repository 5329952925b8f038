"""Converts checkpoints for OpenVINO, once each: `python -m models.backends.conversion ARCHITECTURE CHECKPOINT FOLDER`.

The conversion runs in a process of its own, so that serving never loads PyTorch or NNCF: only the functions of that
process import them.
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
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import filelock
import numpy as np

import models
from models.backends.cpu import has_int8_instructions
from models.catalog import Architecture, CatalogueEntry
from models.errors import BackendError, DiskFull
from models.letterbox import INPUT_SIDE
from models.sam.constants import EMBEDDING_CHANNELS

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

_TRY_INT8: Final = "int8"
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
        arguments.append(_TRY_INT8)
    try:
        _run(["-m", "models.backends.conversion", *arguments], entry.name, folder)
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


def convert_sam(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `ENCODER`, `DECODER`, `MASK_DECODER` and `POSITION_MATRIX`, float32, into an existing folder."""
    import torch

    from models.sam.build import build_sam
    from models.weights.checkpoints import load_state_dict

    model = build_sam(architecture, load_state_dict(checkpoint))
    np.save(folder / POSITION_MATRIX, model.decoder.position_matrix.numpy())

    # Batches of two and no squares: tracing takes a length of one, or one that occurs twice, for a constant.
    images, shape = torch.zeros(2, 3, 704, 1024), [-1, 3, -1, -1]
    if not model.flexible:
        shape = [1, 3, INPUT_SIDE, INPUT_SIDE]
        images = torch.zeros(shape)
    _save(model.encoder, [shape], images, folder / ENCODER)

    height, width = 12, 20
    example = {
        "embeddings": torch.zeros(2, EMBEDDING_CHANNELS, height, width),
        "image_index": torch.tensor([0, 1]),
        "points": torch.zeros(2, 3, 2),
        "labels": torch.tensor([[1, -1, -2], [1, 0, -1]]),
        "image_pe": torch.zeros(1, height * width, EMBEDDING_CHANNELS),
    }
    shapes = {
        "embeddings": [-1, EMBEDDING_CHANNELS, -1, -1],
        "image_index": [-1],
        "points": [-1, -1, 2],
        "labels": [-1, -1],
        "image_pe": [1, -1, EMBEDDING_CHANNELS],
    }
    _save(model.decoder, list(shapes.items()), example, folder / DECODER)
    example["mask_inputs"] = torch.zeros(2, 1, 4 * height, 4 * width)
    shapes["mask_inputs"] = [-1, 1, -1, -1]
    _save(model.decoder, list(shapes.items()), example, folder / MASK_DECODER)


def convert_unet(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `UNET`, from uint8 pixels to float32 output, into an existing folder.

    One model serves all sizes: it was measured as fast as one of a fixed size.
    """
    import torch

    from models.unet.build import PixelsToLogits, build_unet
    from models.weights.checkpoints import load_state_dict

    network = PixelsToLogits(build_unet(architecture, load_state_dict(checkpoint))).eval()
    # As for SAM, a batch of two that are no squares.
    _save(network, [[-1, -1, -1, 3]], torch.zeros(2, 64, 96, 3, dtype=torch.uint8), folder / UNET)


def _save(module: Any, shapes: list[Any], example: Any, path: Path) -> None:
    import openvino

    model = openvino.convert_model(module, input=shapes, example_input=example)
    openvino.save_model(model, path, compress_to_fp16=False)


def main(arguments: list[str]) -> None:
    """Convert one checkpoint.

    Args:
        arguments: architecture, checkpoint, existing folder, and optionally "int8" to try a U-Net in int8.
    """
    architecture, checkpoint, folder = Architecture(arguments[0]), Path(arguments[1]), Path(arguments[2])
    if architecture.family == "sam":
        convert_sam(architecture, checkpoint, folder)
        return
    convert_unet(architecture, checkpoint, folder)
    if arguments[3:] == [_TRY_INT8]:
        from models.backends.precision import Effort, choose_precision

        choose_precision(folder, Effort())


if __name__ == "__main__":
    # Tracing is deprecated in PyTorch, and warns of every Python branch in the reference's layers; OpenVINO relies on
    # it, and the branches hold for all shapes used here.
    warnings.simplefilter("ignore")
    logging.getLogger("pomona").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pomona").setLevel(logging.INFO)
    main(sys.argv[1:])

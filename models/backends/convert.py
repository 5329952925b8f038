"""Converts a checkpoint for OpenVINO: `python -m models.backends.convert ARCHITECTURE CHECKPOINT FOLDER [int8]`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from models.backends.converted_models import DECODER, ENCODER, MASK_DECODER, POSITION_MATRIX, TRY_INT8, UNET
from models.backends.openvino_backend import save_model
from models.backends.precision import Effort, choose_precision
from models.catalog import Architecture
from models.letterbox import INPUT_SIDE
from models.sam.build import build_sam
from models.sam.constants import EMBEDDING_CHANNELS, EMBEDDING_STRIDE
from models.sam2.build import CONFIG, ImageDecoder, build_sam2
from models.unet.build import PixelsToLogits, build_unet
from models.weights.checkpoints import load_state_dict


def convert_sam(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `ENCODER`, `DECODER`, `MASK_DECODER` and `POSITION_MATRIX`, float32, into an existing folder."""
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


def convert_sam2(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `ENCODER`, `DECODER` and `MASK_DECODER`, float32, into an existing folder."""
    config = checkpoint.with_name(CONFIG) if architecture == Architecture.SAM2 else None
    parts = build_sam2(architecture, load_state_dict(checkpoint, within="model"), config)
    side, channels = parts.side, parts.network.hidden_dim
    # One image at a time: on a CPU a batch gains nothing.
    _save(parts.encoder, [[1, 3, side, side]], torch.zeros(1, 3, side, side), folder / ENCODER)

    cells = side // EMBEDDING_STRIDE
    example = {
        "fine": torch.zeros(2, channels // 8, 4 * cells, 4 * cells),
        "middle": torch.zeros(2, channels // 4, 2 * cells, 2 * cells),
        "coarse": torch.zeros(2, channels, cells, cells),
        "image_index": torch.tensor([0, 1]),
        "points": torch.zeros(2, 3, 2),
        "labels": torch.tensor([[1, -1, -2], [1, 0, -1]]),
        "image_pe": torch.zeros(1, cells * cells, channels),
    }
    shapes: dict[str, list[int]] = {
        **{name: [-1, *example[name].shape[1:]] for name in ("fine", "middle", "coarse")},
        "image_index": [-1],
        "points": [-1, -1, 2],
        "labels": [-1, -1],
        "image_pe": list(example["image_pe"].shape),
    }
    decoder = ImageDecoder(parts)
    _save(decoder, list(shapes.items()), example, folder / DECODER)
    example["mask_inputs"] = torch.zeros(2, 1, 4 * cells, 4 * cells)
    shapes["mask_inputs"] = [-1, 1, 4 * cells, 4 * cells]
    _save(decoder, list(shapes.items()), example, folder / MASK_DECODER)


def convert_unet(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `UNET`, from uint8 pixels to float32 output, into an existing folder.

    One model serves all sizes: it was measured as fast as one of a fixed size.
    """
    network = PixelsToLogits(build_unet(architecture, load_state_dict(checkpoint))).eval()
    # As for SAM, a batch of two that are no squares.
    _save(network, [[-1, -1, -1, 3]], torch.zeros(2, 64, 96, 3, dtype=torch.uint8), folder / UNET)


def _save(module: Any, shapes: list[Any], example: Any, path: Path) -> None:
    model = openvino.convert_model(module, input=shapes, example_input=example)
    save_model(model, path)


def main(arguments: list[str]) -> None:
    """Convert one checkpoint.

    Args:
        arguments: architecture, checkpoint, existing folder, and optionally "int8" to try a U-Net in int8.
    """
    architecture, checkpoint, folder = Architecture(arguments[0]), Path(arguments[1]), Path(arguments[2])
    if architecture.family == "sam":
        convert_sam(architecture, checkpoint, folder)
        return
    if architecture.family == "sam2":
        convert_sam2(architecture, checkpoint, folder)
        return
    convert_unet(architecture, checkpoint, folder)
    if arguments[3:] == [TRY_INT8]:
        choose_precision(folder, Effort())


if __name__ == "__main__":
    # Tracing is deprecated in PyTorch, and warns of every Python branch in the reference's layers; OpenVINO relies on
    # it, and the branches hold for all shapes used here.
    warnings.simplefilter("ignore")
    logging.getLogger("pomona").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pomona").setLevel(logging.INFO)
    main(sys.argv[1:])

"""Converts a checkpoint for OpenVINO: `python -m models.backends.openvino_convert ARCHITECTURE CHECKPOINT FOLDER`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import openvino
import torch

from models.backends.openvino_files import DECODER, ENCODER, MASK_DECODER, POSITION_MATRIX
from models.sam.build import build_sam
from models.sam.constants import EMBEDDING_CHANNELS, INPUT_SIDE
from models.weights.checkpoints import load_state_dict


def convert(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `ENCODER`, `DECODER`, `MASK_DECODER` and `POSITION_MATRIX`, float32, into an existing folder."""
    model = build_sam(architecture, load_state_dict(checkpoint))
    np.save(folder / POSITION_MATRIX, model.decoder.position_matrix.numpy())

    # Two of everything and no squares: a traced length of one, or one that occurs twice, would be taken for a constant.
    images, shape = torch.zeros(2, 3, 704, 1024), [-1, 3, -1, -1]
    if not model.flexible:
        shape = [1, 3, INPUT_SIDE, INPUT_SIDE]
        images = torch.zeros(shape)
    encoder = openvino.convert_model(model.encoder, input=[shape], example_input=images)
    openvino.save_model(encoder, folder / ENCODER, compress_to_fp16=False)

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
    decoder = openvino.convert_model(model.decoder, input=list(shapes.items()), example_input=example)
    openvino.save_model(decoder, folder / DECODER, compress_to_fp16=False)

    example["mask_inputs"] = torch.zeros(2, 1, 4 * height, 4 * width)
    shapes["mask_inputs"] = [-1, 1, -1, -1]
    mask_decoder = openvino.convert_model(model.decoder, input=list(shapes.items()), example_input=example)
    openvino.save_model(mask_decoder, folder / MASK_DECODER, compress_to_fp16=False)


if __name__ == "__main__":
    # Tracing warns of every Python branch in the reference's layers; those hold for all shapes used here.
    warnings.simplefilter("ignore")
    convert(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

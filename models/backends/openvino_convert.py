"""Converts a checkpoint for OpenVINO: `python -m models.backends.openvino_convert ARCHITECTURE CHECKPOINT FOLDER`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import openvino
import torch

from models.backends.openvino_files import DECODER, ENCODER, MASK_DECODER
from models.checkpoints import load_state_dict
from models.sam.build import build_sam
from models.sam.constants import EMBEDDING_CHANNELS, EMBEDDING_STRIDE, INPUT_SIDE, LOGITS_SIDE

_CELLS = INPUT_SIDE // EMBEDDING_STRIDE


def convert(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `ENCODER`, `DECODER` and `MASK_DECODER`, float32, into an existing folder."""
    model = build_sam(architecture, load_state_dict(checkpoint))
    square = [1, 3, INPUT_SIDE, INPUT_SIDE]
    encoder = openvino.convert_model(model.encoder, input=[square], example_input=torch.zeros(square))
    openvino.save_model(encoder, folder / ENCODER, compress_to_fp16=False)

    # Two pictures and two prompts: a traced length of one would be taken for a constant.
    example = {
        "embeddings": torch.zeros(2, EMBEDDING_CHANNELS, _CELLS, _CELLS),
        "image_index": torch.tensor([0, 1]),
        "coords": torch.zeros(2, 3, 2),
        "labels": torch.tensor([[1, -1, -2], [1, 0, -1]]),
    }
    shapes = {
        "embeddings": [-1, EMBEDDING_CHANNELS, _CELLS, _CELLS],
        "image_index": [-1],
        "coords": [-1, -1, 2],
        "labels": [-1, -1],
    }
    decoder = openvino.convert_model(model.decoder, input=list(shapes.items()), example_input=example)
    openvino.save_model(decoder, folder / DECODER, compress_to_fp16=False)

    example["mask_inputs"] = torch.zeros(2, 1, LOGITS_SIDE, LOGITS_SIDE)
    shapes["mask_inputs"] = [-1, 1, LOGITS_SIDE, LOGITS_SIDE]
    mask_decoder = openvino.convert_model(model.decoder, input=list(shapes.items()), example_input=example)
    openvino.save_model(mask_decoder, folder / MASK_DECODER, compress_to_fp16=False)


if __name__ == "__main__":
    # Tracing warns of every Python branch in the reference's layers; those hold for all shapes used here.
    warnings.simplefilter("ignore")
    convert(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

"""Converts a U-Net for OpenVINO: `python -m models.backends.unet_convert ARCHITECTURE CHECKPOINT FOLDER [int8]`."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import openvino
import torch

from models.backends.openvino_files import TRY_INT8, UNET
from models.unet.build import PixelsToLogits, build_unet
from models.weights.checkpoints import load_state_dict


def convert(architecture: str, checkpoint: Path, folder: Path) -> None:
    """Write `UNET`, uint8 pixels to float32 logits, into an existing folder.

    One model for all sizes: measured as fast as one of a fixed size.
    """
    network = PixelsToLogits(build_unet(architecture, load_state_dict(checkpoint)))
    # Two images that are no squares: a traced length of one, or one that occurs twice, would be taken for a constant.
    pixels = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    model = openvino.convert_model(network.eval(), input=[[-1, -1, -1, 3]], example_input=pixels)
    openvino.save_model(model, folder / UNET, compress_to_fp16=False)


if __name__ == "__main__":
    # Tracing itself is deprecated in PyTorch, but it is how OpenVINO reads a module.
    warnings.simplefilter("ignore")
    logging.getLogger("pomona").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("pomona").setLevel(logging.INFO)
    convert(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    if sys.argv[4:] == [TRY_INT8]:
        from models.backends.unet_precision import Effort, choose_precision

        choose_precision(Path(sys.argv[3]), Effort())

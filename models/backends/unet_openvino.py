"""A U-Net on OpenVINO's CPU plugin, from a model converted once; needs no PyTorch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.backends.base import BackendName
from models.backends.openvino_device import compile_model, infer
from models.backends.openvino_files import UNET
from models.backends.unet_base import stacked
from models.types import Pixels
from models.unet.letterbox import UNetLetterbox, pad


class OpenVinoUNet:
    """See `UNetBackend`.

    Args:
        folder: the converted model, see `models.backends.openvino_files`.
        threads: CPU threads of one inference; 0 for all cores.
        bf16: compute in bfloat16 what the converted model has in float32.

    Raises:
        BackendError: OpenVINO cannot read or compile the model.
    """

    name: BackendName = "openvino"
    device = "cpu"
    image_batches: tuple[int, ...] = (1, 2, 4)
    """On two cores none was measured to pay: 80 to 83 ms an image, alone or among 8. More cores may be kept busy by
    more images."""

    def __init__(self, folder: Path, *, threads: int = 0, bf16: bool = False) -> None:
        self._network = compile_model(folder / UNET, threads=threads, bf16=bf16)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """See `UNetBackend.prepare`: the model itself turns bytes into normalised numbers."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """See `UNetBackend.infer`."""
        (logits,) = infer(self._network, [stacked(prepared)])
        return list(logits)

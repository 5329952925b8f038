"""SAM on OpenVINO's CPU plugin, from models converted once; needs no PyTorch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.backends.base import MAX_GRIDS, BackendName, Embedding, check_cells, check_frame, normalise
from models.backends.openvino_device import compile_model, infer
from models.backends.openvino_files import DECODER, ENCODER, MASK_DECODER, POSITION_MATRIX
from models.errors import BackendError
from models.letterbox import Letterbox
from models.sam.positions import position_grid
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels

_PROMPT_BATCHES: Final = (1, 2, 4)
"""A prompt takes about 40 ms on two cores, and 60 MB that OpenVINO then keeps."""


class OpenVinoSam:
    """See `SamBackend`. An embedding is a float32 array (256, h, w).

    Args:
        folder: converted models, see `models.backends.openvino_files`.
        threads: CPU threads of one inference; 0 for all cores.

    Raises:
        BackendError: OpenVINO cannot read or compile the models.
    """

    name: BackendName = "openvino"
    device = "cpu"
    image_batches: tuple[int, ...] = (1,)
    prompt_batches: tuple[int, ...] = _PROMPT_BATCHES

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self._encoder, self._decoder, self._mask_decoder = (
            compile_model(folder / name, threads=threads) for name in (ENCODER, DECODER, MASK_DECODER)
        )
        try:
            matrix = np.load(folder / POSITION_MATRIX)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{folder / POSITION_MATRIX} cannot be read: {error} "
                "Delete that folder: its models are converted again at the next start."
            ) from error
        self.flexible = bool(self._encoder.model_inputs[0].partial_shape.is_dynamic)
        self._grid = lru_cache(MAX_GRIDS)(lambda side, cells: position_grid(matrix, side, cells))

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> NDArray[np.float32]:
        """An image, normalised and padded, as float32 (3, height, width)."""
        check_frame(pixels, letterbox, flexible=self.flexible)
        return normalise(pixels, letterbox.padded)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """See `SamBackend.encode`. Runs image by image: on a CPU a batch gains nothing."""
        if len({image.shape for image in prepared}) > 1:
            raise ValueError("images of different padded sizes go into batches of their own")
        return [infer(self._encoder, [image[None]])[0][0] for image in prepared]

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """See `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, np.ndarray)]
        check_cells([e.shape for e in images], prompts)
        grid = self._grid(prompts.side, prompts.cells)
        inputs = [np.stack(images), image_index, prompts.points, prompts.labels, grid]
        if prompts.mask_inputs is None:
            logits, scores = infer(self._decoder, inputs)
        else:
            logits, scores = infer(self._mask_decoder, [*inputs, prompts.mask_inputs])
        return logits, scores

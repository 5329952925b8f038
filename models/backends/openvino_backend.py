"""SAM on OpenVINO's CPU plugin, from models converted once; needs no PyTorch at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.base import BackendName, Embedding, normalise
from models.backends.openvino_files import DECODER, ENCODER, MASK_DECODER
from models.errors import BackendError
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels

_MAX_PROMPTS: Final = 4
"""A prompt costs the same in a batch as alone (about 40 ms on two cores), and 60 MB that OpenVINO then keeps."""


class OpenVinoSam:
    """See `SamBackend`. An embedding is a float32 array (256, 64, 64).

    Args:
        folder: converted models, see `models.backends.openvino_files`.
        threads: CPU threads of one inference; 0 for all cores.

    Raises:
        BackendError: OpenVINO cannot read or compile the models.
    """

    name: BackendName = "openvino"
    device = "cpu"
    max_prompts = _MAX_PROMPTS

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        core = openvino.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            # Some CPUs would take bfloat16 by default; masks then differ from machine to machine.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            self._encoder, self._decoder, self._mask_decoder = (
                core.compile_model(folder / name, "CPU", options).create_infer_request()
                for name in (ENCODER, DECODER, MASK_DECODER)
            )
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO cannot compile the models in {folder}: {error} "
                "Delete that folder: they are converted again at the next start."
            ) from error

    def prepare(self, pixels: Pixels) -> NDArray[np.float32]:
        """A picture as the normalised square float32 (3, 1024, 1024)."""
        return normalise(pixels)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """See `SamBackend.encode`. Runs picture by picture: on a CPU a batch gains nothing."""
        return [_infer(self._encoder, [picture[None]])[0][0] for picture in prepared]

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """See `SamBackend.decode`."""
        stacked = np.stack([e for e in embeddings if isinstance(e, np.ndarray)])
        inputs = [stacked, image_index, prompts.coords, prompts.labels]
        if prompts.mask_inputs is None:
            logits, scores = _infer(self._decoder, inputs)
        else:
            logits, scores = _infer(self._mask_decoder, [*inputs, prompts.mask_inputs])
        return logits, scores


def _infer(request: openvino.InferRequest, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    """Run and copy the outputs, which the request would overwrite at its next run."""
    try:
        results = request.infer(list(inputs), share_inputs=True)
        return [np.asarray(results[port]) for port in range(len(results))]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed: {error}") from error

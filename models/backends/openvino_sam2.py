"""SAM 2 with its encoder and its decoder for images on OpenVINO's CPU plugin; its memory stays on PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import BackendName, Embedding, check_cells
from models.backends.converted_models import DECODER, ENCODER, MASK_DECODER
from models.backends.openvino_backend import compile_model, infer
from models.backends.torch_backend import PreparedImage
from models.backends.torch_sam2 import Sam2Embedding, TorchSam2
from models.sam.prompts import PackedPrompts
from models.sam2.prompts import with_padding_points
from models.types import Logits


class OpenVinoSam2(TorchSam2):
    """Implements `Sam2Backend`.

    Args:
        folder: folder of converted models, see `models.backends.converted_models`.
        architecture: see `TorchSam2`.
        state_dict: tensors of the checkpoint.
        config: file of the configuration, for the architecture "sam2".
        threads: CPU threads of one inference; 0 for all cores.

    Raises:
        BadCheckpoint: the tensors do not fit the architecture.
        BackendError: OpenVINO cannot read or compile the models, or `transformers` is not installed.
    """

    name: BackendName = "openvino"

    def __init__(
        self,
        folder: Path,
        architecture: str,
        state_dict: Mapping[str, Tensor],
        config: Path | None = None,
        *,
        threads: int = 0,
    ) -> None:
        super().__init__(architecture, state_dict, "cpu", config)
        self._compiled_encoder, self._compiled_decoder, self._compiled_mask_decoder = (
            compile_model(folder / name, threads=threads) for name in (ENCODER, DECODER, MASK_DECODER)
        )

    def encode(self, prepared: Sequence[PreparedImage]) -> list[Embedding]:
        """Encode image by image, see `SamBackend.encode`: on a CPU a batch gains nothing."""
        return [
            Sam2Embedding(*(torch.from_numpy(scale[0]) for scale in self._encoded(self._images.batch([image], (1,)))))
            for image in prepared
        ]

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode prompts, see `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, Sam2Embedding)]
        check_cells([e.coarse.shape for e in images], prompts)
        prompts = with_padding_points(prompts)
        scales = [np.stack(scale) for scale in zip(*((e.fine, e.middle, e.coarse) for e in images), strict=True)]
        inputs = [*scales, image_index, prompts.points, prompts.labels, self._grid.numpy()]
        if prompts.mask_inputs is None:
            logits, scores = infer(self._compiled_decoder, inputs)
        else:
            logits, scores = infer(self._compiled_mask_decoder, [*inputs, prompts.mask_inputs])
        return logits, scores

    def _encoded(self, images: Tensor) -> list[NDArray[np.float32]]:
        return infer(self._compiled_encoder, [images.numpy()])

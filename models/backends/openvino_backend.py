"""SAM and U-Net on OpenVINO's CPU plugin, from models converted once; needs no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.base import MAX_GRIDS, BackendName, Embedding, check_cells, check_letterbox, normalise, stack
from models.backends.converted_models import DECODER, ENCODER, MASK_DECODER, POSITION_MATRIX, UNET
from models.backends.cpu import cpu_quota
from models.errors import BackendError
from models.letterbox import Letterbox
from models.sam.prompts import PackedPrompts, position_grid
from models.types import Logits, Pixels
from models.unet.letterbox import UNetLetterbox, pad


class OpenVinoSam:
    """Implements `SamBackend`. An embedding is a float32 array (256, h, w).

    Args:
        folder: folder of converted models, see `models.backends.converted_models`.
        threads: CPU threads of one inference; 0 for all cores.

    Raises:
        BackendError: OpenVINO cannot read or compile the models.
    """

    name: BackendName = "openvino"
    device = "cpu"
    stretched_to: int | None = None
    image_batches: tuple[int, ...] = (1,)
    prompt_batches: tuple[int, ...] = (1, 2, 4)
    """A prompt takes about 40 ms on two cores, and 60 MB of memory that OpenVINO then keeps."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self._encoder, self._decoder, self._mask_decoder = (
            compile_model(folder / name, threads=threads) for name in (ENCODER, DECODER, MASK_DECODER)
        )
        try:
            matrix = np.load(folder / POSITION_MATRIX)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{folder / POSITION_MATRIX} cannot be read: {error} "
                "Delete that folder; its models are converted again at the next start."
            ) from error
        self.flexible = bool(self._encoder.model_inputs[0].partial_shape.is_dynamic)
        self._grid = lru_cache(MAX_GRIDS)(lambda side, cells: position_grid(matrix, side, cells))

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> NDArray[np.float32]:
        """Normalise and pad an image: float32 (3, height, width)."""
        check_letterbox(pixels, letterbox, flexible=self.flexible)
        return normalise(pixels, letterbox.padded)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """Encode image by image, see `SamBackend.encode`: on a CPU a batch gains nothing."""
        if len({image.shape for image in prepared}) > 1:
            raise ValueError("images of different padded sizes must go into separate batches")
        return [infer(self._encoder, [image[None]])[0][0] for image in prepared]

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode prompts, see `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, np.ndarray)]
        check_cells([e.shape for e in images], prompts)
        grid = self._grid(prompts.side, prompts.cells)
        inputs = [np.stack(images), image_index, prompts.points, prompts.labels, grid]
        if prompts.mask_inputs is None:
            logits, scores = infer(self._decoder, inputs)
        else:
            logits, scores = infer(self._mask_decoder, [*inputs, prompts.mask_inputs])
        return logits, scores


class OpenVinoUNet:
    """Implements `UNetBackend`.

    Args:
        folder: folder of the converted model, see `models.backends.converted_models`.
        threads: CPU threads of one inference; 0 for all cores.
        bf16: compute in bfloat16 where the converted model has float32.

    Raises:
        BackendError: OpenVINO cannot read or compile the model.
    """

    name: BackendName = "openvino"
    device = "cpu"
    image_batches: tuple[int, ...] = (1, 2, 4)
    """On two cores none was measured to pay: 80 to 83 ms an image, alone or among 8. More cores may gain."""

    def __init__(self, folder: Path, *, threads: int = 0, bf16: bool = False) -> None:
        self._network = compile_model(folder / UNET, threads=threads, bf16=bf16)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """Pad an image, see `UNetBackend.prepare`; the converted model normalises it."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Run the network, see `UNetBackend.infer`."""
        (output,) = infer(self._network, [stack(prepared)])
        return list(output)


@cache
def core() -> openvino.Core:
    """Return the one `Core` of this process."""
    return openvino.Core()


def cpu_options(threads: int, *, bf16: bool) -> dict[str, str | int]:
    """Return how OpenVINO compiles models for the CPU; arguments as for `compile_model`."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        # Some CPUs would use bfloat16 by default; masks would then differ from machine to machine.
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads or cpu_quota(),
    }


def compile_model(path: Path, *, threads: int = 0, bf16: bool = False) -> openvino.InferRequest:
    """Compile a converted model.

    Args:
        path: its `.xml` file.
        threads: CPU threads of one inference; 0 for all cores, or as many as the container's limit allows.
        bf16: compute in bfloat16 instead of float32; inputs and outputs stay float32.

    Raises:
        BackendError: OpenVINO cannot read or compile it.
    """
    try:
        return core().compile_model(path, "CPU", cpu_options(threads, bf16=bf16)).create_infer_request()
    except (RuntimeError, OSError, ValueError) as error:
        raise BackendError(
            f"OpenVINO cannot compile {path}: {error} "
            f"Delete the folder {path.parent}; its models are converted again at the next start."
        ) from error


def save_model(model: openvino.Model, path: Path) -> None:
    """Write a model into an `.xml` file and a `.bin` file beside it, its weights in their own precision.

    Raises:
        OSError: there is no room.
        RuntimeError: OpenVINO cannot write.
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError:
        # It does not say why it cannot write; asking for as much room again does.
        weights = sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")
        with path.with_suffix(".room").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, weights))
        raise


def infer(request: openvino.InferRequest, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    """Run a model and copy its outputs, which the request would overwrite at its next run.

    Raises:
        BackendError: OpenVINO failed.
    """
    try:
        results = request.infer(list(inputs), share_inputs=True)
        return [np.asarray(results[port]) for port in range(len(results))]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed: {error}") from error

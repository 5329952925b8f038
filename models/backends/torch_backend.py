"""SAM and U-Net on PyTorch: on CUDA in bfloat16 if the card supports it, else in float32; on the CPU in float32."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backends.base import MAX_GRIDS, BackendName, Embedding, check_cells, check_letterbox, stack
from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory
from models.letterbox import Letterbox
from models.sam.attention import bound_attention_memory
from models.sam.build import build_sam
from models.sam.constants import PIXEL_MEAN, PIXEL_STD
from models.sam.prompts import PackedPrompts, position_grid
from models.types import Logits, Pixels, Size
from models.unet.build import PixelsToLogits, build_unet
from models.unet.letterbox import UNetLetterbox, pad

IMAGE_BATCHES: Final = {"cpu": (1,), "cuda": (1, 2, 4, 8, 16)}
"""On a CPU, batches of SAM's encoder had 0.84 to 1.05 times the throughput and took twice the memory; images in a
U-Net's batches of 2 and 4 took as long each as a single one."""

PROMPT_BATCHES: Final = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64)}
"""On a CPU a prompt takes about 60 MB while it runs."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image on the device, or being copied to it.

    Attributes:
        pixels: uint8 (height, width, 3) on the device, without padding: a quarter of the bytes of normalised pixels.
        copied: event that follows the copy; None if there was nothing to copy.
        padded: size of the encoder's input.
    """

    pixels: Tensor
    copied: torch.cuda.Event | None
    padded: Size


class TorchImages:
    """Images on a device, in the form in which SAM's encoders take them.

    They are copied to a CUDA device from page-locked memory and on a stream of their own, so that copies overlap with
    the computation of other batches.

    Args:
        device: "cpu", "cuda" or "cuda:N".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._mean = torch.tensor(PIXEL_MEAN, device=device)
        self._std = torch.tensor(PIXEL_STD, device=device)
        self._copying: torch.cuda.Stream | None = None
        if self._cuda:
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def prepare(self, pixels: Pixels, padded: Size) -> PreparedImage:
        """Start copying an image to the device; the caller may modify `pixels` afterwards.

        Raises:
            DeviceOutOfMemory: the device has no memory for another waiting image.
        """
        with inference_on(self._device):
            host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self._cuda)
            np.copyto(host.numpy(), pixels)
            if self._copying is None:
                return PreparedImage(host, None, padded)
            with torch.cuda.stream(self._copying):
                # PyTorch keeps page-locked memory until the copies from it are done.
                on_device = host.to(self._device, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(self._copying)
            return PreparedImage(on_device, copied, padded)

    def batch(self, prepared: Sequence[PreparedImage], sizes: Sequence[int]) -> Tensor:
        """Return normalised float32 (n, 3, height, width), zero right of and below each image; see `filled_size`.

        Raises:
            ValueError: the padded sizes differ.
        """
        padded = prepared[0].padded
        if any(image.padded != padded for image in prepared):
            raise ValueError("images of different padded sizes must go into separate batches")
        images = [self._await_copy(image) for image in prepared]
        count = filled_size(len(images), sizes)
        if self._cuda:
            # Channels last, as tensor cores take them.
            batch = torch.zeros(count, padded.height, padded.width, 3, device=self._device).movedim(-1, 1)
        else:
            batch = torch.zeros(count, 3, padded.height, padded.width)
        for row, pixels in zip(batch, images, strict=False):
            height, width, _ = pixels.shape
            row[:, :height, :width] = ((pixels.float() - self._mean) / self._std).movedim(-1, 0)
        return batch

    def _await_copy(self, image: PreparedImage) -> Tensor:
        """Return the pixels for use on the current stream, which waits for the copy; the calling thread does not."""
        if image.copied is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(image.copied)
            # Otherwise the memory could be reused for the next copy while the computation still reads it.
            image.pixels.record_stream(computing)
        return image.pixels


class TorchSam:
    """Implements `SamBackend`. An embedding is a float32 tensor (256, h, w) on the device.

    Args:
        architecture: a key of `models.sam.build.ARCHITECTURES`.
        state_dict: tensors of the checkpoint.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        BadCheckpoint: the tensors do not fit the architecture.
        BackendError: the device failed.
    """

    name: BackendName = "torch"
    stretched_to: int | None = None

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.image_batches: tuple[int, ...] = IMAGE_BATCHES[self._device.type]
        self.prompt_batches: tuple[int, ...] = PROMPT_BATCHES[self._device.type]
        model = build_sam(architecture, state_dict)
        self.flexible = model.flexible
        matrix = model.decoder.position_matrix.numpy()
        self._grid = lru_cache(MAX_GRIDS)(
            lambda side, cells: torch.from_numpy(position_grid(matrix, side, cells)).to(self._device)
        )
        # Parameters stay ordinary tensors, which can be converted.
        with inference_on(self._device), torch.inference_mode(mode=False):
            self._bf16 = supports_bf16(self._device)
            if self._bf16:
                convert_weights_to_bf16(model.encoder)
                convert_weights_to_bf16(model.decoder)
            self._encoder = model.encoder.to(self._device)
            self._decoder = model.decoder.to(self._device)
            self._images = TorchImages(self._device)
            if self._device.type == "cuda":
                self._encoder.to(memory_format=torch.channels_last)
                bound_attention_memory(self._encoder)

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> PreparedImage:
        """Start copying an image to the device, see `SamBackend.prepare` and `TorchImages.prepare`."""
        check_letterbox(pixels, letterbox, flexible=self.flexible)
        return self._images.prepare(pixels, letterbox.padded)

    def encode(self, prepared: Sequence[PreparedImage]) -> list[Embedding]:
        """Encode images, see `SamBackend.encode`."""
        with inference_on(self._device), self._autocast():
            embeddings = self._encoder(self._images.batch(prepared, self.image_batches))
            # Copied one by one: a view of one embedding would keep its whole batch in memory.
            return [embedding.to(torch.float32, copy=True) for embedding in embeddings[: len(prepared)]]

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode prompts, see `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, Tensor)]
        check_cells([e.shape for e in images], prompts)
        with inference_on(self._device):
            masks = prompts.mask_inputs
            arguments = (
                torch.stack(images),
                torch.from_numpy(image_index).to(self._device),
                torch.from_numpy(prompts.points).to(self._device),
                torch.from_numpy(prompts.labels).to(self._device),
                self._grid(prompts.side, prompts.cells),
                None if masks is None else torch.from_numpy(masks).to(self._device),
            )
            with self._autocast():
                logits, scores = self._decoder(*arguments)
            return to_host(logits), to_host(scores)

    def _autocast(self) -> torch.autocast:
        # The cache would hold nothing: all weights are converted already.
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)


class TorchUNet:
    """Implements `UNetBackend`.

    Args:
        architecture: a key of `models.unet.build.ENCODERS`.
        state_dict: tensors of the checkpoint.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        BadCheckpoint: the tensors do not fit the architecture.
        BackendError: the device failed.
    """

    name: BackendName = "torch"

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.image_batches: tuple[int, ...] = IMAGE_BATCHES[self._device.type]
        network = PixelsToLogits(build_unet(architecture, state_dict))
        with inference_on(self._device), torch.inference_mode(mode=False):
            self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._bf16 = supports_bf16(self._device)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """Pad an image, see `UNetBackend.prepare`; it is normalised on the device, from a quarter of the bytes."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Run the network, see `UNetBackend.infer`."""
        blank = [np.zeros_like(prepared[0])] * (filled_size(len(prepared), self.image_batches) - len(prepared))
        batch = stack([*prepared, *blank])
        with inference_on(self._device):
            pixels = torch.from_numpy(batch).to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                output = self._network(pixels)
            return list(to_host(output[: len(prepared)]))


def filled_size(count: int, sizes: Sequence[int]) -> int:
    """Return the batch size that `count` images run in: the smallest of `sizes` that holds them; else `count` itself.

    The rest is filled with blank images. cuDNN plans every convolution for every shape: on an H200 the first batch
    of a size took 0.9 s (MobileSAM) to 1.5 s (U-Net), the next 6 to 26 ms.
    """
    return next((size for size in sizes if size >= count), count)


def supports_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 natively; False for every CPU."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def convert_weights_to_bf16(module: nn.Module) -> None:
    """Store the weights in bfloat16 that autocast would convert at every run; the results are the same.

    Normalisations and position embeddings stay in float32. For ViT-H this saves 1.2 GiB of memory, and 3.6 GiB of
    traffic for every batch.

    Args:
        module: module to run with autocast to bfloat16 from now on.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.to(torch.bfloat16)


def to_host(result: Tensor) -> NDArray[np.float32]:
    """Copy a result to the host as a contiguous float32 array, from a CUDA device through page-locked memory."""
    result = result.float().contiguous()
    if not result.is_cuda:
        return result.numpy()
    host = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
    host.copy_(result, non_blocking=True)
    torch.cuda.current_stream(result.device).synchronize()
    return host.numpy()


@contextmanager
def inference_on(device: torch.device) -> Iterator[None]:
    """Run without gradients, and translate the errors of the device.

    Raises:
        DeviceOutOfMemory: the device has not enough memory for this batch.
        DeviceBroken: nothing can run on the device any more.
        BackendError: any other failure.
    """
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        # The frames of the network hold everything that the batch had computed so far.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise DeviceOutOfMemory(f"{device} has not enough memory for this batch: {error}") from error
    except RuntimeError as error:
        # A CUDA error destroys the process's context: every later call fails too.
        kind = DeviceBroken if "CUDA error" in str(error) else BackendError
        raise kind(f"PyTorch failed on {device}: {error}") from error

"""What all models on PyTorch share: their device's errors and its number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory


def takes_bf16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 itself; False for every CPU."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def inference_on(device: torch.device) -> Iterator[None]:
    """Run without gradients, and translate what the device raises.

    Raises:
        DeviceOutOfMemory: no memory for this batch.
        DeviceBroken: nothing can run on the device any more.
        BackendError: anything else.
    """
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise DeviceOutOfMemory(f"{device} has no memory for this batch: {error}") from error
    except RuntimeError as error:
        # After a CUDA error the process's context is lost: every later call fails too.
        kind = DeviceBroken if "CUDA error" in str(error) else BackendError
        raise kind(f"PyTorch failed on {device}: {error}") from error

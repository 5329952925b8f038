"""Which devices there are, without importing PyTorch."""

from __future__ import annotations

import os

import pynvml


def cuda_device_count() -> int:
    """CUDA devices that this process may use: `CUDA_VISIBLE_DEVICES`, else all that the driver names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()

"""Loads the models of catalogue entries onto devices."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pynvml

from models.backends.base import BackendName, DetectorBackend, GroundingBackend, SamBackend, UNetBackend
from models.backends.converted_models import UNetPrecision, converted_folder, ensure_converted, fault_of, is_int8
from models.backends.cpu import has_bf16_instructions
from models.catalog import Architecture, CatalogueEntry, Family
from models.errors import BackendError, WeightsError
from models.weights.fetch import fetch

if TYPE_CHECKING:
    from models.backends.torch_sam2 import TorchSam2

__all__ = [
    "BackendChoice",
    "DeviceChoice",
    "ModelStore",
    "UNetPrecision",
    "choose_backend",
    "cuda_device_count",
    "cuda_devices",
    "ensure_files",
    "is_prepared",
    "load_detector",
    "load_grounding",
    "load_sam",
    "load_sam2",
    "load_unet",
]

_LOG = logging.getLogger("pomona.openvino")

BackendChoice = Literal["auto", "torch", "openvino"]

DeviceChoice = Literal["auto", "cpu", "cuda"]
"""Where models run. "auto" is CUDA if there is a device, else the CPU; "cuda" fails where there is none."""


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Folders of checkpoints and converted models.

    Attributes:
        cache_dir: folder for downloaded checkpoints and converted models.
        weights_dir: read-only folder of checkpoints, searched first, or None.
        unet_precision: precision of U-Nets on OpenVINO.
    """

    cache_dir: Path
    weights_dir: Path | None = None
    unet_precision: UNetPrecision = "fp32"


def cuda_device_count() -> int:
    """Count the CUDA devices of this process, by `CUDA_VISIBLE_DEVICES` or the driver, without importing PyTorch."""
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


def cuda_devices(choice: DeviceChoice) -> int:
    """Count the CUDA devices that models may use.

    Args:
        choice: where models run.

    Returns:
        0 for the CPU.

    Raises:
        BackendError: CUDA is required, and no device is visible.
    """
    count = 0 if choice == "cpu" else cuda_device_count()
    if choice == "cuda" and not count:
        raise BackendError(
            "POMONA_DEVICE=cuda requires a CUDA device, and none is visible: check the driver, NVIDIA's container "
            "runtime and CUDA_VISIBLE_DEVICES, or set POMONA_DEVICE=auto to serve on the CPU."
        )
    return count


def choose_backend(choice: BackendChoice, device: DeviceChoice = "auto") -> BackendName:
    """Resolve "auto": PyTorch for CUDA, be it required or found, else OpenVINO."""
    if choice != "auto":
        return choice
    if device == "auto":
        return "torch" if cuda_device_count() else "openvino"
    return "torch" if device == "cuda" else "openvino"


def ensure_files(entry: CatalogueEntry, backend: BackendName, model_store: ModelStore) -> Path:
    """Fetch, verify and convert the files that `backend` needs to run `entry`, unless they are there already.

    Converted models that are not as they were converted are converted again.

    Returns:
        The checkpoint for PyTorch and of detectors, the folder of converted models for OpenVINO; verified.

    Raises:
        WeightsError: the checkpoint cannot be fetched, or the cache cannot be written.
        BackendError: the conversion failed, or is needed and PyTorch is not installed; or a SAM 2's packages are not.
    """
    if entry.architecture.family == "sam2":
        _check_packages(entry)
    # OpenVINO reads a detector's ONNX as it is, and models of an open vocabulary run on PyTorch with either backend.
    if backend == "torch" or entry.architecture.family in {"detector", "grounding"}:
        return fetch(entry, cache_dir=model_store.cache_dir, weights_dir=model_store.weights_dir)
    folder = _converted(entry, model_store)
    fault = fault_of(folder) if folder.is_dir() else None
    if folder.is_dir() and fault is None:
        return folder
    if not _can_convert():
        state = f"has no converted models in {model_store.cache_dir}" if fault is None else f"cannot be loaded: {fault}"
        raise BackendError(
            f"{entry.name} {state}, and converting needs PyTorch, which is not installed. Run "
            "`python -m service.prepare` where PyTorch is installed, with the same POMONA_CACHE_DIR."
        )
    if fault is not None:
        _LOG.warning("%s is converted again: %s", entry.name, fault)
    try:
        checkpoint = fetch(entry, cache_dir=model_store.cache_dir, weights_dir=model_store.weights_dir)
        return ensure_converted(entry, checkpoint, model_store.cache_dir, model_store.unet_precision)
    except (WeightsError, BackendError) as error:
        if fault is None:
            raise
        raise type(error)(f"{entry.name}: {fault}, and it could not be converted again. {error.detail}") from error


def is_prepared(entry: CatalogueEntry, backend: BackendName, model_store: ModelStore) -> bool:
    """Return whether `ensure_files` has nothing to convert."""
    if backend == "torch" or entry.architecture.family == "detector":
        return True
    folder = _converted(entry, model_store)
    return folder.is_dir() and fault_of(folder) is None


def load_sam(
    entry: CatalogueEntry,
    backend: BackendName,
    model_store: ModelStore,
    *,
    device: DeviceChoice = "auto",
    device_index: int = 0,
    threads: int = 0,
) -> SamBackend:
    """Load a SAM; fetch and convert it first if that was not done before.

    Args:
        entry: entry of the family "sam".
        backend: backend to run it.
        model_store: folders of its files.
        device: where to run it, on PyTorch.
        device_index: index of the CUDA device, if there are several.
        threads: CPU threads of one inference on OpenVINO; 0 for all cores.

    Raises:
        ValueError: the entry is of another family.
        WeightsError: the checkpoint cannot be fetched, or does not fit its architecture.
        BackendError: the device or the model compiler failed, or CUDA is required and there is none.
    """
    path = _files_of_family("sam", entry, backend, model_store)
    # Imported here: serving with OpenVINO must not load PyTorch, nor the other way round.
    if backend == "openvino":
        from models.backends.openvino_backend import OpenVinoSam

        return OpenVinoSam(path, threads=threads)
    from models.backends.torch_backend import TorchSam
    from models.weights.checkpoints import load_state_dict

    return TorchSam(entry.architecture, load_state_dict(path), _torch_device(device, device_index))


def load_sam2(
    entry: CatalogueEntry,
    backend: BackendName,
    model_store: ModelStore,
    *,
    device: DeviceChoice = "auto",
    device_index: int = 0,
    threads: int = 0,
) -> TorchSam2:
    """Load a SAM 2, whose memory runs on PyTorch with either backend.

    Args:
        entry: entry of the family "sam2".
        backend: backend to run it.
        model_store: folders of its files.
        device: where to run it, on PyTorch.
        device_index: index of the CUDA device, if there are several.
        threads: CPU threads of one inference on OpenVINO; 0 for all cores.

    Raises:
        ValueError: the entry is of another family.
        WeightsError: the checkpoint cannot be fetched, or does not fit its architecture.
        BackendError: `transformers` is not installed, the device failed, or CUDA is required and there is none.
    """
    path = _files_of_family("sam2", entry, "torch", model_store)
    folder = ensure_files(entry, backend, model_store)
    from models.backends.torch_sam2 import TorchSam2
    from models.sam2.build import CONFIG
    from models.weights.checkpoints import load_state_dict

    config = path.with_name(CONFIG) if entry.architecture is Architecture.SAM2 else None
    tensors = load_state_dict(path, within="model")
    if backend == "openvino":
        from models.backends.openvino_sam2 import OpenVinoSam2

        return OpenVinoSam2(folder, entry.architecture, tensors, config, threads=threads)
    return TorchSam2(entry.architecture, tensors, _torch_device(device, device_index), config)


def load_unet(
    entry: CatalogueEntry,
    backend: BackendName,
    model_store: ModelStore,
    *,
    device: DeviceChoice = "auto",
    device_index: int = 0,
    threads: int = 0,
) -> UNetBackend:
    """Load a U-Net; arguments and errors are those of `load_sam`, for an entry of the family "unet"."""
    path = _files_of_family("unet", entry, backend, model_store)
    if backend == "openvino":
        from models.backends.openvino_backend import OpenVinoUNet

        bf16 = model_store.unet_precision != "fp32" and has_bf16_instructions() and not is_int8(path)
        return OpenVinoUNet(path, threads=threads, bf16=bf16)
    from models.backends.torch_backend import TorchUNet
    from models.weights.checkpoints import load_state_dict

    return TorchUNet(entry.architecture, load_state_dict(path), _torch_device(device, device_index))


def load_detector(
    entry: CatalogueEntry, backend: BackendName, model_store: ModelStore, *, threads: int = 0
) -> DetectorBackend:
    """Load a detector, which runs on OpenVINO's CPU plugin beside either backend; errors are those of `load_sam`."""
    path = _files_of_family("detector", entry, backend, model_store)
    from models.backends.openvino_detector import OpenVinoDetector

    return OpenVinoDetector(path, classes=entry.classes, threads=threads)


def load_grounding(
    entry: CatalogueEntry,
    model_store: ModelStore,
    *,
    device: DeviceChoice = "auto",
    device_index: int = 0,
) -> GroundingBackend:
    """Load a model of an open vocabulary, which runs on PyTorch with either backend.

    Args:
        entry: entry of the family "grounding".
        model_store: folders of its files.
        device: where to run it.
        device_index: index of the CUDA device, if there are several.

    Raises:
        ValueError: the entry is of another family.
        WeightsError: the checkpoint or a file beside it cannot be used.
        BackendError: `transformers` is not installed, the device failed, or CUDA is required and there is none.
    """
    path = _files_of_family("grounding", entry, "torch", model_store)
    from models.backends.torch_grounding import load_torch_grounding

    return load_torch_grounding(entry.architecture, path.parent, _torch_device(device, device_index))


def _files_of_family(family: Family, entry: CatalogueEntry, backend: BackendName, model_store: ModelStore) -> Path:
    if entry.architecture.family != family:
        raise ValueError(f"{entry.name} must be of the family {family!r}, got {entry.architecture.family!r}")
    return ensure_files(entry, backend, model_store)


def _converted(entry: CatalogueEntry, model_store: ModelStore) -> Path:
    folder = converted_folder(entry, model_store.cache_dir, model_store.unet_precision)
    if folder.is_dir() or _can_convert():
        return folder
    # The machine that converted for this one may not have been able to try int8.
    return converted_folder(entry, model_store.cache_dir, "fp32")


def _check_packages(entry: CatalogueEntry) -> None:
    """Check that what a SAM 2 needs is installed.

    Raises:
        BackendError: it is not.
    """
    needed = ["torch", "transformers"]
    if entry.architecture is Architecture.EDGETAM:
        needed.append("timm")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"{entry.name} needs {' and '.join(missing)}, which the environment has not: make sam2 installs what SAM 2 "
            "needs, from requirements-sam2.lock."
        )


def _can_convert() -> bool:
    return find_spec("torch") is not None


def _torch_device(device: DeviceChoice, index: int) -> str:
    return f"cuda:{index}" if cuda_devices(device) else "cpu"

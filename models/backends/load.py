"""From a catalogue entry to a model on a device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from models.backends.base import BackendName, SamBackend
from models.backends.cpu_features import multiplies_bf16
from models.backends.devices import cuda_device_count
from models.backends.openvino_files import UNetPrecision, converted_folder, ensure_converted, is_int8
from models.backends.unet_base import UNetBackend
from models.catalog import CatalogueEntry, Family
from models.errors import BackendError
from models.weights.fetch import fetch

BackendChoice = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Where checkpoints and converted models lie.

    Attributes:
        cache_dir: written to: downloaded checkpoints and converted models.
        weights_dir: read only, tried first: checkpoints that somebody put there, or None.
        unet_precision: in which U-Nets are run on OpenVINO.
    """

    cache_dir: Path
    weights_dir: Path | None = None
    unet_precision: UNetPrecision = "fp32"


def choose_backend(choice: BackendChoice) -> BackendName:
    """`auto` is PyTorch where there is a CUDA device, else OpenVINO."""
    if choice != "auto":
        return choice
    return "torch" if cuda_device_count() else "openvino"


def ensure_files(entry: CatalogueEntry, backend: BackendName, model_store: ModelStore) -> Path:
    """Fetch, verify and convert what `backend` needs to run `entry`; does nothing where all is there.

    Returns:
        the checkpoint for PyTorch, the folder of converted models for OpenVINO.

    Raises:
        WeightsError: the checkpoint cannot be had.
        BackendError: the conversion failed.
    """
    if backend == "openvino":
        folder = _converted(entry, model_store)
        if folder.is_dir():
            return folder
        if not _can_convert():
            raise BackendError(
                f"{entry.name} is not among the converted models in {model_store.cache_dir}, and nothing can be "
                "converted here, as PyTorch is not installed: run `python -m service.prepare` where PyTorch is, with "
                "the same POMONA_CACHE_DIR."
            )
    checkpoint = fetch(entry, cache_dir=model_store.cache_dir, weights_dir=model_store.weights_dir)
    if backend == "torch":
        return checkpoint
    return ensure_converted(entry, checkpoint, model_store.cache_dir, model_store.unet_precision)


def load_sam(
    entry: CatalogueEntry,
    backend: BackendName,
    model_store: ModelStore,
    *,
    device_index: int = 0,
    threads: int = 0,
) -> SamBackend:
    """Load a SAM, fetching and converting it first where that was not done before.

    Args:
        entry: of the family "sam".
        backend: what runs it.
        model_store: where its files lie.
        device_index: which CUDA device, where there is more than one.
        threads: CPU threads of one inference on OpenVINO; 0 for all cores.

    Raises:
        ValueError: an entry of another family.
        WeightsError: the checkpoint cannot be had, or does not fit its architecture.
        BackendError: the device or the model compiler failed.
    """
    path = _files_of_family("sam", entry, backend, model_store)
    # Imported here: serving with OpenVINO needs no PyTorch in memory, and PyTorch no OpenVINO.
    if backend == "openvino":
        from models.backends.openvino_backend import OpenVinoSam

        return OpenVinoSam(path, threads=threads)
    from models.backends.torch_backend import TorchSam
    from models.weights.checkpoints import load_state_dict

    return TorchSam(entry.architecture, load_state_dict(path), _torch_device(device_index))


def load_unet(
    entry: CatalogueEntry,
    backend: BackendName,
    model_store: ModelStore,
    *,
    device_index: int = 0,
    threads: int = 0,
) -> UNetBackend:
    """Load a U-Net; arguments and errors are those of `load_sam`, for an entry of the family "unet"."""
    path = _files_of_family("unet", entry, backend, model_store)
    if backend == "openvino":
        from models.backends.unet_openvino import OpenVinoUNet

        bf16 = model_store.unet_precision != "fp32" and multiplies_bf16() and not is_int8(path)
        return OpenVinoUNet(path, threads=threads, bf16=bf16)
    from models.backends.unet_torch import TorchUNet
    from models.weights.checkpoints import load_state_dict

    return TorchUNet(entry.architecture, load_state_dict(path), _torch_device(device_index))


def _files_of_family(family: Family, entry: CatalogueEntry, backend: BackendName, model_store: ModelStore) -> Path:
    if entry.architecture.family != family:
        raise ValueError(f"{entry.name} is a {entry.architecture}, of the family {entry.architecture.family!r}")
    return ensure_files(entry, backend, model_store)


def _converted(entry: CatalogueEntry, model_store: ModelStore) -> Path:
    wished = converted_folder(entry, model_store.cache_dir, model_store.unet_precision)
    if wished.is_dir() or _can_convert():
        return wished
    # Whoever converted for this machine could not try int8.
    return converted_folder(entry, model_store.cache_dir, "fp32")


def _can_convert() -> bool:
    return find_spec("torch") is not None


def _torch_device(index: int) -> str:
    return f"cuda:{index}" if cuda_device_count() else "cpu"

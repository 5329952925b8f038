"""Builds the encoder and the decoder of a SAM from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from models.sam.attention import fuse_attention
from models.sam.constants import EMBEDDING_CHANNELS, EMBEDDING_STRIDE, INPUT_SIDE
from models.sam.decoder import PromptDecoder
from models.sam.tiny_vit import TinyViTEncoder, translate_names
from models.weights.checkpoints import mismatch

_ENCODER = "image_encoder."


@dataclass(frozen=True, slots=True)
class SamModel:
    """The two halves of a SAM in evaluation mode, float32 on the CPU.

    Attributes:
        encoder: maps normalised float32 (batch, 3, height, width) to float32 (batch, 256, height / 16, width / 16).
        decoder: maps embeddings and prompts to logits and predicted IoUs.
        flexible: whether the encoder takes all multiples of 64; else only the square of 1024, because of its absolute
            position embeddings.
    """

    encoder: nn.Module
    decoder: PromptDecoder
    flexible: bool


def build_sam(architecture: str, state_dict: Mapping[str, Tensor]) -> SamModel:
    """Build `architecture` and load every tensor of `state_dict` into it.

    Args:
        architecture: a key of `ARCHITECTURES`.
        state_dict: a checkpoint's tensors under segment-anything's names (for `mobile-sam`, MobileSAM's), of any
            floating type.

    Raises:
        BadCheckpoint: a tensor is missing, unexpected, or of the wrong shape.
    """
    parts = ARCHITECTURES[architecture]()
    tensors = dict(state_dict)
    if isinstance(parts.image_encoder, TinyViTEncoder):
        encoder = {k.removeprefix(_ENCODER): v for k, v in tensors.items() if k.startswith(_ENCODER)}
        tensors = {k: v for k, v in tensors.items() if not k.startswith(_ENCODER)}
        tensors |= {_ENCODER + k: v for k, v in translate_names(encoder).items()}
    try:
        parts.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise mismatch(architecture, error) from error
    # Assigned tensors keep their type, such as that of a checkpoint in half precision.
    parts.eval().requires_grad_(requires_grad=False).float()
    return SamModel(
        parts.image_encoder,
        PromptDecoder(parts.prompt_encoder, parts.mask_decoder),
        flexible=isinstance(parts.image_encoder, TinyViTEncoder),
    )


class _Parts(nn.Module):
    """The three modules of a SAM under the names that checkpoints use."""

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder


def _mobile_sam() -> _Parts:
    side = INPUT_SIDE // EMBEDDING_STRIDE
    prompt_encoder = PromptEncoder(
        embed_dim=EMBEDDING_CHANNELS,
        image_embedding_size=(side, side),
        input_image_size=(INPUT_SIDE, INPUT_SIDE),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8)
    mask_decoder = MaskDecoder(transformer_dim=EMBEDDING_CHANNELS, transformer=transformer)
    return _Parts(TinyViTEncoder(), prompt_encoder, mask_decoder)


def _segment_anything(name: str) -> _Parts:
    # On the meta device: ViT-H's 2.5 GB are then allocated once, by the checkpoint.
    with torch.device("meta"):
        sam = sam_model_registry[name]()
        fuse_attention(sam.image_encoder)
    return _Parts(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)


ARCHITECTURES: Final[Mapping[str, Callable[[], _Parts]]] = {
    "mobile-sam": _mobile_sam,
    "sam-vit-b": partial(_segment_anything, "vit_b"),
    "sam-vit-l": partial(_segment_anything, "vit_l"),
    "sam-vit-h": partial(_segment_anything, "vit_h"),
}

"""Builds a SAM 2, or an EdgeTAM, of `transformers` from the tensors of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from models.catalog import Architecture
from models.errors import BadCheckpoint
from models.letterbox import PADDING_STEP
from models.sam2.decoder import Sam2Decoder
from models.sam2.names import translate_names
from models.weights.checkpoints import mismatch

CONFIG: Final = "config.json"
"""Beside the weights of a folder that `transformers` wrote, its `save_pretrained`."""

_MEMORY: Final = "memory_attention."

_BACKBONES: Final[Mapping[str, Mapping[str, Any]]] = {
    "sam2.1-tiny": {},
    "sam2.1-small": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "sam2.1-base-plus": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 3, 16, 3],
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "sam2.1-large": {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
    },
}
"""How the published encoders differ from the tiny one."""

_EDGETAM: Final[Mapping[str, Any]] = {
    "model_type": "edgetam_video",
    "vision_config": {
        "model_type": "edgetam_vision_model",
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1",
            "num_classes": 0,
            "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        },
    },
    "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False,
}
"""How the published EdgeTAM differs from what `transformers` takes by default."""

_EDGETAM_TYPES: Final = ("edgetam", "edgetam_video")
_MODEL_TYPES: Final = ("sam2", "sam2_video", *_EDGETAM_TYPES)


@dataclass(frozen=True, slots=True)
class Sam2Parts:
    """A SAM 2 in evaluation mode, float32 on the CPU.

    Attributes:
        network: of `transformers`.
        encoder: maps normalised float32 (batch, 3, side, side) to three maps of features.
        decoder: maps these and prompts to logits.
        side: of the square that images are stretched to, in pixels.
        tracks: whether it has the memory that follows objects over frames.
    """

    network: Any
    encoder: Sam2Encoder
    decoder: Sam2Decoder
    side: int
    tracks: bool


class Sam2Encoder(nn.Module):
    """The image encoder with the first layers of the mask decoder, which depend on the image alone.

    Args:
        network: of `transformers`, with its weights loaded.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.vision_encoder = network.vision_encoder
        self.conv_s0 = network.mask_decoder.conv_s0
        self.conv_s1 = network.mask_decoder.conv_s1

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode normalised images.

        Args:
            images: float32 (n, 3, side, side).

        Returns:
            Features (n, c / 8, side / 4, side / 4), (n, c / 4, side / 8, side / 8) and (n, c, side / 16, side / 16).
        """
        fine, middle, coarse = self.vision_encoder(images, return_dict=True).fpn_hidden_states
        return self.conv_s0(fine), self.conv_s1(middle), coarse


class ImageDecoder(nn.Module):
    """The decoder for prompts on images, of which nothing is remembered; arguments and results are tensors alone.

    Args:
        parts: of a SAM 2.
    """

    def __init__(self, parts: Sam2Parts) -> None:
        super().__init__()
        self.decoder = parts.decoder
        self.no_memory = nn.Parameter(parts.network.no_memory_embedding.reshape(1, -1, 1, 1), requires_grad=False)

    def forward(  # noqa: PLR0913, PLR0917 (the inputs of a converted model)
        self,
        fine: Tensor,
        middle: Tensor,
        coarse: Tensor,
        image_index: Tensor,
        points: Tensor,
        labels: Tensor,
        image_pe: Tensor,
        mask_inputs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits float32 (P, 4, 4 h, 4 w) and predicted IoU float32 (P, 4); see `Sam2Decoder`."""
        features = (fine, middle, coarse + self.no_memory)
        output = self.decoder(features, image_index, points, labels, image_pe, mask_inputs)
        return output.logits, output.scores


def build_sam2(architecture: str, state_dict: Mapping[str, Tensor], config: Path | None = None) -> Sam2Parts:
    """Build `architecture` and load every tensor of `state_dict` into it.

    Args:
        architecture: a published one, or "sam2" for the one that `config` describes.
        state_dict: tensors under the published names or those of `transformers`, of any floating type.
        config: file of the configuration, for "sam2".

    Raises:
        BadCheckpoint: a tensor is missing, unexpected, or of the wrong shape, or the configuration cannot be used.
    """
    tensors = translate_names(state_dict)
    tracks = any(name.startswith(_MEMORY) for name in tensors)
    network = network_of(architecture, config, tracks=tracks)
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise mismatch(architecture, error) from error
    network.eval().requires_grad_(requires_grad=False).float()
    side = int(network.config.prompt_encoder_config.image_size)
    if side < PADDING_STEP or side % PADDING_STEP:
        raise BadCheckpoint(f"{config}: image_size must be a multiple of {PADDING_STEP}, got {side}.")
    return Sam2Parts(network, Sam2Encoder(network), Sam2Decoder(network), side, tracks)


def network_of(architecture: str, config: Path | None = None, *, tracks: bool = True) -> Any:
    """Return the network of an architecture, with random weights; see `build_sam2`.

    Args:
        architecture: a published one, or "sam2".
        config: file of the configuration, for "sam2".
        tracks: with the memory that follows objects over frames.
    """
    return _network(_published(architecture) if config is None else _read(config), tracks=tracks)


def _published(architecture: str) -> Mapping[str, Any]:
    if architecture == Architecture.EDGETAM:
        return _EDGETAM
    backbone = dict(_BACKBONES[architecture])
    widths = backbone.get("embed_dim_per_stage", [96, 192, 384, 768])
    vision = {"model_type": "sam2_vision_model", "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}}
    return {"vision_config": {**vision, "backbone_channel_list": widths[::-1]}}


def _read(config: Path) -> dict[str, Any]:
    try:
        described = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(
            f"{config} must be the configuration that transformers wrote beside the weights: {error}"
        ) from error
    if not isinstance(described, dict) or described.get("model_type") not in _MODEL_TYPES:
        kind = described.get("model_type") if isinstance(described, dict) else type(described).__name__
        raise BadCheckpoint(f"{config}: model_type must be one of {', '.join(_MODEL_TYPES)}, got {kind!r}.")
    return described


def _network(described: Mapping[str, Any], *, tracks: bool) -> Any:
    # Imported here: it takes seconds, and only this family needs it.
    import transformers

    family = "EdgeTam" if described.get("model_type") in _EDGETAM_TYPES else "Sam2"
    kind = f"{family}Video" if tracks else family
    try:
        config = getattr(transformers, f"{kind}Config").from_dict(dict(described))
        return getattr(transformers, f"{kind}Model")(config)
    except Exception as error:  # a configuration is checked by whatever it makes fail
        raise BadCheckpoint(
            f"The configuration of the SAM 2 cannot be used: {type(error).__name__}: {error}"
        ) from error

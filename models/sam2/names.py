"""Translates the tensors of published checkpoints of SAM 2 and EdgeTAM to the names that `transformers` gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

_FEED_FORWARD: Final = ("proj_in", "layers.0", "proj_out")
"""Names of the layers of a multi-layer perceptron of three layers, in their order."""

_RENAMED: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
        (r"^image_encoder\.trunk\.body\.", "vision_encoder.backbone.timm_model."),
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
        (r"(vision_encoder\.backbone\.blocks\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
        (r"(vision_encoder\.backbone\.blocks\.\d+\.mlp\.)layers\.0\.", r"\1proj_in."),
        (r"(vision_encoder\.backbone\.blocks\.\d+\.mlp\.)layers\.1\.", r"\1proj_out."),
        (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
        (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
        (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
        (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
        (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"^sam_mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
        (r"^sam_mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
        (r"^sam_mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"(mask_decoder\.transformer\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
        (r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)layers\.0\.", r"\1proj_in."),
        (r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)layers\.1\.", r"\1proj_out."),
        (r"(mask_decoder\.transformer\.)norm_final_attn\.", r"\1layer_norm_final_attn."),
        (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
        (r"^(memory_attention\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.gamma$", r"memory_encoder.memory_fuser.layers.\1.scale"),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.dwconv\.", r"memory_encoder.memory_fuser.layers.\1.depthwise_conv."),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.norm\.", r"memory_encoder.memory_fuser.layers.\1.layer_norm."),
        (
            r"^memory_encoder\.fuser\.layers\.(\d+)\.pwconv(\d)\.",
            r"memory_encoder.memory_fuser.layers.\1.pointwise_conv\2.",
        ),
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^obj_ptr_proj\.", "object_pointer_proj."),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        (r"\.out_proj\.", ".o_proj."),
    )
)
"""Applied to a name one after another."""

_EDGETAM: Final = "spatial_perceiver.latents"
"""Only in EdgeTAM's checkpoint, under the published names."""

_EDGETAM_RENAMED: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(memory_attention\.layers\.\d+\.)linear1\.", r"\1mlp.up_proj."),
        (r"^(memory_attention\.layers\.\d+\.)linear2\.", r"\1mlp.down_proj."),
        (r"^spatial_perceiver\.latents$", "spatial_perceiver.latents_1d"),
        (r"^spatial_perceiver\.norm\.", "spatial_perceiver.layer_norm."),
        (r"^(spatial_perceiver\.layers\.\d+\.)self_attn\.norm\.", r"\1layer_norm_self."),
        (r"^(spatial_perceiver\.layers\.\d+\.)self_attn\.", r"\1self_attention."),
        (r"^(spatial_perceiver\.layers\.\d+\.)attn\.norm_x\.", r"\1layer_norm_input."),
        (r"^(spatial_perceiver\.layers\.\d+\.)attn\.norm_latents\.", r"\1layer_norm_latents."),
        (r"^(spatial_perceiver\.layers\.\d+\.)attn\.", r"\1cross_attention."),
        (r"^(spatial_perceiver\..+_attention\.)to_(q|kv)\.", r"\1\2_proj."),
        (r"^(spatial_perceiver\..+_attention\.)to_out\.", r"\1o_proj."),
        (r"^(spatial_perceiver\.layers\.\d+\.(?:self_)?)ff\.0\.", r"\1mlp.layer_norm."),
        (r"^(spatial_perceiver\.layers\.\d+\.(?:self_)?)ff\.1\.", r"\1mlp.up_proj."),
        (r"^(spatial_perceiver\.layers\.\d+\.(?:self_)?)ff\.3\.", r"\1mlp.down_proj."),
    )
)
"""Applied to the names of an EdgeTAM as well, after the others."""

_KEYS_AND_VALUES: Final = ".kv_proj."
"""In EdgeTAM's checkpoint one tensor, for `transformers` two."""

_MASK_DOWNSAMPLER: Final = re.compile(r"^memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(.+)$")
_THREE_LAYERS: Final = re.compile(
    r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|object_pointer_proj)\.)layers\.(\d)\."
)
_POINTS: Final = re.compile(r"^sam_prompt_encoder\.point_embeddings\.(\d)\.weight$")
_POSITIONS: Final = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""Only in checkpoints under the published names."""
_HALVINGS: Final = 4
"""Of the memory encoder's masks; each is a convolution, a normalisation and an activation."""


def translate_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under `transformers`' names; those that have them already are not changed.

    Args:
        tensors: of a published checkpoint, by name; the four kinds of point are one tensor each.
    """
    if _POSITIONS not in tensors:
        return dict(tensors)
    renamed = (*_RENAMED, *_EDGETAM_RENAMED) if _EDGETAM in tensors else _RENAMED
    translated: dict[str, Tensor] = {}
    points: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        point = _POINTS.match(name)
        if point is not None:
            points[int(point[1])] = tensor
        elif name == _POSITIONS:
            translated["shared_image_embedding.positional_embedding"] = tensor
            translated["prompt_encoder.shared_embedding.positional_embedding"] = tensor
        else:
            new = _translated(name, renamed)
            if _KEYS_AND_VALUES in new:
                keys, values = tensor.chunk(2)
                translated[new.replace(_KEYS_AND_VALUES, ".k_proj.")] = keys
                translated[new.replace(_KEYS_AND_VALUES, ".v_proj.")] = values
            else:
                translated[new] = tensor
    if points:
        translated["prompt_encoder.point_embed.weight"] = torch.cat([points[kind] for kind in sorted(points)])
    return translated


def _translated(name: str, renamed: Sequence[tuple[re.Pattern[str], str]]) -> str:
    down = _MASK_DOWNSAMPLER.match(name)
    if down is not None:
        halving, step = divmod(int(down[1]), 3)
        layer = "final_conv" if halving == _HALVINGS else f"layers.{halving}.{'layer_norm' if step else 'conv'}"
        return f"memory_encoder.mask_downsampler.{layer}.{down[2]}"
    for pattern, replacement in renamed:
        name = pattern.sub(replacement, name)
    return _THREE_LAYERS.sub(lambda found: f"{found[1]}{_FEED_FORWARD[int(found[2])]}.", name)

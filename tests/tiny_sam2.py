"""A SAM 2 and an EdgeTAM of random weights, small enough to follow objects over a thousand frames in a test."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)

from models.backends.load import ModelStore, load_sam2
from models.catalog import load_catalogue
from models.types import Pixels, Size
from service.pipelines import Pipelines
from service.pipelines.engine import Engine
from service.runners.embedding_cache import EmbeddingCache
from service.runners.sam2 import Sam2Runner
from service.scheduler.queue import DeviceQueue
from service.settings import Settings

SIDE = 128
"""Of the square that images are stretched to; its coarsest features have 8 x 8 cells."""

KINDS: Final = ("sam2", "edgetam")

_CHANNELS = 128
_MEMORY_CHANNELS = 64
_PRESENCE: Final = 19.0
"""Objects are then in view on some frames, and out of it on others."""


def tiny_config(side: int = SIDE, *, kind: str = "sam2") -> Any:
    """The published architecture with few channels and a small square; memories keep their 64 channels."""
    cells = side // 16
    vision = {
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[4 * cells, 4 * cells], [2 * cells, 2 * cells], [cells, cells]],
        "fpn_hidden_size": _CHANNELS,
    }
    memory = {
        "prompt_encoder_config": {"hidden_size": _CHANNELS, "image_size": side},
        "mask_decoder_config": {
            "hidden_size": _CHANNELS,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
        "image_size": side,
        "memory_attention_hidden_size": _CHANNELS,
        "memory_attention_num_layers": 2,
        "memory_attention_rope_feat_sizes": [cells, cells],
        "memory_encoder_hidden_size": _CHANNELS,
        "memory_encoder_output_channels": _MEMORY_CHANNELS,
        "mask_downsampler_embed_dim": _CHANNELS,
        "memory_fuser_embed_dim": _CHANNELS,
        "memory_fuser_intermediate_dim": 64,
    }
    if kind == "edgetam":
        backbone = {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1",
            "num_classes": 0,
            "model_args": {
                "in_chans": 3,
                "features_only": True,
                "out_indices": [0, 1, 2, 3],
                "embed_dim": [8, 16, 32, 64],
                "depth": [1, 1, 2, 1],
            },
        }
        windows = cells // 2
        return EdgeTamVideoConfig(
            vision_config={**vision, "model_type": "edgetam_vision_model", "backbone_config": backbone},
            **memory,
            memory_attention_mlp_hidden_size=64,
            memory_attention_rope_k_sizes=[windows, windows],
            perceiver_resampler_num_latents=12,
            perceiver_resampler_num_latents_2d=windows**2,
            perceiver_resampler_mlp_intermediate_size=32,
            enable_temporal_pos_encoding_for_object_pointers=False,
            enable_occlusion_spatial_embedding=False,
        )
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [side, side],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [4],
    }
    return Sam2VideoConfig(
        vision_config={**vision, "model_type": "sam2_vision_model", "backbone_config": backbone},
        **memory,
        memory_attention_feed_forward_hidden_size=64,
    )


@cache
def tiny_network(kind: str = "sam2") -> Any:
    """Random weights, in evaluation mode; parameters that begin at zero have random values too, so that they count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = (EdgeTamVideoModel if kind == "edgetam" else Sam2VideoModel)(tiny_config(kind=kind))
        network.requires_grad_(requires_grad=False)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        # Objects come and go, and masks depend on what is remembered.
        head = network.mask_decoder.pred_obj_score_head.proj_out
        head.weight.mul_(20)
        head.bias.fill_(_PRESENCE)
        # In checkpoints both encode positions with the same frequencies.
        matrix = network.shared_image_embedding.positional_embedding
        network.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    return network.eval().requires_grad_(requires_grad=False)


def write_checkpoint(folder: Path, kind: str = "sam2") -> Path:
    """Write a network as `transformers` writes it; return the folder."""
    tiny_network(kind).save_pretrained(folder)
    return folder


def sample_image(seed: int, size: Size) -> Pixels:
    """Smooth noise: every image differs, and none is a surface of one colour."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    shape = (size.width, size.height)
    return np.array(PIL.Image.fromarray(cells).resize(shape, PIL.Image.Resampling.BICUBIC))


def write_models_file(folder: Path, checkpoint: Path) -> Path:
    """Write a models file with the checkpoint as `tiny-sam2`."""
    file = folder / "models.yaml"
    file.write_text(f"models: {{tiny-sam2: {{architecture: sam2, file: {checkpoint}, licence: CC0-1.0}}}}\n")
    return file


_PUBLISHED: Final = (
    (r"^vision_encoder\.backbone\.patch_embed\.projection\.", "image_encoder.trunk.patch_embed.proj."),
    (r"^vision_encoder\.backbone\.(.*?)mlp\.proj_in\.", r"image_encoder.trunk.\1mlp.layers.0."),
    (r"^vision_encoder\.backbone\.(.*?)mlp\.proj_out\.", r"image_encoder.trunk.\1mlp.layers.1."),
    (r"^vision_encoder\.backbone\.(.*?)layer_norm", r"image_encoder.trunk.\1norm"),
    (r"^vision_encoder\.backbone\.timm_model\.", "image_encoder.trunk.body."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.upscale_conv1\.", "sam_mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "sam_mask_decoder.output_upscaling.3."),
    (r"^mask_decoder\.transformer\.(.*?)mlp\.proj_in\.", r"sam_mask_decoder.transformer.\1mlp.layers.0."),
    (r"^mask_decoder\.transformer\.(.*?)mlp\.proj_out\.", r"sam_mask_decoder.transformer.\1mlp.layers.1."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "sam_mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.transformer\.(.*?)layer_norm", r"sam_mask_decoder.transformer.\1norm"),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (r"^memory_attention\.(.*?)layer_norm", r"memory_attention.\1norm"),
    (r"^memory_attention\.(.*?)mlp\.up_proj\.", r"memory_attention.\1linear1."),
    (r"^memory_attention\.(.*?)mlp\.down_proj\.", r"memory_attention.\1linear2."),
    (r"^spatial_perceiver\.latents_1d$", "spatial_perceiver.latents"),
    (r"^spatial_perceiver\.layer_norm\.", "spatial_perceiver.norm."),
    (r"^spatial_perceiver\.(.*?)layer_norm_input\.", r"spatial_perceiver.\1attn.norm_x."),
    (r"^spatial_perceiver\.(.*?)layer_norm_latents\.", r"spatial_perceiver.\1attn.norm_latents."),
    (r"^spatial_perceiver\.(.*?)layer_norm_self\.", r"spatial_perceiver.\1self_attn.norm."),
    (r"^spatial_perceiver\.(.*?)cross_attention\.q_proj\.", r"spatial_perceiver.\1attn.to_q."),
    (r"^spatial_perceiver\.(.*?)cross_attention\.k_proj\.", r"spatial_perceiver.\1attn.to_kv."),
    (r"^spatial_perceiver\.(.*?)cross_attention\.o_proj\.", r"spatial_perceiver.\1attn.to_out."),
    (r"^spatial_perceiver\.(.*?)self_attention\.q_proj\.", r"spatial_perceiver.\1self_attn.to_q."),
    (r"^spatial_perceiver\.(.*?)self_attention\.k_proj\.", r"spatial_perceiver.\1self_attn.to_kv."),
    (r"^spatial_perceiver\.(.*?)self_attention\.o_proj\.", r"spatial_perceiver.\1self_attn.to_out."),
    (r"^spatial_perceiver\.(.*?)mlp\.layer_norm\.", r"spatial_perceiver.\1ff.0."),
    (r"^spatial_perceiver\.(.*?)mlp\.up_proj\.", r"spatial_perceiver.\1ff.1."),
    (r"^spatial_perceiver\.(.*?)mlp\.down_proj\.", r"spatial_perceiver.\1ff.3."),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.conv\.", "memory_encoder.mask_downsampler.encoder.0."),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.1."),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.conv\.", "memory_encoder.mask_downsampler.encoder.3."),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.4."),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.conv\.", "memory_encoder.mask_downsampler.encoder.6."),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.7."),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.conv\.", "memory_encoder.mask_downsampler.encoder.9."),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.layer_norm\.", "memory_encoder.mask_downsampler.encoder.10."),
    (r"^memory_encoder\.mask_downsampler\.final_conv\.", "memory_encoder.mask_downsampler.encoder.12."),
    (r"^memory_encoder\.memory_fuser\.(.*?)scale$", r"memory_encoder.fuser.\1gamma"),
    (r"^memory_encoder\.memory_fuser\.(.*?)depthwise_conv\.", r"memory_encoder.fuser.\1dwconv."),
    (r"^memory_encoder\.memory_fuser\.(.*?)layer_norm\.", r"memory_encoder.fuser.\1norm."),
    (r"^memory_encoder\.memory_fuser\.(.*?)pointwise_conv", r"memory_encoder.fuser.\1pwconv"),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
)
"""From the names of `transformers` to the published ones; the first that fits is applied."""

_PERCEPTRONS: Final = r"((?:hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)\.)"


def published_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of the published checkpoints; the four kinds of point are a tensor each."""
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "shared_image_embedding.positional_embedding":
            published["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = tensor
        elif name == "prompt_encoder.point_embed.weight":
            for kind, row in enumerate(tensor):
                published[f"sam_prompt_encoder.point_embeddings.{kind}.weight"] = row[None]
        elif name.startswith("spatial_perceiver.") and ".k_proj." in name:
            published[_published(name)] = torch.cat([tensor, tensors[name.replace(".k_proj.", ".v_proj.")]])
        elif name.startswith("spatial_perceiver.") and ".v_proj." in name:
            continue
        elif name != "prompt_encoder.shared_embedding.positional_embedding":
            published[_published(name)] = tensor
    return published


def _published(name: str) -> str:
    for pattern, replacement in _PUBLISHED:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    name = name.replace(".o_proj.", ".out_proj.")
    for layer, other in enumerate(("proj_in", r"layers\.0", "proj_out")):
        renamed, found = re.subn(_PERCEPTRONS + other + r"\.", rf"\1layers.{layer}.", name)
        if found:
            return renamed
    return name


def video_processor(side: int = SIDE) -> Any:
    """Return the library's processor for videos of a side."""
    square = {"height": side, "width": side}
    images = Sam2ImageProcessor(size=square, mask_size={"height": side // 4, "width": side // 4})
    return Sam2VideoProcessor(images, Sam2VideoVideoProcessor(size=square), target_size=side)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: tensors are so small that more would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tiny_pipelines(folder: Path, settings: Settings, clock: Callable[[], float] = time.monotonic) -> Pipelines:
    """Return pipelines over the network alone, `tiny-sam2`; to be closed.

    Args:
        folder: for its files.
        settings: limits.
        clock: of sessions and deadlines.
    """
    file = write_models_file(folder, write_checkpoint(folder / "tiny"))
    catalogue = load_catalogue(file)
    entry = catalogue["tiny-sam2"]
    backend = load_sam2(entry, "torch", ModelStore(folder / "cache"), device="cpu")
    queue = DeviceQueue(backend.device, options=replace(settings.queue_options, probe_after=1e9), clock=clock)
    engine = Engine({entry.name: Sam2Runner(entry, backend, queue)}, catalogue, settings, clock=clock)
    return Pipelines.of(engine, EmbeddingCache(max_bytes=1 << 24, max_age=600))

"""The attention of SAM's ViT encoders through PyTorch's fused kernels, with the checkpoint's weights unchanged.

SAM adds a bias to the score of every pair of tokens: the product of the query with one learned vector for the key's row
distance and with one for its column distance (decomposed relative positions, Li et al. 2022, arXiv:2112.01526). The
reference materialises scores, biases and weights: for 64 x 64 tokens 64 MiB each, per head and image, in float32.
`scaled_dot_product_attention` never materialises the scores; the bias reaches it in one of two exact forms:

- "mask": the sum of the two products as a mask. For 64 x 64 tokens and 16 heads it takes 512 MiB an image in bfloat16.
- "appended": the products are appended to the query, and a one for its row and a one for its column to the key, so that
  their dot product is the biased score. Nothing of the scores' size is allocated; the heads become three times as wide.

On two CPU cores "mask" took 0.4 of the reference's time for 64 x 64 tokens and 0.7 for windows, "appended" 0.85 for
both. CPUs use "mask"; CUDA devices use "appended" for attention to the whole image, because it bounds memory. Neither
was timed on a CUDA device.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

Form = Literal["mask", "appended"]

_WIDTH_STEP: Final = 8
"""Fused kernels take head widths that are a multiple of this."""


class RelativeAttention(nn.Module):
    """Multi-head attention of segment-anything's encoder, under the same parameter names.

    Input and output float32 (batch, side, side, channels), with the side of the replaced layer.

    Args:
        layer: the layer to replace, whose parameters are used.
    """

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.num_heads: int = layer.num_heads
        self.qkv: nn.Linear = layer.qkv
        self.proj: nn.Linear = layer.proj
        self.rel_pos_h: nn.Parameter = layer.rel_pos_h
        self.rel_pos_w: nn.Parameter = layer.rel_pos_w
        self.form: Form = "mask"

    def forward(self, x: Tensor) -> Tensor:
        """Attend; see the class."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        rows = q.unflatten(2, (height, width))
        along_h = torch.einsum("bnhwc,hkc->bnhwk", rows, _by_distance(self.rel_pos_h))
        along_w = torch.einsum("bnhwc,wkc->bnhwk", rows, _by_distance(self.rel_pos_w))
        attend = _with_mask if self.form == "mask" else _with_appended
        out = attend(q, k, v, along_h, along_w)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))
        return projected


def fuse_attention(encoder: ImageEncoderViT) -> None:
    """Replace the attention of all blocks by `RelativeAttention`."""
    for block in encoder.blocks:
        block.attn = RelativeAttention(block.attn)


def bound_attention_memory(encoder: nn.Module) -> None:
    """Use the form "appended" in the blocks of a ViT that attend to the whole image; other encoders are not changed."""
    for module in encoder.modules():
        attention = getattr(module, "attn", None)
        if isinstance(attention, RelativeAttention) and not module.window_size:
            attention.form = "appended"


def _by_distance(vectors: Tensor) -> Tensor:
    """Gather learned vectors (2 n - 1, c), for distances from 1 - n to n - 1, for each query and key: (n, n, c)."""
    positions = torch.arange((len(vectors) + 1) // 2, device=vectors.device)
    return vectors[positions[:, None] - positions[None, :] + len(positions) - 1]


def _with_mask(q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """Attend over q, k, v (b, n, h w, c) with the biases (b, n, h, w, h) and (b, n, h, w, w) as a mask."""
    mask = (along_h[..., :, None] + along_w[..., None, :]).flatten(4).flatten(2, 3)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _with_appended(q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """Attend as `_with_mask`, with the biases in the dot products."""
    channels = q.shape[-1]
    height, width = along_h.shape[-1], along_w.shape[-1]
    filler = -(channels + height + width) % _WIDTH_STEP
    row = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, dim=0)
    column = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    places = pad(torch.cat([row, column], dim=1), (0, filler))
    # The kernel scales the whole dot product by 1 / sqrt(channels).
    biases = [(along * channels**0.5).flatten(2, 3) for along in (along_h, along_w)]
    wide_q = pad(torch.cat([q, *biases], dim=-1), (0, filler))
    wide_k = torch.cat([k, places.expand(*k.shape[:-1], -1)], dim=-1)
    # Flash attention requires values as wide as the keys.
    wide_v = pad(v, (0, height + width + filler))
    return scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=channels**-0.5)[..., :channels]

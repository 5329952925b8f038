"""SAM's prompt encoder and mask decoder for prompts of different images in one call.

The weights and layers are segment-anything's; the order of the work differs. The reference repeats one image's
embedding for every prompt. Here each prompt gathers its own image's embedding, and the first transformer block's
projections of the embedding are computed once per image and gathered too. Rows with fewer tokens than their batch are
filled up, and the fillers are masked out of every attention, so that a prompt's result does not depend on the rest of
its batch.
"""

from __future__ import annotations

from typing import Final

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from models.sam.constants import LABEL_FILLER, LABEL_PADDING

_MASKED_OUT: Final = -1e9
"""Large enough that the softmax weight is exactly zero, small enough for bfloat16."""


class PromptDecoder(nn.Module):
    """Maps embeddings and prompts to low-resolution logits and predicted IoUs.

    Args:
        prompt_encoder: segment-anything's, with its weights loaded.
        mask_decoder: segment-anything's, with its weights loaded.
    """

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def position_matrix(self) -> Tensor:
        """The checkpoint's frequencies float32 (2, 128) for `models.sam.prompts.position_grid`."""
        matrix: Tensor = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        return matrix

    def forward(
        self,
        embeddings: Tensor,
        image_index: Tensor,
        points: Tensor,
        labels: Tensor,
        image_pe: Tensor,
        mask_inputs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode P prompts on I images of h x w cells.

        Args:
            embeddings: float32 (I, 256, h, w).
            image_index: int64 (P,), each prompt's image in 0 to I - 1.
            points: float32 (P, N, 2), x and y as fractions of the model's square, 0 to 1.
            labels: int64 (P, N): 1 foreground, 0 background, 2 and 3 a box's corners, -1 SAM's padding point,
                -2 a filler.
            image_pe: float32 (1, h * w, 256), from `models.sam.prompts.position_grid`.
            mask_inputs: float32 (P, 1, 4 h, 4 w) mask prompts as logits, or None if the prompts have no mask.

        Returns:
            logits float32 (P, 4, 4 h, 4 w) and predicted IoU float32 (P, 4).
        """
        tokens, token_bias = self._tokens(points, labels)
        if mask_inputs is None:
            dense = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
            images = (embeddings + dense).flatten(2).transpose(1, 2)
        else:
            # A mask prompt changes its image's features: prompts cannot share them.
            dense = self.prompt_encoder.mask_downscaling(mask_inputs)
            images = (embeddings[image_index] + dense).flatten(2).transpose(1, 2)
            image_index = torch.arange(labels.shape[0], device=labels.device)
        tokens, features = self._transform(images, image_pe, image_index, tokens, token_bias)
        height, width = embeddings.shape[-2:]
        return self._masks(tokens, features.transpose(1, 2).reshape(-1, features.shape[-1], height, width))

    def _tokens(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens float32 (P, 5 + N, 256) and the attention bias of fillers float32 (P, 1, 1, 5 + N)."""
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        positions = encoder.pe_layer._pe_encoding(points)
        kinds = torch.cat([encoder.not_a_point_embed.weight] + [e.weight for e in encoder.point_embeddings])
        is_point = (labels > LABEL_PADDING)[..., None]
        sparse = torch.where(is_point, positions, 0.0) + kinds[labels.clamp(min=LABEL_PADDING) + 1]

        prompts = labels.shape[0]
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output[None].expand(prompts, -1, -1), sparse], dim=1)
        filler = (labels == LABEL_FILLER).to(tokens.dtype) * _MASKED_OUT
        bias = torch.cat([filler.new_zeros(prompts, output.shape[0]), filler], dim=1)
        return tokens, bias[:, None, None, :]

    def _transform(
        self, images: Tensor, image_pe: Tensor, image_index: Tensor, tokens: Tensor, token_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply SAM's two-way transformer to tokens (P, T, C) and images (I, hw, C): tokens, features (P, hw, C)."""
        transformer = self.mask_decoder.transformer
        queries = tokens
        features = images
        for number, layer in enumerate(transformer.layers):
            if layer.skip_first_layer_pe:
                queries = _attention(layer.self_attn, queries, queries, queries, token_bias)
            else:
                q = queries + tokens
                queries = queries + _attention(layer.self_attn, q, q, queries, token_bias)
            queries = layer.norm1(queries)

            to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            placed = features + image_pe
            image_k = to_image.k_proj(placed)
            image_v = to_image.v_proj(features)
            image_q = to_tokens.q_proj(placed)
            if number == 0:
                image_k, image_v = image_k[image_index], image_v[image_index]
                image_q, features = image_q[image_index], features[image_index]
            attended = _attend(to_image, to_image.q_proj(queries + tokens), image_k, image_v)
            queries = layer.norm2(queries + attended)
            queries = layer.norm3(queries + layer.mlp(queries))

            token_k, token_v = to_tokens.k_proj(queries + tokens), to_tokens.v_proj(queries)
            features = layer.norm4(features + _attend(to_tokens, image_q, token_k, token_v, token_bias))
        final = transformer.final_attn_token_to_image
        attended = _attention(final, queries + tokens, features + image_pe, features)
        return transformer.norm_final_attn(queries + attended), features

    def _masks(self, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and predicted IoUs from tokens (P, T, C) and features (P, C, h, w)."""
        decoder = self.mask_decoder
        upscaled = decoder.output_upscaling(features)
        weights = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)],
            dim=1,
        )
        logits = weights @ upscaled.flatten(2)
        logits = logits.reshape(-1, weights.shape[1], *upscaled.shape[-2:])
        return logits, decoder.iou_prediction_head(tokens[:, 0])


def _attention(layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return _attend(layer, layer.q_proj(q), layer.k_proj(k), layer.v_proj(v), bias)


def _attend(layer: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute attention over projected q, k, v (batch, length, channels), with `bias` added to the scores."""
    q, k, v = (x.reshape(*x.shape[:2], layer.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    result: Tensor = layer.out_proj(out.transpose(1, 2).flatten(2))
    return result

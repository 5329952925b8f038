"""SAM 2's prompt encoder and mask decoder for prompts of different images in one call.

The weights and layers are those of `transformers`; the order of the work is that of `models.sam.decoder`: each prompt
gathers its own image's features, and rows with fewer tokens than their batch are filled up with tokens that are masked
out of every attention, so that a prompt's result does not depend on the rest of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.sam.constants import LABEL_FILLER, LABEL_PADDING

_MASKED_OUT: Final = -1e9
"""Large enough that the softmax weight is exactly zero, small enough for bfloat16."""

_SCORE_TOKENS: Final = 2
"""Output tokens before those of the masks: whether there is an object, and predicted IoU."""


@dataclass(frozen=True, slots=True)
class Sam2Output:
    """What the decoder found for P prompts.

    Attributes:
        logits: float32 (P, 4, 4 h, 4 w); the mask for an unambiguous prompt, then three for an ambiguous one.
        scores: predicted IoU float32 (P, 4).
        tokens: output tokens of the masks, float32 (P, 4, c).
        presence: logits of there being an object, float32 (P, 1).
    """

    logits: Tensor
    scores: Tensor
    tokens: Tensor
    presence: Tensor


class Sam2Decoder(nn.Module):
    """Maps features and prompts to low-resolution logits and predicted IoUs.

    Args:
        network: a SAM 2 of `transformers`, with its weights loaded.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.prompt_encoder = network.prompt_encoder
        self.mask_decoder = network.mask_decoder
        self.image_positions = network.shared_image_embedding

    @property
    def position_matrix(self) -> Tensor:
        """The checkpoint's frequencies float32 (2, c / 2) for `models.sam.prompts.position_grid`."""
        matrix: Tensor = self.image_positions.positional_embedding
        return matrix

    def forward(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        image_index: Tensor,
        points: Tensor,
        labels: Tensor,
        image_pe: Tensor,
        mask_inputs: Tensor | None = None,
    ) -> Sam2Output:
        """Decode P prompts on I images of h x w cells.

        Args:
            features: float32 (I or 1, c / 8, 4 h, 4 w), (I or 1, c / 4, 2 h, 2 w), from the encoder; and (I, c, h, w)
                with the embedding for no memory, or conditioned on one. One of the first two serves all images.
            image_index: int64 (P,), each prompt's image in 0 to I - 1.
            points: float32 (P, N, 2), x and y as fractions of the model's square, 0 to 1.
            labels: int64 (P, N), see `models.sam.constants`; each row with the padding points that SAM 2 expects.
            image_pe: float32 (1, h * w, c), from `models.sam.prompts.position_grid`.
            mask_inputs: float32 (P, 1, 4 h, 4 w) mask prompts as logits, or None if the prompts have no mask.
        """
        fine, middle, coarse = features
        tokens, token_bias = self._tokens(points, labels)
        each = image_index
        if mask_inputs is None:
            dense = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
            images = (coarse + dense).flatten(2).transpose(1, 2)
        else:
            # A mask prompt changes its image's features: prompts cannot share them.
            images = (coarse[image_index] + self.prompt_encoder.mask_embed(mask_inputs)).flatten(2).transpose(1, 2)
            image_index = torch.arange(labels.shape[0], device=labels.device)
        tokens, mixed = self._transform(images, image_pe, image_index, tokens, token_bias)
        height, width = coarse.shape[-2:]
        mixed = mixed.transpose(1, 2).reshape(-1, mixed.shape[-1], height, width)
        return self._masks(tokens, mixed, *(x if x.shape[0] == 1 else x[each] for x in (fine, middle)))

    def _tokens(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens float32 (P, 6 + N, c) and the attention bias of fillers float32 (P, 1, 1, 6 + N)."""
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        positions = encoder.shared_embedding(points)
        kinds = torch.cat([encoder.not_a_point_embed.weight, encoder.point_embed.weight])
        is_point = (labels > LABEL_PADDING)[..., None]
        sparse = torch.where(is_point, positions, 0.0) + kinds[labels.clamp(min=LABEL_PADDING) + 1]

        prompts = labels.shape[0]
        output = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output[None].expand(prompts, -1, -1), sparse], dim=1)
        filler = (labels == LABEL_FILLER).to(tokens.dtype) * _MASKED_OUT
        bias = torch.cat([filler.new_zeros(prompts, output.shape[0]), filler], dim=1)
        return tokens, bias[:, None, None, :]

    def _transform(
        self, images: Tensor, image_pe: Tensor, image_index: Tensor, tokens: Tensor, token_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply the two-way transformer to tokens (P, T, c) and images (I, h w, c): tokens, features (P, h w, c)."""
        transformer = self.mask_decoder.transformer
        queries = tokens
        features = images
        for number, layer in enumerate(transformer.layers):
            if layer.skip_first_layer_pe:
                queries = _attention(layer.self_attn, queries, queries, queries, token_bias)
            else:
                q = queries + tokens
                queries = queries + _attention(layer.self_attn, q, q, queries, token_bias)
            queries = layer.layer_norm1(queries)

            to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            placed = features + image_pe
            image_k = to_image.k_proj(placed)
            image_v = to_image.v_proj(features)
            image_q = to_tokens.q_proj(placed)
            if number == 0:
                image_k, image_v = image_k[image_index], image_v[image_index]
                image_q, features = image_q[image_index], features[image_index]
            attended = _attend(to_image, to_image.q_proj(queries + tokens), image_k, image_v)
            queries = layer.layer_norm2(queries + attended)
            queries = layer.layer_norm3(queries + layer.mlp(queries))

            token_k, token_v = to_tokens.k_proj(queries + tokens), to_tokens.v_proj(queries)
            features = layer.layer_norm4(features + _attend(to_tokens, image_q, token_k, token_v, token_bias))
        final = transformer.final_attn_token_to_image
        attended = _attention(final, queries + tokens, features + image_pe, features)
        return transformer.layer_norm_final_attn(queries + attended), features

    def _masks(self, tokens: Tensor, features: Tensor, fine: Tensor, middle: Tensor) -> Sam2Output:
        """Compute the output from tokens (P, T, c) and features (P, c, h, w), with those of the encoder."""
        decoder = self.mask_decoder
        upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(features) + middle))
        upscaled = decoder.activation(decoder.upscale_conv2(upscaled) + fine)
        masks = tokens[:, _SCORE_TOKENS : _SCORE_TOKENS + len(decoder.output_hypernetworks_mlps)]
        weights = torch.stack([mlp(masks[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        logits = (weights @ upscaled.flatten(2)).reshape(-1, weights.shape[1], *upscaled.shape[-2:])
        scores = decoder.iou_prediction_head(tokens[:, 1])
        if decoder.dynamic_multimask_via_stability:
            logits, scores = self._settled(logits, scores)
        return Sam2Output(logits, scores, masks, decoder.pred_obj_score_head(tokens[:, 0]))

    def _settled(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the mask for an unambiguous prompt by the best of the others where it is not stable."""
        decoder = self.mask_decoder
        first, delta = logits[:, 0].flatten(1), decoder.dynamic_multimask_stability_delta
        outer = (first > -delta).sum(dim=1)
        stability = torch.where(outer > 0, (first > delta).sum(dim=1) / outer, 1.0)
        stable = stability >= decoder.dynamic_multimask_stability_thresh
        chosen = torch.where(stable, 0, 1 + scores[:, 1:].argmax(dim=1))
        row = torch.arange(chosen.shape[0], device=chosen.device)  # len() would be a constant where this is traced
        return (
            torch.cat([logits[row, chosen][:, None], logits[:, 1:]], dim=1),
            torch.cat([scores[row, chosen][:, None], scores[:, 1:]], dim=1),
        )


def _attention(layer: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return _attend(layer, layer.q_proj(q), layer.k_proj(k), layer.v_proj(v), bias)


def _attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute attention over projected q, k, v (batch, length, channels), with `bias` added to the scores."""
    q, k, v = (x.reshape(*x.shape[:2], layer.num_attention_heads, -1).transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    result: Tensor = layer.o_proj(out.transpose(1, 2).flatten(2))
    return result

"""From the decoder's output to what a caller asked for; for worker threads."""

from __future__ import annotations

from collections.abc import Sequence

from models.overlay import draw_overlay, encode_overlay
from models.sam.postprocess import masks_of
from models.transforms import Frame
from models.types import Image, Prompt
from service.formats import MaskFormat, encode_mask
from service.messages import MaskResult
from service.runners import Decoded


def render_masks(decoded: Decoded, row: int, frame: Frame, prompt: Prompt, mask_format: MaskFormat) -> list[MaskResult]:
    """The masks of the prompt in `row`, best first, upsampled and encoded."""
    masks = masks_of(decoded.logits[row], decoded.scores[row], frame, multimask=prompt.multimask)
    return [MaskResult(mask, encode_mask(mask, mask_format)) for mask in masks]


def render_overlay(image: Image, prompts: Sequence[Prompt], results: Sequence[Sequence[MaskResult]]) -> bytes:
    """Each prompt's best mask in the picture, with the points and boxes that asked for it; PNG."""
    return encode_overlay(
        draw_overlay(
            image.pixels,
            [masks[0].mask.pixels for masks in results],
            points=[point for prompt in prompts for point in prompt.points],
            boxes=[prompt.box for prompt in prompts if prompt.box is not None],
        )
    )

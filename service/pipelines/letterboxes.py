"""Which letterboxes may answer a request: what it asks for and what the model supports, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from models.backends.base import SamBackend
from models.catalog import SamInputSize
from models.letterbox import Letterbox, Padding, letterbox_for
from models.sam.constants import INPUT_SIDE
from models.types import Size
from service.api.schema import EmbedRequest, InputSize
from service.errors import UnsupportedInput

INPUT_SIZES: Final[tuple[SamInputSize, ...]] = get_args(SamInputSize)


def candidate_letterboxes(
    request: EmbedRequest, size: Size, backend: SamBackend, default: InputSize
) -> list[Letterbox]:
    """Return the letterboxes to try for a new image, in order.

    Args:
        request: with the input size and the padding.
        size: of the image.
        backend: of the model; says which letterboxes it supports.
        default: input size where the request has none.

    Raises:
        UnsupportedInput: the model does not support what the request asks for.
    """
    if backend.stretched_to is not None:
        return [_stretched(request, size, backend.stretched_to)]
    flexible = backend.flexible
    padding: Padding = request.padding or ("none" if flexible else "square")
    if padding == "stretch":
        raise UnsupportedInput("For this model padding must be none or square, got stretch, which is for SAM 2.")
    wanted: InputSize = request.input_size or (default if flexible else INPUT_SIDE)
    if not flexible:
        if wanted not in (INPUT_SIDE, "auto") or padding != "square":
            raise UnsupportedInput(
                f"For this model input_size must be {INPUT_SIDE} and padding square, got {wanted} and {padding}. "
                "Both may be left out."
            )
        return [letterbox_for(size)]
    sides = INPUT_SIZES if wanted == "auto" else (wanted,)
    return [letterbox_for(size, side, padding) for side in sides]


def _stretched(request: EmbedRequest, size: Size, side: int) -> Letterbox:
    wanted, padding = request.input_size or side, request.padding or "stretch"
    if wanted not in (side, "auto") or padding != "stretch":
        raise UnsupportedInput(
            f"For this model input_size must be {side} and padding stretch, got {wanted} and {padding}. Both may "
            "be left out."
        )
    return letterbox_for(size, side, "stretch")


def matching(request: EmbedRequest, letterboxes: Sequence[Letterbox]) -> list[Letterbox]:
    """Return those letterboxes of cached embeddings that a request for a known image accepts, the largest first.

    Of equally large ones the one with less padding comes first: the default of models that support both.
    """
    fitting = [
        letterbox
        for letterbox in letterboxes
        if request.input_size in (None, "auto", letterbox.side)
        and (request.padding is None or letterbox == letterbox_for(letterbox.original, letterbox.side, request.padding))
    ]
    return sorted(fitting, key=lambda letterbox: (-letterbox.side, letterbox.padded.pixels))


def may_scale(letterbox: Letterbox) -> bool:
    """Return whether a large JPEG may be decoded for a SAM at a part of its size.

    At 1024 that keeps masks at a mean IoU of 0.994 (`tests/golden/test_scaled_decoding.py`), at 768 and 512 at 0.989:
    those are decoded whole, and so is the reference's letterbox, whose masks are the reference's.
    """
    return letterbox.side == INPUT_SIDE and not letterbox.is_reference

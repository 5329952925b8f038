"""Which frames may answer a request: what was asked for, what the model can, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from models.letterbox import Letterbox, Padding, letterbox_for
from models.sam.constants import INPUT_SIDE
from models.types import Size
from service.errors import UnsupportedInput
from service.messages import InputChoice, InputSize

SIZES: Final = (1024, 768, 512)


def candidate_frames(choice: InputChoice, size: Size, *, flexible: bool, default: InputSize) -> list[Letterbox]:
    """The frames to try for a new image, in order.

    Args:
        choice: of the request.
        size: of the image.
        flexible: whether the model takes other frames than the padded square of 1024.
        default: input size where the request names none.

    Raises:
        UnsupportedInput: the request asks for what the model cannot.
    """
    padding: Padding = choice.padding or ("none" if flexible else "square")
    asked: InputSize = choice.size or (default if flexible else INPUT_SIDE)
    if not flexible:
        if asked not in (INPUT_SIDE, "auto") or padding != "square":
            raise UnsupportedInput(
                f"This model sees images at {INPUT_SIDE} pixels, padded to a square, only; leave input_size and "
                "padding out, or ask for these."
            )
        return [letterbox_for(size)]
    sizes = SIZES if asked == "auto" else (asked,)
    return [letterbox_for(size, side, padding) for side in sizes]


def matching(choice: InputChoice, frames: Sequence[Letterbox]) -> list[Letterbox]:
    """Of frames whose embeddings are at hand, those that a request for a known image takes, the largest first.

    Of equally large ones the one with less padding: the default of models that take both.
    """
    fitting = [
        frame
        for frame in frames
        if choice.size in (None, "auto", frame.side)
        and (choice.padding is None or frame == letterbox_for(frame.original, frame.side, choice.padding))
    ]
    return sorted(fitting, key=lambda frame: (-frame.side, frame.padded.pixels))

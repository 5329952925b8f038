"""Which frames may answer a request: what was asked for, what the model can, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from models.sam.constants import INPUT_SIDE
from models.transforms import Frame, Padding, frame_for
from models.types import Size
from service.errors import UnsupportedInput
from service.messages import InputChoice, InputSize

SIZES: Final = (1024, 768, 512)


def candidate_frames(choice: InputChoice, size: Size, *, flexible: bool, default: InputSize) -> list[Frame]:
    """The frames to try for a new picture, in order.

    Args:
        choice: of the request.
        size: of the picture.
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
                f"This model sees pictures at {INPUT_SIDE} pixels, padded to a square, only; leave input_size and "
                "padding out, or ask for these."
            )
        return [frame_for(size)]
    sizes = SIZES if asked == "auto" else (asked,)
    return [frame_for(size, side, padding) for side in sizes]


def matching(choice: InputChoice, frames: Sequence[Frame]) -> list[Frame]:
    """Of frames whose embeddings are at hand, those that a request for a known picture takes, the largest first.

    Of equally large ones the one with less padding: the default of models that take both.
    """
    fitting = [
        frame
        for frame in frames
        if choice.size in (None, "auto", frame.side)
        and (choice.padding is None or frame == frame_for(frame.original, frame.side, choice.padding))
    ]
    return sorted(fitting, key=lambda frame: (-frame.side, frame.padded.pixels))

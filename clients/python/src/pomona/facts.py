"""What every answer tells, whatever was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pomona.errors import InvalidArgument
from pomona.masks import Mask, PixelBox


@dataclass(frozen=True)
class ImageInfo:
    """The picture, after EXIF orientation.

    Attributes:
        id: hash of the bytes that were sent; prompts may name it instead of sending the picture again.
        width: pixels.
        height: pixels.
    """

    id: str
    width: int
    height: int


@dataclass(frozen=True)
class ModelUsed:
    """What answered.

    Attributes:
        name: of the catalogue.
        revision: first 12 hex digits of the checkpoint's SHA-256.
        input_size: (width, height) in pixels that a U-Net saw, or the longest side for a SAM.
        padding: how the picture was padded for a SAM's encoder; None for a U-Net.
    """

    name: str
    revision: str
    input_size: int | tuple[int, int]
    padding: str | None = None


@dataclass(frozen=True)
class Timings:
    """Milliseconds in the service, 0 for what was not done."""

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Batch:
    """How many items ran together on the device, this call's included; 0 where none of its own ran."""

    encode: int = 0
    prompt: int = 0
    infer: int = 0


@dataclass(frozen=True)
class Labelled:
    """A mask with what it is, for drawings and the formats of other tools.

    Attributes:
        mask: where it is.
        box: around it.
        area: pixels in the mask.
        label: object, healthy or infected.
        score: 0 to 1.
        facts: that other tools keep beside it.
        spots: what of it is infected; None where all of it is meant.
    """

    mask: Mask
    box: PixelBox
    area: int
    label: str
    score: float
    facts: Mapping[str, Any]
    spots: Mask | None = None


@dataclass(frozen=True)
class Capture:
    """What a camera says of a frame.

    Attributes:
        frame_id: the camera's.
        trigger_id: of what let the camera expose.
        captured_at_ns: nanoseconds on the camera's clock.

    Raises:
        InvalidArgument: a time below 0.
    """

    frame_id: str | None = None
    trigger_id: str | None = None
    captured_at_ns: int | None = None

    def __post_init__(self) -> None:
        if self.captured_at_ns is not None and self.captured_at_ns < 0:
            raise InvalidArgument(f"captured_at_ns is {self.captured_at_ns}; 0 or more would be right.")

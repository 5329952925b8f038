"""What doors hand to the pipeline, and what they get back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.transforms import Frame, Padding
from models.types import Mask, Prompt
from models.zoo import CatalogueEntry
from service.formats import EncodedMask, MaskFormat
from service.work import DEFAULT_URGENCY


@dataclass(frozen=True, slots=True)
class When:
    """Until when an answer is wanted.

    Attributes:
        within: seconds from the request's arrival until it is too late, or None.
        urgency: RFC 9218, 0 the most urgent to 7 the least.
    """

    within: float | None = None
    urgency: int = DEFAULT_URGENCY


InputSize = Literal[1024, 768, 512, "auto"]


@dataclass(frozen=True, slots=True)
class InputChoice:
    """What the encoder shall see of a picture; None for the setting, or what the model can.

    Attributes:
        size: longest side in pixels; `auto` takes the largest whose learned time meets the deadline.
        padding: `square` is the reference, `none` spares the encoder what is only padding.
    """

    size: InputSize | None = None
    padding: Padding | None = None


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """Prompts on a picture.

    Attributes:
        prompts: what to segment.
        data: an encoded picture, or None.
        image_id: of a picture that was sent before, or None; exactly one of the two.
        model: catalogue name, or None for the default.
        format: of the masks.
        overlay: also draw the masks into the picture; needs `data`.
        input: what the encoder shall see.
        when: until when.
    """

    prompts: Sequence[Prompt]
    data: bytes | None = None
    image_id: str | None = None
    model: str | None = None
    format: MaskFormat = "rle"
    overlay: bool = False
    input: InputChoice = field(default_factory=InputChoice)
    when: When = field(default_factory=When)


@dataclass(slots=True)
class Timings:
    """Seconds that the parts of a request took; the queue is time spent waiting for the device."""

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class MaskResult:
    """A mask's figures and its encoding."""

    mask: Mask
    encoded: EncodedMask


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to an embed request."""

    image_id: str
    frame: Frame
    model: CatalogueEntry
    timings: Timings


@dataclass(frozen=True, slots=True)
class Segmented:
    """The answer to a segment request: for each prompt its masks, best first; and a PNG where asked for."""

    image_id: str
    frame: Frame
    model: CatalogueEntry
    results: Sequence[Sequence[MaskResult]]
    overlay: bytes | None
    timings: Timings

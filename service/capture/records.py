"""What a capture is: why a frame is kept, what is offered for it, and what the disk has of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

from pydantic import Field

from models.images import Stop
from models.letterbox import HasResized
from models.types import Pixels, Size
from service.api import schema

Reason = Literal["low_confidence", "disagreement", "near_grade", "late", "degraded", "sample", "shadow"]
"""Why a frame is kept: a fruit that the U-Net is unsure of; a fruit whose outlines by the U-Net and the SAM disagree;
an infected fraction close to a grade's limit; no answer in time; an answer that gave less than the best there is; one
of a random sample; another revision of a model answered otherwise."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class FrameSource(Protocol):
    """The image of a frame as it came; see `service.pipelines.source.ImageSource`."""

    @property
    def nbytes(self) -> int:
        """Bytes as they came."""
        ...

    def content_id(self) -> str:
        """Return the hash of the bytes, hexadecimal."""
        ...

    def size(self, max_pixels: int) -> Size:
        """Return the size after EXIF orientation."""
        ...

    def decoding(self, size: Size, letterboxes: Sequence[HasResized] = ()) -> int:
        """Return the bytes that decoding takes."""
        ...

    def resized(
        self, letterboxes: Sequence[HasResized], max_pixels: int, stop: Stop, *, scaled: bool = False
    ) -> list[Pixels]:
        """Decode the image once, and return it in some sizes."""
        ...

    def file(self) -> tuple[bytes, str]:
        """Return the image as a file, and the ending of its name without the dot."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A frame that may be kept.

    Attributes:
        source: its image.
        reasons: why; at least one.
        request_id: of its request.
        frame: what the camera said about it.
        answer: returns its answer, with masks as RLE and without an overlay; called in another thread, later, or never.
            None where there is none.
        answer_bytes: what `answer` keeps in memory.
        problem: code of the problem that was answered instead, or None.
        remark: a note for people; None for none.
    """

    source: FrameSource
    reasons: tuple[Reason, ...]
    request_id: str
    frame: schema.Frame = field(default_factory=schema.Frame)
    answer: Callable[[], schema.InspectResponse] | None = None
    answer_bytes: int = 0
    problem: str | None = None
    remark: str | None = None

    @property
    def nbytes(self) -> int:
        """What it keeps in memory."""
        return self.source.nbytes + self.answer_bytes


class Capture(schema.Schema):
    """A kept frame: the file `capture.json`, beside the image."""

    captured_at: str = Field(description="When it was kept, ISO 8601 in UTC.")
    reasons: tuple[Reason, ...] = Field(min_length=1, description="Why it was kept.")
    request_id: str
    image: schema.Image
    file: str = Field(pattern=r"^image\.[a-z]{3,4}$", description="Name of the image's file.")
    frame: schema.Frame
    answer: schema.InspectResponse | None = Field(description="Null where there was none.")
    problem: str | None = Field(description="Code of the problem that was answered instead.")
    remark: str | None

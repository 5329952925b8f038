"""A caller's picture and an `Ask` become a `Call`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias, TypeVar

from pomona.asks import Ask, Call, ListModels, Ready, Segment
from pomona.errors import InvalidArgument
from pomona.facts import Capture, ImageInfo
from pomona.images import ImageSource, picture_of
from pomona.results import Embedding

T = TypeVar("T")

ImageLike: TypeAlias = ImageSource | Embedding | ImageInfo
"""A picture, or one that the service knows already."""


def call_of(ask: Ask[T], image: ImageLike | None, capture: Capture | None = None) -> Call[T]:
    """Put a call together.

    Args:
        ask: what is asked.
        image: the picture; an `Embedding`, or the `ImageInfo` of an earlier answer, names one that was sent before.
        capture: what a camera says of it.

    Raises:
        UnreadableImage: the picture cannot be read.
        InvalidArgument: no picture where one is needed, or a name only where pixels are needed.
    """
    kind: type[object] = type(ask)
    if issubclass(kind, (ListModels, Ready)):
        return Call(ask=ask)
    if image is None:
        raise InvalidArgument(f"{kind.__name__} needs a picture.")
    capture = capture or Capture()
    if not isinstance(image, (Embedding, ImageInfo)):
        return Call(ask=ask, picture=picture_of(image), capture=capture)
    known, picture = (image.image, image.picture) if isinstance(image, Embedding) else (image, None)
    # What is drawn in needs the pixels, of which the service keeps none.
    drawn = getattr(ask, "overlay", False)
    if issubclass(kind, Segment) and not (drawn and picture):
        return Call(ask=ask, picture=picture, image_id=known.id, capture=capture)
    if picture is None:
        raise InvalidArgument(f"{kind.__name__} needs the picture itself, not the id of one.")
    return Call(ask=ask, picture=picture, capture=capture)


def with_picture(answer: T, call: Call[T]) -> T:
    """The same answer; an `Embedding` keeps what it is of, to be sent again where the service forgets it."""
    return replace(answer, picture=call.picture) if isinstance(answer, Embedding) else answer

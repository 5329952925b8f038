"""Fits images into the input of a model of an open vocabulary, which has no padding."""

from __future__ import annotations

from dataclasses import dataclass

from models.types import Size


@dataclass(frozen=True, slots=True)
class GroundingLetterbox:
    """How one image is resized.

    Attributes:
        original: size of the image.
        resized: size of the image in the model's input, all of which it fills.
    """

    original: Size
    resized: Size

    @property
    def padded(self) -> Size:
        """Size of the input."""
        return self.resized


def fitted(size: Size, shortest: int, longest: int) -> GroundingLetterbox:
    """Resize an image so that its short side is `shortest`, or its long side `longest` where that is less.

    Sizes are rounded as by `transformers`, so that its networks see the same number of pixels.

    Args:
        size: of the image.
        shortest: wanted length of the short side.
        longest: largest length of the long side.
    """
    low, high = min(size.height, size.width), max(size.height, size.width)
    wanted, exact = shortest, float(shortest)
    if high / low * shortest > longest:
        exact = longest * low / high
        wanted = round(exact)
    if low == wanted:
        return GroundingLetterbox(size, size)
    other = max(1, int(exact * high / low))
    short = max(1, wanted)
    resized = Size(height=other, width=short) if size.width < size.height else Size(height=short, width=other)
    return GroundingLetterbox(size, resized)


def stretched(size: Size, side: int) -> GroundingLetterbox:
    """Stretch an image to a square, whatever its proportions."""
    return GroundingLetterbox(size, Size(side, side))

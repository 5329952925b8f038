"""Maps images and coordinates to the input of a Segment Anything model, and back.

Segment Anything was trained on images whose longest side is `side` pixels, in the top left corner of a padded square.
Sizes, pixels and coordinates are those of the reference, `segment_anything.utils.transforms.ResizeLongestSide`.
Positions are always relative to that square, even if the encoder sees only the part of it that the image covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

from models.types import Pixels, Size

INPUT_SIDE: Final = 1024
"""Side of the padded square that the checkpoints were trained on, in pixels."""

PADDING_STEP: Final = 64
"""Both sides of the encoder's input are multiples of this: few shapes, so that images share batches."""

EMBEDDING_STRIDE: Final = 16
"""Pixels of the input per cell of the embedding: 1024 gives 64 x 64."""

LOGITS_STRIDE: Final = 4
"""Pixels of the input per cell of the low-resolution logits and of mask prompts."""

Padding = Literal["none", "square", "stretch"]
"""How far an image is padded: to multiples of 64 with a margin, or to the square, as the reference does; or not at all,
because it is stretched to the square whatever its proportions, as SAM 2 was trained."""

_MARGIN: Final = PADDING_STEP // 2


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Placement of one image in the model's square.

    Images can share a batch if both `side` and `padded` are equal.

    Attributes:
        original: size of the image.
        resized: size of the image in the model's input, without the padding.
        side: side of the model's square; the longest side of `resized`.
        padded: size of the encoder's input: `resized` with padding to the right and below.
        stretched: whether the image fills the square whatever its proportions.
    """

    original: Size
    resized: Size
    side: int
    padded: Size
    stretched: bool = False

    @property
    def padding(self) -> Padding:
        """How far the image is padded; "square" where both ways of padding agree."""
        if self.stretched:
            return "stretch"
        return "square" if self.padded == Size(self.side, self.side) else "none"

    @property
    def cells(self) -> Size:
        """Size of the embedding: one cell covers 16 x 16 pixels of `padded`."""
        return Size(self.padded.height // EMBEDDING_STRIDE, self.padded.width // EMBEDDING_STRIDE)

    @property
    def logits(self) -> Size:
        """Size of the low-resolution logits and of mask prompts: one covers 4 x 4 pixels of `padded`."""
        return Size(self.padded.height // LOGITS_STRIDE, self.padded.width // LOGITS_STRIDE)

    @property
    def is_reference(self) -> bool:
        """Whether the encoder's input is as the checkpoints were trained: the padded square of 1024, or stretched."""
        return self.stretched or (self.side == INPUT_SIDE and self.padded == Size(INPUT_SIDE, INPUT_SIDE))

    @property
    def scale(self) -> NDArray[np.float64]:
        """Model pixels per image pixel, float64 (2,): x, y; they differ where sizes are rounded, or stretched."""
        return np.array((self.resized.width / self.original.width, self.resized.height / self.original.height))

    def to_model(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points from the image to the model's square.

        Args:
            points: (..., 2), x and y in pixels of the image; a box is two points.

        Returns:
            float64 (..., 2), x and y in pixels of the model's square, not rounded.
        """
        return np.asarray(points, np.float64) * self.scale

    def to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points from the model's square to the image: the inverse of `to_model`.

        Args:
            points: (..., 2), x and y in pixels of the model's square.

        Returns:
            float64 (..., 2), x and y in pixels of the image, not rounded.
        """
        return np.asarray(points, np.float64) / self.scale


def letterbox_for(size: Size, side: int = INPUT_SIDE, padding: Padding = "square") -> Letterbox:
    """Fit an image into the model's square.

    Args:
        size: size of the image, height and width at least 1.
        side: side of the square, at least 1; backends take multiples of 64.
        padding: "square" as the reference does, "none" to keep the encoder from computing padding, "stretch" for SAM 2.

    Returns:
        The letterbox. The short side is rounded half up, and is 1 where the reference would have 0.
    """
    if padding == "stretch":
        square = Size(side, side)
        return Letterbox(original=size, resized=square, side=side, padded=square, stretched=True)
    scale = side / max(size.height, size.width)
    resized = Size(height=max(1, int(size.height * scale + 0.5)), width=max(1, int(size.width * scale + 0.5)))
    padded = (
        Size(side, side) if padding == "square" else Size(_padded(resized.height, side), _padded(resized.width, side))
    )
    return Letterbox(original=size, resized=resized, side=side, padded=padded)


def _padded(length: int, side: int) -> int:
    """Return the next multiple of 64 that leaves a margin, at most `side`.

    The checkpoints were trained with padding below or beside every image that is not square. Without any, 4 of 32
    boxes on drawn images of 704 x 1024 lost their fruit; with the margin none did.
    """
    return min(side, -(-(length + _MARGIN) // PADDING_STEP) * PADDING_STEP)


class HasResized(Protocol):
    """A letterbox of any model."""

    @property
    def resized(self) -> Size:
        """Size of the image in the model's input, without the padding."""
        ...


def resize(pixels: Pixels, letterbox: HasResized) -> Pixels:
    """Resize an image to its size in the model's input.

    Args:
        pixels: uint8 (height, width, 3) of size `letterbox.original`.
        letterbox: from `letterbox_for` or `unet_letterbox`.

    Returns:
        uint8 (height, width, 3) of size `letterbox.resized`, by Pillow's bilinear filter, which averages all covered
        pixels when shrinking, as the reference does.
    """
    size = (letterbox.resized.width, letterbox.resized.height)
    return np.array(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BILINEAR))

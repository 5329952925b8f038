"""Image frame <-> model frame.

Segment Anything sees a picture whose longest side is `side` pixels, in the top left corner of a
padded square. Sizes, pixels and coordinates are those of the reference,
`segment_anything.utils.transforms.ResizeLongestSide`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

from models.types import Pixels, Size


@dataclass(frozen=True, slots=True)
class Frame:
    """How one picture lies in the model's square.

    Attributes:
        original: size of the image.
        resized: size of the image as the model sees it, without the padding.
        side: side of the model's square; the longest side of `resized`.
    """

    original: Size
    resized: Size
    side: int

    @property
    def scale(self) -> NDArray[np.float64]:
        """Model pixels per image pixel, float64 (2,): x, y; they differ by the sizes' rounding."""
        return np.array(
            (
                self.resized.width / self.original.width,
                self.resized.height / self.original.height,
            )
        )

    def to_model(self, points: ArrayLike) -> NDArray[np.float64]:
        """Move points from the image to the model's square.

        Args:
            points: (..., 2), x and y in pixels of the image; a box is two points.

        Returns:
            float64 (..., 2), x and y in pixels of the model's square, not rounded.
        """
        return np.asarray(points, np.float64) * self.scale

    def to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Move points from the model's square to the image: the inverse of `to_model`.

        Args:
            points: (..., 2), x and y in pixels of the model's square.

        Returns:
            float64 (..., 2), x and y in pixels of the image, not rounded.
        """
        return np.asarray(points, np.float64) / self.scale


def frame_for(size: Size, side: int = 1024) -> Frame:
    """Fit an image into the model's square.

    Args:
        size: size of the image, height and width at least 1.
        side: side of the square, at least 1.

    Returns:
        The frame. The short side is rounded half up, and is 1 where the reference would have 0.
    """
    scale = side / max(size.height, size.width)
    return Frame(
        original=size,
        resized=Size(
            height=max(1, int(size.height * scale + 0.5)),
            width=max(1, int(size.width * scale + 0.5)),
        ),
        side=side,
    )


def resize(pixels: Pixels, frame: Frame) -> Pixels:
    """Resize an image to its size in the model's square.

    Args:
        pixels: uint8 (height, width, 3) of size `frame.original`.
        frame: from `frame_for`.

    Returns:
        uint8 (height, width, 3) of size `frame.resized`: Pillow's bilinear filter, which averages
        all covered pixels when it shrinks, as the reference has it.
    """
    picture = PIL.Image.fromarray(pixels)
    size = (frame.resized.width, frame.resized.height)
    return np.array(picture.resize(size, PIL.Image.Resampling.BILINEAR))

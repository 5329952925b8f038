"""One annotated image, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.types import PixelClass, Pixels, SemanticMap, Size

InstanceMap: TypeAlias = NDArray[np.uint16]
"""Which fruit every pixel belongs to: uint16 (height, width) of `Instance.id`, 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One fruit of an image.

    Attributes:
        id: its number in the instance map, at least 1.
        box: half-open box of its visible pixels, in whole pixels.
        pixel_class: HEALTHY, INFECTED where any of it is, or FRUIT where nobody said.
    """

    id: int
    box: tuple[int, int, int, int]
    pixel_class: PixelClass


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An annotated image.

    Attributes:
        name: of its file, without the ending; unique in its set.
        pixels: uint8 (height, width, 3), RGB, EXIF orientation applied.
        semantic: uint8 (height, width) of `PixelClass`; INFECTED are the infected pixels alone, where the annotation
            tells them from the rest of the fruit.
        instances: by id.
        instance_map: uint16 (height, width), None where fruits were not told apart.
    """

    name: str
    pixels: Pixels
    semantic: SemanticMap
    instances: tuple[Instance, ...] = ()
    instance_map: InstanceMap | None = None

    @property
    def size(self) -> Size:
        """Size of the image."""
        return Size(self.pixels.shape[0], self.pixels.shape[1])

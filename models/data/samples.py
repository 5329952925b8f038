"""One annotated image, whatever format it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.masks import bounding_box
from models.types import PixelClass, Pixels, SemanticMap, Size

InstanceMap: TypeAlias = NDArray[np.uint16]
"""The fruit that each pixel belongs to: uint16 (height, width) of `Instance.id`, 0 for none."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One fruit of an image.

    Attributes:
        id: number in the instance map, at least 1.
        box: half-open box of its visible pixels, in whole pixels.
        pixel_class: INFECTED if any of it is, otherwise HEALTHY, or FRUIT if its health is unknown.
    """

    id: int
    box: tuple[int, int, int, int]
    pixel_class: PixelClass


@dataclass(frozen=True, slots=True, eq=False)
class LabelMaps:
    """An annotation, pixel by pixel; the attributes are those of `Sample`."""

    semantic: SemanticMap
    instances: tuple[Instance, ...] = ()
    instance_map: InstanceMap | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An annotated image.

    Attributes:
        name: file name without the ending; unique in its set.
        pixels: uint8 (height, width, 3), RGB, EXIF orientation applied.
        semantic: uint8 (height, width) of `PixelClass`; only infected pixels are INFECTED, if the annotation separates
            them from the rest of the fruit.
        instances: fruits by id.
        instance_map: uint16 (height, width); None if the annotation does not separate fruits.
        warnings: faults of single regions, by name; see `models.data.regions.RegionFault`.
    """

    name: str
    pixels: Pixels
    semantic: SemanticMap
    instances: tuple[Instance, ...] = ()
    instance_map: InstanceMap | None = None
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Size of the image."""
        return Size(self.pixels.shape[0], self.pixels.shape[1])


def list_instances(semantic: SemanticMap, instance_map: InstanceMap) -> tuple[Instance, ...]:
    """List the fruits of an image by number.

    Args:
        semantic: uint8 (height, width) of `PixelClass`.
        instance_map: uint16 (height, width), 0 where there is no fruit.

    Returns:
        The fruits: INFECTED if any pixel is, otherwise the class of most pixels, HEALTHY or FRUIT.
    """
    listed = []
    for number in np.flatnonzero(np.bincount(instance_map.ravel())[1:]) + 1:
        x0, y0, x1, y1 = box = bounding_box(instance_map == number)
        pixels = semantic[y0:y1, x0:x1][instance_map[y0:y1, x0:x1] == number]
        listed.append(Instance(int(number), box, _class_of(pixels)))
    return tuple(listed)


def _class_of(pixels: SemanticMap) -> PixelClass:
    if (pixels == PixelClass.INFECTED).any():
        return PixelClass.INFECTED
    healthy = np.count_nonzero(pixels == PixelClass.HEALTHY)
    return PixelClass.HEALTHY if healthy > np.count_nonzero(pixels == PixelClass.FRUIT) else PixelClass.FRUIT

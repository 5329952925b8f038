"""Regions with a class -> what every pixel shows, and which fruit it belongs to.

How fruits are made from regions:

- Each HEALTHY, INFECTED or FRUIT region is a fruit, one brush stroke or polygon a fruit; but an INFECTED region that
  lies by more than half inside a fruit that is larger is a lesion of it. The fruit's mask is then the union of both.
- Smaller fruits lie on top of larger ones, of equal ones the later; lesions lie on top of their own fruit only.
- IGNORE regions lie on top of everything, but take nothing from a fruit's mask.
- BACKGROUND regions change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.samples import Instance, InstanceMap
from models.errors import DataError
from models.masks import bounding_box
from models.polygons import decode_polygons
from models.types import BinaryMask, PixelClass, SemanticMap, Size

MAX_FRUITS = 65535
"""Most fruits in an image: those that uint16 numbers."""

_FRUITS = (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """An annotation, pixel by pixel; the fields are those of `Sample`."""

    semantic: SemanticMap
    instances: tuple[Instance, ...] = ()
    instance_map: InstanceMap | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of an image with a class.

    Attributes:
        pixel_class: what it shows.
        x: left edge of its box in the image, in pixels.
        y: upper edge.
        mask: bool (height, width) of the box, not empty.
        area: pixels in the mask.
    """

    pixel_class: PixelClass
    x: int
    y: int
    mask: BinaryMask
    area: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the box in the image."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def region_of_mask(pixel_class: PixelClass, mask: BinaryMask, *, x: int = 0, y: int = 0) -> Region:
    """Cut a region out of a mask.

    Args:
        pixel_class: what it shows.
        mask: bool (height, width), of the image or of a window of it.
        x: left edge of that window, in pixels.
        y: upper edge.

    Returns:
        The region, its box tight.

    Raises:
        DataError: the mask is empty.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        raise DataError("covers no pixel of the image")
    inside = mask[y0:y1, x0:x1].copy()
    return Region(pixel_class, x + x0, y + y0, inside, int(np.count_nonzero(inside)))


def region_of_rings(pixel_class: PixelClass, rings: Sequence[NDArray[np.float64]], size: Size) -> Region:
    """Fill outlines: the pixels whose centres lie inside any of them.

    Args:
        pixel_class: what they show.
        rings: outlines of the region's parts, each (vertices, 2) of x, y in pixels.
        size: of the image; what lies beyond is cut off.

    Returns:
        The region.

    Raises:
        DataError: nothing of it lies in the image.
        MaskError: an outline has fewer than three vertices, or one that is not finite.
    """
    points = np.concatenate(rings)
    if not np.isfinite(points).all():
        raise DataError("has an outline with a vertex that is not finite")
    # Filled in a window only: an image has many pixels and a fruit few.
    low = np.floor(points.min(axis=0)).clip(0, (size.width - 1, size.height - 1)).astype(int)
    high = np.ceil(points.max(axis=0)).clip(low + 1, (size.width, size.height)).astype(int)
    window = Size(int(high[1] - low[1]), int(high[0] - low[0]))
    mask = decode_polygons([[(ring - low).tolist()] for ring in rings], window)
    return region_of_mask(pixel_class, mask, x=int(low[0]), y=int(low[1]))


def paint(regions: Sequence[Region], size: Size) -> Drawn:
    """Draw regions by the rules above.

    Args:
        regions: inside the image, in the annotation's order.
        size: of the image.

    Returns:
        The maps. Fruits are numbered in the annotation's order; one that others hide entirely is not listed.

    Raises:
        DataError: more than `MAX_FRUITS` fruits.
    """
    semantic = np.full((size.height, size.width), PixelClass.BACKGROUND, np.uint8)
    instance_map = np.zeros((size.height, size.width), np.uint16)
    fruits = _fruits(regions)
    if len(fruits) > MAX_FRUITS:
        raise DataError(f"has {len(fruits)} fruits; the most is {MAX_FRUITS}")
    numbers = {body: number for number, body in enumerate(sorted(body for body, _ in fruits), start=1)}
    for body, lesions in fruits:
        for index in (body, *lesions):
            region = regions[index]
            semantic[region.place][region.mask] = region.pixel_class
            instance_map[region.place][region.mask] = numbers[body]
    for region in regions:
        if region.pixel_class is PixelClass.IGNORE:
            semantic[region.place][region.mask] = PixelClass.IGNORE
    return Drawn(semantic, list_instances(semantic, instance_map), instance_map)


def list_instances(semantic: SemanticMap, instance_map: InstanceMap) -> tuple[Instance, ...]:
    """List the fruits of an image.

    Args:
        semantic: uint8 (height, width) of `PixelClass`.
        instance_map: uint16 (height, width), 0 where there is no fruit.

    Returns:
        By number: INFECTED where any pixel is, else what most pixels say, HEALTHY or FRUIT.
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


def _fruits(regions: Sequence[Region]) -> list[tuple[int, list[int]]]:
    """Indices of each fruit's region and of its lesions, largest fruit first."""
    parts = [index for index, region in enumerate(regions) if region.pixel_class in _FRUITS]
    parts.sort(key=lambda index: -regions[index].area)
    fruits: list[tuple[int, list[int]]] = []
    for index in parts:
        lesions = (
            _lesions_of_host(regions, index, fruits) if regions[index].pixel_class is PixelClass.INFECTED else None
        )
        if lesions is None:
            fruits.append((index, []))
        else:
            lesions.append(index)
    return fruits


def _lesions_of_host(
    regions: Sequence[Region], index: int, fruits: Sequence[tuple[int, list[int]]]
) -> list[int] | None:
    """The lesions of the fruit that holds most of a region, and more than half; of equal ones the topmost."""
    best, most = None, regions[index].area / 2
    for body, lesions in reversed(fruits):
        overlap = _overlap(regions[index], regions[body])
        if overlap > most:
            best, most = lesions, overlap
    return best


def _overlap(one: Region, other: Region) -> int:
    """Pixels that two regions share."""
    y0, x0 = max(one.y, other.y), max(one.x, other.x)
    y1 = min(one.y + one.mask.shape[0], other.y + other.mask.shape[0])
    x1 = min(one.x + one.mask.shape[1], other.x + other.mask.shape[1])
    if y0 >= y1 or x0 >= x1:
        return 0
    return int(np.count_nonzero(_window(one, y0, x0, y1, x1) & _window(other, y0, x0, y1, x1)))


def _window(region: Region, y0: int, x0: int, y1: int, x1: int) -> BinaryMask:
    window: BinaryMask = region.mask[y0 - region.y : y1 - region.y, x0 - region.x : x1 - region.x]
    return window

"""Regions with a class, and the label maps that they make.

- Each HEALTHY, INFECTED or FRUIT region is a fruit: one brush stroke or polygon, one fruit. But an INFECTED region that
  lies by more than half inside a larger fruit is a lesion of it; the mask of that fruit is then the union of both.
- Smaller fruits lie on top of larger ones, and of equal ones the later; lesions lie on top of their own fruit only.
- IGNORE regions lie on top of everything, but take nothing from the mask of a fruit.
- BACKGROUND regions change nothing.
- A faulty region does not lose the others: what is known of it is painted, and a warning names it. Where its outline is
  known but not its class, the pixels that no other region covers are IGNORE, as they may well be fruit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.data.samples import LabelMaps, list_instances
from models.errors import DataError, MaskError
from models.masks import bounding_box
from models.polygons import decode_polygons
from models.types import BinaryMask, PixelClass, Size

MAX_FRUITS = 65535
"""Most fruits in an image: those that uint16 can number."""

_FEWEST_VERTICES = 3

_FRUITS = (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of an image with a class.

    Attributes:
        pixel_class: class of its pixels.
        x: left edge of its box in the image, in pixels.
        y: upper edge.
        mask: bool (height, width) of the box, not empty.
        area: number of pixels in the mask.
    """

    pixel_class: PixelClass
    x: int
    y: int
    mask: BinaryMask
    area: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the box in the image."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


class RegionFault(DataError):
    """A fault of one region, without which the rest of its annotation can be used.

    Attributes:
        rest: what is known of the region, IGNORE if its class is not; None if nothing is.
    """

    def __init__(self, detail: str, rest: Region | None = None) -> None:
        super().__init__(detail)
        self.rest = rest


def region_of_mask(pixel_class: PixelClass, mask: BinaryMask, *, x: int = 0, y: int = 0) -> Region:
    """Crop a mask to a region.

    Args:
        pixel_class: class of its pixels.
        mask: bool (height, width), of the image or of a window of it.
        x: left edge of that window, in pixels.
        y: upper edge.

    Returns:
        The region; its box is tight.

    Raises:
        RegionFault: the mask is empty.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        raise RegionFault("covers no pixel of the image")
    inside = mask[y0:y1, x0:x1].copy()
    return Region(pixel_class, x + x0, y + y0, inside, int(np.count_nonzero(inside)))


def region_of_rings(pixel_class: PixelClass, rings: Sequence[NDArray[np.float64]], size: Size) -> Region:
    """Fill outlines: the pixels whose centres lie inside any of them.

    Args:
        pixel_class: class of the region.
        rings: outlines of the parts of the region, each (vertices, 2) of x, y in pixels.
        size: size of the image; what lies outside is cut off.

    Returns:
        The region.

    Raises:
        RegionFault: nothing of it lies inside the image, a vertex is not finite or far outside, or an outline has fewer
            than three vertices; the other outlines are the rest of the region.
    """
    whole = [ring for ring in rings if len(ring) >= _FEWEST_VERTICES]
    if len(whole) < len(rings):
        rest = region_of_rings(pixel_class, whole, size) if whole else None
        raise RegionFault("has an outline without at least 3 vertices", rest)
    points = np.concatenate(rings)
    if not np.isfinite(points).all():
        raise RegionFault("has an outline with a vertex that is not finite")
    # Filled in a window only, because an image has many pixels and a fruit few.
    low = np.floor(points.min(axis=0)).clip(0, (size.width - 1, size.height - 1)).astype(int)
    high = np.ceil(points.max(axis=0)).clip(low + 1, (size.width, size.height)).astype(int)
    window = Size(int(high[1] - low[1]), int(high[0] - low[0]))
    try:
        mask = decode_polygons([[(ring - low).tolist()] for ring in rings], window)
    except MaskError as error:
        raise RegionFault(error.detail) from error
    return region_of_mask(pixel_class, mask, x=int(low[0]), y=int(low[1]))


def paint_readable(parts: Iterable[tuple[str, Callable[[], Region]]], size: Size) -> LabelMaps:
    """Read the regions of an annotation, and paint those that can be used.

    Args:
        parts: name of each region in messages, and how to read it.
        size: size of the image.

    Returns:
        The label maps, with a warning for each faulty region.

    Raises:
        DataError: a fault concerns more than its region, nothing of any region is known, or there are more than
            `MAX_FRUITS` fruits.
    """
    regions: list[Region] = []
    unknown: list[Region] = []
    warnings: list[str] = []
    for name, read in parts:
        try:
            regions.append(read())
        except RegionFault as fault:
            warnings.append(f"{name}: {fault.detail}")
            if fault.rest is not None:
                (unknown if fault.rest.pixel_class is PixelClass.IGNORE else regions).append(fault.rest)
        except DataError as error:
            raise DataError(f"{name}: {error.detail}") from error
    if warnings and not regions and not unknown:
        # Taken for an image without fruit, it would teach that its fruit is background.
        raise DataError(f"no region can be used: {'; '.join(warnings)}")
    painted = paint(regions, size)
    covered = np.zeros((size.height, size.width), np.bool_)
    for region in regions:
        covered[region.window] |= region.mask
    for region in unknown:
        painted.semantic[region.window][region.mask & ~covered[region.window]] = PixelClass.IGNORE
    return replace(painted, warnings=tuple(warnings))


def paint(regions: Sequence[Region], size: Size) -> LabelMaps:
    """Paint regions by the rules above.

    Args:
        regions: regions inside the image, in the order of the annotation.
        size: size of the image.

    Returns:
        The label maps. Fruits are numbered in the order of the annotation; completely hidden ones are not listed.

    Raises:
        DataError: there are more than `MAX_FRUITS` fruits.
    """
    semantic = np.full((size.height, size.width), PixelClass.BACKGROUND, np.uint8)
    instance_map = np.zeros((size.height, size.width), np.uint16)
    fruits = _fruits(regions)
    if len(fruits) > MAX_FRUITS:
        raise DataError(f"must have at most {MAX_FRUITS} fruits, has {len(fruits)}")
    numbers = {body: number for number, body in enumerate(sorted(body for body, _ in fruits), start=1)}
    for body, lesions in fruits:
        for index in (body, *lesions):
            region = regions[index]
            semantic[region.window][region.mask] = region.pixel_class
            instance_map[region.window][region.mask] = numbers[body]
    for region in regions:
        if region.pixel_class is PixelClass.IGNORE:
            semantic[region.window][region.mask] = PixelClass.IGNORE
    return LabelMaps(semantic, list_instances(semantic, instance_map), instance_map)


def _fruits(regions: Sequence[Region]) -> list[tuple[int, list[int]]]:
    """Return the indices of each fruit's region and of its lesions, largest fruit first."""
    parts = [index for index, region in enumerate(regions) if region.pixel_class in _FRUITS]
    parts.sort(key=lambda index: -regions[index].area)
    fruits: list[tuple[int, list[int]]] = []
    for index in parts:
        infected = regions[index].pixel_class is PixelClass.INFECTED
        lesions = _lesions_of_host(regions, index, fruits) if infected else None
        if lesions is None:
            fruits.append((index, []))
        else:
            lesions.append(index)
    return fruits


def _lesions_of_host(
    regions: Sequence[Region], index: int, fruits: Sequence[tuple[int, list[int]]]
) -> list[int] | None:
    """Return the lesions of the fruit that holds most of a region, and more than half; of equal ones the topmost."""
    best, most = None, regions[index].area / 2
    for body, lesions in reversed(fruits):
        overlap = _overlap(regions[index], regions[body])
        if overlap > most:
            best, most = lesions, overlap
    return best


def _overlap(one: Region, other: Region) -> int:
    """Count the pixels that two regions share."""
    y0, x0 = max(one.y, other.y), max(one.x, other.x)
    y1 = min(one.y + one.mask.shape[0], other.y + other.mask.shape[0])
    x1 = min(one.x + one.mask.shape[1], other.x + other.mask.shape[1])
    if y0 >= y1 or x0 >= x1:
        return 0
    first, second = (each.mask[y0 - each.y : y1 - each.y, x0 - each.x : x1 - each.x] for each in (one, other))
    return int(np.count_nonzero(first & second))

"""One region of a Label Studio annotation -> its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, PositiveFloat, PositiveInt, ValidationError

from models.data.brush import decode_brush
from models.data.dataset import ClassMap
from models.data.regions import Region, region_of_mask, region_of_rings
from models.errors import DataError
from models.types import PixelClass, Size

_HALF_COVERED: Final = 128
_ELLIPSE_VERTICES: Final = 720  # within 0.001 % of the radius


class _Polygon(BaseModel):
    points: list[tuple[FiniteFloat, FiniteFloat]] = Field(min_length=3)
    closed: Literal[True] = True


class _Rectangle(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    width: PositiveFloat
    height: PositiveFloat
    rotation: FiniteFloat = 0


class _Ellipse(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    radius_x: PositiveFloat = Field(alias="radiusX")
    radius_y: PositiveFloat = Field(alias="radiusY")
    rotation: FiniteFloat = 0


class _Brush(BaseModel):
    format: Literal["rle"]
    rle: list[Annotated[int, Field(ge=0, le=255)]]


class _Result(BaseModel):
    original_width: PositiveInt
    original_height: PositiveInt
    image_rotation: float | None = None
    value: dict[str, Any]


_Shape: TypeAlias = _Polygon | _Rectangle | _Ellipse | _Brush

# By a key that only this shape has.
_SHAPES: Final[Mapping[str, type[_Shape]]] = {
    "points": _Polygon,
    "rle": _Brush,
    "radiusX": _Ellipse,
    "height": _Rectangle,
}


def draw_result(result: Mapping[str, Any], classes: ClassMap, size: Size) -> Region:
    """Draw one result.

    Args:
        result: with `type`, `original_width`, `original_height` and `value`, as the full export has it.
        classes: what its label means.
        size: of the upright image.

    Returns:
        The region.

    Raises:
        DataError: its class is not listed, it is no shape that is read, it does not hold what that shape takes, it is
            for an image of other proportions, or it covers no pixel.
    """
    try:
        checked = _Result.model_validate(result)
        kind = next((key for key in _SHAPES if key in checked.value), None)
        if kind is None:
            raise DataError(
                f"{result.get('type', 'this')} is not read; polygons, brush masks, rectangles and ellipses are"
            )
        shape = _SHAPES[kind].model_validate(checked.value)
    except ValidationError as error:
        raise DataError("; ".join(_fault(details["loc"], details["msg"]) for details in error.errors()[:3])) from error
    if checked.image_rotation:
        raise DataError(f"was drawn on an image turned by {checked.image_rotation:g} degrees; turn it back first")
    pixel_class = _class_of(checked.value, classes)
    labelled = Size(checked.original_height, checked.original_width)
    check_proportions(labelled, size)
    match shape:
        case _Brush():
            return region_of_mask(pixel_class, _brush_mask(bytes(shape.rle), labelled, size))
        case _Polygon():
            ring = np.array(shape.points) * _percent(size)
        case _Rectangle():
            ring = _rectangle(shape, size)
        case _Ellipse():
            ring = _ellipse(shape, size)
    return region_of_rings(pixel_class, [ring], size)


def check_proportions(labelled: Size, size: Size) -> None:
    """Refuse an annotation that was made for an image of another shape.

    Args:
        labelled: size of the image as the annotation tells it.
        size: of the upright image.

    Raises:
        DataError: their proportions differ by more than the rounding of a copy to whole pixels explains.
    """
    if labelled == size:
        return
    turned = (labelled.height, labelled.width) == (size.width, size.height)
    off = abs(labelled.width * size.height - labelled.height * size.width)
    if turned or off > labelled.width + labelled.height:
        hint = "; it was annotated without turning it upright as its EXIF orientation says" if turned else ""
        raise DataError(
            f"was annotated at {labelled.width} x {labelled.height} pixels, but the upright image has "
            f"{size.width} x {size.height}{hint}"
        )


def _fault(where: tuple[int | str, ...], what: str) -> str:
    return f"{'.'.join(map(str, where)) or 'value'}: {what}"


def _class_of(value: Mapping[str, Any], classes: ClassMap) -> PixelClass:
    names = [name for key, each in value.items() if key.endswith("labels") and isinstance(each, list) for name in each]
    if not names:
        raise DataError("has no class")
    found = {classes.of_name(str(name)) for name in names}
    if len(found) > 1:
        raise DataError(f"has the classes {', '.join(map(str, names))}; one is right")
    return found.pop()


def _percent(size: Size) -> NDArray[np.float64]:
    return np.array([size.width, size.height]) / 100


def _brush_mask(rle: bytes, labelled: Size, size: Size) -> NDArray[np.bool_]:
    alpha = decode_brush(rle, labelled)
    if labelled != size:
        alpha = np.asarray(cv2.resize(alpha, (size.width, size.height), interpolation=cv2.INTER_LINEAR), np.uint8)
    mask: NDArray[np.bool_] = alpha >= _HALF_COVERED
    return mask


def _rectangle(shape: _Rectangle, size: Size) -> NDArray[np.float64]:
    """Corners; turned about the one that is the upper left before turning, clockwise as seen."""
    corner = np.array([shape.x, shape.y]) * _percent(size)
    sides = np.array([[0, 0], [shape.width, 0], [shape.width, shape.height], [0, shape.height]]) * _percent(size)
    return corner + sides @ _turn(shape.rotation)


def _ellipse(shape: _Ellipse, size: Size) -> NDArray[np.float64]:
    """Points of the outline; turned about the centre, clockwise as seen."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_VERTICES, endpoint=False)
    radii = np.array([shape.radius_x, shape.radius_y]) * _percent(size)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return np.array([shape.x, shape.y]) * _percent(size) + around @ _turn(shape.rotation)


def _turn(degrees: float) -> NDArray[np.float64]:
    """For row vectors [x, y] with y down: a positive angle turns clockwise as seen."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

"""Prompts: points, boxes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pomona import _checks as checks
from pomona.errors import InvalidArgument, MalformedPrompt, NoPrompt
from pomona.masks import Logits, Mask, PixelBox, ScoredMask

FOREGROUND = 1
BACKGROUND = 0


@dataclass(frozen=True)
class Point:
    """A click.

    Attributes:
        x: pixels of the image after EXIF orientation, to the right.
        y: pixels, down.
        label: 1 for the object, 0 for the background.

    Raises:
        MalformedPrompt: a coordinate is not finite, or the label is neither 0 nor 1.
    """

    x: float
    y: float
    label: int = FOREGROUND

    def __post_init__(self) -> None:
        if checks.finite(self.x) is None or checks.finite(self.y) is None:
            given = f"{checks.shown(self.x)}, {checks.shown(self.y)}"
            raise MalformedPrompt(f"A point's coordinates must be finite numbers, got ({given}).")
        label: object = self.label
        if not isinstance(label, Real) or label not in (FOREGROUND, BACKGROUND):
            raise MalformedPrompt(f"A point's label must be 1 (object) or 0 (background), got {checks.shown(label)}.")


@dataclass(frozen=True)
class Box:
    """A half-open box around the object: `[x0, x1) x [y0, y1)`.

    Attributes:
        x0: left, pixels of the image after EXIF orientation.
        y0: top.
        x1: right, more than x0.
        y1: bottom, more than y0.

    Raises:
        MalformedPrompt: it is empty or not finite.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = sides = [checks.finite(side) for side in (self.x0, self.y0, self.x1, self.y1)]
        if None in sides or not (x0 < x1 and y0 < y1):  # type: ignore[operator] # none of them is None
            given = ", ".join(checks.shown(side) for side in (self.x0, self.y0, self.x1, self.y1))
            raise MalformedPrompt(f"A box must be finite numbers with x0 < x1 and y0 < y1, got ({given}).")


MaskLike: TypeAlias = Mask | ScoredMask | NDArray[np.bool_]
Shape: TypeAlias = Point | Box | PixelBox | MaskLike


@dataclass(frozen=True)
class Prompt:
    """What to segment: points, a box, a mask, or points with a box or a mask.

    Attributes:
        points: clicks.
        box: around the object.
        mask: an earlier guess: a mask of an answer, or one of the image's size.
        multimask: three masks, best first, for an ambiguous prompt; else one.

    Raises:
        NoPrompt: there are neither points nor a box nor a mask.
        InvalidArgument: something is of another type.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: Mask | None = None
    multimask: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.points, Sequence) or not all(isinstance(each, Point) for each in self.points):
            raise InvalidArgument(f"A prompt's points must be a tuple of Point, got {checks.shown(self.points)}.")
        for name, value, kind in (("box", self.box, Box), ("mask", self.mask, Mask)):
            if value is not None and not isinstance(value, kind):
                raise InvalidArgument(f"A prompt's {name} must be a {kind.__name__}, got {checks.shown(value)}.")
        checks.flag(self.multimask, "multimask")
        if not self.points and self.box is None and self.mask is None:
            raise NoPrompt("A prompt must have points, a box or a mask.")

    @classmethod
    def of(cls, *shapes: Shape, multimask: bool = True) -> Prompt:
        """Combine shapes into one prompt.

        Args:
            shapes: any number of points, at most one box, at most one mask.
            multimask: three masks or one.

        Raises:
            MalformedPrompt: two boxes or two masks.
            NoPrompt: no shapes.
            InvalidArgument: something that is not a shape.
        """
        points: list[Point] = []
        box: Box | None = None
        mask: Mask | None = None
        for shape in shapes:
            if isinstance(shape, Point):
                points.append(shape)
            elif isinstance(shape, (Box, PixelBox)):
                if box is not None:
                    raise MalformedPrompt(
                        "A prompt must have at most one box; give each object its own list: [[Box(…)], [Box(…)]]."
                    )
                box = Box(*shape) if isinstance(shape, PixelBox) else shape
            else:
                if mask is not None:
                    raise MalformedPrompt("A prompt must have at most one mask; give each object its own list.")
                mask = _to_mask(shape)
        return cls(tuple(points), box, mask, multimask)

    def to_json(self) -> dict[str, Any]:
        """Return the prompt as in the API; the logits' `data` stay bytes."""
        fields: dict[str, Any] = {"multimask": self.multimask}
        if self.points:
            fields["points"] = [[float(point.x), float(point.y)] for point in self.points]
            fields["labels"] = [int(point.label) for point in self.points]
        if self.box is not None:
            fields["box"] = [float(side) for side in (self.box.x0, self.box.y0, self.box.x1, self.box.y1)]
        if self.mask is not None:
            encoded = self.mask.encoded
            if isinstance(encoded, Logits):
                fields["mask"] = {"shape": list(encoded.shape), "dtype": "float16", "data": encoded.data}
            else:
                fields["mask"] = {"size": list(encoded.size), "counts": encoded.counts}
        return fields


Prompts: TypeAlias = Shape | Prompt | Sequence[Shape | Prompt | Sequence[Shape]]


def parse_prompts(prompts: Prompts, *, multimask: bool = True) -> tuple[Prompt, ...]:
    """Turn what a caller gave into prompts.

    Args:
        prompts: a shape; a list of shapes, which together describe one object; or a list with an entry for each object,
            which is a `Prompt` or a list of shapes.
        multimask: three masks or one, for entries that are not a `Prompt`.

    Raises:
        NoPrompt, MalformedPrompt, InvalidArgument: the prompts cannot be used.
    """
    if isinstance(prompts, Prompt):
        return (prompts,)
    if not _is_list(prompts):
        return (Prompt.of(prompts, multimask=multimask),)  # type: ignore[arg-type] # a shape, as it is not a list
    entries: list[Any] = list(prompts)  # type: ignore[arg-type]
    if not entries:
        raise NoPrompt("prompts must not be empty; for example [Point(500, 375)].")
    objects = [isinstance(entry, Prompt) or _is_list(entry) for entry in entries]
    if not any(objects):
        return (Prompt.of(*entries, multimask=multimask),)
    if not all(objects):
        raise MalformedPrompt("prompts must be either shapes of one object or lists of shapes: give each its own list.")
    return tuple(entry if isinstance(entry, Prompt) else Prompt.of(*entry, multimask=multimask) for entry in entries)


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (PixelBox, np.ndarray, str, bytes))


def _to_mask(shape: object) -> Mask:
    if isinstance(shape, Mask):
        return shape
    if isinstance(shape, np.ndarray):
        return Mask.of(shape)
    if isinstance(shape, ScoredMask):
        return shape.mask
    raise InvalidArgument(f"A prompt must be made of points, boxes and masks, got {type(shape).__name__}.")

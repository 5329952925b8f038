"""What prompts are made of: points, boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pomona.errors import InvalidArgument, MalformedPrompt, NoPrompt
from pomona.masks import Mask, PixelBox, ScoredMask

FOREGROUND = 1
BACKGROUND = 0


@dataclass(frozen=True)
class Point:
    """A click.

    Attributes:
        x: pixels of the picture after EXIF orientation, to the right.
        y: the same, down.
        label: 1 for what is wanted, 0 for what is not.

    Raises:
        MalformedPrompt: coordinates that are not finite, or another label.
    """

    x: float
    y: float
    label: int = FOREGROUND

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise MalformedPrompt(f"The point ({self.x}, {self.y}) is not finite.")
        if self.label not in (FOREGROUND, BACKGROUND):
            raise MalformedPrompt(f"A point's label is 1 (wanted) or 0 (not wanted), not {self.label!r}.")


@dataclass(frozen=True)
class Box:
    """A box around what is wanted, half-open: it ends where x1 and y1 begin.

    Attributes:
        x0: left, pixels of the picture after EXIF orientation.
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
        finite = all(map(math.isfinite, (self.x0, self.y0, self.x1, self.y1)))
        if not (finite and self.x0 < self.x1 and self.y0 < self.y1):
            raise MalformedPrompt(f"{self} is empty or not finite; x0 < x1 and y0 < y1 would be right.")


MaskLike: TypeAlias = Mask | ScoredMask | NDArray[np.bool_]
Shape: TypeAlias = Point | Box | PixelBox | MaskLike


@dataclass(frozen=True)
class Prompt:
    """One thing to segment: points, a box, a mask, or points with a box or a mask.

    Attributes:
        points: clicks.
        box: around it.
        mask: an earlier guess: an answer's mask, or a bool array (height, width) of the picture's size.
        multimask: three masks, best first, for what is ambiguous; else one.

    Raises:
        NoPrompt: it has neither points nor box nor mask.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: Mask | None = None
    multimask: bool = True

    def __post_init__(self) -> None:
        if not self.points and self.box is None and self.mask is None:
            raise NoPrompt("A prompt needs points, a box or a mask.")

    @classmethod
    def of(cls, *shapes: Shape, multimask: bool = True) -> Prompt:
        """Put shapes together that mean one thing.

        Args:
            shapes: any number of points, at most one box, at most one mask.
            multimask: three masks or one.

        Raises:
            MalformedPrompt: two boxes or two masks.
            NoPrompt: no shape at all.
            InvalidArgument: something that is no shape.
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
                        "A prompt has one box. For several things give each its own list: [[Box(…)], [Box(…)]]."
                    )
                box = Box(*shape) if isinstance(shape, PixelBox) else shape
            else:
                if mask is not None:
                    raise MalformedPrompt("A prompt has one mask. For several things give each its own list.")
                mask = _mask_of(shape)
        return cls(tuple(points), box, mask, multimask)


Prompts: TypeAlias = Shape | Prompt | Sequence[Shape | Prompt | Sequence[Shape]]


def prompts_of(asked: Prompts, *, multimask: bool = True) -> tuple[Prompt, ...]:
    """Read what a caller wants segmented.

    Args:
        asked: a shape; a list of shapes, which together mean one thing; or a list with an entry for each thing, which
            is a `Prompt` or a list of shapes.
        multimask: three masks or one, for what is no `Prompt` yet.

    Raises:
        NoPrompt, MalformedPrompt, InvalidArgument: by what is wrong.
    """
    if isinstance(asked, Prompt):
        return (asked,)
    if not _is_list(asked):
        return (Prompt.of(asked, multimask=multimask),)  # type: ignore[arg-type] # a shape, as it is no list
    things: list[Any] = list(asked)  # type: ignore[arg-type]
    if not things:
        raise NoPrompt("There are no prompts; [Point(500, 375)] would be one.")
    whole = [isinstance(thing, Prompt) or _is_list(thing) for thing in things]
    if not any(whole):
        return (Prompt.of(*things, multimask=multimask),)
    if not all(whole):
        raise MalformedPrompt("Some prompts are shapes and some are lists of shapes; give each thing its own list.")
    return tuple(thing if isinstance(thing, Prompt) else Prompt.of(*thing, multimask=multimask) for thing in things)


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (PixelBox, np.ndarray, str, bytes))


def _mask_of(shape: object) -> Mask:
    if isinstance(shape, Mask):
        return shape
    if isinstance(shape, np.ndarray):
        return Mask.of(shape)
    if isinstance(shape, ScoredMask):
        return shape.mask
    raise InvalidArgument(f"{type(shape).__name__} is no point, box or mask.")

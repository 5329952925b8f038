"""What may be fixed about a rendered image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from models.errors import PomonaError

MAX_FRUITS: Final = 24


class CannotRender(PomonaError):
    """No image can be rendered as it was asked for."""


class Background(StrEnum):
    """What is behind the fruit."""

    BELT = "belt"
    ROLLERS = "rollers"
    CUPS = "cups"
    TABLE = "table"
    CLOTH = "cloth"
    FOLIAGE = "foliage"
    WHITE = "white"
    BLACK = "black"


class Layout(StrEnum):
    """How the fruits lie.

    LOOSE fruits may touch, hide parts of one another and reach over the image's border; the others lie wholly in
    the image: APART with gaps between them, TOUCHING side by side, PILED upon one another.
    """

    LOOSE = "loose"
    APART = "apart"
    TOUCHING = "touching"
    PILED = "piled"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What is fixed; all else is drawn by lot.

    Attributes:
        background: what is behind the fruit, None for any.
        fruits: how many, 0 to 24; None for any of 0 to 12. Leaves may hide one wholly.
        layout: how they lie, None for any. Cups and foliage set fruit in their own way where it is None.
        infected_share: of the fruits, the share with lesions, 0 to 1; a share that gives no whole number of fruits is
            rounded up or down by lot. Lesions that others hide do not show, so fewer may be seen to be infected.
        distractors: harmless marks on healthy and infected fruit: stickers, drops, dust, leaf fragments, wind scars.
        camera: blur, noise, vignetting and JPEG artefacts.

    Raises:
        CannotRender: a number outside its range, or a layout that fruit in cups cannot have.
    """

    background: Background | None = None
    fruits: int | None = None
    layout: Layout | None = None
    infected_share: float = 0.45
    distractors: bool = True
    camera: bool = True

    def __post_init__(self) -> None:
        if self.fruits is not None and not 0 <= self.fruits <= MAX_FRUITS:
            raise CannotRender(f"{self.fruits} fruits: 0 to {MAX_FRUITS} can be rendered.")
        if not 0 <= self.infected_share <= 1:
            raise CannotRender(f"An infected share of {self.infected_share}: it must be from 0 to 1.")
        if self.background is Background.CUPS and self.layout not in {None, Layout.APART}:
            raise CannotRender(f"The layout {self.layout}: cups keep fruit apart.")

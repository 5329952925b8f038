"""What a contender makes of an image, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from models.types import BinaryMask, SemanticMap


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """What a prompt for a known fruit gave.

    Attributes:
        score: the IoU that the model predicts of its mask.
        iou: with the fruit that was asked for, 0 to 1.
    """

    score: float
    iou: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a subject makes of an image.

    Attributes:
        classes: uint8 (height, width) of the image: BACKGROUND, HEALTHY and INFECTED, or BACKGROUND and FRUIT.
        fruits: bool (height, width) each; they may overlap.
        milliseconds: of each stage; each stage once, in the order in which they ran.
        prompted: for each annotated fruit that was asked for; None of a subject that finds fruits by itself.
    """

    classes: SemanticMap
    fruits: tuple[BinaryMask, ...]
    milliseconds: Mapping[str, float]
    prompted: tuple[Prompted, ...] | None = None


class Stopwatch:
    """Milliseconds by stage.

    Args:
        before: what was measured of earlier stages.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.milliseconds: dict[str, float] = dict(before or {})

    @contextmanager
    def runs(self, stage: str) -> Iterator[None]:
        """Add the time in the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = 1000 * (time.perf_counter() - start)
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent

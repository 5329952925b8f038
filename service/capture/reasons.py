"""Which answers are hard: why a frame is worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from models.inspection import Grade
from service.api import schema
from service.capture.records import Reason


def _chance() -> Callable[[], float]:
    return Random().random  # noqa: S311 (nothing is secret about a sample)  # nosec B311


@dataclass(frozen=True, slots=True)
class HardFrames:
    """The limits that make an answer a hard one.

    Attributes:
        confidence: fruit below it is unsure.
        grade_margin: share of a grade's limit; an infected fraction that is closer to the limit is near it.
        sample: share of all answers that are kept without another reason.
        chance: returns 0 to 1, evenly distributed.
    """

    confidence: float
    grade_margin: float
    sample: float
    chance: Callable[[], float]

    def reasons(self, answer: schema.InspectResponse, grades: Sequence[Grade]) -> tuple[Reason, ...]:
        """Return why an answer's frame should be kept; empty where it should not.

        Args:
            answer: to the frame.
            grades: by which its fruit was graded.
        """
        found: list[Reason] = []
        fruits = answer.fruits
        if any(fruit.confidence < self.confidence for fruit in fruits):
            found.append("low_confidence")
        if answer.models.sam is not None and (answer.dismissed or not all(fruit.refined for fruit in fruits)):
            found.append("disagreement")
        if any(self._is_near(fruit.infected_fraction, grade.most) for fruit in fruits for grade in grades):
            found.append("near_grade")
        if answer.degraded:
            found.append("degraded")
        if not found and self.sample and self.chance() < self.sample:
            found.append("sample")
        return tuple(found)

    def _is_near(self, fraction: float, limit: float) -> bool:
        return abs(fraction - limit) < self.grade_margin * limit


def hard_frames(*, confidence: float, grade_margin: float, sample: float) -> HardFrames:
    """Return such limits, with chance of the system's."""
    return HardFrames(confidence, grade_margin, sample, _chance())

"""When load is offered: the steps of a run, and a camera whose frames do not wait for answers.

The clock is the caller's. Times are seconds since the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Final

_ROUNDING_S: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of time with one offered load.

    Attributes:
        number: from 0.
        rate: multiple of the cameras' frame rate.
        start: when it begins.
        end: when it is over.
    """

    number: int
    rate: float
    start: float
    end: float


@dataclass(frozen=True)
class Plan:
    """A step for each rate, a pause before and after each, so that one step's load does not burden the next.

    Attributes:
        rates: multiples of the cameras' frame rate, in their order.
        step_s: length of a step.
        pause_s: length of a pause.
    """

    rates: tuple[float, ...]
    step_s: float
    pause_s: float

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in their order."""
        starts = [self.pause_s + number * (self.step_s + self.pause_s) for number in range(len(self.rates))]
        return tuple(
            Step(number, rate, start, start + self.step_s)
            for number, (rate, start) in enumerate(zip(self.rates, starts, strict=True))
        )

    @property
    def duration_s(self) -> float:
        """The whole run, pauses included."""
        return self.steps[-1].end + self.pause_s

    def step_at(self, now: float) -> Step | None:
        """The step that is on; None in a pause."""
        return next((step for step in self.steps if step.start <= now < step.end), None)

    def wait_at(self, now: float) -> float:
        """Seconds until a step is on: 0 within one; after the last, the length of a pause."""
        ahead = [step for step in self.steps if now < step.end]
        return max(0.0, ahead[0].start - now) if ahead else self.pause_s


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of the schedule.

    Attributes:
        step: that it belongs to.
        due: when it is taken.
    """

    step: Step
    due: float


def schedule(plan: Plan, fps: float, phase: float) -> Iterator[Frame]:
    """A camera's frames, fixed before the run.

    Args:
        plan: the steps.
        fps: frames per second at rate 1.
        phase: share of the time between two frames by which this camera is later than others, 0 to 1.
    """
    for step in plan.steps:
        for number in count():
            since_start = (number + phase) / (fps * step.rate)
            if since_start > plan.step_s - _ROUNDING_S:
                break
            yield Frame(step, step.start + since_start)


class Camera:
    """Takes frames as they fall due, whether or not earlier ones were answered, and keeps count of those in flight."""

    def __init__(self, frames: Iterator[Frame], limit: int) -> None:
        self._frames = frames
        self._limit = limit
        self._in_flight = 0
        self._upcoming = next(frames, None)

    @property
    def due(self) -> float | None:
        """When the next frame falls due; None after the last."""
        return None if self._upcoming is None else self._upcoming.due

    def take(self, now: float) -> tuple[Frame, bool] | None:
        """Take the next frame where it is due.

        Returns:
            The frame, and whether it may be sent: then it is in flight until `land` is called. Where as many frames as
            allowed are in flight, it is to be skipped. None where no frame is due.
        """
        frame = self._upcoming
        if frame is None or now < frame.due:
            return None
        self._upcoming = next(self._frames, None)
        if self._in_flight >= self._limit:
            return frame, False
        self._in_flight += 1
        return frame, True

    def land(self) -> None:
        """Count a frame that was sent as no longer in flight."""
        self._in_flight -= 1

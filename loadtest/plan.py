"""What Locust's users do and when: the options of a run, its steps, and cameras whose frames do not wait for answers.

The caller passes the time; times are seconds since the start of the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    ValidationError,
)

from loadtest.images import jpeg_files
from loadtest.report import REPORTS
from models.types import Size

_ROUNDING_S: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """A period with one offered load.

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
    """A step for each rate, with a pause before and after each, so that no step's load burdens the next.

    Attributes:
        rates: multiples of the cameras' frame rate, in order.
        step_s: length of a step.
        pause_s: length of a pause.
    """

    rates: tuple[float, ...]
    step_s: float
    pause_s: float

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in order."""
        starts = [self.pause_s + number * (self.step_s + self.pause_s) for number in range(len(self.rates))]
        return tuple(
            Step(number, rate, start, start + self.step_s)
            for number, (rate, start) in enumerate(zip(self.rates, starts, strict=True))
        )

    @property
    def duration_s(self) -> float:
        """Length of the run, with its pauses."""
        return self.steps[-1].end + self.pause_s

    def step_at(self, now: float) -> Step | None:
        """Return the current step; None in a pause."""
        return next((step for step in self.steps if step.start <= now < step.end), None)

    def wait_at(self, now: float) -> float:
        """Return the seconds until the next step begins: 0 within one; after the last, the length of a pause."""
        ahead = [step for step in self.steps if now < step.end]
        return max(0.0, ahead[0].start - now) if ahead else self.pause_s


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of the schedule.

    Attributes:
        step: that it belongs to.
        due: when it is captured.
    """

    step: Step
    due: float


def schedule(plan: Plan, fps: float, phase: float) -> Iterator[Frame]:
    """Yield a camera's frames, fixed before the run.

    Args:
        plan: the steps.
        fps: frames per second at rate 1.
        phase: delay of this camera behind the first, as a share of the time between two frames, 0 to 1.
    """
    for step in plan.steps:
        for number in count():
            since_start = (number + phase) / (fps * step.rate)
            if since_start > plan.step_s - _ROUNDING_S:
                break
            yield Frame(step, step.start + since_start)


class Camera:
    """Captures frames when they fall due, whether or not earlier ones were answered, and counts those in flight.

    Args:
        frames: its schedule.
        limit: most frames in flight.
    """

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
        """Return the next frame if it is due, and whether it may be sent.

        Returns:
            None if no frame is due. A frame that may be sent is in flight until `land` is called; it may not be sent if
            as many frames as allowed are in flight.
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


def _split(text: object) -> object:
    return text.split(",") if isinstance(text, str) else text


def _with_jpeg_files(folder: Path | None) -> Path | None:
    if folder is not None and not jpeg_files(folder):
        raise ValueError("must contain a .jpg or .jpeg file")
    return folder and folder.resolve()


_Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Options(BaseModel):
    """Options of a run, on the command line with dashes."""

    model_config = ConfigDict(frozen=True)

    rates: Annotated[tuple[_Positive, ...], BeforeValidator(_split)] = Field(
        (0.25, 0.5, 1, 2), description="steps of the run, each a multiple of --fps, with commas between"
    )
    step_seconds: _Positive = Field(30, description="length of a step")
    pause_seconds: _Positive = Field(3, description="length of the pause before and after each step")
    cameras: int = Field(1, ge=1, description="sorting lines, each with one camera")
    fps: _Positive = Field(1, description="frames per second of each camera at rate 1, sent on time in any case")
    deadline_ms: _Positive = Field(2000, description="deadline of a frame from its capture, sent as X-Deadline-Ms")
    in_flight: int = Field(4, ge=1, description="most frames of a camera in flight; further ones are skipped")
    annotators: int = Field(0, ge=0, description="people who embed an image and click in it 10 to 30 times")
    think_seconds: _Positive = Field(1, description="mean time between an annotator's clicks")
    batch_jobs: int = Field(0, ge=0, description="jobs that send image after image as fast as they are answered")
    images: Annotated[DirectoryPath | None, AfterValidator(_with_jpeg_files)] = Field(
        None, description="folder of JPEG files to send; rendered oranges if not given"
    )
    image_size: str = Field("1200x800", pattern=r"^[1-9]\d*x[1-9]\d*$", description="of rendered images")
    out: Path = Field(REPORTS / "loadtest", description="folder of the report")

    @cached_property
    def plan(self) -> Plan:
        """The steps of the run."""
        return Plan(self.rates, self.step_seconds, self.pause_seconds)

    @property
    def size(self) -> Size:
        """Size of rendered images."""
        width, height = (int(side) for side in self.image_size.split("x"))
        return Size(height, width)


def add_options(parser: argparse.ArgumentParser, **extra: Any) -> None:
    """Add the options of `Options` to a parser.

    Args:
        parser: ours or Locust's.
        extra: further arguments for each option, if the parser takes more than argparse's.
    """
    for name, field in Options.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        meaning = field.description if default is None else f"{field.description} (default {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=meaning, **extra)


def read_options(parsed: argparse.Namespace) -> Options:
    """Return the options that a parser with `add_options` read.

    Raises:
        SystemExit: one is invalid; a line for each says why.
    """
    try:
        return Options(**{name: getattr(parsed, name) for name in Options.model_fields})
    except ValidationError as error:
        lines = []
        for one in error.errors():
            name, message = str(one["loc"][0]).replace("_", "-"), one["msg"].removeprefix("Value error, ")
            lines.append(f"--{name}: {message}, got {one['input']}")
        sys.exit("\n".join(lines))

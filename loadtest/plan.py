"""What Locust's users do and when: the options of a run, its steps, and cameras whose frames do not wait for answers.

The caller passes the time; times are seconds since the start of the run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

from loadtest.images import jpeg_files
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


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run; `add_options` explains each."""

    rates: tuple[float, ...]
    step_seconds: float
    pause_seconds: float
    cameras: int
    fps: float
    deadline_ms: float
    in_flight: int
    annotators: int
    think_seconds: float
    batch_jobs: int
    images: Path | None
    image_size: Size

    @property
    def plan(self) -> Plan:
        """The steps of the run."""
        return Plan(self.rates, self.step_seconds, self.pause_seconds)

    def arguments(self) -> list[str]:
        """Return the options as command-line arguments."""
        texts = {
            **{name: str(getattr(self, name)) for name in self.__slots__},
            "rates": ",".join(str(rate) for rate in self.rates),
            "image_size": f"{self.image_size.width}x{self.image_size.height}",
        }
        if self.images is None:
            del texts["images"]
        return [part for name, text in texts.items() for part in (f"--{name.replace('_', '-')}", text)]


def add_options(parser: argparse.ArgumentParser, **extra: Any) -> None:
    """Add the options of `Options` to a parser.

    Args:
        parser: ours or Locust's.
        extra: further arguments for each option, if the parser takes more than argparse's.
    """

    def add(name: str, kind: Callable[[str], object], default: str | None, metavar: str, meaning: str) -> None:
        def read(text: str) -> object:
            try:
                return kind(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"must have the form {metavar}, got {text}") from None

        shown = "" if default is None else f" (default {default})"
        parser.add_argument(name, type=read, default=default, metavar=metavar, help=f"{meaning}{shown}", **extra)

    add("--rates", _rates, "0.25,0.5,1,2", "R,R,…", "steps of the run, each a multiple of --fps")
    add("--step-seconds", _above_zero, "30", "S", "length of a step")
    add("--pause-seconds", _above_zero, "3", "S", "length of the pause before and after each step")
    add("--cameras", _from_one, "1", "N", "sorting lines, each with one camera")
    add("--fps", _above_zero, "1", "F", "frames per second of each camera at rate 1, sent on time in any case")
    add("--deadline-ms", _above_zero, "2000", "MS", "deadline of a frame from its capture, sent as X-Deadline-Ms")
    add("--in-flight", _from_one, "4", "N", "most frames of a camera in flight; further ones are skipped")
    add("--annotators", _from_zero, "0", "N", "people who embed an image and click in it 10 to 30 times")
    add("--think-seconds", _above_zero, "1", "S", "mean time between an annotator's clicks")
    add("--batch-jobs", _from_zero, "0", "N", "jobs that send image after image as fast as they are answered")
    add("--images", _image_folder, None, "FOLDER", "folder of JPEG files to send (default: rendered oranges)")
    add("--image-size", _size, "1200x800", "WxH", "width and height of rendered images")


def read_options(parsed: argparse.Namespace) -> Options:
    """Return the options that a parser with `add_options` read."""
    return Options(**{name: getattr(parsed, name) for name in Options.__slots__})


def _above_zero(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _from_zero(text: str) -> int:
    return _at_least(0, text)


def _from_one(text: str) -> int:
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
    return number


def _rates(text: str) -> tuple[float, ...]:
    return tuple(_above_zero(rate) for rate in text.split(","))


def _size(text: str) -> Size:
    width, height = text.split("x")
    return Size(_from_one(height), _from_one(width))


def _image_folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, got {text}")
    if not jpeg_files(folder):
        raise argparse.ArgumentTypeError(f"must contain a .jpg or .jpeg file, got {text}")
    return folder.resolve()

"""The command-line options of a load test, the same for `make loadtest` and for Locust."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.photos import jpeg_files
from loadtest.plan import Plan
from models.types import Size


@dataclass(frozen=True, slots=True)
class Options:
    """What a load test does; the meanings stand in `add_options`."""

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


def add_options(parser: argparse.ArgumentParser, **extra: Any) -> None:
    """Add the options of `Options` to a parser.

    Args:
        parser: ours or Locust's.
        extra: for each option, where the parser knows more than argparse.
    """

    def add(name: str, kind: Callable[[str], object], default: str | None, metavar: str, meaning: str) -> None:
        def read(text: str) -> object:
            try:
                return kind(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{text} is not of the form {metavar}") from None

        shown = "" if default is None else f" (default {default})"
        parser.add_argument(name, type=read, default=default, metavar=metavar, help=f"{meaning}{shown}", **extra)

    add("--rates", _rates, "0.25,0.5,1,2", "R,R,…", "steps of the run, each a multiple of --fps")
    add("--step-seconds", _above_zero, "30", "S", "length of a step")
    add("--pause-seconds", _above_zero, "3", "S", "nothing new is sent for so long before and after each step")
    add("--cameras", _from_one, "1", "N", "sorting lines, each with one camera; at least 1")
    add("--fps", _above_zero, "1", "F", "frames per second of each camera at rate 1, sent on time in any case")
    add("--deadline-ms", _above_zero, "2000", "MS", "deadline of a frame from when it is taken, sent as X-Deadline-Ms")
    add("--in-flight", _from_one, "4", "N", "most frames of a camera in flight; one more is skipped")
    add("--annotators", _from_zero, "0", "N", "people who embed an image and click in it 10 to 30 times")
    add("--think-seconds", _above_zero, "1", "S", "mean time between an annotator's clicks")
    add("--batch-jobs", _from_zero, "0", "N", "jobs that send image after image as fast as they are answered")
    add("--images", _image_folder, None, "FOLDER", "folder of JPEG files to send (default: drawn oranges)")
    add("--image-size", _size, "1200x800", "WxH", "width and height of drawn images")


def read_options(parsed: argparse.Namespace) -> Options:
    """Take ours out of what a parser read."""
    return Options(**{name: getattr(parsed, name) for name in Options.__slots__})


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _above_zero(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _from_zero(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _from_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _rates(text: str) -> tuple[float, ...]:
    return tuple(_above_zero(rate) for rate in text.split(","))


def _size(text: str) -> Size:
    width, height = text.split("x")
    return Size(_from_one(height), _from_one(width))


def _image_folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    if not jpeg_files(folder):
        raise argparse.ArgumentTypeError(f"{text} holds no .jpg or .jpeg file")
    return folder.resolve()

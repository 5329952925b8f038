"""The new fruit and its truth: rendered plums in the cups of a sorting line, which the default U-Net was never shown.

The id of a frame says how it was rendered, so that the truth of any frame that comes back can be looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from models.data.samples import Sample
from models.synthetic import Background, RenderOptions, Species, render
from models.types import Size

Use = Literal["train", "val", "live", "held-out", "ordinary"]
"""What a frame is for. Frames of different uses have different seeds; `ordinary` ones show the fruit of before."""

SIZE: Final = Size(448, 672)

_FIRST_SEEDS: Final[dict[str, int]] = {
    "train": 10_000,
    "val": 20_000,
    "live": 30_000,
    "held-out": 40_000,
    "ordinary": 50_000,
}
"""Below those that training and its validation draw: see `models.training.unet_data`."""

_MOST: Final = 10_000
_PLUMS: Final = RenderOptions(Background.CUPS, fruits=5, species=Species.PLUM)
_ID: Final = re.compile(rf"({'|'.join(_FIRST_SEEDS)})-(\d{{1,4}})")


def frame_ids(use: Use, count: int) -> list[str]:
    """Return the ids of the first frames of a use.

    Raises:
        ValueError: the count is not 0 to 10,000.
    """
    if not 0 <= count <= _MOST:
        raise ValueError(f"count must be 0 to {_MOST}, got {count}.")
    return [f"{use}-{number}" for number in range(count)]


def use_of(frame_id: str) -> str:
    """Return what a frame is for.

    Raises:
        ValueError: it is not the id of a frame of ours.
    """
    return _read(frame_id)[0]


def rendered(frame_id: str) -> Sample:
    """Render a frame and its exact masks; equal ids give equal bytes on one machine.

    Raises:
        ValueError: it is not the id of a frame of ours.
    """
    use, number = _read(frame_id)
    return render(_FIRST_SEEDS[use] + number, SIZE, options=None if use == "ordinary" else _PLUMS)


def all_rendered(use: Use, count: int) -> Iterator[tuple[str, Sample]]:
    """Render the first frames of a use, each with its id."""
    for frame_id in frame_ids(use, count):
        yield frame_id, rendered(frame_id)


def _read(frame_id: str) -> tuple[str, int]:
    match = _ID.fullmatch(frame_id)
    if match is None:
        raise ValueError(f"frame_id must be one of {', '.join(_FIRST_SEEDS)} and a number, got {frame_id!r}.")
    return match[1], int(match[2])

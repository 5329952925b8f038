"""Tells fruits apart, those that touch and those whose parts a leaf divides: every cell votes for a middle.

The network gives each cell the way to the middle of its fruit. Votes of one fruit fall together; where many do, there
is a fruit. The one with the most votes comes first and takes them along, so that the rest of a large fruit's scattered
votes make no second one. A cell belongs to the fruit that its vote comes nearest to, in radii of that fruit. The idea
is that of the generalised Hough transform (Ballard, Pattern Recognition 1981), the regression that of Panoptic-DeepLab
(Cheng et al., CVPR 2020), here without its map of centres; ways are followed as in Cellpose (Stringer et al., Nature
Methods 2021).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.unet.cells import against_background, favoured, unpadded
from models.unet.constants import OFFSET_UNIT
from models.unet.letterbox import UNetLetterbox

MIN_REGION: Final = 16
"""Cells, 4 x 4 of 448 x 224: smaller regions are specks."""

_COARSE: Final = 2
"""Cells: votes are gathered in squares of this side."""

_BLUR: Final = 1.5
"""Standard deviation, in such squares, with which they are gathered."""

_STEPS: Final = 8
"""Ways that are followed after the first."""

_ITS_OWN: Final = 1.0
"""Radii: votes nearer to a middle are its fruit's."""

_FEWEST: Final = 0.25
"""Of the area of a disc with the fruit's radius: fewer votes are strays, and their cells go to the fruits beside."""

_TOO_FAR: Final = 1.0
"""Radii: a vote that misses every middle by more belongs to no fruit."""

_MOST: Final = 128
"""Places in an image that are looked at: those with the most votes."""


def fruit_labels(output: NDArray[np.float32], letterbox: UNetLetterbox) -> NDArray[np.int32]:
    """Which fruit each cell belongs to.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`, as `UNetBackend.infer` gives it.
        letterbox: of the image.

    Returns:
        int32 (height, width) of size `letterbox.resized`: 0 where there is no fruit, else its number from 1 on,
        the largest fruit first. No fruit has fewer than `MIN_REGION` cells.

    Raises:
        ValueError: an output of another size.
    """
    cells = unpadded(output, letterbox)
    fruit = favoured(*against_background(cells)) > 0
    rows, columns = np.nonzero(fruit)
    labels = np.zeros(cells.shape[1:], np.int32)
    if len(rows) < MIN_REGION:
        return labels
    votes = _followed(cells[3:] * np.float32(OFFSET_UNIT), fruit, rows, columns)
    ways = votes - np.stack((columns, rows))
    # Half of a disc's points are within 0.71 radii of its middle, and the mean way to it is 2/3 of a radius.
    radii = np.maximum(np.hypot(ways[0], ways[1]) * 1.5, 1.0)
    middles = _middles(votes, radii, letterbox)
    labels[rows, columns] = _nearest(votes, middles)
    return _numbered(labels)


def _followed(
    ways: NDArray[np.float32], fruit: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Where ways lead, float32 (2, cells) x, y: from the cell where one ends the next is taken, while there is fruit.

    Ways near a middle are good. Those from the rim of a fruit larger than any that was trained on are too short.
    """
    height, width = fruit.shape
    cells = np.mgrid[:height, :width][::-1].astype(np.float32)
    places = (cells + ways)[:, rows, columns]
    # Many ways lead over few cells: none of these may mislead them alone.
    ends = cells + np.stack([cv2.medianBlur(channel, 3) for channel in ways])
    for _ in range(_STEPS):
        across = np.clip(np.rint(places[0]), 0, width - 1).astype(np.intp)
        down = np.clip(np.rint(places[1]), 0, height - 1).astype(np.intp)
        places = np.where(fruit[down, across], ends[:, down, across], places)
    return places


class _Middles(NamedTuple):
    """Where fruits are: float32 (fruits, 2) x, y and float32 (fruits,) radius, in cells."""

    places: NDArray[np.float32]
    radii: NDArray[np.float32]


def _middles(votes: NDArray[np.float32], radii: NDArray[np.float32], letterbox: UNetLetterbox) -> _Middles:
    """Where votes are densest there is a middle; its votes are taken away, and the densest place of the rest is next.

    The larger a fruit, the further its votes scatter: whoever looks for all peaks at once finds several in a large one.
    """
    left, sizes = votes, radii
    seen: list[tuple[int, bool, NDArray[np.float32], float]] = []
    while len(sizes) >= MIN_REGION and len(seen) < _MOST:
        place, radius, own = _densest(left, sizes, letterbox)
        count = int(np.count_nonzero(own))
        seen.append((count, count >= max(MIN_REGION, _FEWEST * np.pi * radius**2), place, radius))
        left, sizes = left[:, ~own], sizes[~own]
    # Where none has enough, the one with the most.
    kept = [each for each in seen if each[1]] or [max(seen, key=lambda each: each[0])]
    found = _Middles(np.stack([place for *_, place, _ in kept]), np.array([radius for *_, radius in kept], np.float32))
    return _with_enough(votes, found)


def _densest(
    votes: NDArray[np.float32], radii: NDArray[np.float32], letterbox: UNetLetterbox
) -> tuple[NDArray[np.float32], float, NDArray[np.bool_]]:
    """The place with the most votes, float32 (2,) x, y; the radius of its fruit; and which votes are its own."""
    height, width = (-(-side // _COARSE) for side in (letterbox.resized.height, letterbox.resized.width))
    across = np.clip(votes[0] * (1 / _COARSE), 0, width - 1).astype(np.intp)
    down = np.clip(votes[1] * (1 / _COARSE), 0, height - 1).astype(np.intp)
    counts = np.bincount(down * width + across, minlength=height * width).astype(np.float32).reshape(height, width)
    row, column = divmod(int(cv2.GaussianBlur(counts, (0, 0), _BLUR, borderType=cv2.BORDER_CONSTANT).argmax()), width)
    place = np.array((column + 0.5, row + 0.5), np.float32) * _COARSE
    own = _within(votes, place, 2 * _COARSE)
    for _ in range(2):
        radius = float(radii[own].mean())
        own = _within(votes, place, _ITS_OWN * radius)
        place = votes[:, own].mean(axis=1)
    return place, radius, own


def _within(votes: NDArray[np.float32], place: NDArray[np.float32], distance: float) -> NDArray[np.bool_]:
    """Which votes are at most so far from a place; the nearest in any case."""
    off = np.square(votes[0] - place[0]) + np.square(votes[1] - place[1])
    return np.asarray(off <= max(distance**2, float(off.min())))


def _with_enough(votes: NDArray[np.float32], middles: _Middles) -> _Middles:
    """Without those that get too few votes; at least one is left."""
    areas = np.bincount(_nearest(votes, middles), minlength=len(middles.radii) + 1)[1:]
    share = areas / (np.pi * middles.radii**2)
    kept = (share >= _FEWEST) & (areas >= MIN_REGION)
    if not kept.any():
        kept[int(np.argmax(areas))] = True
    return _Middles(middles.places[kept], middles.radii[kept])


def _nearest(votes: NDArray[np.float32], middles: _Middles) -> NDArray[np.int32]:
    """The number from 1 on of the middle that each vote is nearest to, in its radii; 0 beyond `_TOO_FAR`."""
    best = np.full(votes.shape[1], np.square(_TOO_FAR), np.float32)
    chosen = np.zeros(votes.shape[1], np.int32)
    for number, ((x, y), radius) in enumerate(zip(*middles, strict=True), start=1):
        distance = (np.square(votes[0] - x) + np.square(votes[1] - y)) / np.square(radius)
        nearer = distance < best
        best[nearer] = distance[nearer]
        chosen[nearer] = number
    return chosen


def _numbered(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Numbered by falling area, without specks."""
    areas = np.bincount(labels.ravel())
    numbers = np.zeros(len(areas), np.int32)
    ranked = [int(label) for label in np.argsort(-areas, kind="stable") if label and areas[label] >= MIN_REGION]
    numbers[ranked] = np.arange(1, len(ranked) + 1)
    return numbers[labels]

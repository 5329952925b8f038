"""Tells fruits apart, those that touch and those whose parts a leaf divides: every cell votes for a middle.

The network gives each cell the way to the middle of its fruit. Votes of one fruit fall together; where many do, there
is a fruit, and a cell belongs to the fruit that its vote comes nearest to, in radii of that fruit. The idea is that of
the generalised Hough transform (Ballard, Pattern Recognition 1981), the regression that of Panoptic-DeepLab (Cheng et
al., CVPR 2020), here without its map of centres.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.unet.cells import against_background, favoured, unpadded
from models.unet.constants import OFFSET_UNIT
from models.unet.frames import UNetFrame

MIN_REGION: Final = 16
"""Cells, 4 x 4 of 448 x 224: smaller regions are specks."""

_BLUR: Final = 2.0
"""Standard deviation in cells with which votes are gathered."""

_FEWEST: Final = 0.1
"""Of the area of a disc with the fruit's radius: fewer votes are strays between two fruits, and go to these."""

_APART: Final = 0.5
"""Radii of the stronger: nearer middles are one fruit's."""

_TOO_FAR: Final = 1.0
"""Radii: a vote that misses every middle by more belongs to no fruit."""

_WITHIN: Final = 7
"""Cells, odd: a middle has more votes than any place in the square of this side around it."""

_MOST: Final = 256
"""Fruits in a picture: those with the most votes in one place."""


def fruit_labels(output: NDArray[np.float32], frame: UNetFrame) -> NDArray[np.int32]:
    """Which fruit each cell belongs to.

    Args:
        output: float32 (5, height, width) of size `frame.padded`, as `UNetBackend.infer` gives it.
        frame: of the picture.

    Returns:
        int32 (height, width) of size `frame.resized`: 0 where there is no fruit, else its number from 1 on, the largest
        fruit first. No fruit has fewer than `MIN_REGION` cells.

    Raises:
        ValueError: an output of another size.
    """
    cells = unpadded(output, frame)
    rows, columns = np.nonzero(favoured(*against_background(cells)))
    labels = np.zeros(cells.shape[1:], np.int32)
    if len(rows) < MIN_REGION:
        return labels
    ways = cells[3:, rows, columns] * np.float32(OFFSET_UNIT)
    votes = np.stack((columns, rows)).astype(np.float32) + ways
    # Half of a disc's points are within 0.71 radii of its middle, and the mean way to it is 2/3 of a radius.
    radii = np.maximum(np.hypot(ways[0], ways[1]) * 1.5, 1.0)
    middles = _middles(votes, radii, frame)
    labels[rows, columns] = _nearest(votes, middles)
    return _numbered(labels)


class _Middles(NamedTuple):
    """Where fruits are: float32 (fruits, 2) x, y and float32 (fruits,) radius, in cells."""

    places: NDArray[np.float32]
    radii: NDArray[np.float32]


def _middles(votes: NDArray[np.float32], radii: NDArray[np.float32], frame: UNetFrame) -> _Middles:
    height, width = frame.resized.height, frame.resized.width
    across = np.clip(np.rint(votes[0]), 0, width - 1).astype(np.intp)
    down = np.clip(np.rint(votes[1]), 0, height - 1).astype(np.intp)
    index = down * width + across
    counts = _blurred(np.bincount(index, minlength=height * width), height, width)
    reach = _blurred(np.bincount(index, weights=radii, minlength=height * width), height, width)
    highest = cv2.dilate(counts, np.ones((_WITHIN, _WITHIN), np.uint8))
    rows, columns = np.nonzero((counts == highest) & (counts > 0))
    order = np.argsort(-counts[rows, columns], kind="stable")[:_MOST]
    kept = _Middles(np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    for row, column in zip(rows[order], columns[order], strict=True):
        place = np.array((column, row), np.float32)
        if (np.hypot(*(kept.places - place).T) < _APART * kept.radii).any():
            continue
        radius = np.float32(reach[row, column] / counts[row, column])
        kept = _Middles(np.vstack((kept.places, place)), np.append(kept.radii, radius))
    return _with_enough(votes, kept)


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


def _blurred(counts: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    map_ = counts.astype(np.float32).reshape(height, width)
    return np.asarray(cv2.GaussianBlur(map_, (0, 0), _BLUR, borderType=cv2.BORDER_CONSTANT), np.float32)

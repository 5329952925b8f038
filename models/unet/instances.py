"""Separates the fruits in a U-Net's output, also those that touch or are divided by a leaf: cells vote for centres.

The network predicts each cell's offset to the centre of its fruit. Votes of one fruit accumulate at its centre. The
centre with the most votes is taken first and its votes are removed, so that the scattered rest of a large fruit's votes
does not make a second one. A cell belongs to the fruit whose centre its vote is nearest to, measured in radii of that
fruit. The idea is that of the generalised Hough transform (Ballard, Pattern Recognition 1981), the regression that of
Panoptic-DeepLab (Cheng et al., CVPR 2020), here without its centre map; offsets are followed as in Cellpose (Stringer
et al., Nature Methods 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.masks import PixelBox
from models.types import CLASSES
from models.unet.constants import OFFSET_UNIT, OUTPUTS
from models.unet.divided import join_divided
from models.unet.letterbox import UNetLetterbox

MIN_REGION: Final = 16
"""Least number of cells of a fruit, 4 x 4 of 448 x 224: smaller regions are specks."""

_CERTAIN_SOMEWHERE: Final = 1.7
"""Least margin that a region of fruit reaches in some cell, a probability of 0.85; with less it is background.
Most of what is seen in foliage and soil is nowhere so sure, and most fruit is: docs/accuracy.md has the figures. Canny
("A Computational Approach to Edge Detection", 1986) keeps edges by such a second threshold."""

_COARSE: Final = 2
"""Side in cells of the squares in which votes are counted."""

_BLUR: Final = 1.5
"""Standard deviation, in such squares, of the Gaussian that smooths the counts."""

_STEPS: Final = 8
"""Number of times that offsets are followed further after the first."""

_ITS_OWN: Final = 1.0
"""Distance in radii up to which votes belong to a centre while centres are searched."""

_FEWEST: Final = 0.25
"""Least number of votes as a share of the area of a disc with the fruit's radius. With fewer, a centre is dropped and
its cells go to its neighbours."""

_TOO_FAR: Final = 1.0
"""Distance in radii from every centre above which a vote belongs to no fruit."""

_CERTAIN: Final = 80.0
"""Margins are clipped here: the probability is 1 in float32, and exp would overflow above."""

_ROUNDING: Final = 1.001
"""Factor by which distances in float32 may be off, and more."""

_MOST: Final = 128
"""Most candidate centres in an image."""


def predicted_class(healthy: NDArray[np.float32], infected: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the class of the largest logit, the first of equal ones.

    Args:
        healthy: margins of healthy over background, any shape.
        infected: margins of infected over background, same shape.

    Returns:
        uint8 of the same shape: BACKGROUND, HEALTHY or INFECTED.
    """
    classes = (infected > healthy).view(np.uint8)
    classes += 1
    classes *= np.maximum(healthy, infected) > 0
    return classes


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What a U-Net predicts for each cell of its output that lies on the image.

    Attributes:
        margins: float32 (2, height, width), the logits of healthy and infected less the background's: two maps are
            cheaper to resize than three. At most 0 in regions that are nowhere certain to be fruit.
        classes: uint8 (height, width): BACKGROUND, HEALTHY or INFECTED.
        offsets: float32 (2, height, width), x and y from each cell to the centre of its fruit, in `OFFSET_UNIT`.
        letterbox: letterbox of the image; height and width are those of its `resized`.
    """

    margins: NDArray[np.float32]
    classes: NDArray[np.uint8]
    offsets: NDArray[np.float32]
    letterbox: UNetLetterbox

    @classmethod
    def of(cls, output: NDArray[np.float32], letterbox: UNetLetterbox) -> Cells:
        """Read an output.

        Args:
            output: float32 (5, height, width) of size `letterbox.padded`, from `UNetBackend.infer`.
            letterbox: letterbox of the image.

        Raises:
            ValueError: the output has another size.
        """
        expected = (OUTPUTS, letterbox.padded.height, letterbox.padded.width)
        if output.shape != expected:
            raise ValueError(f"the output must have the shape {expected}, got {output.shape}")
        cells = output[:, : letterbox.resized.height, : letterbox.resized.width]
        margins = cells[1 : len(CLASSES)] - cells[0]
        classes = predicted_class(*margins)
        doubtful = doubtful_cells(classes > 0, margins.max(axis=0))
        if doubtful is not None:
            classes[doubtful] = 0
            np.minimum(margins, 0, out=margins, where=doubtful)
        return cls(margins, classes, cells[len(CLASSES) :], letterbox)


def doubtful_cells(fruit: NDArray[np.bool_], margins: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Return the cells of regions of fruit that are nowhere certain.

    Args:
        fruit: bool (height, width).
        margins: float32 (height, width), of fruit over background.

    Returns:
        bool (height, width); None if there are none.
    """
    count, found = cv2.connectedComponents(fruit.view(np.uint8), connectivity=8)
    regions = np.asarray(found, np.int32)
    certain = np.zeros(count, np.bool_)
    certain[regions[margins >= _CERTAIN_SOMEWHERE]] = True
    certain[0] = True  # the background stays as it is
    return None if certain.all() else ~certain[regions]


def fruit_labels(cells: Cells) -> NDArray[np.int32]:
    """Label each cell with the fruit that it belongs to.

    Args:
        cells: output of the network.

    Returns:
        int32 (height, width): 0 for background, else the fruit's number from 1 on, the largest fruit first. No fruit
        has fewer than `MIN_REGION` cells.
    """
    labels = np.zeros(cells.classes.shape, np.int32)
    at = np.flatnonzero(cells.classes)
    if len(at) < MIN_REGION:
        return labels
    rows, columns = np.divmod(at, cells.classes.shape[1])
    places = np.stack((columns, rows)).astype(np.float32)
    votes = _follow(cells.offsets * np.float32(OFFSET_UNIT), at, places)
    offsets = votes - places
    # The mean distance of a disc's points to its centre is 2/3 of the radius.
    radii = np.maximum(np.hypot(offsets[0], offsets[1]) * np.float32(1.5), np.float32(1))
    labels.ravel()[at] = _assign(votes, _find_centres(votes, radii, cells.letterbox))
    join_divided(labels, cells.classes)
    return _renumber(labels)


def label_boxes(labels: NDArray[np.int32]) -> list[PixelBox]:
    """Find the tight half-open boxes of all labels in one pass.

    Args:
        labels: int32 (height, width); negative labels are skipped.

    Returns:
        Boxes x0, y0, x1, y1 in cells, by label from 0 to the largest; (0, 0, 0, 0) for 0 and labels without cells.
    """
    height, width = labels.shape
    at = np.flatnonzero(labels > 0)
    label, (rows, columns) = labels.ravel()[at].astype(np.intp), np.divmod(at, width)
    count = int(label.max(initial=0)) + 1
    y0, y1 = _extent(label * height + rows, count, height)
    x0, x1 = _extent(label * width + columns, count, width)
    return list(zip(x0, y0, x1, y1, strict=True))


def _extent(positions: NDArray[np.intp], count: int, length: int) -> tuple[list[int], list[int]]:
    """Return the first of `length` positions of each of `count` labels, and the one after the last; 0, 0 for none."""
    taken = (np.bincount(positions, minlength=count * length) > 0).reshape(count, length)
    last = np.where(taken.any(axis=1), length - taken[:, ::-1].argmax(axis=1), 0)
    return taken.argmax(axis=1).tolist(), last.tolist()


def label_scores(cells: Cells, labels: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Measure the area of each label and the mean probability of fruit in it.

    Args:
        cells: output of the network.
        labels: int32 (height, width); negative labels are skipped.

    Returns:
        By label from 0 to the largest: intp, number of cells; float64, mean probability of fruit, healthy or infected,
        0 to 1, NaN without cells.
    """
    at = np.flatnonzero(labels > 0)
    label_of = labels.ravel()[at]
    areas = np.bincount(label_of)
    # One minus the background's softmax probability, from the margins over its logit.
    odds = np.exp(np.minimum(cells.margins.reshape(2, -1).take(at, axis=1), _CERTAIN)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return areas, np.minimum(np.bincount(label_of, weights=odds / (1 + odds)) / areas, 1.0)


def _follow(offsets: NDArray[np.float32], at: NDArray[np.intp], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Follow offsets from cell to cell while they stay on fruit.

    Offsets near a centre are good. Those from the rim of a fruit larger than any in training are too short.

    Args:
        offsets: float32 (2, height, width), x and y, in cells.
        at: intp (fruit cells,), positions in the flattened map, rising.
        places: float32 (2, fruit cells), x and y of the same cells.

    Returns:
        float32 (2, fruit cells): where the path from each cell ends after `_STEPS` further steps.
    """
    height, width = offsets.shape[1:]
    number = np.full(height * width, -1, np.int32)
    number[at] = np.arange(len(at), dtype=np.int32)

    def cell_at(ends: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the index among the fruit cells of the cell at each place, -1 where it is not fruit."""
        across = np.clip(np.rint(ends[0]), 0, width - 1).astype(np.int32)
        down = np.clip(np.rint(ends[1]), 0, height - 1).astype(np.int32)
        cells: NDArray[np.int32] = number.take(down * np.int32(width) + across)
        return cells

    # Many paths cross few cells: no single one of these may mislead them.
    smooth = np.stack([cv2.medianBlur(channel, 3) for channel in offsets]).reshape(2, -1)
    ends = places + smooth.take(at, axis=1)
    following = cell_at(ends)
    # A path that would leave the fruit stays. So a step depends on the cell alone, and steps can be composed.
    once = np.where(following < 0, np.arange(len(at), dtype=np.int32), following)
    first = places + offsets.reshape(2, -1).take(at, axis=1)
    start = cell_at(first)
    path = _composed(once, _STEPS - 1).take(np.maximum(start, 0))
    return np.where(start < 0, first, ends.take(path, axis=1))


def _composed(step: NDArray[np.int32], times: int) -> NDArray[np.int32]:
    """Return where `times` steps lead, by squaring: `step` maps each index to the next."""
    result = np.arange(len(step), dtype=np.int32)
    while times:
        if times & 1:
            result = step.take(result)
        step = step.take(step)
        times >>= 1
    return result


class _Centres(NamedTuple):
    """Centres of fruits, float32 (fruits, 2) x, y, and radii, float32 (fruits,), in cells."""

    places: NDArray[np.float32]
    radii: NDArray[np.float32]


def _find_centres(votes: NDArray[np.float32], radii: NDArray[np.float32], letterbox: UNetLetterbox) -> _Centres:
    """Find centres one by one: the densest place is a centre; its votes are removed before the next search.

    The larger a fruit, the further its votes scatter: searching all peaks at once finds several in a large fruit.
    """
    height, width = (-(-side // _COARSE) for side in (letterbox.resized.height, letterbox.resized.width))
    across = np.clip(votes[0] * (1 / _COARSE), 0, width - 1).astype(np.int32)
    down = np.clip(votes[1] * (1 / _COARSE), 0, height - 1).astype(np.int32)
    left, sizes, squares = votes, radii, down * np.int32(width) + across
    counts = np.bincount(squares, minlength=height * width).astype(np.float32)
    seen: list[tuple[int, bool, NDArray[np.float32], float]] = []
    while len(sizes) >= MIN_REGION and len(seen) < _MOST:
        place, radius, own = _densest(counts.reshape(height, width), left, sizes)
        count = len(own)
        seen.append((count, count >= max(MIN_REGION, _FEWEST * np.pi * radius**2), place, radius))
        counts -= np.bincount(squares.take(own), minlength=height * width).astype(np.float32)
        others = np.ones(len(sizes), np.bool_)
        others[own] = False
        rest = np.flatnonzero(others)
        left, sizes, squares = left.take(rest, axis=1), sizes.take(rest), squares.take(rest)
    # If none has enough votes, keep the one with the most.
    kept = [each for each in seen if each[1]] or [max(seen, key=lambda each: each[0])]
    return _Centres(np.stack([place for *_, place, _ in kept]), np.array([radius for *_, radius in kept], np.float32))


def _densest(
    counts: NDArray[np.float32], votes: NDArray[np.float32], radii: NDArray[np.float32]
) -> tuple[NDArray[np.float32], float, NDArray[np.intp]]:
    """Return the place with the most votes, float32 (2,) x, y; its fruit's radius; and the numbers of its own votes."""
    smooth = cv2.GaussianBlur(counts, (0, 0), _BLUR, borderType=cv2.BORDER_CONSTANT)
    row, column = divmod(int(smooth.argmax()), counts.shape[1])
    densest = np.array((column + 0.5, row + 0.5), np.float32) * _COARSE
    off = _squared_distances(votes, densest)
    radius = float(radii.take(_within(off, 2 * _COARSE)).mean())
    own = _within(off, _ITS_OWN * radius)
    place = votes.take(own, axis=1).mean(axis=1)
    radius = float(radii.take(own).mean())
    # The place moved a little: only votes near it need to be looked at again.
    moved = float(np.hypot(*(place - densest)))
    near = np.flatnonzero(off <= ((_ITS_OWN * radius + moved) * _ROUNDING) ** 2)
    again = _squared_distances(votes.take(near, axis=1), place)
    if not (again <= (_ITS_OWN * radius) ** 2).any():  # the nearest one, wherever it is
        near, again = np.arange(len(off)), _squared_distances(votes, place)
    own = near.take(_within(again, _ITS_OWN * radius))
    return votes.take(own, axis=1).mean(axis=1), radius, own


def _squared_distances(votes: NDArray[np.float32], place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squared distance of each vote to a place: float32 (votes,)."""
    across: NDArray[np.float32] = votes[0] - place[0]
    down: NDArray[np.float32] = votes[1] - place[1]
    across *= across
    down *= down
    across += down
    return across


def _within(off: NDArray[np.float32], distance: float) -> NDArray[np.intp]:
    """Return the places of the squared distances up to a distance, at least of the least one."""
    near = np.flatnonzero(off <= distance**2)
    return near if len(near) else np.flatnonzero(off <= off.min())


def _assign(votes: NDArray[np.float32], centres: _Centres) -> NDArray[np.int32]:
    """Return the number from 1 on of the fruit of each vote, 0 for none, without centres that have too few votes."""
    chosen = _nearest(votes, centres)
    areas = np.bincount(chosen, minlength=len(centres.radii) + 1)[1:]
    kept = (areas / (np.pi * centres.radii**2) >= _FEWEST) & (areas >= MIN_REGION)
    if kept.all():
        return chosen
    if not kept.any():
        kept[int(np.argmax(areas))] = True
    return _nearest(votes, _Centres(centres.places[kept], centres.radii[kept]))


def _nearest(votes: NDArray[np.float32], centres: _Centres) -> NDArray[np.int32]:
    """Return the number from 1 on of the centre nearest to each vote, in its radii; 0 beyond `_TOO_FAR`."""
    best = np.full(votes.shape[1], np.square(_TOO_FAR), np.float32)
    chosen = np.zeros(votes.shape[1], np.int32)
    for number, ((x, y), radius) in enumerate(zip(*centres, strict=True), start=1):
        distance = (np.square(votes[0] - x) + np.square(votes[1] - y)) / np.square(radius)
        nearer = distance < best
        best[nearer] = distance[nearer]
        chosen[nearer] = number
    return chosen


def _renumber(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Remove specks and number the fruits by falling area."""
    areas = np.bincount(labels.ravel())
    numbers = np.zeros(len(areas), np.int32)
    ranked = [int(label) for label in np.argsort(-areas, kind="stable") if label and areas[label] >= MIN_REGION]
    numbers[ranked] = np.arange(1, len(ranked) + 1)
    return numbers[labels]

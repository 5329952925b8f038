"""Separates the fruits in a U-Net's output, also those that touch or are divided by a leaf: cells vote for centres.

The network predicts each cell's offset to the centre of its fruit. Votes of one fruit accumulate at its centre. The
centre with the most votes is taken first and its votes are removed, so that the scattered rest of a large fruit's votes
does not make a second one. A cell belongs to the fruit whose centre its vote is nearest to, measured in radii of that
fruit. The idea is that of the generalised Hough transform (Ballard, Pattern Recognition 1981), the regression that of
Panoptic-DeepLab (Cheng et al., CVPR 2020), here without its centre map; offsets are followed as in Cellpose (Stringer
et al., Nature Methods 2021).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.types import CLASSES
from models.unet.constants import OFFSET_UNIT, OUTPUTS
from models.unet.letterbox import UNetLetterbox

MIN_REGION: Final = 16
"""Least number of cells of a fruit, 4 x 4 of 448 x 224: smaller regions are specks."""

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

_MOST: Final = 128
"""Most candidate centres in an image."""


def unpad(output: NDArray[np.float32], letterbox: UNetLetterbox) -> NDArray[np.float32]:
    """Return the part of an output that lies on the image.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`.
        letterbox: letterbox of the image.

    Returns:
        A view of size `letterbox.resized`.

    Raises:
        ValueError: the output has another size.
    """
    expected = (OUTPUTS, letterbox.padded.height, letterbox.padded.width)
    if output.shape != expected:
        raise ValueError(f"the output must have the shape {expected}, got {output.shape}")
    return output[:, : letterbox.resized.height, : letterbox.resized.width]


def fruit_margins(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the background's logits from those of healthy and infected: two maps are cheaper to resize than three.

    Args:
        cells: float32 (3 or more, height, width), the logits of the classes first.

    Returns:
        float32 (2, height, width).
    """
    margins: NDArray[np.float32] = cells[1 : len(CLASSES)] - cells[0]
    return margins


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


def fruit_labels(output: NDArray[np.float32], letterbox: UNetLetterbox) -> NDArray[np.int32]:
    """Label each cell with the fruit that it belongs to.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`, from `UNetBackend.infer`.
        letterbox: letterbox of the image.

    Returns:
        int32 (height, width) of size `letterbox.resized`: 0 for background, else the fruit's number from 1 on, the
        largest fruit first. No fruit has fewer than `MIN_REGION` cells.

    Raises:
        ValueError: the output has another size.
    """
    cells = unpad(output, letterbox)
    fruit = predicted_class(*fruit_margins(cells)) > 0
    rows, columns = np.nonzero(fruit)
    labels = np.zeros(cells.shape[1:], np.int32)
    if len(rows) < MIN_REGION:
        return labels
    votes = _follow(cells[3:] * np.float32(OFFSET_UNIT), fruit, rows, columns)
    offsets = votes - np.stack((columns, rows))
    # The mean distance of a disc's points to its centre is 2/3 of the radius.
    radii = np.maximum(np.hypot(offsets[0], offsets[1]) * 1.5, 1.0)
    labels[rows, columns] = _nearest(votes, _find_centres(votes, radii, letterbox))
    return _renumber(labels)


def _follow(
    offsets: NDArray[np.float32], fruit: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Follow offsets from cell to cell while they stay on fruit; return where they end, float32 (2, cells) x, y.

    Offsets near a centre are good. Those from the rim of a fruit larger than any in training are too short.
    """
    height, width = fruit.shape
    cells = np.mgrid[:height, :width][::-1].astype(np.float32)
    places = (cells + offsets)[:, rows, columns]
    # Many paths cross few cells: no single one of these may mislead them.
    ends = cells + np.stack([cv2.medianBlur(channel, 3) for channel in offsets])
    for _ in range(_STEPS):
        across = np.clip(np.rint(places[0]), 0, width - 1).astype(np.intp)
        down = np.clip(np.rint(places[1]), 0, height - 1).astype(np.intp)
        places = np.where(fruit[down, across], ends[:, down, across], places)
    return places


class _Centres(NamedTuple):
    """Centres of fruits, float32 (fruits, 2) x, y, and radii, float32 (fruits,), in cells."""

    places: NDArray[np.float32]
    radii: NDArray[np.float32]


def _find_centres(votes: NDArray[np.float32], radii: NDArray[np.float32], letterbox: UNetLetterbox) -> _Centres:
    """Find centres one by one: the densest place is a centre; its votes are removed before the next search.

    The larger a fruit, the further its votes scatter: searching all peaks at once finds several in a large fruit.
    """
    left, sizes = votes, radii
    seen: list[tuple[int, bool, NDArray[np.float32], float]] = []
    while len(sizes) >= MIN_REGION and len(seen) < _MOST:
        place, radius, own = _densest(left, sizes, letterbox)
        count = int(np.count_nonzero(own))
        seen.append((count, count >= max(MIN_REGION, _FEWEST * np.pi * radius**2), place, radius))
        left, sizes = left[:, ~own], sizes[~own]
    # If none has enough votes, keep the one with the most.
    kept = [each for each in seen if each[1]] or [max(seen, key=lambda each: each[0])]
    found = _Centres(np.stack([place for *_, place, _ in kept]), np.array([radius for *_, radius in kept], np.float32))
    return _drop_weak(votes, found)


def _densest(
    votes: NDArray[np.float32], radii: NDArray[np.float32], letterbox: UNetLetterbox
) -> tuple[NDArray[np.float32], float, NDArray[np.bool_]]:
    """Return the place with the most votes, float32 (2,) x, y; the radius of its fruit; and which votes are its own."""
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
    """Select the votes within a distance of a place, at least the nearest one."""
    off = np.square(votes[0] - place[0]) + np.square(votes[1] - place[1])
    return np.asarray(off <= max(distance**2, float(off.min())))


def _drop_weak(votes: NDArray[np.float32], centres: _Centres) -> _Centres:
    """Drop centres with too few votes; keep at least one."""
    areas = np.bincount(_nearest(votes, centres), minlength=len(centres.radii) + 1)[1:]
    share = areas / (np.pi * centres.radii**2)
    kept = (share >= _FEWEST) & (areas >= MIN_REGION)
    if not kept.any():
        kept[int(np.argmax(areas))] = True
    return _Centres(centres.places[kept], centres.radii[kept])


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

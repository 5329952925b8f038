"""How far what a model sees and says now is from what it was validated on.

Images and answers are described by a few numbers, and the numbers of recent ones are compared with those of a reference
by the population stability index: the sum over bins of (a - e) ln(a / e), where `e` and `a` are the shares of the
reference and of recent numbers in a bin (the symmetric Kullback-Leibler divergence of the two; Naeem Siddiqi, "Credit
Risk Scorecards", 2006, chapter 12). By the rule of thumb there, below 0.1 nothing has changed, and above 0.25 it is
another population. The bins hold equal shares of the reference.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import cv2
import numpy as np

from models.sidecar import Sidecar
from models.types import Pixels, Size

Statistic = Literal[
    "brightness", "saturation", "sharpness", "fruit_size", "infected_fraction", "confidence", "fruit_count"
]
"""Of an image as the network sees it: mean luminance, mean of the largest less the smallest channel, both 0 to 1, and
the logarithm of the variance of its Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy",
2000). Of each fruit: square root of its share of the image, infected fraction, confidence. Of an answer: its fruits."""

STATISTICS: Final[tuple[Statistic, ...]] = get_args(Statistic)

WINDOW: Final = 1000
"""Recent numbers of a statistic that are compared."""

LEAST: Final = 200
"""Numbers of a window before which nothing is said: the index of few is large by chance."""

_PER_BIN: Final = 10
_BINS: Final = (3, 10)
_EVERY: Final = 20
_ROUGH: Final = 0.5
"""Added to the count of every bin, so that an empty one has a logarithm."""

_MOST_PIXELS: Final = 448 * 224


def image_statistics(pixels: Pixels) -> dict[Statistic, float]:
    """Describe an image at 448 x 224 pixels at most, so that it does not matter how much a network sees of it.

    Args:
        pixels: uint8 (height, width, 3), RGB, as the network sees it, without padding.
    """
    height, width = pixels.shape[:2]
    scale = math.sqrt(_MOST_PIXELS / (height * width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    colourful = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return {
        "brightness": float(grey.mean()) / 255,
        "saturation": float(colourful.mean()) / 255,
        "sharpness": math.log10(1 + float(cv2.Laplacian(grey, cv2.CV_32F).var())),
    }


def fruit_size(area: int, size: Size) -> float:
    """Return the square root of a fruit's share of the image."""
    return math.sqrt(area / size.pixels)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A statistic of the reference, in bins.

    Attributes:
        edges: largest value of each bin but the last, rising.
        counts: numbers in each bin.

    Raises:
        ValueError: there is not one count more than there are edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, got {len(self.counts)}")

    def bin_of(self, value: float) -> int:
        """Return the bin of a number."""
        return bisect.bisect_left(self.edges, value)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model saw and said when it was validated.

    Attributes:
        sha256: hash of the weights.
        images: number of images.
        statistics: distributions by name.
    """

    sha256: str
    images: int
    statistics: Mapping[Statistic, Distribution]


REFERENCES: Final = Sidecar(Reference, ".reference.json")
"""The reference of a checkpoint, beside it."""


def fit_distribution(values: Sequence[float]) -> Distribution | None:
    """Put numbers into at most ten bins of equal shares, with at least ten each; None of too few for three bins."""
    bins = min(_BINS[1], len(values) // _PER_BIN)
    if bins < _BINS[0]:
        return None
    inner = np.quantile(np.asarray(values, np.float64), np.arange(1, bins) / bins)
    edges = tuple(sorted(set(inner.tolist())))
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect.bisect_left(edges, value)] += 1
    return Distribution(edges, tuple(counts))


def population_stability(reference: Sequence[int], recent: Sequence[int]) -> float:
    """Return the population stability index of counts in the same bins."""
    expected, actual = (_shares(counts) for counts in (reference, recent))
    return sum((a - e) * math.log(a / e) for e, a in zip(expected, actual, strict=True))


class Window:
    """The most recent numbers of a statistic, compared with the reference now and then.

    Args:
        reference: distribution to compare with.
    """

    def __init__(self, reference: Distribution) -> None:
        self._reference = reference
        self._recent: deque[int] = deque()
        self._counts = [0] * len(reference.counts)
        self._since = 0

    def add(self, values: Iterable[float]) -> float | None:
        """Add numbers; return the index where it is time to say it, else None."""
        for value in values:
            place = self._reference.bin_of(value)
            self._recent.append(place)
            self._counts[place] += 1
            self._since += 1
            if len(self._recent) > WINDOW:
                self._counts[self._recent.popleft()] -= 1
        if len(self._recent) < LEAST or self._since < _EVERY:
            return None
        self._since = 0
        return population_stability(self._reference.counts, self._counts)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _ROUGH * len(counts)
    return [(count + _ROUGH) / total for count in counts]

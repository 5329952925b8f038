"""Follows fruit from frame to frame along a belt, and judges each fruit once, from all frames that show it.

All fruit on a belt moves alike. From one frame to the next, the shift that brings most fruit of the earlier frame onto
fruit of the later one is the belt's; fruit is then assigned to the fruit that is nearest where the belt has carried it
(the Hungarian method, by scipy). Frames may be missing: the shift is predicted from the time that has passed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from models.masks import PixelBox
from models.types import Size

MAX_TRACKS: Final = 128
"""Fruits that are followed at a time; of more, those that were not seen for longest end."""

MAX_FRUITS: Final = 64
"""Fruits of a frame that are followed, the largest."""

MAX_VIEWS: Final = 64
"""Views that are kept of a fruit, the last; counts and means are of all."""

_REACH: Final = 0.5
"""Of a fruit's diameter: largest distance from where it is expected."""

_GROWTH: Final = 2.2
"""Largest ratio of the areas of two views of a fruit, neither of which touches the image's edge."""

_MOST_CANDIDATES: Final = 500
_SMOOTHING: Final = 0.5
_MISSED_FRAMES: Final = 5.0
"""Usual intervals between frames for which fruit may be hidden before its track ends."""

_LEAST_VIEWS: Final = 2
"""Views of a fruit that is judged: what is seen once is more often no fruit."""

_WHOLE: Final = 0.6
"""Of the largest view's area: a smaller view is hidden in part, and not judged by."""

_CONFIRMED: Final = 0.3
"""Share of the credible views that must be as bad as a fruit is judged. On six rendered belts with the default U-Net
0.3 gave the most right grades; the worst view, or the second worst, far fewer."""

_SURE: Final = 0.5
"""Least confidence of a view that is judged by."""

_DUPLICATE: Final = 0.6
"""Share of a box that may lie in one that is followed already for it to be a fruit of its own."""


@dataclass(frozen=True, slots=True)
class View:
    """One fruit in one frame.

    Attributes:
        box: tight and half-open, in whole pixels.
        area: pixels in its mask.
        infected_fraction: 0 to 1.
        confidence: 0 to 1.
        truncated: whether it touches the image's edge.
    """

    box: PixelBox
    area: int
    infected_fraction: float
    confidence: float = 1.0
    truncated: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def diameter(self) -> float:
        """The longer side of the box, which an edge of the image does not cut first."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1], 1))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One fruit, judged from all frames that showed it.

    Attributes:
        track_id: from 1, in the order in which fruits were first seen.
        views: frames that showed it.
        first_frame: number of the first of them.
        last_frame: number of the last of them.
        infected: infected fraction by which it is judged, see `judged_fraction`.
        infected_max: largest infected fraction of a view.
        infected_mean: mean of all views, weighted by visible area.
        best_frame: number of the frame with the largest view that no edge cuts.
        best_box: the fruit in that frame.
        left: whether it has left; else it is in view, and more views may follow.
    """

    track_id: int
    views: int
    first_frame: int
    last_frame: int
    infected: float
    infected_max: float
    infected_mean: float
    best_frame: int
    best_box: PixelBox
    left: bool


@dataclass(frozen=True, slots=True)
class Update:
    """What a frame has brought: the track of each fruit, in their order, and verdicts on fruit that has left."""

    track_ids: tuple[int, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(slots=True)
class _Track:
    """A fruit that is followed.

    Attributes:
        moved: pixels that the belt has carried it right and down since its last view.
    """

    track_id: int
    first_frame: int
    last: View
    seen_at: float
    last_frame: int
    best: View
    best_frame: int
    moved: tuple[float, float] = (0.0, 0.0)
    count: int = 0
    weights: float = 0.0
    weighted: float = 0.0
    most: float = 0.0
    views: deque[View] = field(default_factory=lambda: deque(maxlen=MAX_VIEWS))

    def add(self, view: View, frame: int, time: float) -> None:
        self.moved, self.last, self.seen_at, self.last_frame = (0.0, 0.0), view, time, frame
        self.count += 1
        self.weights += view.area
        self.weighted += view.area * view.infected_fraction
        self.most = max(self.most, view.infected_fraction)
        self.views.append(view)
        if (not view.truncated, view.area) > (not self.best.truncated, self.best.area):
            self.best, self.best_frame = view, frame

    def verdict(self, *, left: bool) -> Verdict:
        return Verdict(
            track_id=self.track_id,
            views=self.count,
            first_frame=self.first_frame,
            last_frame=self.last_frame,
            infected=judged_fraction(self.views),
            infected_max=self.most,
            infected_mean=self.weighted / self.weights if self.weights else 0.0,
            best_frame=self.best_frame,
            best_box=self.best.box,
            left=left,
        )


class Tracker:
    """Follows the fruit of one stream of frames, which must come in their order.

    Memory is bounded: by `MAX_TRACKS` fruits of `MAX_VIEWS` views each.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._next_id = 1
        self._time: float | None = None
        self._frame = 0
        self._step: float | None = None
        self._velocity: NDArray[np.float64] | None = None

    @property
    def velocity(self) -> tuple[float, float] | None:
        """Pixels per unit of time that the belt moves right and down; None before two frames showed fruit."""
        return None if self._velocity is None else (float(self._velocity[0]), float(self._velocity[1]))

    def update(self, frame: int, time: float | None, size: Size, views: Sequence[View]) -> Update:
        """Follow the fruit into the next frame.

        Args:
            frame: its number, rising; numbers may be left out.
            time: when it was captured, in any unit, the same for all frames; None, or not later than the frame
                before, for a time by the number.
            size: of the frame.
            views: its fruit; of more than `MAX_FRUITS` the largest are followed.
        """
        largest = sorted(range(len(views)), key=lambda number: -views[number].area)[:MAX_FRUITS]
        chosen = sorted(largest)
        passed = self._pass(frame, time)
        followed = [views[number] for number in chosen]
        shift = self._shift(followed, passed)
        for track in self._tracks:
            track.moved = (track.moved[0] + shift[0], track.moved[1] + shift[1])
        ids = [0] * len(views)
        for number, track_id in zip(chosen, self._assign(frame, followed), strict=True):
            ids[number] = track_id
        gone = [track for track in self._tracks if self._is_gone(track, size)]
        excess = sorted(self._tracks, key=lambda track: track.seen_at)[: max(0, len(self._tracks) - MAX_TRACKS)]
        ended = gone + [track for track in excess if track not in gone]
        self._tracks = [track for track in self._tracks if track not in ended]
        return Update(tuple(ids), _verdicts(ended, left=True))

    def in_view(self) -> tuple[Verdict, ...]:
        """Return the verdicts so far on fruit that has not left."""
        return _verdicts(self._tracks, left=False)

    def _pass(self, frame: int, time: float | None) -> float:
        """Note the time of a frame; return how much has passed since the one before."""
        numbers = max(1, frame - self._frame)
        usual = 1.0 if self._step is None else self._step
        if self._time is None:
            self._time, self._frame = 0.0 if time is None else time, frame
            return 0.0
        passed = time - self._time if time is not None and time > self._time else usual * numbers
        each = passed / numbers
        self._step = each if self._step is None else self._step + 0.2 * (each - self._step)
        self._time, self._frame = self._time + passed, frame
        return passed

    def _shift(self, views: Sequence[View], passed: float) -> tuple[float, float]:
        """Return how far the belt has moved since the frame before, and learn from it."""
        expected = np.zeros(2) if self._velocity is None else self._velocity * passed
        if not (self._tracks and views and passed):
            return float(expected[0]), float(expected[1])
        reach = _REACH * median(track.last.diameter for track in self._tracks)
        candidates, whole = self._candidates(views)
        if self._velocity is not None:
            candidates = candidates[np.hypot(*(candidates - expected).T) <= 2 * reach]
        # So many that a line has hardly more; the nearest to what is expected.
        candidates = candidates[np.argsort(np.hypot(*(candidates - expected).T), kind="stable")][:_MOST_CANDIDATES]
        if not len(candidates):
            return float(expected[0]), float(expected[1])
        # The shift with most support; of equals the one nearest to what is expected: at first, the shortest.
        near = np.hypot(*(candidates[:, None] - candidates[None]).transpose(2, 0, 1)) <= reach / 2
        support = near.sum(axis=1) - 1e-3 * np.hypot(*(candidates - expected).T) / reach
        best = int(support.argmax())
        shift = candidates[near[best]].mean(axis=0)
        velocity = shift / passed
        if self._velocity is None:
            self._velocity = velocity
        elif whole:
            self._velocity = self._velocity + _SMOOTHING * (velocity - self._velocity)
        return float(shift[0]), float(shift[1])

    def _candidates(self, views: Sequence[View]) -> tuple[NDArray[np.float64], bool]:
        """Return shifts, float64 (shifts, 2), that would bring a fruit onto one that is alike; whether of whole ones.

        What an edge of the image cuts has moved as one of its sides has; it counts where nothing else is there.
        """
        pairs = [(track, view) for track in self._tracks for view in views if _alike(track.last, view)]
        whole = [(track, view) for track, view in pairs if not (track.last.truncated or view.truncated)]
        shifts = [
            (across, down) for track, view in whole or pairs for across, down in product(*_side_shifts(track, view))
        ]
        return np.array(shifts, np.float64).reshape(-1, 2), bool(whole)

    def _assign(self, frame: int, views: Sequence[View]) -> list[int]:
        """Give every view a track: the nearest that is alike, or a new one."""
        time = self._time or 0.0
        ids = [0] * len(views)
        if self._tracks and views:
            costs = np.array([[_cost(track, view) for view in views] for track in self._tracks])
            rows, columns = linear_sum_assignment(np.minimum(costs, _FAR))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                if costs[row, column] < _FAR:
                    self._tracks[row].add(views[column], frame, time)
                    ids[column] = self._tracks[row].track_id
        followed = [view.box for view, track_id in zip(views, ids, strict=True) if track_id]
        for number, view in enumerate(views):
            if ids[number] or any(_share_inside(view.box, box) > _DUPLICATE for box in followed):
                continue  # a part of a fruit that is followed keeps the number 0
            track = _Track(self._next_id, frame, view, time, frame, view, frame)
            track.add(view, frame, time)
            self._tracks.append(track)
            ids[number] = track.track_id
            self._next_id += 1
        return ids

    def _is_gone(self, track: _Track, size: Size) -> bool:
        if track.last_frame == self._frame:
            return False
        x, y = track.last.centre[0] + track.moved[0], track.last.centre[1] + track.moved[1]
        if not (0 <= x < size.width and 0 <= y < size.height):
            return True
        step = 1.0 if self._step is None else self._step
        return (self._time or 0.0) - track.seen_at > _MISSED_FRAMES * step


_FAR: Final = 1e6


def judged_fraction(views: Sequence[View]) -> float:
    """Return the infected fraction of the worst views that are credible.

    That is the fraction that `_CONFIRMED` of them reach, so that views that went wrong do not condemn a fruit.

    Args:
        views: at least one, of one fruit.
    """
    fractions = sorted(view.infected_fraction for view in credible_views(views))
    return fractions[math.ceil((1 - _CONFIRMED) * len(fractions)) - 1]


def credible_views(views: Sequence[View]) -> list[View]:
    """Return the views that are whole (no edge cuts them, and they are not much smaller than the largest), and sure.

    Args:
        views: at least one, of one fruit; where none is credible, those that are whole are returned, or all.
    """
    whole = [view for view in views if not view.truncated] or list(views)
    largest = max(view.area for view in whole)
    return [view for view in whole if view.area >= _WHOLE * largest and view.confidence >= _SURE] or whole


def _verdicts(tracks: Sequence[_Track], *, left: bool) -> tuple[Verdict, ...]:
    return tuple(track.verdict(left=left) for track in tracks if track.count >= _LEAST_VIEWS)


def _alike(one: View, other: View) -> bool:
    """Return whether two views may be of one fruit, by their sizes; what an edge cuts may have any."""
    if one.truncated or other.truncated:
        return True
    least, most = sorted((one.area, other.area))
    return most <= _GROWTH * max(least, 1)


def _cost(track: _Track, view: View) -> float:
    """Return the distance from where a fruit is expected in diameters, more for another size; `_FAR` beyond reach."""
    if not _alike(track.last, view):
        return _FAR
    across, down = (min(abs(shift) for shift in shifts) for shifts in _side_shifts(track, view))
    distance = math.hypot(across, down) / max(track.last.diameter, view.diameter)
    if distance > _REACH:
        return _FAR
    least, most = sorted((track.last.area, view.area))
    return distance + 0.1 * (1 - least / max(most, 1))


def _side_shifts(track: _Track, view: View) -> tuple[list[float], list[float]]:
    """Return how far right and how far down a view is from where its track is expected, by what may tell.

    That is the centre; and, where an edge of the image cuts one of them, either side.
    """
    (x0, y0, x1, y1), (dx, dy) = track.last.box, track.moved
    left, right = view.box[0] - x0 - dx, view.box[2] - x1 - dx
    top, bottom = view.box[1] - y0 - dy, view.box[3] - y1 - dy
    if track.last.truncated or view.truncated:
        return [(left + right) / 2, left, right], [(top + bottom) / 2, top, bottom]
    return [(left + right) / 2], [(top + bottom) / 2]


def _share_inside(box: PixelBox, other: PixelBox) -> float:
    """Return the share of a box that lies in another."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0, width) * max(0, height) / max(area, 1)

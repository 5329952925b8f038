"""Measure how well fruit is followed along rendered belts, of which everything is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from models.backends.base import UNetBackend
from models.evaluation.operations import Row, without_intervals
from models.evaluation.samples import CannotEvaluate
from models.inspection import GRADES, Grade, grade_of, inspect
from models.letterbox import resize
from models.masks import PixelBox
from models.synthetic.belts import BeltFrame, BeltOptions, render_belt
from models.tracking import Tracker, Verdict, View, credible_views
from models.types import PixelClass, Size
from models.unet.letterbox import unet_letterbox

Finder: TypeAlias = Callable[[BeltFrame], list[View]]
"""Finds the fruit of a frame."""

SIZE: Final = Size(224, 448)
FIRST_BELT: Final = 100
"""Seed of the first belt that is measured."""

_MATCH: Final = 0.5
_LEAST_SEEN: Final = 2
"""Frames that a fruit must be in to be counted."""


@dataclass
class Score:
    """Counts over belts; fruits of different belts are different.

    Attributes:
        pairs: frames in which a fruit of the truth and a track were found at the same place.
        truths: frames of each fruit.
        tracks: frames of each track.
        switches: how often a fruit was found by another track than before.
        count_errors: difference of judged and true fruits, of each belt.
        fruits: true fruits, of all belts.
        right: fruits whose verdict has the true grade, that of the worst true view.
        by_frame: the same of one frame, in the middle of the image.
        judged: fruits that both were compared for.
    """

    pairs: Counter[tuple[object, object]] = field(default_factory=Counter)
    truths: Counter[object] = field(default_factory=Counter)
    tracks: Counter[object] = field(default_factory=Counter)
    switches: int = 0
    count_errors: list[int] = field(default_factory=list)
    fruits: int = 0
    right: int = 0
    by_frame: int = 0
    judged: int = 0

    @property
    def idf1(self) -> float:
        """Share of all places that the best assignment of tracks to fruits explains (Ristani et al., 2016)."""
        rows, columns = list(self.truths), list(self.tracks)
        shared = np.array([[self.pairs[row, column] for column in columns] for row in rows], float).reshape(
            len(rows), len(columns)
        )
        chosen = linear_sum_assignment(-shared)
        total = self.truths.total() + self.tracks.total()
        return 2 * float(shared[chosen].sum()) / total if total else 1.0

    @property
    def count_error(self) -> float:
        """Sum over belts of the wrongly counted fruits, as a share of all."""
        return sum(map(abs, self.count_errors)) / max(1, self.fruits)

    def measures(self) -> dict[str, float]:
        """Return all of them by name; NaN for verdicts where no fruit was judged."""
        judged = self.judged or math.nan
        return {
            "IDF1": self.idf1,
            "identity switches": float(self.switches),
            "count error": self.count_error,
            "verdicts": self.right / judged,
            "single frames": self.by_frame / judged,
        }


@dataclass(frozen=True, slots=True)
class Belts:
    """Belts to follow fruit along.

    Attributes:
        count: of belts at each frame rate.
        seconds: length of each.
        fps: frames per second.
        drop: share of the frames that are dropped, 0 to 1.

    Raises:
        CannotEvaluate: a number is out of range.
    """

    count: int = 6
    seconds: float = 4.0
    fps: tuple[float, ...] = (15.0,)
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or not self.seconds > 0 or not all(each > 0 for each in self.fps) or not 0 <= self.drop < 1:
            raise CannotEvaluate(
                "--belts must be at least 1, --seconds and --fps above 0, and --drop from 0 to below 1, "
                f"got {self.count}, {self.seconds:g}, {', '.join(f'{each:g}' for each in self.fps)} and {self.drop:g}"
            )


def of_truth(frame: BeltFrame) -> list[View]:
    """Return the fruit of a frame as it is."""
    found = []
    numbers = np.asarray(frame.sample.instance_map)
    for each in frame.sample.instances:
        mask = numbers == each.id
        area = int(np.count_nonzero(mask))
        infected = int(np.count_nonzero(frame.sample.semantic[mask] == PixelClass.INFECTED))
        found.append(View(each.box, area, infected / area, truncated=_at_edge(each.box, frame.sample.size)))
    return found


def by_unet(backend: UNetBackend, area: int) -> Finder:
    """Return what finds fruit as the service does without a SAM, with at most `area` pixels of a frame."""

    def find(frame: BeltFrame) -> list[View]:
        letterbox = unet_letterbox(frame.sample.size, area)
        (output,) = backend.infer([backend.prepare(resize(frame.sample.pixels, letterbox), letterbox)])
        return [
            View(fruit.box, fruit.area, fruit.infected_fraction, fruit.confidence, fruit.truncated)
            for fruit in inspect(output, letterbox).fruits
        ]

    return find


def measure(
    frames: Iterator[BeltFrame],
    find: Finder,
    score: Score,
    *,
    belt: object,
    drop: float = 0.0,
    grades: Sequence[Grade] = GRADES,
) -> None:
    """Follow the fruit of one belt and add to a score.

    Args:
        frames: of the belt.
        find: finds the fruit of a frame.
        score: is added to.
        belt: makes fruits of this belt different from those of others.
        drop: share of the frames that are dropped, 0 to 1.
        grades: of verdicts.
    """
    tracker, rng = Tracker(), np.random.default_rng(int(str(belt)) if str(belt).isdigit() else 0)
    truth: dict[int, list[View]] = {}
    seen_as: dict[int, int] = {}
    central: dict[int, tuple[float, View]] = {}
    verdicts: list[Verdict] = []
    votes: Counter[tuple[int, int]] = Counter()
    for frame in frames:
        true_views = of_truth(frame)
        for fruit, view in zip(frame.fruits, true_views, strict=True):
            truth.setdefault(fruit, []).append(view)
        if rng.random() < drop:
            continue
        views = find(frame)
        update = tracker.update(frame.number, frame.time, frame.sample.size, views)
        verdicts += update.verdicts
        for fruit in frame.fruits:
            score.truths[belt, fruit] += 1
        for track_id in filter(None, update.track_ids):
            score.tracks[belt, track_id] += 1
        for row, column in _matches([view.box for view in true_views], [view.box for view in views]):
            fruit, track_id = frame.fruits[row], update.track_ids[column]
            away = abs(views[column].centre[0] - frame.sample.size.width / 2)
            if fruit not in central or away < central[fruit][0]:
                central[fruit] = (away, views[column])
            if not track_id:
                continue
            score.pairs[(belt, fruit), (belt, track_id)] += 1
            votes[fruit, track_id] += 1
            score.switches += fruit in seen_as and seen_as[fruit] != track_id
            seen_as[fruit] = track_id
    verdicts += tracker.in_view()
    counted = [fruit for fruit, views in truth.items() if len(views) >= _LEAST_SEEN]
    score.fruits += len(counted)
    score.count_errors.append(len(verdicts) - len(counted))
    by_track = {verdict.track_id: verdict for verdict in verdicts}
    for fruit in counted:
        best = max(((count, track) for (one, track), count in votes.items() if one == fruit), default=None)
        if best is None or best[1] not in by_track or fruit not in central:
            continue
        true_grade = grade_of(max(view.infected_fraction for view in credible_views(truth[fruit])), grades)
        score.judged += 1
        score.right += grade_of(by_track[best[1]].infected, grades) == true_grade
        score.by_frame += grade_of(central[fruit][1].infected_fraction, grades) == true_grade


def measure_belts(finders: Mapping[str, Finder], options: Belts, *, progress: bool) -> Iterator[Row]:
    """Follow the fruit of rendered belts.

    Args:
        finders: find the fruit of a frame, by name.
        options: which belts.
        progress: show progress bars on a terminal.

    Yields:
        What was measured, for each frame rate and finder.

    Raises:
        BackendError: a device failed.
        CannotRender: the options do not fit a belt.
    """
    for fps in options.fps:
        seeds = range(FIRST_BELT, FIRST_BELT + options.count)
        for name, find in finders.items():
            score = Score()
            bar = tqdm(seeds, f"{name}, {fps:g} fps", leave=False, unit="belt", disable=None if progress else True)
            for seed in bar:
                belt = render_belt(seed, SIZE, BeltOptions(seconds=options.seconds, fps=fps))
                measure(belt, find, score, belt=seed, drop=options.drop)
            dropped = f", {options.drop:.0%} of the frames dropped" if options.drop else ""
            title = f"Rendered belts of {options.seconds:g} s, {fps:g} fps{dropped}"
            yield Row("tracking", title, options.count, score.fruits, name, without_intervals(score.measures()))


def _matches(truth: Sequence[PixelBox], found: Sequence[PixelBox]) -> list[tuple[int, int]]:
    """Pair boxes by the largest IoU of at least a half."""
    if not (truth and found):
        return []
    ious = np.array([[_iou(one, other) for other in found] for one in truth])
    pairs = zip(*(each.tolist() for each in linear_sum_assignment(-ious)), strict=True)
    return [(row, column) for row, column in pairs if ious[row, column] >= _MATCH]


def _iou(one: PixelBox, other: PixelBox) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return shared / max(1, sum(areas) - shared)


def _at_edge(box: PixelBox, size: Size) -> bool:
    return box[0] == 0 or box[1] == 0 or box[2] == size.width or box[3] == size.height

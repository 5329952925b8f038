"""Fruit is followed along a belt through gaps, touches, edges and dropped frames, and judged once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from models.evaluation.belts import Score, measure, of_truth
from models.synthetic.belts import BeltOptions, render_belt
from models.synthetic.scene import CannotRender
from models.tracking import MAX_FRUITS, MAX_TRACKS, MAX_VIEWS, Tracker, Update, Verdict, View, judged_fraction
from models.types import Size

SIZE = Size(200, 600)
SPEED = 30
"""Pixels a frame, to the right."""


def fruit(x: float, y: float = 100, side: int = 50, infected: float = 0.0, confidence: float = 1.0) -> View | None:
    """A fruit with its centre at (x, y), cut off by the edges of the image; None outside it."""
    half = side // 2
    box = (
        max(0, round(x) - half),
        max(0, round(y) - half),
        min(SIZE.width, round(x) + half),
        min(SIZE.height, round(y) + half),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    truncated = box[0] == 0 or box[1] == 0 or box[2] == SIZE.width or box[3] == SIZE.height
    return View(box, (box[2] - box[0]) * (box[3] - box[1]), infected, confidence, truncated)


def belt(starts: Sequence[tuple[float, float]], frame: int, speed: float = SPEED) -> list[View | None]:
    return [fruit(x + speed * frame, y) for x, y in starts]


class Line:
    """Sends frames to a tracker, in which fruit may be missing, and notes which track each fruit got."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.ids: dict[int, list[int]] = {}
        self.verdicts: list[Verdict] = []

    def send(self, number: int, views: Iterable[View | None], time: float | None = None) -> Update:
        seen = [(which, view) for which, view in enumerate(views) if view is not None]
        update = self.tracker.update(number, time, SIZE, [view for _, view in seen])
        for (which, _), track_id in zip(seen, update.track_ids, strict=True):
            self.ids.setdefault(which, []).append(track_id)
        self.verdicts += update.verdicts
        return update

    def stable(self) -> bool:
        """Whether every fruit had one track, and no two the same."""
        own = [set(ids) for ids in self.ids.values()]
        return all(len(ids) == 1 for ids in own) and len(set().union(*own)) == len(own)


STARTS = [(100.0, 60.0), (40.0, 140.0), (-60.0, 90.0), (-110.0, 90.0), (-220.0, 60.0)]
"""The third and the fourth touch."""


def test_every_fruit_keeps_its_track_from_its_first_frame_to_its_last() -> None:
    line = Line()
    for frame in range(1, 31):
        line.send(frame, belt(STARTS, frame))
    assert line.stable()
    assert line.tracker.velocity == pytest.approx((SPEED, 0), abs=0.1)
    assert sorted(verdict.track_id for verdict in line.verdicts) == [1, 2, 3, 4, 5]
    assert all(verdict.left for verdict in line.verdicts)


@pytest.mark.parametrize("speed", [-45, -10, 0, 4, 60])
def test_a_belt_may_run_either_way_at_any_speed_or_stand_still(speed: float) -> None:
    line = Line()
    starts = [(x + (0 if speed > 0 else 300), y) for x, y in STARTS]
    for frame in range(1, 9):
        line.send(frame, belt(starts, frame, speed))
    assert line.stable()


def test_fruit_that_was_missed_for_some_frames_is_the_same_fruit() -> None:
    line = Line()
    for frame in range(1, 16):
        views = belt(STARTS, frame)
        if frame in (5, 6, 7, 8):
            views[1] = None
        line.send(frame, views)
    assert line.stable()


def test_dropped_frames_are_bridged_by_the_time_or_by_the_number() -> None:
    for with_time in (False, True):
        line = Line()
        for frame in (1, 2, 3, 6, 7, 10, 11, 12):
            line.send(frame, belt(STARTS, frame), frame / 15 if with_time else None)
        assert line.stable(), with_time


def test_a_clock_that_stands_still_or_runs_backwards_is_not_followed() -> None:
    line = Line()
    for frame, time in enumerate([1.0, 1.1, 1.2, 1.2, 0.5, 1.5, 1.6], start=1):
        line.send(frame, belt(STARTS, frame), time)
    assert line.stable()


def test_a_part_of_a_followed_fruit_is_no_fruit_of_its_own() -> None:
    line = Line()
    for frame in (1, 2, 3):
        whole, part = fruit(100 + SPEED * frame, side=60), fruit(105 + SPEED * frame, 105, side=20)
        assert line.send(frame, [whole, part] if frame == 2 else [whole]).track_ids == ((1, 0) if frame == 2 else (1,))


def test_what_is_seen_once_is_not_judged() -> None:
    line = Line()
    line.send(1, [fruit(100)])
    for frame in range(2, 20):
        line.send(frame, [fruit(100 + SPEED * frame), fruit(400, 40) if frame == 3 else None])
    assert [verdict.views for verdict in line.verdicts] == [17]


def test_a_verdict_is_from_all_views_and_names_the_best_frame() -> None:
    line = Line()
    fractions = [0.0, 0.1, 0.3, 0.3, 0.9, 0.0]
    for frame, infected in enumerate(fractions, start=1):
        line.send(frame, [fruit(60 + 90 * frame, infected=infected)])
    (so_far,) = line.tracker.in_view()
    assert (so_far.left, so_far.views) == (False, 6)
    for frame in range(7, 15):
        line.send(frame, [])
    (verdict,) = line.verdicts
    assert (verdict.track_id, verdict.views, verdict.first_frame, verdict.last_frame) == (1, 6, 1, 6)
    assert (verdict.infected, verdict.infected_max) == (0.3, 0.9)  # 0.9 was seen once
    assert verdict.best_frame == 1
    assert verdict.best_box == (125, 75, 175, 125)
    assert verdict.infected_mean == pytest.approx(np.average(fractions, weights=[50, 50, 50, 50, 50, 25]))
    assert line.tracker.in_view() == ()


@pytest.mark.parametrize(
    ("views", "worst"),
    [
        ([(50, 0.4, 1.0)], 0.4),
        ([(50, 0.1, 1.0), (50, 0.4, 1.0)], 0.4),
        ([(50, 0.1, 1.0)] * 7 + [(50, 0.4, 1.0)] * 3, 0.1),
        ([(50, 0.1, 1.0)] * 6 + [(50, 0.4, 1.0)] * 4, 0.4),
        ([(50, 0.1, 1.0), (20, 0.8, 1.0)], 0.1),
        ([(50, 0.1, 1.0), (50, 0.8, 0.3)], 0.1),
        ([(50, 0.7, 0.2)], 0.7),
    ],
    ids=["one", "two", "three of ten", "four of ten", "hidden in part", "unsure", "nothing but unsure"],
)
def test_a_fruit_is_judged_by_the_worst_views_that_are_credible(
    views: list[tuple[int, float, float]], worst: float
) -> None:
    made = [fruit(300, 100, side, infected, confidence) for side, infected, confidence in views]
    assert judged_fraction([view for view in made if view is not None]) == worst


def test_cut_off_views_count_where_there_are_no_others() -> None:
    cut = fruit(0, 100, infected=0.5)
    assert cut is not None
    assert cut.truncated
    assert judged_fraction([cut]) == 0.5


def test_memory_is_bounded_however_long_and_crowded_a_stream_is() -> None:
    tracker, rng = Tracker(), np.random.default_rng(0)
    for frame in range(1, 60):
        views = [fruit(x, y, 6) for x, y in rng.uniform((5, 5), (595, 195), (MAX_FRUITS + 20, 2))]
        update = tracker.update(frame, None, SIZE, [view for view in views if view is not None])
        assert sum(track_id > 0 for track_id in update.track_ids) <= MAX_FRUITS
        assert len(tracker._tracks) <= MAX_TRACKS
    still = Tracker()
    for frame in range(1, 3 * MAX_VIEWS):
        view = fruit(300, infected=0.2)
        assert view is not None
        still.update(frame, None, SIZE, [view])
    assert still.in_view()[0].views == 3 * MAX_VIEWS - 1
    assert len(still._tracks[0].views) == MAX_VIEWS


def test_a_frame_without_fruit_is_no_trouble() -> None:
    tracker = Tracker()
    assert tracker.update(1, None, SIZE, []) == Update((), ())
    assert tracker.update(2, 5.0, SIZE, []) == Update((), ())
    assert tracker.velocity is None


# Rendered belts.


def test_equal_seeds_give_equal_belts_and_fruit_moves_as_the_options_say() -> None:
    options = BeltOptions(seconds=0.3, fps=10, speed=0.5)
    size = Size(96, 192)
    one, other = ([*render_belt(3, size, options)] for _ in range(2))
    assert [frame.time for frame in one] == [0, 0.1, 0.2]
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.sample.pixels, second.sample.pixels)
        assert first.fruits == second.fruits
    shared = set(one[0].fruits) & set(one[2].fruits)
    assert shared
    for number in shared:
        boxes = [frame.sample.instances[frame.fruits.index(number)].box for frame in (one[0], one[2])]
        if min(boxes[0][0], 192 - boxes[1][2]) > 0:
            assert boxes[1][0] - boxes[0][0] == pytest.approx(0.5 * 0.2 * (96 * 192) ** 0.5, abs=3)


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"speed": -1}, {"touching": 1.5}, {"roll": -0.1}, {"exposure": -1}])
def test_a_belt_of_impossible_numbers_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CannotRender):
        BeltOptions(**wrong)


def test_the_fruit_of_a_rendered_belt_is_followed_without_a_mistake_where_it_is_found() -> None:
    score = Score()
    measure(render_belt(7, Size(96, 192), BeltOptions(seconds=2, fps=10)), of_truth, score, belt=7, drop=0.1)
    assert score.fruits >= 4
    assert (score.switches, score.count_error) == (0, 0)
    assert score.idf1 > 0.98

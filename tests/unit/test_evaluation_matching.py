import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco

from models.data.samples import InstanceMap
from models.errors import DataError
from models.evaluation.matching import (
    boundary_fit,
    count_objects,
    fruits_touch,
    match_objects,
    object_ious,
    outline,
)
from models.types import BinaryMask

# pycocotools decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TRUTH: InstanceMap = np.zeros((20, 40), np.uint16)
TRUTH[2:12, 2:12] = 7
TRUTH[2:12, 20:30] = 300


def block(y0: int, x0: int, y1: int, x1: int, shape: tuple[int, int] = (20, 40)) -> BinaryMask:
    mask = np.zeros(shape, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


@settings(deadline=None)
@given(hnp.arrays(np.bool_, (3, 6, 7)), hnp.arrays(np.uint16, (6, 7), elements=st.sampled_from([0, 1, 2, 500])))
def test_object_ious_agree_with_pycocotools(predicted: NDArray[np.bool_], truth: InstanceMap) -> None:
    ids = [number for number in (1, 2, 500) if (truth == number).any()]
    ious = object_ious(list(predicted), truth)
    assert ious.shape == (3, len(ids))
    if ids:
        guesses = [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in predicted]
        fruits = [coco.encode(np.asfortranarray((truth == number).astype(np.uint8))) for number in ids]
        assert ious == pytest.approx(np.asarray(coco.iou(guesses, fruits, [0] * len(fruits))))


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=st.floats(0, 1)))
def test_no_other_matching_finds_more(ious: NDArray[np.float64]) -> None:
    # Above 0.5 a prediction can match only one of several fruits that do not overlap.
    assume(((ious > 0.5).sum(axis=1) <= 1).all())
    ious = np.where(ious == 0.5, 0.4, ious)
    pairs = match_objects(ious)
    assert len({guess for guess, _ in pairs}) == len({fruit for _, fruit in pairs}) == len(pairs)
    assert all(ious[pair] >= 0.5 for pair in pairs)
    guesses, fruits = ious.shape
    best = 0
    for choice in itertools.product([None, *range(guesses)], repeat=fruits):  # None: a fruit without a match
        taken = [
            (guess, fruit) for fruit, guess in enumerate(choice) if guess is not None and ious[guess, fruit] >= 0.5
        ]
        if len({guess for guess, _ in taken}) == len(taken):
            best = max(best, len(taken))
    assert len(pairs) == best


def test_found_false_and_missed_fruits_are_counted() -> None:
    exact, shifted, nothing = block(2, 2, 12, 12), block(2, 4, 12, 14), block(15, 0, 20, 5)
    counts = count_objects([shifted, exact, nothing], TRUTH)
    assert (counts.found, counts.false, counts.missed) == (1, 2, 1)  # the second matches the first fruit best
    assert counts.ious == (1.0,)
    assert (counts.precision, counts.recall) == pytest.approx((1 / 3, 1 / 2))
    assert count_objects([shifted], TRUTH).ious == pytest.approx((80 / 120,))
    assert count_objects([shifted], TRUTH, threshold=0.7).found == 0


def test_an_iou_of_the_threshold_is_a_match() -> None:
    assert count_objects([block(2, 2, 12, 7)], TRUTH).found == 1
    assert count_objects([block(2, 2, 12, 6)], TRUTH).found == 0


def test_precision_without_predictions_and_recall_without_fruits_are_nan() -> None:
    nothing_found = count_objects([], TRUTH)
    assert (nothing_found.missed, nothing_found.recall) == (2, 0)
    assert math.isnan(nothing_found.precision)
    no_fruit = count_objects([block(0, 0, 3, 3), block(0, 0, 0, 0)], np.zeros_like(TRUTH))
    assert (no_fruit.false, no_fruit.precision) == (2, 0)
    assert math.isnan(no_fruit.recall)


def test_ignored_pixels_do_not_count_for_objects() -> None:
    ignored = block(0, 18, 20, 40)  # all of the second fruit, and beyond
    over_both = block(2, 2, 12, 19)  # 170 pixels, 10 of them ignored
    inside = block(5, 25, 15, 35)
    counts = count_objects([over_both, inside], TRUTH, ignored=ignored)
    assert (counts.found, counts.false, counts.missed) == (1, 0, 0)
    assert counts.ious == pytest.approx((100 / 160,))


def test_fruits_touch_across_sides_but_not_across_corners() -> None:
    beside, corners, alone = (np.zeros((4, 4), np.uint16) for _ in range(3))
    beside[1, 1], beside[2, 1] = 1, 2
    corners[1, 1], corners[2, 2] = 1, 2
    alone[1:3, 1:3] = 5
    assert fruits_touch(beside)
    assert fruits_touch(beside.T)
    assert not fruits_touch(corners)
    assert not fruits_touch(alone)


def slow_outline(mask: BinaryMask) -> list[tuple[int, int]]:
    height, width = mask.shape
    points = []
    for y, x in np.argwhere(mask).tolist():
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(0 <= v < height and 0 <= u < width and not mask[v, u] for v, u in around):
            points.append((y, x))
    return points


@st.composite
def masks(draw: st.DrawFn) -> tuple[BinaryMask, BinaryMask]:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(np.bool_, shape))


@settings(deadline=None)
@given(pair=masks(), tolerance=st.floats(0, 0.6))
def test_boundary_fit_agrees_with_a_slow_loop(pair: tuple[BinaryMask, BinaryMask], tolerance: float) -> None:
    guessed, true = (slow_outline(each) for each in pair)
    reach = tolerance * math.hypot(*pair[0].shape)
    gaps = [math.dist(a, b) for a in guessed for b in true]
    assume(all(abs(gap - reach) > 1e-3 for gap in gaps))  # where rounding would decide

    def share(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [any(math.dist(one, other) <= reach for other in others) for one in some]
        return sum(near) / len(near) if near else math.nan

    fit = boundary_fit(*pair, tolerance=tolerance)
    assert fit.precision == pytest.approx(share(guessed, true), nan_ok=True)
    assert fit.recall == pytest.approx(share(true, guessed), nan_ok=True)


def test_the_outline_leaves_the_edge_of_the_image_out() -> None:
    assert np.argwhere(outline(block(0, 0, 3, 3, (5, 5)))).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert not outline(np.ones((5, 5), np.bool_)).any()


def test_a_shift_within_the_tolerance_is_perfect_and_beyond_it_is_not() -> None:
    # The diagonal is 50 pixels: a tolerance of 0.04 is 2 pixels.
    shape = (30, 40)
    truth = block(10, 10, 20, 20, shape)
    assert boundary_fit(block(10, 12, 20, 22, shape), truth, tolerance=0.04).f == 1
    # 3 pixels: all of one side is out of reach, of the other 4 pixels near the corners are not, and of the sides along
    # the shift, 10 pixels each, only the last is.
    fit = boundary_fit(block(10, 13, 20, 23, shape), truth, tolerance=0.04)
    assert (fit.precision, fit.recall) == pytest.approx(((4 + 2 * 9) / 36, (4 + 2 * 9) / 36))
    assert fit.f == pytest.approx(22 / 36)


def test_boundary_f_is_nan_without_outlines_and_0_with_one() -> None:
    empty, full, some = block(0, 0, 0, 0), block(0, 0, 20, 40), block(3, 3, 9, 9)
    for one, other in ((empty, empty), (full, full)):
        assert math.isnan(boundary_fit(one, other).f)
    for one, other in ((empty, some), (some, empty), (some, block(12, 30, 18, 35))):
        assert boundary_fit(one, other).f == 0


def test_outlines_in_and_along_ignored_pixels_do_not_count() -> None:
    shape = (30, 40)
    truth, predicted = block(10, 10, 20, 20, shape), block(10, 10, 20, 30, shape)
    ignored = block(0, 20, 30, 40, shape)
    fit = boundary_fit(predicted, truth, ignored=ignored)
    assert (fit.precision, fit.recall) == (1, 1)
    assert boundary_fit(predicted, truth).f < 1
    # Of the outline that ends at the ignored pixels the last column does not count: 26 pixels are left of 36, of which
    # 18 lie on the outline of a fruit that ends 5 columns before.
    fit = boundary_fit(predicted, block(10, 10, 20, 15, shape), ignored=ignored, tolerance=0)
    assert (fit.precision, fit.recall) == pytest.approx((18 / 26, 18 / 26))


def test_invalid_thresholds_and_shapes_are_refused() -> None:
    for threshold in (0.4, 1.1, math.nan):
        with pytest.raises(DataError, match="threshold must be"):
            count_objects([], TRUTH, threshold=threshold)
    other = np.zeros((2, 2), np.bool_)
    with pytest.raises(DataError, match="same shape"):
        count_objects([other], TRUTH)
    with pytest.raises(DataError, match="same shape"):
        boundary_fit(block(1, 1, 2, 2), other)

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
from models.evaluation.objects import count_objects, match_objects, object_ious
from models.types import BinaryMask

# pycocotools decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TRUTH: InstanceMap = np.zeros((20, 40), np.uint16)
TRUTH[2:12, 2:12] = 7
TRUTH[2:12, 20:30] = 300


def block(y0: int, x0: int, y1: int, x1: int) -> BinaryMask:
    mask = np.zeros(TRUTH.shape, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


@settings(deadline=None)
@given(hnp.arrays(np.bool_, (3, 6, 7)), hnp.arrays(np.uint16, (6, 7), elements=st.sampled_from([0, 1, 2, 500])))
def test_ious_agree_with_pycocotools(predicted: NDArray[np.bool_], truth: InstanceMap) -> None:
    numbers = [number for number in (1, 2, 500) if (truth == number).any()]
    ious = object_ious(list(predicted), truth)
    assert ious.shape == (3, len(numbers))
    if numbers:
        guesses = [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in predicted]
        facts = [coco.encode(np.asfortranarray((truth == number).astype(np.uint8))) for number in numbers]
        assert ious == pytest.approx(np.asarray(coco.iou(guesses, facts, [0] * len(facts))))


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=st.floats(0, 1)))
def test_no_other_matching_finds_more(ious: NDArray[np.float64]) -> None:
    # Of fruits that do not overlap a prediction can reach one above 0.5.
    assume(((ious > 0.5).sum(axis=1) <= 1).all())
    ious = np.where(ious == 0.5, 0.4, ious)
    pairs = match_objects(ious)
    assert len({guess for guess, _ in pairs}) == len({fruit for _, fruit in pairs}) == len(pairs)
    assert all(ious[pair] >= 0.5 for pair in pairs)
    guesses, fruits = ious.shape
    # None stands for a fruit that is left without.
    choices = itertools.product([None, *range(guesses)], repeat=fruits)
    best = 0
    for choice in choices:
        taken = [
            (guess, fruit) for fruit, guess in enumerate(choice) if guess is not None and ious[guess, fruit] >= 0.5
        ]
        if len({guess for guess, _ in taken}) == len(taken):
            best = max(best, len(taken))
    assert len(pairs) == best


def test_found_false_and_missed_by_hand() -> None:
    exact, shifted, nothing = block(2, 2, 12, 12), block(2, 4, 12, 14), block(15, 0, 20, 5)
    counts = count_objects([shifted, exact, nothing], TRUTH)
    assert (counts.found, counts.false, counts.missed) == (1, 2, 1)  # the second finds the first fruit best
    assert counts.ious == (1.0,)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == 1 / 2
    alone = count_objects([shifted], TRUTH)
    assert alone.ious == pytest.approx((80 / 120,))
    assert count_objects([shifted], TRUTH, threshold=0.7).found == 0


def test_half_is_enough_at_the_threshold() -> None:
    assert count_objects([block(2, 2, 12, 7)], TRUTH).found == 1
    assert count_objects([block(2, 2, 12, 6)], TRUTH).found == 0


def test_without_predictions_or_fruits_what_is_unknown_is_not_counted() -> None:
    nothing_found = count_objects([], TRUTH)
    assert (nothing_found.missed, nothing_found.recall) == (2, 0)
    assert math.isnan(nothing_found.precision)
    no_fruit = count_objects([block(0, 0, 3, 3), block(0, 0, 0, 0)], np.zeros_like(TRUTH))
    assert (no_fruit.false, no_fruit.precision) == (2, 0)
    assert math.isnan(no_fruit.recall)


def test_ignored_pixels_do_not_count() -> None:
    ignored = block(0, 18, 20, 40)  # all of the second fruit, and beyond
    over_both = block(2, 2, 12, 19)  # 170 pixels, 10 of them ignored
    inside = block(5, 25, 15, 35)
    counts = count_objects([over_both, inside], TRUTH, ignored=ignored)
    assert (counts.found, counts.false, counts.missed) == (1, 0, 0)
    assert counts.ious == pytest.approx((100 / 160,))


def test_a_threshold_that_cannot_decide_is_refused() -> None:
    for threshold in (0.4, 1.1, math.nan):
        with pytest.raises(DataError, match="threshold"):
            count_objects([], TRUTH, threshold=threshold)
    with pytest.raises(DataError, match="shape"):
        count_objects([np.zeros((2, 2), np.bool_)], TRUTH)

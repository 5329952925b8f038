import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from models import metrics
from models.errors import DataError
from models.types import BinaryMask, PixelClass, SemanticMap

# pycocotools decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def pairs(draw: st.DrawFn, truths: tuple[int, ...] = (0, 1, 2, 254, 255)) -> tuple[SemanticMap, SemanticMap]:
    """A prediction of the three classes and a truth of any."""
    shape = draw(SHAPES)
    predicted = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2])))
    return predicted, draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(truths)))


@st.composite
def masks(draw: st.DrawFn) -> tuple[BinaryMask, BinaryMask]:
    shape = draw(SHAPES)
    return draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(np.bool_, shape))


TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 255, 254, 1]], np.uint8)
PREDICTED = np.array([[0, 1, 1, 1], [0, 2, 1, 1], [0, 2, 2, 0]], np.uint8)


def test_confusion_counts_pixels_by_class() -> None:
    # The pixels of 255 and 254 are left out: 10 of 12 count.
    assert metrics.class_confusion(PREDICTED, TRUTH).tolist() == [[3, 1, 0], [1, 3, 0], [0, 1, 1]]
    # Only 255 is left out; 254 is fruit.
    assert metrics.fruit_confusion(PREDICTED, TRUTH).tolist() == [[3, 1], [1, 6]]


def test_iou_and_dice_of_a_small_example() -> None:
    confusion = metrics.class_confusion(PREDICTED, TRUTH)
    assert metrics.iou(confusion) == pytest.approx([3 / 5, 3 / 6, 1 / 2])
    assert metrics.dice(confusion) == pytest.approx([6 / 8, 6 / 9, 2 / 3])
    assert metrics.mean_counted(metrics.iou(confusion)) == pytest.approx((3 / 5 + 3 / 6 + 1 / 2) / 3)
    assert metrics.iou(metrics.fruit_confusion(PREDICTED, TRUTH)) == pytest.approx([3 / 5, 6 / 8])


@settings(deadline=None)
@given(pairs())
def test_confusion_iou_and_dice_agree_with_a_slow_loop(pair: tuple[SemanticMap, SemanticMap]) -> None:
    predicted, truth = pair
    known = [(int(p), int(t)) for p, t in zip(predicted.flat, truth.flat, strict=True) if t in (0, 1, 2)]
    confusion = metrics.class_confusion(predicted, truth)
    for number in (0, 1, 2):
        both = sum(p == t == number for p, t in known)
        either = sum(number in (p, t) for p, t in known)
        alone = sum((p == number) + (t == number) for p, t in known)
        assert metrics.iou(confusion)[number] == pytest.approx(both / either if either else math.nan, nan_ok=True)
        assert metrics.dice(confusion)[number] == pytest.approx(2 * both / alone if alone else math.nan, nan_ok=True)
    expected = [[0, 0], [0, 0]]
    for p, t in zip(predicted.flat, truth.flat, strict=True):
        if t != PixelClass.IGNORE:
            expected[int(t in (1, 2, 254))][int(p in (1, 2, 254))] += 1
    assert metrics.fruit_confusion(predicted, truth).tolist() == expected


@settings(deadline=None)
@given(pairs((0, 1, 2)))
def test_a_perfect_prediction_scores_1_and_measures_are_symmetric(pair: tuple[SemanticMap, SemanticMap]) -> None:
    predicted, truth = pair
    perfect = metrics.iou(metrics.class_confusion(truth, truth))
    assert set(perfect[~np.isnan(perfect)]) == {1.0}
    there, back = metrics.class_confusion(predicted, truth), metrics.class_confusion(truth, predicted)
    for index in (metrics.iou, metrics.dice):
        assert index(there) == pytest.approx(index(back), nan_ok=True)
    iou = metrics.iou(there)
    assert metrics.dice(there) == pytest.approx(2 * iou / (1 + iou), nan_ok=True)


@settings(deadline=None)
@given(masks())
def test_mask_iou_agrees_with_pycocotools(pair: tuple[BinaryMask, BinaryMask]) -> None:
    packed = [coco.encode(np.asfortranarray(each.astype(np.uint8))) for each in pair]
    if not (pair[0].any() or pair[1].any()):
        assert math.isnan(metrics.mask_iou(*pair))
    else:
        assert metrics.mask_iou(*pair) == pytest.approx(coco.iou(packed[:1], packed[1:], [0]).item())


def test_mask_iou_leaves_ignored_pixels_out() -> None:
    predicted = np.array([[True, True, False, True]])
    truth = np.array([[True, False, True, True]])
    ignored = np.array([[False, True, False, False]])
    assert metrics.mask_iou(predicted, truth) == 2 / 4
    assert metrics.mask_iou(predicted, truth, ignored=ignored) == 2 / 3


def test_a_class_absent_from_both_is_nan_and_from_one_is_0() -> None:
    truth = np.array([[0, 0, 1]], np.uint8)
    assert metrics.iou(metrics.class_confusion(truth, truth)) == pytest.approx([1, 1, math.nan], nan_ok=True)
    predicted = np.array([[0, 2, 1]], np.uint8)
    values = metrics.iou(metrics.class_confusion(predicted, truth))
    assert values == pytest.approx([1 / 2, 1, 0])
    assert math.isnan(metrics.mean_counted(np.array([math.nan, math.nan])))
    assert metrics.mean_counted(np.array([[math.nan, 0.5], [1, 0.5]])) == pytest.approx([0.5, 0.75])


def test_infected_fraction_is_the_infected_share_of_fruit() -> None:
    assert metrics.infected_fraction(np.array([[0, 1, 1, 2, 255]], np.uint8)) == pytest.approx(1 / 3)
    assert math.isnan(metrics.infected_fraction(np.array([[0, 255]], np.uint8)))
    assert metrics.infected_fraction(np.array([[1, 2, 254]], np.uint8)) == 0.5  # the last may be either
    assert math.isnan(metrics.infected_fraction(np.array([[0, 254]], np.uint8)))


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([0, 1, 2, 2], [0, 1, 1, 2], 2 / 3 - 1 / 3),
        ([0, 1, 1, 1], [0, 1, 1, 2], -1 / 3),
        ([0, 0, 0, 0], [0, 1, 1, 2], -1 / 3),  # no fruit seen: nothing infected seen
        ([0, 1, 2, 2], [0, 1, 1, 255], 1 / 2),  # the last is ignored
        ([0, 1, 2, 2], [0, 0, 0, 0], math.nan),
        ([0, 2, 2, 2], [0, 254, 1, 2], 1 - 1 / 2),
        ([0, 1, 2, 2], [0, 254, 254, 254], math.nan),
    ],
)
def test_infected_fraction_error(predicted: list[int], truth: list[int], expected: float) -> None:
    error = metrics.infected_fraction_error(np.array([predicted], np.uint8), np.array([truth], np.uint8))
    assert error == pytest.approx(expected, nan_ok=True)


def test_invalid_predictions_are_refused() -> None:
    truth = np.array([[0, 1]], np.uint8)
    for value in (3, PixelClass.FRUIT, PixelClass.IGNORE):
        with pytest.raises(DataError, match="background, healthy or infected"):
            metrics.class_confusion(np.array([[0, value]], np.uint8), truth)
    other = np.zeros((2, 2), np.uint8)
    for check in (metrics.class_confusion, metrics.fruit_confusion, metrics.infected_fraction_error):
        with pytest.raises(DataError, match="shape"):
            check(other, truth)
    with pytest.raises(DataError, match="shape"):
        metrics.mask_iou(other > 0, truth > 0)


def test_healthy_infected_and_fruit_are_fruit() -> None:
    fruit = metrics.is_fruit(np.array([list(PixelClass)], np.uint8))[0]
    assert list(itertools.compress(PixelClass, fruit)) == [PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT]

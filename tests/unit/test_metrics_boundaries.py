import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import DataError
from models.evaluation.boundaries import boundary_fit, outline
from models.types import BinaryMask


def block(y0: int, x0: int, y1: int, x1: int, shape: tuple[int, int] = (30, 40)) -> BinaryMask:
    mask = np.zeros(shape, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


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
def test_the_fit_agrees_with_a_slow_loop(pair: tuple[BinaryMask, BinaryMask], tolerance: float) -> None:
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


def test_the_outline_is_one_pixel_wide_and_not_along_the_images_edge() -> None:
    assert np.argwhere(outline(block(0, 0, 3, 3, (5, 5)))).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert not outline(np.ones((5, 5), np.bool_)).any()


def test_a_shift_within_the_tolerance_is_perfect_and_beyond_it_is_not() -> None:
    # The diagonal is 50 pixels: a tolerance of 0.04 is 2 pixels.
    truth = block(10, 10, 20, 20)
    assert boundary_fit(block(10, 12, 20, 22), truth, tolerance=0.04).f == 1
    # 3 pixels: all of one side is out of reach, of the other 4 pixels near the corners are not, and of the sides along
    # the shift, 10 pixels each, only the last is.
    fit = boundary_fit(block(10, 13, 20, 23), truth, tolerance=0.04)
    assert fit.precision == pytest.approx((4 + 2 * 9) / 36)
    assert fit.recall == pytest.approx((4 + 2 * 9) / 36)
    assert fit.f == pytest.approx(22 / 36)


def test_a_ragged_outline_costs_little_area_but_much_of_the_fit() -> None:
    truth = block(5, 5, 25, 35)
    ragged = truth.copy()
    ragged[5:9, 5:35:4] = False
    assert np.count_nonzero(ragged & truth) / np.count_nonzero(truth) > 0.9
    assert boundary_fit(ragged, truth, tolerance=0.0075).f < 0.8


def test_no_outline_in_both_is_not_counted_and_in_one_is_0() -> None:
    empty, full, some = block(0, 0, 0, 0), block(0, 0, 30, 40), block(3, 3, 9, 9)
    assert math.isnan(boundary_fit(empty, empty).f)
    assert math.isnan(boundary_fit(full, full).f)
    assert boundary_fit(empty, some).f == 0
    assert boundary_fit(some, empty).f == 0
    assert boundary_fit(some, block(20, 30, 25, 35)).f == 0


def test_outlines_in_and_along_ignored_pixels_do_not_count() -> None:
    truth, predicted = block(10, 10, 20, 20), block(10, 10, 20, 30)
    ignored = block(0, 20, 30, 40)
    fit = boundary_fit(predicted, truth, ignored=ignored)
    assert (fit.precision, fit.recall) == (1, 1)
    assert boundary_fit(predicted, truth).f < 1
    # Of the outline that ends at the ignored pixels the last column does not count: 26 pixels are left of 36, of which
    # 18 lie on the outline of a fruit that ends 5 columns before.
    fit = boundary_fit(predicted, block(10, 10, 20, 15), ignored=ignored, tolerance=0)
    assert (fit.precision, fit.recall) == pytest.approx((18 / 26, 18 / 26))


def test_masks_of_two_images_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        boundary_fit(block(1, 1, 2, 2), block(1, 1, 2, 2, (9, 9)))

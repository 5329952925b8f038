from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.sam.clicks import (
    centre_of,
    centre_of_error,
    centre_point,
    click_on_error,
    jittered_box,
    point_within,
    training_jitter,
)
from models.types import Point, Size

BOX = (300, 200, 360, 320)
SIZE = Size(768, 1024)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def jittered(box: tuple[int, int, int, int], size: Size, side: int, count: int) -> np.ndarray:
    rng = generator()
    boxes = [jittered_box(box, size, rng, training_jitter(side)) for _ in range(count)]
    return np.array([(each.x0, each.y0, each.x1, each.y1) for each in boxes])


def test_in_training_sides_of_a_box_move_by_a_tenth_of_its_length() -> None:
    moved = jittered(BOX, SIZE, 1024, 4000) - BOX
    # 60 x 120 pixels; the limit of 20 pixels clips the 12 to 10.9 (a normal clipped at 1.67 sigma).
    np.testing.assert_allclose(moved.std(axis=0), (6, 10.9, 6, 10.9), rtol=0.05)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.6)


@pytest.mark.parametrize("side", [1024, 512])
def test_in_training_no_side_of_a_box_moves_further_than_twenty_pixels_of_1024(side: int) -> None:
    moved = jittered((50, 50, 450, 350), Size(400, 500), side, 500)
    assert np.abs(moved - (50, 50, 450, 350)).max() == pytest.approx(20 * side / 1024)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (1022, 766, 1024, 768), (0, 0, 1024, 768), (500, 0, 502, 768)])
def test_a_box_stays_in_the_image_and_is_never_empty(box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = jittered(box, SIZE, 1024, 300).T
    assert x0.min() >= 0
    assert y0.min() >= 0
    assert x1.max() <= SIZE.width
    assert y1.max() <= SIZE.height
    assert min((x1 - x0).min(), (y1 - y0).min()) > 1 - 1e-9


def test_points_fall_on_every_pixel_of_the_mask_alike_and_on_no_other() -> None:
    mask = np.array([[0, 1, 0], [0, 1, 1]], np.bool_)
    rng = generator()
    counts = Counter(point_within(mask, rng) for _ in range(3000))
    assert counts.keys() == {(1, 0), (1, 1), (2, 1)}
    # Standard deviation of each count: 26.
    assert all(abs(count - 1000) < 110 for count in counts.values())


def test_the_centre_is_in_the_mask_even_if_the_centroid_is_not() -> None:
    ring = np.zeros((9, 20), np.bool_)
    ring[:, :5] = ring[:, -3:] = True
    assert centre_of(ring) == (2, 2)
    assert centre_of(np.ones((5, 5), np.bool_)) == (2, 2)
    assert centre_point(ring, (17, 0, 20, 9)) == Point(18, 1)


def test_a_click_lands_where_prediction_and_truth_differ() -> None:
    truth = np.array([[1, 1, 0, 0, 1]], np.bool_)
    predicted = np.array([[1, 0, 0, 1, 0]], np.bool_)
    counted = np.array([[1, 1, 1, 1, 0]], np.bool_)
    rng = generator()
    clicks = {click_on_error(predicted, truth, counted, rng) for _ in range(50)}
    assert clicks == {(1, 0, True), (3, 0, False)}
    assert click_on_error(truth, truth, counted, rng) is None


# The next click of a simulated user.

EMPTY = np.zeros((40, 70), np.bool_)
ALL = np.ones_like(EMPTY)


def area(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = EMPTY.copy()
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def test_the_first_click_is_at_the_centre_of_the_object() -> None:
    truth = area((10, 8, 31, 29), (50, 10, 55, 15))
    assert centre_of_error(EMPTY, truth, ALL) == Point(20, 18, 1)


def test_the_deepest_error_is_clicked_and_not_the_one_of_the_most_pixels() -> None:
    long, round_ = (0, 1, 70, 4), (20, 20, 31, 31)
    assert centre_of_error(EMPTY, area(long, round_), ALL) == Point(25, 25, 1)


def test_a_mask_that_is_too_large_gets_a_negative_click_and_one_that_is_too_small_a_positive_one() -> None:
    truth = area((10, 10, 30, 30))
    assert centre_of_error(area((10, 10, 30, 30), (50, 10, 59, 19)), truth, ALL) == Point(54, 14, 0)
    assert centre_of_error(area((10, 10, 30, 23)), truth, ALL) == Point(13, 26, 1)
    # As deep too many as missing: RITM takes what is too many.
    assert centre_of_error(area((50, 10, 59, 19)), area((10, 10, 19, 19)), ALL) == Point(54, 14, 0)


def test_pixels_that_do_not_count_are_no_errors() -> None:
    truth, counted = area((10, 10, 21, 21)), ~area((10, 10, 21, 16))
    assert centre_of_error(EMPTY, truth, counted) == Point(12, 18, 1)
    assert centre_of_error(truth, area((10, 16, 21, 21)), counted) is None


def test_the_border_of_the_image_is_a_border() -> None:
    assert centre_of_error(EMPTY, ALL, ALL) == Point(19, 19, 1)


def test_no_pixel_is_clicked_twice() -> None:
    truth = area((10, 10, 12, 11))
    first = centre_of_error(EMPTY, truth, ALL)
    assert first == Point(10, 10, 1)
    second = centre_of_error(EMPTY, truth, ALL, [first])
    assert second == Point(11, 10, 1)
    assert centre_of_error(EMPTY, truth, ALL, [first, second]) is None

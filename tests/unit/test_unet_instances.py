from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.types import Size
from models.unet.constants import OFFSET_UNIT
from models.unet.instances import MIN_REGION, Cells, fruit_labels
from models.unet.letterbox import unet_letterbox
from tests.fakes import with_votes

LETTERBOX = unet_letterbox(Size(896, 448))
"""One cell covers 2 x 2 pixels; 448 x 224 cells."""

Discs = list[tuple[float, float, float]]


def fruits(discs: Discs) -> NDArray[np.int32]:
    """Numbers of discs of x, y and radius; later ones hide earlier ones."""
    ys, xs = np.mgrid[:448, :224]
    numbers = np.zeros((448, 224), np.int32)
    for number, (x, y, radius) in enumerate(discs, start=1):
        numbers[np.hypot(xs - x, ys - y) <= radius] = number
    return numbers


def output(numbers: NDArray[np.int32], *, stray: float = 0, seed: int = 0) -> NDArray[np.float32]:
    """What a network would say, its votes off by normal errors of `stray` times the fruit's radius."""
    logits = np.zeros((3, 448, 224), np.float32)
    logits[0] = 5
    logits[1] = 10 * (numbers > 0)
    given = with_votes(logits, numbers)
    radii = np.sqrt(np.bincount(numbers.ravel()) / np.pi)[numbers]
    errors = np.random.default_rng(seed).normal(0, stray, (2, 448, 224)) * radii / OFFSET_UNIT
    given[3:] += errors.astype(np.float32)
    return given


def test_fruits_that_touch_are_separated() -> None:
    truth = fruits([(60, 100, 30), (119, 100, 30), (90, 150, 30)])
    found = fruit_labels(Cells.of(output(truth), LETTERBOX))
    assert found.dtype == np.int32
    assert found.max() == 3
    for number in (1, 2, 3):
        (label,) = np.unique(found[truth == number])
        assert (found == label).sum() == (truth == number).sum()


def test_a_fruit_half_hidden_by_another_is_separate() -> None:
    truth = fruits([(100, 100, 40), (135, 100, 40)])
    found = fruit_labels(Cells.of(output(truth, stray=0.1), LETTERBOX))
    assert found.max() == 2
    assert (found[truth == 2] == 1).mean() > 0.99
    assert (found[truth == 1] == 2).mean() > 0.95  # votes of its tips are as near to the other's centre


def test_a_fruit_that_a_leaf_divides_is_one() -> None:
    truth = fruits([(112, 200, 50)])
    truth[190:210] = 0
    found = fruit_labels(Cells.of(output(truth, stray=0.05), LETTERBOX))
    assert found.max() == 1
    assert np.array_equal(found > 0, truth > 0)


def test_a_fruit_larger_than_any_in_training_is_one() -> None:
    truth = fruits([(112, 200, 105)])
    given = output(truth)
    length = np.hypot(*given[3:]) * OFFSET_UNIT
    given[3:] *= np.minimum(1, 50 / np.maximum(length, 1))  # no offset is longer than 50 cells
    found = fruit_labels(Cells.of(given, LETTERBOX))
    assert found.max() == 1
    assert np.array_equal(found > 0, truth > 0)


@pytest.mark.parametrize("seed", range(4))
def test_large_fruits_are_separate_with_spatially_correlated_errors(seed: int) -> None:
    truth = fruits([(70, 90, 60), (150, 200, 66), (60, 330, 15), (150, 360, 50)])
    given = output(truth)
    radii = np.sqrt(np.bincount(truth.ravel()) / np.pi)[truth]
    errors = np.random.default_rng(seed).normal(0, 1, (2, 448, 224)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(error, (0, 0), 8) for error in errors])
    # Off by a quarter of a radius, in patches: a network's errors are no white noise.
    given[3:] += smooth / smooth.std() * 0.25 * radii / OFFSET_UNIT
    assert fruit_labels(Cells.of(given, LETTERBOX)).max() == 4


def quarters(centre: tuple[float, float]) -> NDArray[np.int32]:
    """Numbers 1 to 4 of the four parts of the image around a point."""
    ys, xs = np.mgrid[:448, :224]
    return np.asarray(1 + (xs > centre[0]) + 2 * (ys > centre[1]), np.int32)


def test_a_large_round_fruit_whose_cells_vote_for_several_centres_is_one() -> None:
    whole = fruits([(110, 200, 90)])
    found = fruit_labels(Cells.of(output(quarters((110, 200)) * whole), LETTERBOX))
    assert np.array_equal(found, whole)


def test_two_halves_of_a_fruit_are_joined_beside_another_that_it_touches() -> None:
    whole = fruits([(100, 200, 90), (170, 305, 36)])
    halves = whole + 2 * ((whole == 1) & (quarters((0, 200)) > 2))
    found = fruit_labels(Cells.of(output(halves), LETTERBOX))
    assert np.array_equal(found > 0, whole > 0)
    assert np.array_equal(np.bincount(found.ravel()), np.bincount(whole.ravel()))


def test_an_image_full_of_fruit_is_not_one_fruit() -> None:
    assert fruit_labels(Cells.of(output(quarters((110, 200))), LETTERBOX)).max() == 4


def test_a_region_whose_votes_miss_every_centre_belongs_to_no_fruit() -> None:
    truth = fruits([(60, 100, 30), (200, 400, 2)])
    found = fruit_labels(Cells.of(output(truth), LETTERBOX))
    assert (truth == 2).sum() < MIN_REGION
    assert found.max() == 1
    assert np.array_equal(found > 0, truth == 1)


def test_the_largest_fruit_comes_first() -> None:
    found = fruit_labels(Cells.of(output(fruits([(40, 50, 10), (100, 200, 40), (50, 380, 20)])), LETTERBOX))
    areas = np.bincount(found.ravel())[1:]
    assert len(areas) == 3
    assert (np.diff(areas) < 0).all()


@pytest.mark.parametrize(("cells", "found"), [(MIN_REGION - 1, 0), (MIN_REGION, 1)])
def test_what_is_smaller_than_the_smallest_region_is_no_fruit(cells: int, found: int) -> None:
    truth = np.zeros((448, 224), np.int32)
    truth[100 : 100 + cells // 4, 100:104] = 1
    truth[100 + cells // 4, 100 : 100 + cells % 4] = 1
    assert fruit_labels(Cells.of(output(truth), LETTERBOX)).max() == found


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), stray=st.sampled_from([0.0, 0.05, 0.15]))
def test_rows_of_fruit_are_counted_for_all_sizes_and_noisy_votes(seed: int, stray: float) -> None:
    rng = np.random.default_rng(seed)
    discs: Discs = []
    y = 0.0
    while True:
        radius = float(rng.uniform(12, 55))
        if y + 2 * radius > 448:
            break
        discs.append((float(rng.uniform(radius, 224 - radius)), y + radius, radius))
        y += 2 * radius
    assert fruit_labels(Cells.of(output(fruits(discs), stray=stray, seed=seed), LETTERBOX)).max() == len(discs)


def test_random_output_gives_a_valid_result() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (5, 448, 224)).astype(np.float32)
    found = fruit_labels(Cells.of(noise, LETTERBOX))
    areas = np.bincount(found.ravel(), minlength=2)[1:]
    assert found.shape == (448, 224)
    assert ((areas == 0) | (areas >= MIN_REGION)).all()


def test_an_output_of_another_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="the output must have the shape"):
        fruit_labels(Cells.of(np.zeros((5, 224, 448), np.float32), LETTERBOX))

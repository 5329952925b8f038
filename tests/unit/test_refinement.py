from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.cropped_masks import CroppedMask
from models.inspection import Inspection, inspect, measured
from models.refinement import cut_out, prompt_for, refined
from models.types import BinaryMask, Box, Mask, Size
from tests.fakes import rectangle
from tests.unit.test_inspection import EXACT, boxed, output

SIZE = Size(224, 448)
LEFT, RIGHT = (40, 20, 80, 60), (80, 20, 120, 60)


def mask(*box: int) -> CroppedMask:
    """A SAM's mask: a box of the image."""
    x0, y0, x1, y1 = box
    return CroppedMask(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, SIZE)


def seen(*boxes: tuple[int, int, int, int], sick: BinaryMask | None = None) -> Inspection:
    return inspect(output(boxed(*boxes), sick), EXACT)


def test_a_sam_is_asked_for_the_one_mask_of_a_box_a_little_larger_than_the_fruit() -> None:
    (fruit,) = seen((100, 50, 200, 150)).fruits
    prompt = prompt_for(fruit)
    assert not prompt.multimask
    assert prompt.points == ()
    assert prompt.box is not None
    grown = [100 - prompt.box.x0, 50 - prompt.box.y0, prompt.box.x1 - 200, prompt.box.y1 - 150]
    assert grown == pytest.approx([grown[0]] * 4)
    assert 0 <= grown[0] <= 10


def test_the_box_stays_in_the_image() -> None:
    (fruit,) = seen((0, 0, 448, 224)).fruits
    assert prompt_for(fruit).box == Box(0, 0, 448, 224)


def test_a_mask_that_agrees_is_taken_and_what_of_it_is_infected_counted_anew() -> None:
    sick = rectangle(40, 20, 60, 60, SIZE)
    found = refined(seen(LEFT, sick=sick), {0: mask(44, 20, 84, 60)})
    (fruit,) = found.fruits
    assert fruit.refined
    assert fruit.box == (44, 20, 84, 60)
    # Of the infected columns 40 to 59, 44 to 59 are left.
    assert fruit.infected_fraction == 16 / 40
    np.testing.assert_array_equal(fruit.infected.full(), rectangle(44, 20, 60, 60, SIZE))


def test_the_confidence_is_still_the_u_nets() -> None:
    before = seen(LEFT)
    assert refined(before, {0: mask(38, 20, 82, 60)}).fruits[0].confidence == before.fruits[0].confidence


@pytest.mark.parametrize(
    "other", [(200, 100, 240, 140), (40, 20, 67, 60), (0, 0, 448, 224), (79, 59, 119, 99), (0, 0, 1, 1)]
)
def test_a_mask_of_something_else_or_of_a_part_is_not_taken(other: tuple[int, int, int, int]) -> None:
    before = seen(LEFT)
    assert refined(before, {0: mask(*other)}).fruits == before.fruits


def test_fruits_without_a_mask_stay_as_they_are_and_lose_nothing_to_others() -> None:
    before = seen(LEFT, RIGHT)
    found = refined(before, {0: mask(40, 20, 90, 60)})
    left, right = found.fruits
    assert right is before.fruits[1]
    assert (left.refined, right.refined) == (True, False)
    assert left.box == LEFT


def test_a_pixel_in_two_masks_goes_to_the_fruit_that_the_u_net_gives_it_to_else_to_the_left_one() -> None:
    left, right = refined(
        seen((40, 20, 80, 60), (90, 20, 130, 60)), {0: mask(40, 20, 95, 60), 1: mask(75, 20, 130, 60)}
    ).fruits
    # 75 to 79 are the left one's, 90 to 94 the right one's, and 80 to 89 nobody's.
    assert left.box == (40, 20, 90, 60)
    assert right.box == (90, 20, 130, 60)


BOXES = st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(30, 200), st.integers(30, 100)).map(
    lambda given: (given[0], given[1], given[0] + given[2], given[1] + given[3])
)


@settings(deadline=None, max_examples=60)
@given(masks=st.lists(BOXES, min_size=4, max_size=4))
def test_whatever_the_sam_says_no_pixel_is_in_two_masks(masks: list[tuple[int, int, int, int]]) -> None:
    before = seen((40, 20, 80, 60), (80, 20, 120, 60), (60, 60, 100, 100), (200, 100, 300, 200))
    found = refined(before, {number: mask(*box) for number, box in enumerate(masks)})
    count: NDArray[np.int32] = np.zeros((224, 448), np.int32)
    for fruit, earlier in zip(found.fruits, before.fruits, strict=True):
        assert fruit.area == fruit.mask.area > 0
        count += fruit.mask.full()
        if fruit.refined:
            own = fruit.mask.full() & earlier.mask.full()
            assert own.sum() >= 0.7 * earlier.area  # the masks agreed, and nothing of its own was lost since
    assert count.max() <= 1


def test_a_mask_is_cut_out_of_its_image_and_the_image_let_go() -> None:
    pixels = rectangle(10, 20, 30, 50, SIZE)
    logits = np.zeros((4, 4), np.float32)
    part = cut_out(Mask(pixels, logits, 0.9, 0.9, (10, 20, 30, 50), 600))
    np.testing.assert_array_equal(part.full(), pixels)
    assert part.pixels.base is None
    assert cut_out(Mask(pixels & False, logits, 0.9, 0.0, (0, 0, 0, 0), 0)).area == 0


def test_an_empty_mask_is_not_taken() -> None:
    before = seen(LEFT)
    nothing = CroppedMask(np.zeros((1, 1), np.bool_), 0, 0, SIZE)
    assert refined(before, {0: nothing}).fruits == before.fruits


def test_a_measured_fruit_has_a_tight_box() -> None:
    classes = np.zeros((224, 448), np.uint8)
    loose = CroppedMask(np.pad(np.ones((5, 7), np.bool_), 3), 10, 20, SIZE)
    fruit = measured(loose, classes, 0.5)
    assert fruit.box == (13, 23, 20, 28)
    assert fruit.infected.box == fruit.box

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cropped_masks import CroppedMask
from models.inspection import GRADES, Fruit, Grade, measured
from models.inspection_overlay import GRADE_COLOURS, REJECT_COLOUR, draw_fruits
from models.overlay import CLASS_COLOURS
from models.types import PixelClass, Pixels, Size

SIZE = Size(224, 448)
GREY: Pixels = np.full((224, 448, 3), 128, np.uint8)


def fruit(box: tuple[int, int, int, int], infected: float = 0, size: Size = SIZE) -> Fruit:
    """A fruit that fills its box, its upper rows infected."""
    x0, y0, x1, y1 = box
    classes = np.zeros((size.height, size.width), np.uint8)
    classes[y1 - round(infected * (y1 - y0)) : y1, x0:x1] = PixelClass.INFECTED
    return measured(CroppedMask(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, size), classes, 1.0)


@pytest.mark.parametrize(
    ("infected", "colour"),
    [(0, GRADE_COLOURS[0]), (0.03, GRADE_COLOURS[1]), (0.2, GRADE_COLOURS[2]), (0.5, REJECT_COLOUR)],
)
def test_the_outline_has_the_grades_colour_and_a_dark_line_inside(
    infected: float, colour: tuple[int, int, int]
) -> None:
    drawn = draw_fruits(GREY, [fruit((100, 50, 200, 150), infected)], GRADES)
    assert [tuple(pixel) for pixel in drawn[90, 100:102].tolist()] == [colour] * 2
    assert drawn[90, 102].max() < 60
    assert (drawn[90, 104:195] == 128).all()
    assert (drawn[:50] == 128).all()


def test_the_infected_part_is_tinted() -> None:
    drawn = draw_fruits(GREY, [fruit((100, 50, 200, 150), 0.4)], GRADES)
    mixed = np.array([128] * 3) * 0.55 + np.array(CLASS_COLOURS[PixelClass.INFECTED]) * 0.45
    assert np.abs(drawn[135, 150] - mixed).max() <= 1
    assert (drawn[100, 150] == 128).all()


def white(drawn: Pixels) -> int:
    return int((drawn.min(axis=2) > 200).sum())


def test_each_fruit_has_a_label_of_its_own_that_says_grade_and_share() -> None:
    none = white(draw_fruits(GREY, [], GRADES))
    one = white(draw_fruits(GREY, [fruit((20, 50, 120, 150))], GRADES))
    two = white(draw_fruits(GREY, [fruit((20, 50, 120, 150)), fruit((220, 50, 320, 150))], GRADES))
    longer = white(draw_fruits(GREY, [fruit((20, 50, 120, 150), 0.5)], GRADES))
    assert none == 0
    assert 20 < one < longer
    assert two == 2 * one


def test_labels_of_small_fruits_side_by_side_do_not_cover_each_other() -> None:
    # Each is narrower than its label.
    row = [fruit((100 + 24 * number, 100, 124 + 24 * number, 124)) for number in range(3)]
    one = white(draw_fruits(GREY, row[:1], GRADES))
    assert white(draw_fruits(GREY, row, GRADES)) == 3 * one


@pytest.mark.parametrize("size", [Size(224, 448), Size(1800, 4160)])
def test_letters_grow_with_the_image(size: Size) -> None:
    grey = np.full((size.height, size.width, 3), 128, np.uint8)
    side = size.height // 2
    drawn = draw_fruits(grey, [fruit((side // 2, side // 2, side + side // 2, side + side // 2), size=size)], GRADES)
    rows, _ = np.nonzero(drawn.min(axis=2) > 200)
    height = int(rows.max()) + 1 - int(rows.min())
    # Capitals and digits are about seven tenths of the size of the letters.
    assert height == pytest.approx(0.72 * max(12, max(size.height, size.width) / 55), rel=0.25)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
)
def test_fruits_anywhere_in_images_of_any_size_are_drawn(
    height: int, width: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    size = Size(height, width)
    fruits = []
    for x, y, across, down in boxes:
        x0, y0 = int(x * (width - 1)), int(y * (height - 1))
        x1, y1 = x0 + 1 + int(across * (width - 1 - x0)), y0 + 1 + int(down * (height - 1 - y0))
        fruits.append(fruit((x0, y0, x1, y1), 0.3, size))
    drawn = draw_fruits(np.zeros((height, width, 3), np.uint8), fruits, [Grade("only", 0)])
    assert drawn.shape == (height, width, 3)
    assert drawn.dtype == np.uint8


def test_the_given_image_is_left_alone() -> None:
    pixels = GREY.copy()
    pixels.flags.writeable = False
    draw_fruits(pixels, [fruit((100, 50, 200, 150), 0.5)], GRADES)
    assert np.array_equal(pixels, GREY)


def test_more_grades_than_colours_begin_anew() -> None:
    grades = [Grade(str(number), number / 10) for number in range(6)]
    drawn = draw_fruits(GREY, [fruit((100, 50, 200, 150), 0.4)], grades)
    assert tuple(drawn[100, 100].tolist()) == GRADE_COLOURS[4 % len(GRADE_COLOURS)]

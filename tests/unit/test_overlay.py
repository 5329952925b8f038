import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import overlay
from models.inspection import GRADES, Fruit, Grade, measure_fruit
from models.masks import CroppedMask, whole
from models.types import BinaryMask, Box, PixelClass, Pixels, Point, Size

GREY: Pixels = np.full((200, 300, 3), 128, np.uint8)


def draw(pixels: Pixels, masks: Sequence[BinaryMask], **what: Any) -> Pixels:
    return overlay.draw_overlay(pixels.copy(), [partial(whole, mask) for mask in masks], **what)


def block(y0: int, x0: int, y1: int, x1: int) -> BinaryMask:
    mask = np.zeros(GREY.shape[:2], np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_masks_are_tinted_and_nothing_else_changes() -> None:
    mask = block(50, 60, 120, 140)
    drawn = draw(GREY, [mask])
    expected = np.array(GREY[0, 0]) * 0.55 + np.array(overlay.PALETTE[0]) * 0.45
    assert np.abs(drawn[85, 100] - expected).max() <= 1
    assert (drawn[~mask] == 128).all()


def test_the_outline_is_solid_two_pixels_wide_and_inside_the_mask() -> None:
    drawn = draw(GREY, [block(50, 60, 120, 140)])
    solid = (drawn == overlay.PALETTE[0]).all(axis=2)
    assert solid[85, 58:66].tolist() == [False, False, True, True, False, False, False, False]
    assert solid[50, 60:140].all()


def test_the_outline_grows_with_the_image() -> None:
    large = np.zeros((1000, 3000, 3), np.uint8)
    drawn = draw(large, [np.ones((1000, 3000), np.bool_)])
    assert (drawn[500] == overlay.PALETTE[0]).all(axis=1).sum() == 2 * 9


def test_a_hole_is_outlined_and_a_mask_at_the_edge_too() -> None:
    mask = np.ones(GREY.shape[:2], np.bool_)
    mask[80:120, 100:200] = False
    solid = (draw(GREY, [mask]) == overlay.PALETTE[0]).all(axis=2)
    assert solid[0].all()
    assert solid[79, 100:200].all()
    assert not solid[100, 150]


def test_masks_have_colours_of_their_own_and_later_tints_hide_no_outline() -> None:
    drawn = draw(GREY, [block(50, 60, 120, 140), block(40, 50, 150, 250)])
    assert tuple(drawn[50, 100]) == overlay.PALETTE[0]
    assert tuple(drawn[40, 100]) == overlay.PALETTE[1]


def test_given_colours_are_cyclic() -> None:
    stripes = [block(10 * row, 0, 10 * row + 10, 300) for row in range(3)]
    drawn = draw(GREY, stripes, colours=[(1, 2, 3), (4, 5, 6)])
    assert [tuple(drawn[10 * row, 0]) for row in range(3)] == [(1, 2, 3), (4, 5, 6), (1, 2, 3)]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 40)])
def test_a_class_map_comes_back_with_its_indices_and_its_colours(shape: tuple[int, int]) -> None:
    classes = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape) % 3
    image = PIL.Image.open(io.BytesIO(overlay.encode_class_map(classes)))
    assert (image.format, image.mode) == ("PNG", "P")
    np.testing.assert_array_equal(np.asarray(image), classes)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(overlay.CLASS_COLOURS)[classes])


def test_an_empty_mask_draws_nothing() -> None:
    drawn = draw(GREY, [block(0, 0, 0, 0)])
    assert np.array_equal(drawn, GREY)


def test_foreground_dots_are_green_and_background_dots_red_in_a_white_ring() -> None:
    drawn = draw(GREY, [], points=[Point(50.5, 60.5), Point(150.5, 60.5, 0)])
    red, green, _ = (int(value) for value in drawn[63, 53])
    assert green > 1.5 * red
    red, green, _ = (int(value) for value in drawn[63, 153])
    assert red > 1.5 * green
    for x in (50, 150):
        assert (drawn[60, x : x + 9] == 255).all(axis=1).any()
    assert (drawn[60 - 12, 50] == 128).all()


def test_a_box_is_drawn_on_the_pixels_inside_its_half_open_edges() -> None:
    drawn = draw(GREY, [], boxes=[Box(40, 30, 100, 90)])
    white = (drawn == 255).all(axis=2)
    assert white[60, 40]
    assert white[60, 99]
    assert white[30, 70]
    assert white[89, 70]
    assert (drawn[60, 70] == 128).all()


def test_the_encoded_overlay_is_a_png_of_the_same_pixels() -> None:
    drawn = draw(GREY, [block(50, 60, 120, 140)])
    data = overlay.encode_overlay(drawn)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), drawn)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_mask_thinner_than_its_outline_is_all_outline(side: int) -> None:
    mask = block(50, 60, 50 + side, 140)
    drawn = draw(GREY, [mask])
    assert (drawn[mask] == overlay.PALETTE[0]).all()


# Inspected fruits

SCENE_SIZE = Size(224, 448)
SCENE: Pixels = np.full((224, 448, 3), 128, np.uint8)


def fruit(box: tuple[int, int, int, int], infected: float = 0, size: Size = SCENE_SIZE) -> Fruit:
    """A fruit that fills its box, its upper rows infected."""
    x0, y0, x1, y1 = box
    classes = np.zeros((size.height, size.width), np.uint8)
    classes[y1 - round(infected * (y1 - y0)) : y1, x0:x1] = PixelClass.INFECTED
    return measure_fruit(CroppedMask(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, size), classes, 1.0)


@pytest.mark.parametrize(
    ("infected", "colour"),
    [
        (0, overlay.GRADE_COLOURS[0]),
        (0.03, overlay.GRADE_COLOURS[1]),
        (0.2, overlay.GRADE_COLOURS[2]),
        (0.5, overlay.REJECT_COLOUR),
    ],
)
def test_the_outline_has_the_grades_colour_and_a_dark_line_inside(
    infected: float, colour: tuple[int, int, int]
) -> None:
    drawn = overlay.draw_fruits(SCENE.copy(), [fruit((100, 50, 200, 150), infected)], GRADES)
    assert [tuple(pixel) for pixel in drawn[90, 100:102].tolist()] == [colour] * 2
    assert drawn[90, 102].max() < 60
    assert (drawn[90, 104:195] == 128).all()
    assert (drawn[:50] == 128).all()


def test_the_infected_part_is_tinted() -> None:
    drawn = overlay.draw_fruits(SCENE.copy(), [fruit((100, 50, 200, 150), 0.4)], GRADES)
    mixed = np.array([128] * 3) * 0.55 + np.array(overlay.CLASS_COLOURS[PixelClass.INFECTED]) * 0.45
    assert np.abs(drawn[135, 150] - mixed).max() <= 1
    assert (drawn[100, 150] == 128).all()


def count_white(drawn: Pixels) -> int:
    return int((drawn.min(axis=2) > 200).sum())


def test_each_fruit_has_a_label() -> None:
    none = count_white(overlay.draw_fruits(SCENE.copy(), [], GRADES))
    one = count_white(overlay.draw_fruits(SCENE.copy(), [fruit((20, 50, 120, 150))], GRADES))
    pair = [fruit((20, 50, 120, 150)), fruit((220, 50, 320, 150))]
    two = count_white(overlay.draw_fruits(SCENE.copy(), pair, GRADES))
    longer = count_white(overlay.draw_fruits(SCENE.copy(), [fruit((20, 50, 120, 150), 0.5)], GRADES))
    assert none == 0
    assert 20 < one < longer
    assert two == 2 * one


def test_labels_of_small_fruits_side_by_side_do_not_cover_each_other() -> None:
    # Each is narrower than its label.
    row = [fruit((100 + 24 * number, 100, 124 + 24 * number, 124)) for number in range(3)]
    one = count_white(overlay.draw_fruits(SCENE.copy(), row[:1], GRADES))
    assert count_white(overlay.draw_fruits(SCENE.copy(), row, GRADES)) == 3 * one


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
)
def test_fruits_and_prompts_are_drawn_in_images_of_any_size(
    height: int, width: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    size = Size(height, width)
    fruits = []
    for x, y, across, down in boxes:
        x0, y0 = int(x * (width - 1)), int(y * (height - 1))
        x1, y1 = x0 + 1 + int(across * (width - 1 - x0)), y0 + 1 + int(down * (height - 1 - y0))
        fruits.append(fruit((x0, y0, x1, y1), 0.3, size))
    pixels = np.zeros((height, width, 3), np.uint8)
    points = [Point(70 * x - 5, 70 * y - 5) for x, y, _, _ in boxes]
    corners = [Box(0, 0, point.x, point.y) for point in points]
    for drawn in (
        overlay.draw_fruits(pixels.copy(), fruits, [Grade("only", 0)]),
        draw(pixels, [np.ones((height, width), np.bool_)], points=points, boxes=corners),
    ):
        assert drawn.shape == (height, width, 3)
        assert drawn.dtype == np.uint8
    assert not pixels.any()


def test_colours_of_grades_are_cyclic() -> None:
    grades = [Grade(str(number), number / 10) for number in range(6)]
    drawn = overlay.draw_fruits(SCENE.copy(), [fruit((100, 50, 200, 150), 0.4)], grades)
    assert tuple(drawn[100, 100].tolist()) == overlay.GRADE_COLOURS[4 % len(overlay.GRADE_COLOURS)]

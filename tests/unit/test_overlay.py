import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import overlay
from models.types import BinaryMask, Box, Pixels, Point

GREY: Pixels = np.full((200, 300, 3), 128, np.uint8)


def block(y0: int, x0: int, y1: int, x1: int) -> BinaryMask:
    mask = np.zeros(GREY.shape[:2], np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_masks_are_tinted_and_nothing_else_changes() -> None:
    mask = block(50, 60, 120, 140)
    drawn = overlay.draw_overlay(GREY, [mask])
    expected = np.array(GREY[0, 0]) * 0.55 + np.array(overlay.PALETTE[0]) * 0.45
    assert np.abs(drawn[85, 100] - expected).max() <= 1
    assert (drawn[~mask] == 128).all()


def test_the_outline_is_solid_two_pixels_wide_and_inside_the_mask() -> None:
    drawn = overlay.draw_overlay(GREY, [block(50, 60, 120, 140)])
    solid = (drawn == overlay.PALETTE[0]).all(axis=2)
    assert solid[85, 58:66].tolist() == [False, False, True, True, False, False, False, False]
    assert solid[50, 60:140].all()


def test_the_outline_grows_with_the_image() -> None:
    large = np.zeros((1000, 3000, 3), np.uint8)
    drawn = overlay.draw_overlay(large, [np.ones((1000, 3000), np.bool_)])
    assert (drawn[500] == overlay.PALETTE[0]).all(axis=1).sum() == 2 * 9


def test_a_hole_is_outlined_and_a_mask_at_the_edge_too() -> None:
    mask = np.ones(GREY.shape[:2], np.bool_)
    mask[80:120, 100:200] = False
    solid = (overlay.draw_overlay(GREY, [mask]) == overlay.PALETTE[0]).all(axis=2)
    assert solid[0].all()
    assert solid[79, 100:200].all()
    assert not solid[100, 150]


def test_masks_have_colours_of_their_own_and_later_tints_hide_no_outline() -> None:
    drawn = overlay.draw_overlay(GREY, [block(50, 60, 120, 140), block(40, 50, 150, 250)])
    assert tuple(drawn[50, 100]) == overlay.PALETTE[0]
    assert tuple(drawn[40, 100]) == overlay.PALETTE[1]


def test_masks_take_the_colours_that_they_are_given() -> None:
    stripes = [block(10 * row, 0, 10 * row + 10, 300) for row in range(3)]
    drawn = overlay.draw_overlay(GREY, stripes, colours=[(1, 2, 3), (4, 5, 6)])
    assert [tuple(drawn[10 * row, 0]) for row in range(3)] == [(1, 2, 3), (4, 5, 6), (1, 2, 3)]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 40)])
def test_a_class_map_comes_back_with_its_indices_and_its_colours(shape: tuple[int, int]) -> None:
    classes = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape) % 3
    image = PIL.Image.open(io.BytesIO(overlay.encode_class_map(classes)))
    assert (image.format, image.mode) == ("PNG", "P")
    np.testing.assert_array_equal(np.asarray(image), classes)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(overlay.CLASS_COLOURS)[classes])


def test_colours_repeat_when_there_are_more_masks_than_colours() -> None:
    stripes = [block(10 * row, 0, 10 * row + 10, 300) for row in range(len(overlay.PALETTE) + 1)]
    drawn = overlay.draw_overlay(GREY, stripes)
    assert tuple(drawn[0, 0]) == tuple(drawn[10 * len(overlay.PALETTE), 0]) == overlay.PALETTE[0]


def test_an_empty_mask_draws_nothing() -> None:
    drawn = overlay.draw_overlay(GREY, [block(0, 0, 0, 0)])
    assert np.array_equal(drawn, GREY)


def test_foreground_dots_are_green_and_background_dots_red_in_a_white_ring() -> None:
    drawn = overlay.draw_overlay(GREY, [], points=[Point(50.5, 60.5), Point(150.5, 60.5, 0)])
    red, green, _ = (int(value) for value in drawn[63, 53])
    assert green > 1.5 * red
    red, green, _ = (int(value) for value in drawn[63, 153])
    assert red > 1.5 * green
    for x in (50, 150):
        assert (drawn[60, x : x + 9] == 255).all(axis=1).any()
    assert (drawn[60 - 12, 50] == 128).all()


def test_a_box_is_drawn_on_the_pixels_inside_its_half_open_edges() -> None:
    drawn = overlay.draw_overlay(GREY, [], boxes=[Box(40, 30, 100, 90)])
    white = (drawn == 255).all(axis=2)
    assert white[60, 40]
    assert white[60, 99]
    assert white[30, 70]
    assert white[89, 70]
    assert (drawn[60, 70] == 128).all()


def test_the_given_image_is_left_alone() -> None:
    pixels = GREY.copy()
    pixels.flags.writeable = False
    overlay.draw_overlay(pixels, [block(0, 0, 9, 9)], points=[Point(5, 5)], boxes=[Box(1, 1, 9, 9)])
    assert np.array_equal(pixels, GREY)


def test_a_mask_that_is_a_view_is_drawn_alike() -> None:
    mask = block(50, 60, 120, 140)
    view = np.asfortranarray(mask)
    assert np.array_equal(overlay.draw_overlay(GREY, [view]), overlay.draw_overlay(GREY, [mask]))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.tuples(st.floats(-9, 50), st.floats(-9, 50)), max_size=3),
)
def test_images_of_any_size_are_drawn(height: int, width: int, places: list[tuple[float, float]]) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    drawn = overlay.draw_overlay(
        pixels,
        [np.ones((height, width), np.bool_)],
        points=[Point(x, y) for x, y in places],
        boxes=[Box(0, 0, x, y) for x, y in places],
    )
    assert drawn.shape == pixels.shape
    assert drawn.dtype == np.uint8


def test_the_encoded_overlay_is_a_png_of_the_same_pixels() -> None:
    drawn = overlay.draw_overlay(GREY, [block(50, 60, 120, 140)])
    data = overlay.encode_overlay(drawn)
    image = PIL.Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), drawn)


def test_the_palette_holds_distinct_colours() -> None:
    assert len(set(overlay.PALETTE)) == len(overlay.PALETTE)
    assert all(0 <= value <= 255 for colour in overlay.PALETTE for value in colour)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_mask_thinner_than_its_outline_is_all_outline(side: int) -> None:
    mask = block(50, 60, 50 + side, 140)
    drawn = overlay.draw_overlay(GREY, [mask])
    assert (drawn[mask] == overlay.PALETTE[0]).all()

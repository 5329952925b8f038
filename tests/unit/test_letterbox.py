import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from models.letterbox import letterbox_for, resize
from models.types import Size
from models.unet.constants import PADDING
from models.unet.letterbox import INPUT_SIZE, STRIDE, UNetLetterbox, input_area, pad, unet_letterbox

SIDES = st.integers(1, 6000)
COORDINATES = st.floats(-1e5, 1e5)


@given(SIDES, SIDES, st.sampled_from([64, 256, 512, 768, 1024]))
def test_sizes_are_those_of_the_reference(height: int, width: int, side: int) -> None:
    letterbox = letterbox_for(Size(height, width), side)
    expected = ResizeLongestSide.get_preprocess_shape(height, width, side)
    assert (letterbox.resized.height, letterbox.resized.width) == tuple(max(1, each) for each in expected)


def test_the_defaults_are_those_of_segment_anything() -> None:
    letterbox = letterbox_for(Size(4160, 1800))
    assert (letterbox.side, letterbox.resized) == (1024, Size(1024, 443))
    assert (letterbox.padded, letterbox.cells, letterbox.logits) == (Size(1024, 1024), Size(64, 64), Size(256, 256))


@given(SIDES, SIDES, st.sampled_from([64, 256, 512, 768, 1024]))
def test_without_padding_the_letterbox_is_the_image_to_the_next_multiples_of_64(
    height: int, width: int, side: int
) -> None:
    letterbox = letterbox_for(Size(height, width), side, "none")
    assert letterbox.resized == letterbox_for(Size(height, width), side).resized
    for padded, resized, cells, logits in (
        (letterbox.padded.height, letterbox.resized.height, letterbox.cells.height, letterbox.logits.height),
        (letterbox.padded.width, letterbox.resized.width, letterbox.cells.width, letterbox.logits.width),
    ):
        assert padded % 64 == 0
        assert padded == side or resized + 32 <= padded < resized + 96
        assert resized <= padded <= side
        assert (cells, logits) == (padded // 16, padded // 4)


def test_a_square_image_is_in_the_same_letterbox_with_and_without_padding() -> None:
    size = Size(700, 700)
    assert letterbox_for(size, padding="none") == letterbox_for(size, padding="square")


def test_a_line_of_pixels_never_vanishes() -> None:
    assert letterbox_for(Size(1, 5000)).resized == Size(1, 1024)
    assert letterbox_for(Size(5000, 1)).resized == Size(1024, 1)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (37, 53, 1024),
        (1500, 700, 1024),
        (700, 1500, 512),
        (1024, 1024, 1024),
        (1024, 640, 1024),
        (3, 1024, 256),
        (1, 1, 64),
        (1025, 1023, 1024),
    ],
)
def test_pixels_are_exactly_those_of_the_reference(height: int, width: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    resized = resize(pixels, letterbox_for(Size(height, width), side))
    assert np.array_equal(resized, ResizeLongestSide(side).apply_image(pixels))
    assert resized.dtype == np.uint8
    assert resized.flags.writeable
    assert np.array_equal(resize(np.asfortranarray(pixels), letterbox_for(Size(height, width), side)), resized)


@given(SIDES, SIDES, st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=5))
def test_points_are_exactly_those_of_the_reference(height: int, width: int, points: list[tuple[float, float]]) -> None:
    letterbox = letterbox_for(Size(height, width))
    if 0 in ResizeLongestSide.get_preprocess_shape(height, width, 1024):
        return  # the reference would send every point to the edge
    expected = ResizeLongestSide(1024).apply_coords(np.array(points), (height, width))
    assert np.array_equal(letterbox.to_model(points), expected)


@given(SIDES, SIDES, st.integers(16, 2048), st.lists(st.tuples(COORDINATES, COORDINATES), max_size=5))
def test_points_survive_the_round_trip(height: int, width: int, side: int, points: list[tuple[float, float]]) -> None:
    letterbox = letterbox_for(Size(height, width), side)
    there = np.array(points).reshape(-1, 2)
    np.testing.assert_allclose(letterbox.to_image(letterbox.to_model(there)), there, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(letterbox.to_model(letterbox.to_image(there)), there, rtol=1e-12, atol=1e-12)


# U-Net


@given(st.builds(Size, st.integers(1, 5000), st.integers(1, 5000)), st.integers(STRIDE**2, 300_000))
def test_every_image_fits_its_area_in_multiples_of_the_stride(size: Size, area: int) -> None:
    letterbox = unet_letterbox(size, area)
    padded, resized = letterbox.padded, letterbox.resized
    assert letterbox.original == size
    assert padded.pixels <= area
    for whole, part in ((padded.height, resized.height), (padded.width, resized.width)):
        assert whole % STRIDE == 0
        assert 1 <= part <= whole < part + STRIDE


@pytest.mark.parametrize(
    ("size", "padded"),
    [(Size(224, 448), Size(224, 448)), (Size(3000, 1500), Size(448, 224)), (Size(500, 500), Size(288, 288))],
)
def test_the_input_of_an_image_of_its_shape_has_no_padding(size: Size, padded: Size) -> None:
    letterbox = unet_letterbox(size, INPUT_SIZE.pixels)
    assert letterbox.resized == letterbox.padded == padded


def test_a_model_that_must_be_fast_sees_at_most_the_area_of_the_studys_input() -> None:
    assert input_area(200_704) == 200_704
    assert input_area(200_704, fast=True) == input_area(None) == input_area(None, fast=True) == 448 * 224
    assert input_area(50_000, fast=True) == 50_000


@given(st.builds(Size, st.integers(100, 5000), st.integers(100, 5000)))
def test_the_aspect_ratio_is_kept_to_a_pixel(size: Size) -> None:
    resized = unet_letterbox(size).resized
    scale = max(resized.height / size.height, resized.width / size.width)
    assert size.height * scale - resized.height <= 1 + 1e-6
    assert size.width * scale - resized.width <= 1 + 1e-6


PADDED = UNetLetterbox(Size(90, 70), Size(45, 35), Size(64, 64))


def test_an_image_is_padded_with_the_mean_colour_right_and_below() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 35, 3), np.uint8)
    padded = pad(pixels, PADDED)
    np.testing.assert_array_equal(padded[:45, :35], pixels)
    assert (padded[45:] == PADDING).all()
    assert (padded[:, 35:] == PADDING).all()
    assert padded.flags.c_contiguous


@pytest.mark.parametrize("shape", [(35, 45, 3), (45, 35, 4), (64, 64, 3)])
def test_pixels_of_another_size_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the pixels must have the shape"):
        pad(np.zeros(shape, np.uint8), PADDED)

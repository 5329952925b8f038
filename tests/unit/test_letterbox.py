import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from models import letterbox
from models.types import Size

SIDES = st.integers(1, 6000)
COORDINATES = st.floats(-1e5, 1e5)


@given(SIDES, SIDES, st.sampled_from([64, 256, 512, 768, 1024]))
def test_sizes_are_those_of_the_reference(height: int, width: int, side: int) -> None:
    frame = letterbox.letterbox_for(Size(height, width), side)
    expected = ResizeLongestSide.get_preprocess_shape(height, width, side)
    assert (frame.resized.height, frame.resized.width) == tuple(max(1, each) for each in expected)


def test_the_default_side_is_that_of_segment_anything() -> None:
    frame = letterbox.letterbox_for(Size(4160, 1800))
    assert (frame.side, frame.resized) == (1024, Size(1024, 443))


def test_the_default_padding_is_that_of_segment_anything() -> None:
    frame = letterbox.letterbox_for(Size(4160, 1800))
    assert (frame.padded, frame.cells, frame.logits) == (Size(1024, 1024), Size(64, 64), Size(256, 256))


@given(SIDES, SIDES, st.sampled_from([64, 256, 512, 768, 1024]))
def test_without_padding_the_frame_is_the_image_to_the_next_multiples_of_64(height: int, width: int, side: int) -> None:
    frame = letterbox.letterbox_for(Size(height, width), side, "none")
    assert frame.resized == letterbox.letterbox_for(Size(height, width), side).resized
    for padded, resized, cells, logits in (
        (frame.padded.height, frame.resized.height, frame.cells.height, frame.logits.height),
        (frame.padded.width, frame.resized.width, frame.cells.width, frame.logits.width),
    ):
        assert padded % 64 == 0
        assert padded == side or resized + 32 <= padded < resized + 96
        assert resized <= padded <= side
        assert (cells, logits) == (padded // 16, padded // 4)


def test_a_square_image_is_in_the_same_frame_with_and_without_padding() -> None:
    size = Size(700, 700)
    assert letterbox.letterbox_for(size, padding="none") == letterbox.letterbox_for(size, padding="square")


def test_a_line_of_pixels_never_vanishes() -> None:
    assert letterbox.letterbox_for(Size(1, 5000)).resized == Size(1, 1024)
    assert letterbox.letterbox_for(Size(5000, 1)).resized == Size(1024, 1)


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
    resized = letterbox.resize(pixels, letterbox.letterbox_for(Size(height, width), side))
    assert np.array_equal(resized, ResizeLongestSide(side).apply_image(pixels))
    assert resized.dtype == np.uint8
    assert resized.flags.writeable


def test_pixels_that_are_a_view_are_resized_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    frame = letterbox.letterbox_for(Size(45, 60), 32)
    view = pixels[::2, ::-2]
    assert np.array_equal(letterbox.resize(view, frame), letterbox.resize(view.copy(), frame))


@given(SIDES, SIDES, st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=5))
def test_points_are_exactly_those_of_the_reference(height: int, width: int, points: list[tuple[float, float]]) -> None:
    frame = letterbox.letterbox_for(Size(height, width))
    if 0 in ResizeLongestSide.get_preprocess_shape(height, width, 1024):
        return  # the reference would send every point to the edge
    expected = ResizeLongestSide(1024).apply_coords(np.array(points), (height, width))
    assert np.array_equal(frame.to_model(points), expected)


@given(SIDES, SIDES, st.integers(16, 2048), st.lists(st.tuples(COORDINATES, COORDINATES), max_size=5))
def test_points_survive_the_round_trip(height: int, width: int, side: int, points: list[tuple[float, float]]) -> None:
    frame = letterbox.letterbox_for(Size(height, width), side)
    there = np.array(points).reshape(-1, 2)
    np.testing.assert_allclose(frame.to_image(frame.to_model(there)), there, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(frame.to_model(frame.to_image(there)), there, rtol=1e-12, atol=1e-12)


@given(SIDES, SIDES)
def test_the_corners_of_the_image_are_those_of_the_resized_image(height: int, width: int) -> None:
    frame = letterbox.letterbox_for(Size(height, width))
    box = frame.to_model([[0, 0], [width, height]])
    np.testing.assert_allclose(box, [[0, 0], [frame.resized.width, frame.resized.height]])


def test_any_leading_dimensions_are_kept() -> None:
    frame = letterbox.letterbox_for(Size(100, 200))
    points = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    assert frame.to_model(points).shape == points.shape
    assert frame.to_model(points).dtype == np.float64


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([16, 33, 64]))
def test_any_size_resizes_to_its_frame(height: int, width: int, side: int) -> None:
    frame = letterbox.letterbox_for(Size(height, width), side)
    resized = letterbox.resize(np.full((height, width, 3), 77, np.uint8), frame)
    assert resized.shape == (frame.resized.height, frame.resized.width, 3)
    assert (resized == 77).all()

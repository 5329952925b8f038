from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.types import Size
from models.unet.constants import PADDING
from models.unet.letterbox import INPUT_SIZE, STRIDE, UNetLetterbox, pad, unet_letterbox


@given(st.builds(Size, st.integers(1, 5000), st.integers(1, 5000)), st.integers(STRIDE**2, 300_000))
def test_every_image_fits_its_area_in_multiples_of_the_stride(size: Size, area: int) -> None:
    frame = unet_letterbox(size, area)
    padded, resized = frame.padded, frame.resized
    assert frame.original == size
    assert padded.pixels <= area
    for whole, part in ((padded.height, resized.height), (padded.width, resized.width)):
        assert whole % STRIDE == 0
        assert 1 <= part <= whole < part + STRIDE


@pytest.mark.parametrize(
    ("size", "padded"),
    [(Size(224, 448), Size(224, 448)), (Size(3000, 1500), Size(448, 224)), (Size(500, 500), Size(288, 288))],
)
def test_a_image_fills_what_the_network_sees(size: Size, padded: Size) -> None:
    frame = unet_letterbox(size, INPUT_SIZE.pixels)
    assert frame.resized == frame.padded == padded


@given(st.builds(Size, st.integers(100, 5000), st.integers(100, 5000)))
def test_the_aspect_ratio_is_kept_to_a_pixel(size: Size) -> None:
    resized = unet_letterbox(size).resized
    scale = max(resized.height / size.height, resized.width / size.width)
    assert size.height * scale - resized.height <= 1 + 1e-6
    assert size.width * scale - resized.width <= 1 + 1e-6


FRAME = UNetLetterbox(Size(90, 70), Size(45, 35), Size(64, 64))


def test_a_image_is_padded_with_the_mean_colour_right_and_below() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 35, 3), np.uint8)
    padded = pad(pixels, FRAME)
    np.testing.assert_array_equal(padded[:45, :35], pixels)
    assert (padded[45:] == PADDING).all()
    assert (padded[:, 35:] == PADDING).all()
    assert padded.flags.c_contiguous


@pytest.mark.parametrize("shape", [(35, 45, 3), (45, 35, 4), (64, 64, 3)])
def test_pixels_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for a frame of"):
        pad(np.zeros(shape, np.uint8), FRAME)

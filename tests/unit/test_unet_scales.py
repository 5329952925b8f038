"""A U-Net that sees an image at three scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from models.types import PixelClass, Size
from models.unet.instances import Cells
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.scales import mean_of_scales, unet_scales

AREA = 200_704
SQUARE = Size(1000, 1000)
FRUIT = (0.2, 0.2, 0.5, 0.5)  # left, top, right, bottom as shares of the image's sides
SURE, NO = 3.0, -3.0


def seen(
    letterbox: UNetLetterbox, healthy: float, infected: float = NO, where: tuple[float, ...] = FRUIT
) -> NDArray[np.float32]:
    """Return an output with margins of healthy and infected over background in a rectangle; outside there is none."""
    output = np.zeros((5, letterbox.padded.height, letterbox.padded.width), np.float32)
    output[1:3] = NO
    left, right = (round(share * letterbox.resized.width) for share in where[::2])
    top, bottom = (round(share * letterbox.resized.height) for share in where[1::2])
    output[1, top:bottom, left:right] = healthy
    output[2, top:bottom, left:right] = infected
    output[0] += 1  # only differences count
    output[1:3] += 1
    return output


def cells(letterboxes: Sequence[UNetLetterbox], *outputs: NDArray[np.float32]) -> Cells:
    return Cells.of(mean_of_scales(outputs, letterboxes), letterboxes[0])


def share_of(found: Cells, pixel_class: PixelClass) -> float:
    return float((found.classes == pixel_class).mean())


@pytest.fixture
def scales() -> tuple[UNetLetterbox, ...]:
    return unet_scales(SQUARE, AREA)


def test_the_scales_are_the_models_own_area_half_of_it_and_twice_it(scales: tuple[UNetLetterbox, ...]) -> None:
    assert scales == tuple(unet_letterbox(SQUARE, area) for area in (AREA, AREA // 2, 2 * AREA))
    assert unet_scales(SQUARE)[0] == unet_letterbox(SQUARE)


def test_the_smallest_model_sees_no_less_than_a_network_can() -> None:
    own, half, _ = unet_scales(SQUARE, 1024)
    assert own == half


def test_fruit_of_all_scales_is_fruit_in_the_cells_of_the_models_own(scales: tuple[UNetLetterbox, ...]) -> None:
    found = cells(scales, *(seen(each, SURE) for each in scales))
    assert found.classes.shape == (scales[0].resized.height, scales[0].resized.width)
    assert share_of(found, PixelClass.HEALTHY) == pytest.approx(0.09, abs=0.005)
    assert share_of(found, PixelClass.INFECTED) == 0


def test_fruit_that_one_scale_alone_sees_is_none(scales: tuple[UNetLetterbox, ...]) -> None:
    own, half, twice = scales
    for outputs in (
        (seen(own, SURE), seen(half, NO), seen(twice, NO)),
        (seen(own, NO), seen(half, SURE), seen(twice, NO)),
        (seen(own, NO), seen(half, NO), seen(twice, SURE)),
    ):
        assert not cells(scales, *outputs).classes.any()


def test_the_smallest_scale_has_no_say_in_outlines(scales: tuple[UNetLetterbox, ...]) -> None:
    own, half, twice = scales
    wider = (0.1, 0.1, 0.6, 0.6)
    found = cells(scales, seen(own, SURE), seen(half, SURE, where=wider), seen(twice, SURE))
    assert share_of(found, PixelClass.HEALTHY) == pytest.approx(0.09, abs=0.005)


def test_what_is_infected_is_the_mean_of_all_scales(scales: tuple[UNetLetterbox, ...]) -> None:
    own, half, twice = scales
    # Infected leads by 1, 1 and -3: the mean does not.
    found = cells(scales, seen(own, 3, 4), seen(half, 3, 4), seen(twice, 4, 1))
    assert share_of(found, PixelClass.INFECTED) == 0
    assert share_of(found, PixelClass.HEALTHY) > 0
    # By 1, 2 and -1.
    found = cells(scales, seen(own, 3, 4), seen(half, 2, 4), seen(twice, 4, 3))
    assert share_of(found, PixelClass.HEALTHY) == 0
    assert share_of(found, PixelClass.INFECTED) > 0


def test_offsets_are_in_the_cells_of_the_models_own_scale(scales: tuple[UNetLetterbox, ...]) -> None:
    outputs = [seen(each, SURE) for each in scales]
    for output, letterbox in zip(outputs, scales, strict=True):
        output[3:] = 0.1 * letterbox.resized.width  # the same place in every image
    found = cells(scales, *outputs)
    np.testing.assert_allclose(found.offsets, 0.1 * scales[0].resized.width, rtol=1e-5)


def test_an_output_of_another_size_or_number_is_refused(scales: tuple[UNetLetterbox, ...]) -> None:
    outputs = [seen(each, SURE) for each in scales]
    with pytest.raises(ValueError, match="the output must have the shape"):
        mean_of_scales([outputs[0], outputs[0], outputs[2]], scales)
    with pytest.raises(ValueError, match="longer"):
        mean_of_scales(outputs[:2], scales)

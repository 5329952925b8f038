from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.types import PixelClass, Size
from models.unet.instances import MIN_REGION, Cells
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.postprocess import INFECTED_SHARE, class_map, objects
from tests.fakes import with_votes

LENGTHS = st.integers(1, 400) | st.sampled_from([767, 1024, 1800])
SIZES = st.builds(Size, LENGTHS, LENGTHS)
AREAS = st.sampled_from([32 * 32, 64 * 96, 224 * 448])


def enlarged(cells: Cells) -> NDArray[np.float64]:
    """The plain computation: the margins of all three classes at the image's size, in float64."""
    margins = np.concatenate((np.zeros_like(cells.margins[:1]), cells.margins))
    inside = torch.from_numpy(margins).double()[None]
    size = (cells.letterbox.original.height, cells.letterbox.original.width)
    return np.asarray(torch.nn.functional.interpolate(inside, size, mode="bilinear")[0].numpy())


def assert_is_the_plain_argmax(logits: NDArray[np.float32], letterbox: UNetLetterbox) -> None:
    """Everywhere but where float32 cannot tell the two largest logits apart.

    OpenCV rounds a position among n cells to n / 2**24 of a cell, and from one cell to the next all logits may change.
    """
    tie = 1e-5 + max(logits.shape) * 2.0**-23 * np.ptp(logits[:3])
    cells = Cells.of(logits, letterbox)
    full, classes = enlarged(cells), class_map(cells)
    assert classes.dtype == np.uint8
    assert classes.shape == full.shape[1:]
    _, second, first = np.sort(full, axis=0)
    off = (classes != full.argmax(axis=0)) & (first - second > tie)
    assert not off.any(), np.argwhere(off)[:3]


def blobs(letterbox: UNetLetterbox, seed: int, *, noise: float) -> NDArray[np.float32]:
    """Logits of some fruits that are infected on one side, over the padding too."""
    rng = np.random.default_rng(seed)
    height, width = letterbox.padded.height, letterbox.padded.width
    ys, xs = np.mgrid[:height, :width]
    logits = rng.normal(0, noise, (5, height, width)) if noise else np.zeros((5, height, width))
    for _ in range(rng.integers(1, 6)):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(1, 40)
        inside = np.clip(radius - np.hypot(ys - y, xs - x), -8, 8)
        logits[1] = np.maximum(logits[1], inside)
        logits[2] = np.maximum(logits[2], inside + np.clip((xs - x) / 3, -9, 9))
    return np.asarray(logits, np.float32)


@settings(deadline=None, max_examples=120)
@given(size=SIZES, area=AREAS, seed=st.integers(0, 99), noise=st.sampled_from([0, 0.5, 10]))
@example(size=Size(4160, 1800), area=224 * 448, seed=1, noise=0.5)
@example(size=Size(1, 9000), area=224 * 448, seed=2, noise=10)
@example(size=Size(9000, 2), area=224 * 448, seed=3, noise=10)
def test_the_class_map_is_the_argmax_of_logits_enlarged_to_the_image(
    size: Size, area: int, seed: int, noise: float
) -> None:
    letterbox = unet_letterbox(size, area)
    assert_is_the_plain_argmax(blobs(letterbox, seed, noise=noise), letterbox)


@settings(deadline=None, max_examples=60)
@given(size=SIZES, at=st.tuples(st.floats(0, 1), st.floats(0, 1)), favoured=st.sampled_from([1, 2]))
def test_a_single_cell_reaches_every_pixel_that_it_should(size: Size, at: tuple[float, float], favoured: int) -> None:
    letterbox = unet_letterbox(size)
    logits = np.zeros((5, letterbox.padded.height, letterbox.padded.width), np.float32)
    logits[0] = 2
    logits[favoured, int(at[0] * (letterbox.resized.height - 1)), int(at[1] * (letterbox.resized.width - 1))] = 30
    assert_is_the_plain_argmax(logits, letterbox)


@pytest.mark.parametrize("size", [Size(4160, 1800), Size(96, 128), Size(1, 1)])
@pytest.mark.parametrize("pixel_class", [PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED])
def test_where_all_cells_agree_the_whole_map_does(size: Size, pixel_class: PixelClass) -> None:
    letterbox = unet_letterbox(size)
    logits = (
        np.random.default_rng(0).normal(0, 1, (5, letterbox.padded.height, letterbox.padded.width)).astype(np.float32)
    )
    logits[pixel_class] += 20
    assert (class_map(Cells.of(logits, letterbox)) == pixel_class).all()


def test_equal_logits_are_background_and_healthy_before_infected() -> None:
    letterbox = unet_letterbox(Size(448, 224))
    logits = np.zeros((5, 448, 224), np.float32)
    logits[1:, 100:] = 3
    logits[2, 200:] = 4
    classes = class_map(Cells.of(logits, letterbox))
    assert classes[0, 0] == PixelClass.BACKGROUND
    assert classes[150, 0] == PixelClass.HEALTHY
    assert classes[300, 0] == PixelClass.INFECTED


def test_the_padding_is_ignored() -> None:
    letterbox = unet_letterbox(Size(4160, 1800))
    assert letterbox.padded.width > letterbox.resized.width
    logits = np.zeros((5, letterbox.padded.height, letterbox.padded.width), np.float32)
    logits[0] = 1
    logits[2, :, letterbox.resized.width :] = 1000
    assert not class_map(Cells.of(logits, letterbox)).any()
    assert objects(Cells.of(logits, letterbox)) == []


def test_output_of_another_letterbox_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 448, 224\), got \(5, 224, 448\)"):
        Cells.of(np.zeros((5, 224, 448), np.float32), unet_letterbox(Size(448, 224)))


LETTERBOX = unet_letterbox(Size(896, 448))
"""One cell covers 2 x 2 pixels."""


def painted(*rectangles: tuple[slice, slice, PixelClass], by: float = 50) -> NDArray[np.float32]:
    """Of `LETTERBOX`: background, and by how much the class of each rectangle of cells wins there.

    Rectangles that overlap or touch vote for one middle.
    """
    logits = np.zeros((3, 448, 224), np.float32)
    logits[0] = 50
    for rows, columns, pixel_class in rectangles:
        logits[:, rows, columns] = 0
        logits[pixel_class, rows, columns] = by
    return voted(logits)


def voted(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every connected region votes for its middle."""
    _, regions = cv2.connectedComponents((logits[:3].argmax(axis=0) > 0).astype(np.uint8), connectivity=8)
    return with_votes(logits[:3], regions)


def test_a_region_has_box_area_and_score() -> None:
    (region,) = objects(Cells.of(painted((slice(10, 30), slice(40, 50), PixelClass.HEALTHY)), LETTERBOX))
    assert region.pixel_class is PixelClass.HEALTHY
    assert region.box == (80, 20, 100, 60)
    assert region.area == 20 * 10 * 4
    assert region.score == pytest.approx(1)


def test_the_score_is_the_mean_probability_of_fruit_of_either_kind() -> None:
    square = (slice(100, 110), slice(100, 110), PixelClass.INFECTED)
    (region,) = objects(Cells.of(painted(square, by=np.log(8)), LETTERBOX))
    # Softmax of (0, 0, log 8) is (1, 1, 8) / 10: a tenth for the background.
    assert region.score == pytest.approx(0.9)


@pytest.mark.parametrize(("surest", "found"), [(1.6, 0), (1.8, 1)])
def test_a_region_that_is_nowhere_certain_is_background(surest: float, found: int) -> None:
    logits = painted((slice(100, 120), slice(100, 120), PixelClass.HEALTHY), by=0.5)
    logits[1, 110, 110] = surest
    cells = Cells.of(logits, LETTERBOX)
    assert len(objects(cells)) == found
    assert class_map(cells).any() == bool(found)


def test_beside_a_doubtful_region_a_certain_one_stays() -> None:
    sure = (slice(10, 30), slice(10, 30), PixelClass.INFECTED)
    logits = painted(sure)
    alone = class_map(Cells.of(logits, LETTERBOX))
    logits[0, 200:220, 100:120], logits[1, 200:220, 100:120] = 0, 1
    assert (class_map(Cells.of(logits, LETTERBOX)) == alone).all()


def test_specks_are_dropped_and_the_smallest_fruit_is_not() -> None:
    speck = (slice(0, 1), slice(0, MIN_REGION - 1), PixelClass.INFECTED)
    smallest = (slice(10, 11), slice(0, MIN_REGION), PixelClass.INFECTED)
    (region,) = objects(Cells.of(painted(speck, smallest), LETTERBOX))
    assert region.box == (0, 20, 2 * MIN_REGION, 22)


@pytest.mark.parametrize(("infected", "verdict"), [(19, PixelClass.HEALTHY), (20, PixelClass.INFECTED)])
def test_a_fruit_is_infected_from_the_threshold_on(infected: int, verdict: PixelClass) -> None:
    assert INFECTED_SHARE * 1000 == 20
    whole = (slice(50, 75), slice(50, 90), PixelClass.HEALTHY)
    spot = (slice(60, 61), slice(55, 55 + infected), PixelClass.INFECTED)
    (region,) = objects(Cells.of(painted(whole, spot), LETTERBOX))
    assert region.pixel_class is verdict
    assert region.area == 4 * 1000


@settings(deadline=None, max_examples=40)
@given(size=st.builds(Size, st.integers(200, 2000), st.integers(200, 2000)), radius=st.floats(12, 40))
def test_a_regions_box_and_area_are_those_of_the_class_map_to_a_cell(size: Size, radius: float) -> None:
    letterbox = unet_letterbox(size)
    ys, xs = np.mgrid[: letterbox.padded.height, : letterbox.padded.width]
    distance = np.hypot(ys - letterbox.resized.height / 2, xs - letterbox.resized.width / 2)
    logits = np.zeros((5, letterbox.padded.height, letterbox.padded.width), np.float32)
    logits[1] = radius - distance
    (region,) = objects(Cells.of(voted(logits), letterbox))
    found = class_map(Cells.of(logits, letterbox)) == PixelClass.HEALTHY
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    # The map's edge runs between the centres of two cells: half a cell; a pixel of rounding outwards, half a pixel of
    # the map's own rounding.
    cell = max(size.height / letterbox.resized.height, size.width / letterbox.resized.width)
    np.testing.assert_allclose(region.box, box, atol=cell / 2 + 1.5)
    # Half a cell all around is at most 1/radius of the area on each side; counting cells averages most of it out.
    assert region.area == pytest.approx(np.count_nonzero(found), rel=1 / radius)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.cropped_masks import CroppedMask, common, polygons_of, rle_of
from models.masks import bounding_box, encode_rle
from models.polygons import encode_polygons
from models.types import BinaryMask, Size

SIZE = Size(30, 40)


def cutout(density: float, at: tuple[int, int, int, int], size: Size = SIZE, seed: int = 0) -> CroppedMask:
    """A random mask in a box of an image."""
    x0, y0, x1, y1 = at
    pixels: BinaryMask = np.random.default_rng(seed).random((y1 - y0, x1 - x0)) < density
    return CroppedMask(pixels, x0, y0, size)


def boxes(size: Size = SIZE) -> st.SearchStrategy[tuple[int, int, int, int]]:
    across = st.lists(st.integers(0, size.width), min_size=2, max_size=2, unique=True).map(sorted)
    down = st.lists(st.integers(0, size.height), min_size=2, max_size=2, unique=True).map(sorted)
    return st.builds(lambda xs, ys: (xs[0], ys[0], xs[1], ys[1]), across, down)


ANY = st.builds(cutout, st.sampled_from([0.0, 0.1, 0.5, 1.0]), boxes(), seed=st.integers(0, 99))


@settings(deadline=None)
@given(ANY)
@example(cutout(1, (0, 0, 40, 30)))
@example(cutout(0, (0, 0, 40, 30)))
@example(cutout(1, (39, 29, 40, 30)))
@example(cutout(1, (10, 0, 20, 30)))
@example(cutout(1, (0, 0, 1, 1), Size(1, 1)))
def test_a_cutouts_rle_and_polygons_are_those_of_the_whole_mask(part: CroppedMask) -> None:
    assert rle_of(part) == encode_rle(part.full())
    assert polygons_of(part) == encode_polygons(part.full())


@settings(deadline=None)
@given(ANY)
def test_the_whole_mask_is_the_cutout_where_it_lies_and_empty_elsewhere(part: CroppedMask) -> None:
    full = part.full()
    assert full.shape == (SIZE.height, SIZE.width)
    x0, y0, x1, y1 = part.box
    np.testing.assert_array_equal(full[y0:y1, x0:x1], part.pixels)
    assert full.sum() == part.pixels.sum() == part.area


@settings(deadline=None)
@given(ANY, boxes())
def test_what_lies_in_a_box_is_what_the_whole_mask_has_there(part: CroppedMask, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    np.testing.assert_array_equal(part.within(box), part.full()[y0:y1, x0:x1])


@settings(deadline=None)
@given(ANY)
def test_a_tight_cutout_has_the_same_mask_in_its_own_box(part: CroppedMask) -> None:
    tight = part.tight()
    np.testing.assert_array_equal(tight.full(), part.full())
    if part.area:
        assert tight.box == bounding_box(part.full())
    else:
        assert tight.pixels.shape == (1, 1)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ((5, 5, 30, 30), (10, 10, 20, 20)),
        ((15, 0, 16, 12), (15, 10, 16, 12)),
        ((20, 10, 30, 20), None),
        ((0, 0, 40, 10), None),
    ],
)
def test_boxes_share_what_lies_in_both(
    other: tuple[int, int, int, int], shared: tuple[int, int, int, int] | None
) -> None:
    assert common((10, 10, 20, 20), other) == common(other, (10, 10, 20, 20)) == shared

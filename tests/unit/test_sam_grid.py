"""Grids and crops are the reference's; the order of a grid covers the image early."""

from __future__ import annotations

import numpy as np
import pytest
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes

from models.sam.grid import OVERLAP, crops_of, point_grid, points_in, spread
from models.types import Size

SIZES = [Size(534, 800), Size(1200, 1800), Size(777, 301), Size(64, 64)]


@pytest.mark.parametrize("per_side", [1, 3, 16, 32])
def test_a_grid_is_the_reference_s(per_side: int) -> None:
    expected = build_point_grid(per_side) * [800, 534]
    np.testing.assert_allclose(point_grid(per_side, Size(534, 800)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_are_the_reference_s(size: Size, layers: int) -> None:
    boxes, numbers = generate_crop_boxes((size.height, size.width), layers, OVERLAP)
    found = list(crops_of(size, layers))
    assert [list(crop.box) for crop in found] == boxes
    assert [crop.layer for crop in found] == numbers
    assert points_in(8, layers) == 64 * len(found)


def test_an_image_smaller_than_its_crops_has_fewer() -> None:
    found = list(crops_of(Size(1, 2), 2))
    assert found
    assert all(crop.size.pixels > 0 for crop in found)


@pytest.mark.parametrize("per_side", [1, 2, 5, 16, 32])
def test_every_point_is_asked_once(per_side: int) -> None:
    assert sorted(spread(per_side).tolist()) == list(range(per_side**2))


def test_the_first_points_lie_in_all_quarters_then_in_all_sixteenths() -> None:
    order = spread(16)
    rows, columns = np.divmod(order, 16)
    for count, parts in ((4, 2), (16, 4), (64, 8)):
        seen = zip(rows[:count], columns[:count], strict=True)
        cells = {(row * parts // 16, column * parts // 16) for row, column in seen}
        assert len(cells) == count

from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.prompts import FURTHEST, JITTER, wanted_fruits
from models.sam.clicks import jittered_box
from models.types import Box, PixelClass, Size
from tests.knowing_unet import discs

SIZE = Size(200, 300)


def corners(box: Box | None) -> tuple[float, float, float, float]:
    assert box is not None
    return box.x0, box.y0, box.x1, box.y1


def test_the_same_seed_gives_the_same_boxes_whatever_was_asked_for_before() -> None:
    one, two = discs((60, 60, 30), (200, 100, 40), name="one"), discs((100, 100, 30), name="two")
    first = [each.by_box for each in wanted_fruits(one, 3)]
    wanted_fruits(two, 3)
    assert [each.by_box for each in wanted_fruits(one, 3)] == first
    assert [each.by_box for each in wanted_fruits(one, 4)] != first
    # Another image with the same fruit has other noise.
    assert [each.by_box for each in wanted_fruits(replace(one, name="three"), 3)] != first


def test_each_side_moves_by_five_per_cent_of_the_boxs_length() -> None:
    rng = np.random.default_rng(0)
    moves = np.array([corners(jittered_box((100, 80, 200, 120), SIZE, rng)) for _ in range(4000)])
    moves -= (100, 80, 200, 120)
    lengths = np.array([100, 40, 100, 40])
    assert (np.abs(moves) <= FURTHEST * JITTER * lengths + 1e-9).all()
    # A normal's standard deviation, clipped at two of them, is 0.96 of what it was; 4000 draws tell it within 5 %.
    assert moves.std(axis=0) == pytest.approx(0.96 * JITTER * lengths, rel=0.05)
    assert moves.mean(axis=0) == pytest.approx(np.zeros(4), abs=0.3)


def test_boxes_stay_in_the_image_and_are_never_empty() -> None:
    rng = np.random.default_rng(1)
    for box in ((0, 0, 300, 200), (299, 199, 300, 200), (0, 0, 1, 1), (0, 150, 300, 200)):
        for _ in range(200):
            x0, y0, x1, y1 = corners(jittered_box(box, SIZE, rng))
            assert 0 <= x0 <= x1 - 1 + 1e-9 <= SIZE.width - 1 + 1e-9
            assert 0 <= y0 <= y1 - 1 + 1e-9 <= SIZE.height - 1 + 1e-9


def test_the_click_is_at_the_innermost_pixel_of_what_is_seen() -> None:
    # The second disc hides the right half of the first, whose innermost pixel is then left of its centre.
    first, second = wanted_fruits(discs((100, 100, 40), (140, 100, 40)), 0)
    (one,), (other,) = first.by_point.points, second.by_point.points
    assert first.mask[int(one.y), int(one.x)]
    assert one.x < 90
    assert (other.x, other.y) == (140, 100)
    assert first.by_point.box is None


def test_a_fruit_in_ignored_pixels_is_not_asked_for_and_draws_its_noise_all_the_same() -> None:
    sample = discs((60, 60, 30), (200, 100, 40))
    assert sample.instance_map is not None
    semantic = np.where(sample.instance_map == 1, np.uint8(PixelClass.IGNORE), sample.semantic)
    (left,) = wanted_fruits(replace(sample, semantic=semantic), 0)
    assert left.by_box == wanted_fruits(sample, 0)[1].by_box


def test_without_fruits_told_apart_there_is_nothing_to_ask_for() -> None:
    assert wanted_fruits(replace(discs((60, 60, 30)), instance_map=None), 0) == []

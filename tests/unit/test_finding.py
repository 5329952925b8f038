"""Fruit of a U-Net and boxes of a detector become the fruit of an image."""

from __future__ import annotations

import numpy as np
import pytest

from models.detector.postprocess import Detection
from models.finding import found_by_both, found_by_detector
from models.inspection import Fruit, Inspection, measure_fruit
from models.masks import CroppedMask
from models.types import Box, PixelClass, SemanticMap, Size

SIZE = Size(100, 300)
Corners = tuple[int, int, int, int]
LEFT, MIDDLE, RIGHT = (10, 20, 60, 70), (110, 20, 160, 70), (210, 20, 260, 70)
HALVES = ((110, 20, 135, 70), (135, 20, 160, 70))


def fruit(box: Corners, classes: SemanticMap) -> Fruit:
    x0, y0, x1, y1 = box
    return measure_fruit(CroppedMask(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, SIZE), classes, 0.9)


def seen(*boxes: Corners, infected: Corners | None = None) -> Inspection:
    """What a U-Net found: fruits that fill their boxes."""
    classes: SemanticMap = np.zeros((SIZE.height, SIZE.width), np.uint8)
    for x0, y0, x1, y1 in boxes:
        classes[y0:y1, x0:x1] = PixelClass.HEALTHY
    if infected is not None:
        x0, y0, x1, y1 = infected
        classes[y0:y1, x0:x1] = PixelClass.INFECTED
    return Inspection(classes, tuple(fruit(box, classes) for box in boxes))


def box(corners: Corners, score: float) -> Detection:
    return Detection(Box(*map(float, corners)), 0, score)


def boxes(inspection: Inspection) -> list[Corners]:
    return [each.box for each in inspection.fruits]


def test_fruit_that_both_find_keeps_the_u_nets_mask() -> None:
    inspection = seen(LEFT)
    (found,) = found_by_both(inspection, [box((12, 22, 62, 72), 0.9)]).fruits
    assert found is inspection.fruits[0]


def test_pieces_in_one_box_become_one_fruit_with_what_is_infected_of_it() -> None:
    inspection = seen(*HALVES, infected=(115, 40, 125, 50))
    (found,) = found_by_both(inspection, [box(MIDDLE, 0.9)]).fruits
    assert (found.box, found.area, found.infected_area) == (MIDDLE, 2500, 100)
    assert found.confidence == 0.9


def test_fruit_that_no_box_confirms_is_none_and_a_faint_box_confirms_it() -> None:
    inspection = seen(LEFT, MIDDLE)
    assert boxes(found_by_both(inspection, [box(LEFT, 0.03)])) == [LEFT]
    assert boxes(found_by_both(inspection, [])) == []


def test_fruit_that_the_u_net_missed_is_an_ellipse_from_left_to_right_among_the_others() -> None:
    found = found_by_both(seen(LEFT, RIGHT), [box(RIGHT, 0.9), box(MIDDLE, 0.8), box(LEFT, 0.5)])
    assert boxes(found) == [LEFT, MIDDLE, RIGHT]
    ellipse = found.fruits[1]
    assert ellipse.area == pytest.approx(np.pi * 25 * 25, rel=0.03)
    assert (ellipse.infected_area, ellipse.confidence) == (0, 0.8)


def test_a_faint_box_alone_is_no_fruit() -> None:
    assert boxes(found_by_both(seen(), [box(LEFT, 0.2)])) == []
    assert boxes(found_by_detector(seen(), [box(LEFT, 0.2)])) == [LEFT]
    assert boxes(found_by_detector(seen(), [box(LEFT, 0.1)])) == []


def test_the_detector_alone_leaves_out_what_it_did_not_find() -> None:
    assert boxes(found_by_detector(seen(LEFT, MIDDLE), [box(LEFT, 0.5), box(MIDDLE, 0.05)])) == [LEFT]


def test_a_box_in_a_better_box_is_a_part_of_it() -> None:
    assert boxes(found_by_both(seen(LEFT), [box(LEFT, 0.9), box((20, 30, 40, 50), 0.6)])) == [LEFT]


def test_no_pixel_is_in_two_masks() -> None:
    one, other = (10, 20, 60, 70), (40, 20, 90, 70)
    found = found_by_both(seen(), [box(one, 0.9), box(other, 0.8)])
    assert len(found.fruits) == 2
    taken = np.zeros((SIZE.height, SIZE.width), int)
    for each in found.fruits:
        x0, y0, x1, y1 = each.box
        taken[y0:y1, x0:x1] += each.mask.pixels
    assert taken.max() == 1

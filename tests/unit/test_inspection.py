from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.inspection import (
    GRADES,
    REJECT,
    Inspection,
    agreeing,
    grade_of,
    inspect,
    measure_fruit,
    prompt_for,
    refine,
)
from models.masks import CroppedMask, whole
from models.sam.postprocess import MaskCrop
from models.types import BinaryMask, Box, PixelClass, Size
from models.unet.instances import MIN_REGION, Cells
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.postprocess import INFECTED_SHARE, class_map
from tests.fakes import rectangle, with_votes

EXACT = unet_letterbox(Size(224, 448))
"""A cell is a pixel."""

Corners = tuple[int, int, int, int]


def output(
    numbers: NDArray[np.int32], sick: BinaryMask | None = None, *, letterbox: UNetLetterbox = EXACT, by: float = 20
) -> NDArray[np.float32]:
    """What a network would say of fruits by their numbers, some of their cells infected."""
    logits = np.zeros((3, letterbox.padded.height, letterbox.padded.width), np.float32)
    logits[0] = by / 2
    logits[1][numbers > 0] = by
    if sick is not None:
        logits[2][sick] = 2 * by
    return with_votes(logits, numbers)


def boxed(*boxes: Corners, letterbox: UNetLetterbox = EXACT) -> NDArray[np.int32]:
    """Cells numbered by the box that they lie in."""
    numbers = np.zeros((letterbox.padded.height, letterbox.padded.width), np.int32)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        numbers[y0:y1, x0:x1] = number
    return numbers


def discs(letterbox: UNetLetterbox, *rounds: tuple[float, float, float]) -> NDArray[np.int32]:
    """Cells numbered by the disc of x, y and radius that they lie in; later ones hide earlier ones."""
    ys, xs = np.mgrid[: letterbox.padded.height, : letterbox.padded.width]
    numbers = np.zeros((letterbox.padded.height, letterbox.padded.width), np.int32)
    for number, (x, y, radius) in enumerate(rounds, start=1):
        numbers[np.hypot(xs - x, ys - y) <= radius] = number
    return numbers


def covered(inspection: Inspection) -> NDArray[np.int32]:
    """In how many masks each pixel is."""
    count = np.zeros(inspection.classes.shape, np.int32)
    for fruit in inspection.fruits:
        count += fruit.mask.full()
    return count


def test_a_fruit_has_a_mask_and_an_infected_part() -> None:
    numbers = boxed((40, 20, 80, 60))
    sick = boxed((60, 20, 80, 40)) > 0
    (fruit,) = inspect(output(numbers, sick), EXACT).fruits
    assert fruit.box == (40, 20, 80, 60)
    assert fruit.area == 40 * 40
    np.testing.assert_array_equal(fruit.mask.full(), numbers > 0)
    np.testing.assert_array_equal(fruit.infected.full(), sick)
    assert fruit.infected_fraction == 0.25
    assert fruit.pixel_class is PixelClass.INFECTED
    assert not fruit.truncated
    assert not fruit.refined


def test_fruits_come_from_left_to_right_and_the_upper_first() -> None:
    numbers = boxed((200, 10, 240, 50), (20, 150, 80, 210), (100, 120, 140, 160), (100, 10, 140, 50))
    boxes = [fruit.box for fruit in inspect(output(numbers), EXACT).fruits]
    assert boxes == [(20, 150, 80, 210), (100, 10, 140, 50), (100, 120, 140, 160), (200, 10, 240, 50)]


def test_fruits_that_touch_are_two_and_an_infected_spot_is_of_its_own_fruit() -> None:
    left, right = (40, 20, 80, 60), (80, 20, 120, 60)
    sick = boxed((80, 30, 90, 50)) > 0
    first, second = inspect(output(boxed(left, right), sick), EXACT).fruits
    assert (first.box, second.box) == (left, right)
    assert (first.area, second.area) == (1600, 1600)
    assert (first.infected_fraction, second.infected_fraction) == (0, 200 / 1600)


@settings(deadline=None, max_examples=40)
@given(size=st.builds(Size, st.integers(60, 1200), st.integers(60, 1200)), seed=st.integers(0, 999))
def test_every_pixel_of_fruit_is_in_one_mask(size: Size, seed: int) -> None:
    letterbox = unet_letterbox(size)
    rng = np.random.default_rng(seed)
    height, width = letterbox.resized.height, letterbox.resized.width
    radius = float(rng.uniform(10, min(height, width) / 3))
    angle = rng.uniform(0, np.pi)
    step = radius * 1.98 * np.array((np.cos(angle), np.sin(angle)))
    places = [(width / 2 + n * step[0], height / 2 + n * step[1], radius) for n in (-1, 0, 1)]
    found = inspect(output(discs(letterbox, *places), letterbox=letterbox), letterbox)
    np.testing.assert_array_equal(covered(found), found.classes > 0)
    np.testing.assert_array_equal(
        found.classes, class_map(Cells.of(output(discs(letterbox, *places), letterbox=letterbox), letterbox))
    )


def test_the_border_between_fruits_that_touch_is_smooth_in_a_large_image() -> None:
    letterbox = unet_letterbox(Size(2240, 4480))
    ys, xs = np.mgrid[:224, :448]
    slope = 0.377
    inside = np.minimum(np.hypot(xs - 164, ys - 112), np.hypot(xs - 284, ys - 112)) < 80
    numbers = np.where(inside, np.where(xs - 224 < slope * (ys - 112), 1, 2), 0).astype(np.int32)
    left = inspect(output(numbers, letterbox=letterbox), letterbox).fruits[0].mask.full()
    rows = np.arange(700, 1540)
    border = np.array([np.flatnonzero(left[row])[-1] + 1 for row in rows])
    line = 10 * (224.5 + slope * ((rows + 0.5) / 10 - 112.5))  # cell 0 has its middle at half a cell
    offsets = (border - line) / 10
    # Cells that are taken whole are off by up to half of one each way: 0.29 in the mean square.
    assert np.std(offsets) < 0.15
    assert abs(np.mean(offsets)) < 0.05


def test_a_stray_cell_that_votes_for_another_fruit_is_not_taken_from_the_one_around_it() -> None:
    boxes = (20, 20, 60, 60), (300, 100, 340, 140)
    given_output = output(boxed(*boxes))
    given_output[3:, 40, 40] = given_output[3:, 120, 320] + np.array([(320 - 40) / 32, (120 - 40) / 32])
    first, second = inspect(given_output, EXACT).fruits
    assert (first.box, second.box) == boxes
    assert (first.area, second.area) == (1600, 1600)


def test_a_fruit_that_a_leaf_divides_is_one() -> None:
    numbers = boxed((40, 20, 80, 100))
    numbers[50:60] = 0
    (fruit,) = inspect(output(numbers), EXACT).fruits
    assert fruit.box == (40, 20, 80, 100)
    assert fruit.area == 40 * 70


def test_the_confidence_is_the_mean_probability_of_fruit_of_either_kind() -> None:
    numbers = boxed((40, 20, 80, 60))
    logits = np.zeros((3, 224, 448), np.float32)
    logits[0, numbers == 0] = 50
    logits[2, numbers > 0] = np.log(8)
    (fruit,) = inspect(with_votes(logits, numbers), EXACT).fruits
    # Softmax of (0, 0, log 8) is (1, 1, 8) / 10: a tenth for the background.
    assert fruit.confidence == pytest.approx(0.9)


@pytest.mark.parametrize(("infected", "verdict"), [(19, PixelClass.HEALTHY), (20, PixelClass.INFECTED)])
def test_a_fruit_is_infected_from_the_named_share_on(infected: int, verdict: PixelClass) -> None:
    assert INFECTED_SHARE * 1000 == 20
    sick = np.zeros((224, 448), np.bool_)
    sick[30, 50 : 50 + infected] = True
    (fruit,) = inspect(output(boxed((40, 20, 80, 45)), sick), EXACT).fruits
    assert fruit.infected_fraction == infected / 1000
    assert fruit.pixel_class is verdict


@pytest.mark.parametrize(
    ("box", "truncated"),
    [
        ((1, 1, 41, 41), False),
        ((0, 1, 40, 41), True),
        ((1, 0, 41, 40), True),
        ((408, 1, 448, 41), True),
        ((1, 184, 41, 224), True),
        ((407, 183, 447, 223), False),
    ],
)
def test_a_fruit_at_the_images_edge_is_truncated(box: Corners, truncated: bool) -> None:
    (fruit,) = inspect(output(boxed(box)), EXACT).fruits
    assert fruit.box == box
    assert fruit.truncated is truncated


@pytest.mark.parametrize("size", [Size(1, 1), Size(3, 5), Size(2, 900), Size(4160, 1800)])
def test_images_of_any_size_are_inspected(size: Size) -> None:
    letterbox = unet_letterbox(size)
    numbers = np.ones((letterbox.padded.height, letterbox.padded.width), np.int32)
    (fruit,) = inspect(output(numbers, letterbox=letterbox), letterbox).fruits
    assert fruit.area == size.pixels
    assert fruit.truncated


def test_a_fruit_that_is_smaller_than_a_pixel_is_left_out() -> None:
    letterbox = unet_letterbox(Size(5, 10))
    assert letterbox.resized == Size(224, 448)
    assert MIN_REGION == 16
    corner = boxed((44, 44, 48, 48), letterbox=letterbox)  # 45 cells to a pixel: between the centres of four
    assert inspect(output(corner, letterbox=letterbox), letterbox).fruits == ()


def test_an_image_without_fruit_has_no_fruits() -> None:
    found = inspect(output(boxed()), EXACT)
    assert found.fruits == ()
    assert not found.classes.any()


def test_an_output_of_another_letterbox_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 448, 224\), got \(5, 224, 448\)"):
        inspect(output(boxed()), unet_letterbox(Size(448, 224)))


@pytest.mark.parametrize(
    ("fraction", "grade"),
    [(0, "A"), (0.01, "A"), (0.0101, "B"), (0.05, "B"), (0.0501, "C"), (0.25, "C"), (0.2501, REJECT), (1, REJECT)],
)
def test_the_threshold_of_a_grade_is_inclusive(fraction: float, grade: str) -> None:
    assert [str(each) for each in GRADES] == ["A:0.01", "B:0.05", "C:0.25"]
    assert grade_of(fraction, GRADES) == grade


def test_no_fruit_of_the_best_grade_has_the_class_infected() -> None:
    assert GRADES[0].most < INFECTED_SHARE


# Refinement by a SAM

LEFT, RIGHT = (40, 20, 80, 60), (80, 20, 120, 60)


def sam_mask(*box: int) -> CroppedMask:
    """A SAM's mask: a box of the image."""
    x0, y0, x1, y1 = box
    return CroppedMask(np.ones((y1 - y0, x1 - x0), np.bool_), x0, y0, EXACT.original)


def seen(*boxes: Corners, sick: BinaryMask | None = None) -> Inspection:
    return inspect(output(boxed(*boxes), sick), EXACT)


def test_the_prompt_is_a_box_slightly_larger_than_the_fruit_within_the_image() -> None:
    (fruit,) = seen((100, 50, 200, 150)).fruits
    prompt = prompt_for(fruit)
    assert not prompt.multimask
    assert prompt.points == ()
    assert prompt.box is not None
    grown = [100 - prompt.box.x0, 50 - prompt.box.y0, prompt.box.x1 - 200, prompt.box.y1 - 150]
    assert grown == pytest.approx([grown[0]] * 4)
    assert 0 <= grown[0] <= 10
    (whole,) = seen((0, 0, 448, 224)).fruits
    assert prompt_for(whole).box == Box(0, 0, 448, 224)


def test_a_mask_that_agrees_is_used_and_its_infected_pixels_are_counted() -> None:
    sick = rectangle(40, 20, 60, 60, EXACT.original)
    before = seen(LEFT, sick=sick)
    (fruit,) = refine(before, {0: sam_mask(44, 20, 84, 60)}).fruits
    assert fruit.refined
    assert fruit.confidence == before.fruits[0].confidence
    assert fruit.box == (44, 20, 84, 60)
    # Of the infected columns 40 to 59, 44 to 59 are left.
    assert fruit.infected_fraction == 16 / 40
    np.testing.assert_array_equal(fruit.infected.full(), rectangle(44, 20, 60, 60, EXACT.original))


def unsure(inspection: Inspection) -> Inspection:
    return replace(inspection, fruits=tuple(replace(fruit, confidence=0.8) for fruit in inspection.fruits))


NOTHING: Final = CroppedMask(np.zeros((1, 1), np.bool_), 0, 0, EXACT.original)


@pytest.mark.parametrize("other", [(40, 20, 67, 60), (50, 20, 90, 60), (30, 20, 90, 62)], ids=["part", "aside", "more"])
def test_a_mask_that_agrees_in_part_is_not_used(other: Corners) -> None:
    before = seen(LEFT)
    found = refine(before, {0: sam_mask(*other)})
    assert (found.fruits, found.dismissed) == (before.fruits, 0)


@pytest.mark.parametrize(
    "other",
    [sam_mask(200, 100, 240, 140), sam_mask(40, 20, 59, 60), sam_mask(0, 0, 448, 224), NOTHING, None],
    ids=["elsewhere", "less than half", "all", "nothing", "not even nearly"],
)
def test_an_unsure_fruit_that_the_sam_does_not_see_is_none_unless_a_detector_saw_it(other: CroppedMask | None) -> None:
    before = unsure(seen(LEFT, RIGHT))
    found = refine(before, {0: other, 1: sam_mask(*RIGHT)})
    (right,) = found.fruits
    assert (right.box, right.refined, found.dismissed) == (RIGHT, True, 1)
    confirmed = refine(before, {0: other, 1: sam_mask(*RIGHT)}, confirmed=True)
    assert confirmed.fruits[0] is before.fruits[0]
    assert (len(confirmed.fruits), confirmed.dismissed) == (2, 0)


def test_a_fruit_of_which_the_u_net_is_sure_is_one_whatever_the_sam_sees() -> None:
    before = seen(LEFT)
    assert before.fruits[0].confidence > 0.85
    found = refine(before, {0: None})
    assert (found.fruits, found.dismissed) == (before.fruits, 0)


def test_a_dismissed_fruit_keeps_no_pixel_from_others() -> None:
    found = refine(unsure(seen(LEFT, RIGHT)), {0: None, 1: sam_mask(70, 20, 120, 60)})
    assert [fruit.box for fruit in found.fruits] == [(70, 20, 120, 60)]


def test_fruits_without_a_mask_stay_as_they_are_and_lose_nothing_to_others() -> None:
    before = seen(LEFT, RIGHT)
    found = refine(before, {0: sam_mask(40, 20, 90, 60)})
    left, right = found.fruits
    assert right is before.fruits[1]
    assert (left.refined, right.refined) == (True, False)
    assert left.box == LEFT


def test_a_pixel_in_two_masks_goes_to_its_fruit_in_the_u_net_else_to_the_left_one() -> None:
    left, right = refine(
        seen((40, 20, 80, 60), (90, 20, 130, 60)), {0: sam_mask(40, 20, 95, 60), 1: sam_mask(75, 20, 130, 60)}
    ).fruits
    # In the U-Net's masks, 75 to 79 belong to the left fruit, 90 to 94 to the right one, and 80 to 89 to neither.
    assert left.box == (40, 20, 90, 60)
    assert right.box == (90, 20, 130, 60)


SAM_BOXES = st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(30, 200), st.integers(30, 100)).map(
    lambda given: (given[0], given[1], given[0] + given[2], given[1] + given[3])
)


@settings(deadline=None, max_examples=60)
@given(masks=st.lists(SAM_BOXES, min_size=4, max_size=4))
def test_refined_masks_never_share_a_pixel(masks: list[Corners]) -> None:
    before = seen((40, 20, 80, 60), (80, 20, 120, 60), (60, 60, 100, 100), (200, 100, 300, 200))
    found = refine(before, {number: sam_mask(*box) for number, box in enumerate(masks)}, confirmed=True)
    count: NDArray[np.int32] = np.zeros((224, 448), np.int32)
    for fruit, earlier in zip(found.fruits, before.fruits, strict=True):
        assert fruit.area == fruit.mask.area > 0
        count += fruit.mask.full()
        if fruit.refined:
            own = fruit.mask.full() & earlier.mask.full()
            assert own.sum() >= 0.7 * earlier.area  # the masks agreed, and nothing of its own was lost since
    assert count.max() <= 1


def crop(box: tuple[int, int, int, int], value: float = 1.0) -> MaskCrop:
    """A SAM's mask whose pixels are stored for the whole image."""
    pixels = rectangle(*box, EXACT.original) & (value > 0)
    return MaskCrop(whole(pixels), np.zeros((4, 4), np.float32), 0.9, 0.9, box, int(pixels.sum()))


def test_a_mask_that_agrees_does_not_keep_the_whole_image_in_memory() -> None:
    found = crop((10, 20, 30, 50))
    fruit = measure_fruit(found.crop, np.zeros((EXACT.original.height, EXACT.original.width), np.uint8), 0.9)
    part = agreeing(fruit, found)
    assert part is not None
    np.testing.assert_array_equal(part.full(), found.crop.full())
    assert part.pixels.base is None
    assert part.pixels.shape == (30, 20)


@pytest.mark.parametrize("other", [crop((0, 0, 60, 60)), crop((10, 20, 14, 24)), crop((10, 20, 30, 50), -1)])
def test_a_mask_that_cannot_be_the_fruits_is_not_kept(other: MaskCrop) -> None:
    classes = np.zeros((EXACT.original.height, EXACT.original.width), np.uint8)
    assert agreeing(measure_fruit(crop((10, 20, 30, 50)).crop, classes, 0.9), other) is None

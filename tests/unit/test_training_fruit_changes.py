from __future__ import annotations

import cv2
import numpy as np

from models.data.samples import InstanceMap, Sample
from models.training.cut_outs import CutOut, paste_fruits, transfer_lesions
from models.training.fruit_changes import cast_shadows, change_colour, paint_rot
from models.types import BinaryMask, PixelClass, Pixels, SemanticMap
from tests.knowing_unet import discs

ORANGE = (230, 140, 30)
LEAF = (40, 90, 30)


def oranges() -> tuple[Pixels, SemanticMap, InstanceMap]:
    """Two oranges before leaves, the right one with a black spot."""
    scene = discs((60, 60, 40), (160, 60, 40))
    assert scene.instance_map is not None
    classes = np.where(scene.instance_map > 0, np.uint8(PixelClass.HEALTHY), np.uint8(0))
    pixels = np.where(classes[..., None] > 0, np.array(ORANGE), np.array(LEAF)).astype(np.uint8)
    spot = cv2.circle(np.zeros(classes.shape, np.uint8), (160, 60), 8, 1, -1) > 0
    classes[spot], pixels[spot] = PixelClass.INFECTED, (20, 15, 10)
    return pixels, classes, scene.instance_map


def inner(mask: BinaryMask, pixels: int = 4) -> BinaryMask:
    """The part of a mask that soft edges do not reach."""
    return np.asarray(cv2.erode(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0)


def test_another_colour_changes_healthy_fruit_only() -> None:
    pixels, classes, _ = oranges()
    hues = set()
    for seed in range(12):
        changed = change_colour(pixels, classes, np.random.default_rng(seed))
        for kept in (PixelClass.BACKGROUND, PixelClass.INFECTED):
            assert (changed[inner(classes == kept)] == pixels[inner(classes == kept)]).all()
        hue = int(cv2.cvtColor(changed, cv2.COLOR_RGB2HSV)[60, 40, 0])
        assert hue <= 60 or hue >= 174, "neither blue nor purple"
        hues.add(hue)
    assert len(hues) > 8


def test_painted_rot_is_infected_darker_or_paler_and_on_fruit_without_lesions_only() -> None:
    pixels, classes, fruits = oranges()
    shares = []
    for seed in range(30):
        changed, after = paint_rot(pixels, classes, fruits, np.random.default_rng(seed))
        assert (after[fruits != 1] == classes[fruits != 1]).all()
        assert set(np.unique(after[fruits == 1])) <= {PixelClass.HEALTHY, PixelClass.INFECTED}
        rotten, healthy = inner((fruits == 1) & (after == PixelClass.INFECTED)), inner((fruits == 1) & (after == 1), 22)
        assert np.abs(changed[rotten].astype(int) - ORANGE).sum(axis=1).mean() > 60 or not rotten.any()
        assert (changed[healthy] == pixels[healthy]).all()
        shares.append(float((after[fruits == 1] == PixelClass.INFECTED).mean()))
    assert min(shares) < 0.3
    assert max(shares) > 0.9, "some fruit is wholly rotten"
    assert not (classes[fruits == 1] == PixelClass.INFECTED).any(), "the annotation itself stays"


def test_shadows_only_darken() -> None:
    pixels, _, _ = oranges()
    for seed in range(5):
        changed = cast_shadows(pixels, np.random.default_rng(seed))
        assert (changed <= pixels).all()
        assert (changed < pixels).any()


def cut(pixels: Pixels, classes: SemanticMap, fruits: InstanceMap, number: int) -> CutOut:
    rows, columns = np.nonzero(fruits == number)
    window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return CutOut(pixels[window], classes[window], fruits[window] == number)


def test_pasted_fruit_brings_its_lesions_and_is_a_fruit_of_its_own() -> None:
    pixels, classes, fruits = oranges()
    donor = cut(pixels, classes, fruits, 2)
    empty = Sample("leaves", np.full((192, 192, 3), LEAF, np.uint8), np.zeros((192, 192), np.uint8))
    pasted = infected = 0
    for seed in range(20):
        changed, after, numbers = paste_fruits(
            empty.pixels, empty.semantic, np.zeros((192, 192), np.uint16), [donor], np.random.default_rng(seed)
        )
        assert ((numbers > 0) == (after > 0)).all()
        far = cv2.dilate((numbers > 0).astype(np.uint8), np.ones((13, 13), np.uint8)) == 0
        assert (changed[far] == LEAF).all()
        pasted += int(numbers.max())
        infected += int((after == PixelClass.INFECTED).any())
        bright = inner(numbers > 0, 3) & (after == PixelClass.HEALTHY)
        if bright.any():
            assert changed[bright][:, 0].mean() > changed[bright][:, 2].mean() + 40, "orange"
    assert pasted >= 15  # some lie beyond the edge, or would have to be enlarged too far
    assert infected >= 10
    assert not empty.semantic.any()


def test_transferred_lesions_darken_another_fruit_where_they_are_and_keep_its_colour_elsewhere() -> None:
    pixels, classes, fruits = oranges()
    donor = cut(pixels, classes, fruits, 2)
    pixels[fruits == 1] = (90, 160, 60)  # a green fruit
    changed, after = transfer_lesions(pixels, classes, fruits == 1, donor, np.random.default_rng(0))
    spot = (fruits == 1) & (after == PixelClass.INFECTED)
    # The same share of the fruit, give or take its rim.
    assert abs(np.count_nonzero(spot) - np.count_nonzero(classes == PixelClass.INFECTED)) < 40
    assert changed[inner(spot, 2)].max() < 40
    far = (fruits == 1) & (cv2.dilate(spot.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0)
    assert (changed[far] == (90, 160, 60)).all()
    assert (after[fruits == 2] == classes[fruits == 2]).all()

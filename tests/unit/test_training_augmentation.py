from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models.training.augmentation import UNCHANGED, Augmentation, move_classes, move_pixels, place, recolour
from models.training.errors import CannotTrain
from models.types import PixelClass, Size
from models.unet.constants import PADDING

MARKER = (250, 10, 20)
GROUND = (20, 90, 60)


def marked(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """An image with one red block off the middle, and the classes that say so."""
    semantic = np.zeros((size.height, size.width), np.uint8)
    top, left = size.height // 3, size.width // 4
    semantic[top : top + size.height // 5, left : left + size.width // 3] = PixelClass.INFECTED
    pixels = np.where(semantic[..., None] == PixelClass.INFECTED, np.array(MARKER), np.array(GROUND)).astype(np.uint8)
    return pixels, semantic


@pytest.mark.parametrize("scale", [0.21, 0.5, 1.0, 2.3])
def test_a_coloured_marker_stays_on_its_label_whatever_is_random(scale: float) -> None:
    size = Size(round(90 / scale), round(120 / scale))
    pixels, semantic = marked(size)
    seen = 0
    for seed in range(24):
        placement = place(size, Size(96, 128), scale, Augmentation(), np.random.default_rng(seed))
        moved, classes = move_pixels(pixels, placement), move_classes(semantic, placement)
        assert moved.shape == (96, 128, 3)
        assert classes.shape == (96, 128)
        red = moved[..., 0].astype(int) - moved[..., 1] > 85  # half way from ground to marker
        beside = (moved == PADDING).all(axis=2)
        infected, ignored = classes == PixelClass.INFECTED, classes == PixelClass.IGNORE
        union = np.count_nonzero((red | infected) & ~ignored)
        if union < 100:
            continue
        seen += 1
        # Edges may differ by half a pixel: about a twentieth of so small a block.
        assert np.count_nonzero(red & infected) / union > 0.85, seed
        # Enlarged, the edge is a mixture of 2 pixels.
        assert np.count_nonzero(beside != ignored) / ignored.size < 0.05, seed
    assert seen > 18


def test_a_crop_about_a_point_has_it_near_its_middle() -> None:
    _, semantic = marked(Size(300, 400))
    middle = tuple(float(axis.mean()) for axis in np.nonzero(semantic))[::-1]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        placement = place(Size(300, 400), Size(96, 128), 1.0, Augmentation(), rng, about=(middle[0], middle[1]))
        x, y = placement.matrix @ (*middle, 1.0)
        # A quarter of the sides, turned by up to 20 degrees.
        assert np.hypot(x - 64, y - 48) <= np.hypot(32, 24)
        assert (move_classes(semantic, placement) == PixelClass.INFECTED).any()


def test_nothing_changes_without_augmentation() -> None:
    pixels, semantic = marked(Size(64, 96))
    rng = np.random.default_rng(0)
    placement = place(Size(64, 96), Size(64, 96), 1.0, UNCHANGED, rng)
    assert np.array_equal(move_pixels(pixels, placement), pixels)
    assert np.array_equal(move_classes(semantic, placement), semantic)
    assert np.array_equal(recolour(pixels, UNCHANGED, rng), pixels)


@pytest.mark.parametrize(("changes", "axis"), [({"flip": 1.0}, 1), ({"flip_vertical": 1.0}, 0)])
def test_a_certain_flip_mirrors_image_and_classes(changes: dict[str, float], axis: int) -> None:
    pixels, semantic = marked(Size(64, 96))
    placement = place(
        Size(64, 96), Size(64, 96), 1.0, dataclasses.replace(UNCHANGED, **changes), np.random.default_rng(0)
    )
    assert np.array_equal(move_pixels(pixels, placement), np.flip(pixels, axis))
    assert np.array_equal(move_classes(semantic, placement), np.flip(semantic, axis))


def test_a_smaller_image_lies_entirely_within_its_crop_and_nothing_counts_outside_it() -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    corners = set()
    for seed in range(20):
        placement = place(Size(40, 40), Size(64, 96), 1.0, UNCHANGED, np.random.default_rng(seed))
        classes = move_classes(np.zeros((40, 40), np.uint8), placement)
        assert abs(np.count_nonzero(classes == PixelClass.BACKGROUND) - 1600) <= 80  # a row or a column
        rows, columns = np.nonzero(classes == PixelClass.BACKGROUND)
        corners.add((int(rows.min()), int(columns.min())))
        beside = np.count_nonzero((move_pixels(pixels, placement) == PADDING).all(axis=2))
        assert abs(beside - (64 * 96 - 1600)) <= 160
    assert len(corners) > 15


def test_a_thin_line_survives_shrinking_as_an_average() -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 120] = 255  # the warp alone would skip it or keep it whole
    placement = place(Size(256, 256), Size(32, 32), 1 / 8, UNCHANGED, np.random.default_rng(0))
    moved = move_pixels(pixels, placement)
    assert moved.mean() == pytest.approx(255 / 256, abs=0.5)  # rounded to whole numbers
    assert moved.max() < 64


def test_colours_change_without_moving_anything() -> None:
    pixels, semantic = marked(Size(64, 96))
    strong = dataclasses.replace(UNCHANGED, brightness=0.4, contrast=0.4, saturation=0.4, hue=10.0)
    changes = []
    for seed in range(10):
        changed = recolour(pixels, strong, np.random.default_rng(seed))
        for inside in (semantic == PixelClass.INFECTED, semantic == PixelClass.BACKGROUND):
            assert np.unique(changed[inside], axis=0).shape == (1, 3)
        changes.append(tuple(changed[0, 0].tolist()))
    assert len(set(changes)) == 10


def test_grey_stays_grey_when_hue_and_saturation_change() -> None:
    grey = np.full((8, 8, 3), 130, np.uint8)
    for seed in range(5):
        changed = recolour(grey, dataclasses.replace(UNCHANGED, hue=90.0, saturation=1.0), np.random.default_rng(seed))
        assert np.abs(changed.astype(int) - 130).max() <= 1  # rounding


def test_blur_and_noise_come_at_random() -> None:
    pixels, _ = marked(Size(64, 96))
    for changes in ({"blur": 3.0}, {"noise": 20.0}):
        augmentation = dataclasses.replace(UNCHANGED, **changes)
        same = [np.array_equal(recolour(pixels, augmentation, np.random.default_rng(s)), pixels) for s in range(60)]
        assert 0.5 < np.mean(same) < 0.9  # 0.7 expected


@pytest.mark.parametrize("changes", [{"flip": 1.1}, {"smallest": 0.0}, {"smallest": 2.0, "largest": 1.0}, {"blur": -1}])
def test_an_augmentation_out_of_range_is_rejected(changes: dict[str, float]) -> None:
    with pytest.raises(CannotTrain, match="Augmentation"):
        Augmentation(**changes)

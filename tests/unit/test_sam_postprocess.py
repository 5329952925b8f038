from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.letterbox import Letterbox, Padding, letterbox_for
from models.masks import bounding_box
from models.sam.postprocess import masks_of
from models.types import Logits, Mask, Size
from tests.reference import stability_score, upsample

LENGTHS = st.integers(1, 400) | st.sampled_from([1023, 1024, 1025, 1800])
PADDINGS: st.SearchStrategy[Padding] = st.sampled_from(["none", "square"])
LETTERBOXES = st.builds(
    letterbox_for, st.builds(Size, LENGTHS, LENGTHS), st.sampled_from([64, 512, 768, 1024]), PADDINGS
)
TOLERANCE = 1e-4  # of float32 rounding, with logits up to 30


def mask_of(logits: Logits, letterbox: Letterbox) -> Mask:
    (mask,) = masks_of(np.stack([logits] * 4), np.full(4, 0.5, np.float32), letterbox, multimask=False)
    return mask


def assert_agrees(mask: Mask, logits: Logits, letterbox: Letterbox) -> None:
    """Everything as from logits of the image's size, but for pixels whose logits lie on a threshold."""
    full = upsample(logits, letterbox)
    off = (mask.pixels != (full > 0)) & (np.abs(full) > TOLERANCE)
    assert not off.any(), np.argwhere(off)[:3]
    assert mask.pixels.shape == (letterbox.original.height, letterbox.original.width)
    assert mask.box == bounding_box(mask.pixels)
    assert mask.area == np.count_nonzero(mask.pixels)
    on_threshold = np.count_nonzero(np.abs(np.abs(full) - 1) <= TOLERANCE)
    allowed = float(on_threshold / np.fmax(1, np.count_nonzero(full > -1)))
    assert mask.stability_score == pytest.approx(stability_score(full), abs=2 * allowed + 1e-12)


def hill(letterbox: Letterbox, centre: tuple[float, float], radii: tuple[float, float], noise: int | None) -> Logits:
    """Logits with a maximum of 20 at a place given as fractions of the logits, falling by 20 per radius."""
    height, width = letterbox.logits.height, letterbox.logits.width
    ys, xs = np.mgrid[:height, :width]
    distance = np.hypot((ys - centre[0] * height) / (radii[0] * height), (xs - centre[1] * width) / (radii[1] * width))
    logits = np.clip(20 * (1 - distance), -20, 20)
    if noise is not None:
        logits += np.random.default_rng(noise).normal(0, 3, logits.shape)
    return np.asarray(logits, np.float32)


@settings(deadline=None, max_examples=150)
@given(
    letterbox=LETTERBOXES,
    centre=st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)),
    radii=st.tuples(st.floats(0.005, 2), st.floats(0.005, 2)),
    noise=st.none() | st.integers(0, 99),
)
def test_a_mask_anywhere_is_that_of_logits_upsampled_to_the_images_size(
    letterbox: Letterbox, centre: tuple[float, float], radii: tuple[float, float], noise: int | None
) -> None:
    logits = hill(letterbox, centre, radii, noise)
    assert_agrees(mask_of(logits, letterbox), logits, letterbox)


@settings(deadline=None, max_examples=100)
@given(letterbox=LETTERBOXES, at=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_single_cell_reaches_every_pixel_that_it_should(letterbox: Letterbox, at: tuple[float, float]) -> None:
    logits = np.full((letterbox.logits.height, letterbox.logits.width), -2, np.float32)
    logits[int(at[0] * (letterbox.logits.height - 1)), int(at[1] * (letterbox.logits.width - 1))] = 30
    assert_agrees(mask_of(logits, letterbox), logits, letterbox)


@pytest.mark.parametrize("size", [Size(4160, 1800), Size(1200, 1800), Size(96, 128), Size(1, 1), Size(1, 9000)])
@pytest.mark.parametrize("value", [-20, -1.0005, -0.5, 0.5, 20])
def test_masks_that_are_empty_or_full_are_so_to_the_last_pixel(size: Size, value: float) -> None:
    letterbox = letterbox_for(size)
    logits = np.full((256, 256), value, np.float32)
    mask = mask_of(logits, letterbox)
    assert mask.pixels.all() if value > 0 else not mask.pixels.any()
    assert mask.box == ((0, 0, size.width, size.height) if value > 0 else (0, 0, 0, 0))
    assert mask.area == (size.pixels if value > 0 else 0)
    assert mask.stability_score == (1 if value == 20 else 0)


def test_a_mask_in_the_padding_alone_is_empty() -> None:
    letterbox = letterbox_for(Size(100, 400))
    logits = np.full((256, 256), -20, np.float32)
    logits[100:] = 20
    mask = mask_of(logits, letterbox)
    assert (mask.area, mask.box, mask.stability_score) == (0, (0, 0, 0, 0), 0)
    assert mask.pixels.shape == (100, 400)


@pytest.mark.parametrize("size", [Size(3, 200_000), Size(200_000, 3)])
def test_an_image_that_is_one_long_line_is_computed_block_by_block(size: Size) -> None:
    letterbox = letterbox_for(size, padding="none")
    logits = hill(letterbox, (0.5, 0.5), (0.3, 0.3), noise=1)
    assert_agrees(mask_of(logits, letterbox), logits, letterbox)


def test_three_masks_are_sorted_by_score_and_one_is_that_of_unambiguous_prompts() -> None:
    letterbox = letterbox_for(Size(96, 128))
    logits = np.stack([np.full((256, 256), value, np.float32) for value in (1, 2, 3, 4)])
    scores = np.array([0.99, 0.5, 0.9, 0.7], np.float32)
    several = masks_of(logits, scores, letterbox, multimask=True)
    assert [mask.logits[0, 0] for mask in several] == [3, 4, 2]
    assert [mask.score for mask in several] == pytest.approx([0.9, 0.7, 0.5])
    (one,) = masks_of(logits, scores, letterbox, multimask=False)
    assert one.logits[0, 0] == 1
    assert one.score == pytest.approx(0.99)

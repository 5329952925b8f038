"""Which masks are kept: the same as by the reference's order of work, on logits that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.utils.amg import remove_small_regions
from torchvision.ops.boxes import batched_nms

from models.letterbox import letterbox_for
from models.masks import CroppedMask, whole
from models.sam.grid import Crop, crops_of
from models.sam.postprocess import crop_of
from models.sam.proposals import Candidate, Limits, Proposal, Selection, candidates_of, without_specks
from models.types import BinaryMask, Logits, Size

SIZE = Size(300, 400)
LETTERBOX = letterbox_for(SIZE)
WHOLE = next(crops_of(SIZE, 0))
MANY = 1 << 40


def disc(x: float, y: float, radius: float, *, steep: float = 2.0) -> Logits:
    """Logits of a disc, in pixels of the image, that fall by `steep` per pixel of the model's input."""
    scale = 1024 / 400
    ys, xs = (np.arange(256, dtype=np.float32) + 0.5) * 4, (np.arange(256, dtype=np.float32) + 0.5) * 4
    distances = np.hypot(xs[None, :] - x * scale, ys[:, None] - y * scale)
    logits: Logits = ((radius * scale - distances) * steep).astype(np.float32)
    return logits


def candidates(*masks: tuple[Logits, float], limits: Limits, crop: Crop = WHOLE) -> list[Candidate]:
    letterbox = letterbox_for(crop.size)
    logits = [mask[None] for mask, _ in masks]
    scores = [np.array([score], np.float32) for _, score in masks]
    return candidates_of(logits, scores, np.zeros((len(masks), 2)), crop, letterbox, limits)


def chosen(*masks: tuple[Logits, float], limits: Limits | None = None, max_bytes: int = MANY) -> list[Proposal]:
    limits = limits or Limits()
    selection = Selection(limits, max_bytes)
    for mask in masks:
        selection.add(candidates(mask, limits=limits))
    return selection.chosen()


def scores(proposals: list[Proposal]) -> list[float]:
    return [round(proposal.candidate.score, 3) for proposal in proposals]


def by_the_reference(masks: list[tuple[Logits, float]], limits: Limits) -> list[float]:
    """Return the scores of the masks to keep: every mask upsampled and tested, then duplicates removed."""
    kept = []
    for logits, score in masks:
        found = crop_of(logits, score, LETTERBOX)
        if score > limits.score and found.stability_score >= limits.stability and found.area:
            kept.append((found.box, score))
    boxes = torch.tensor([box for box, _ in kept], dtype=torch.float32).reshape(-1, 4)
    of_kept = torch.tensor([score for _, score in kept])
    order = batched_nms(boxes, of_kept, torch.zeros(len(kept)), limits.box_iou)
    return [round(float(of_kept[row]), 3) for row in order]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_masks_are_kept_as_by_testing_all_and_removing_duplicates_last(seed: int) -> None:
    chance = np.random.default_rng(seed)
    masks = []
    for centre in chance.uniform((40, 40), (360, 260), (8, 2)):
        radius = chance.uniform(8, 60)
        for _ in range(10):  # much alike, sharp or blurred
            x, y = centre + chance.normal(0, 2.5, 2)
            mask = disc(x, y, radius * chance.uniform(0.85, 1.15), steep=float(chance.choice([0.02, 0.3, 2.0])))
            masks.append((mask, float(np.float32(chance.uniform(0.8, 1.0)))))
    limits = Limits()
    expected = by_the_reference(masks, limits)
    assert scores(chosen(*masks, limits=limits)) == expected
    assert len(expected) >= 4


def test_a_mask_is_what_it_would_be_of_the_whole_logits() -> None:
    logits = disc(100, 90, 33, steep=0.3)
    (proposal,) = chosen((logits, 0.95), limits=Limits(stability=0.5))
    expected = crop_of(logits, 0.95, LETTERBOX)
    assert np.array_equal(proposal.candidate.mask().full(), expected.crop.full())
    measures = proposal.measures
    assert (measures.box, measures.area, measures.stability) == (expected.box, expected.area, expected.stability_score)


def test_an_unstable_mask_removes_nothing() -> None:
    blurred, sharp = disc(100, 100, 30, steep=0.02), disc(100, 100, 30)
    assert scores(chosen((blurred, 0.99), (sharp, 0.9))) == [0.9]


def test_a_better_mask_that_comes_later_takes_the_place() -> None:
    limits = Limits()
    selection = Selection(limits, MANY)
    selection.add(candidates((disc(100, 100, 30), 0.9), limits=limits))
    assert scores(selection.chosen()) == [0.9]
    selection.add(candidates((disc(101, 100, 30), 0.95), limits=limits))
    assert scores(selection.chosen()) == [0.95]


def test_the_best_come_first() -> None:
    assert scores(chosen((disc(60, 60, 30), 0.9), (disc(200, 60, 30), 0.95), (disc(300, 200, 30), 0.92))) == [
        0.95,
        0.92,
        0.9,
    ]


def test_masks_with_the_same_box_are_two_only_if_masks_are_not_compared() -> None:
    full = disc(100, 100, 40)
    ring = np.minimum(full, -disc(100, 100, 36))
    limits = Limits(box_iou=1.0, stability=0.5)
    both = (full, 0.95), (ring, 0.9)
    assert scores(chosen(*both, limits=limits)) == [0.95, 0.9]
    assert scores(chosen(*both, limits=replace(limits, mask_iou=0.5))) == [0.95, 0.9]
    assert scores(chosen(*both, limits=replace(limits, mask_iou=0.1))) == [0.95]


def test_what_is_too_large_removes_nothing() -> None:
    large, small = disc(200, 150, 60), disc(200, 150, 55)
    assert scores(chosen((large, 0.99), (small, 0.9))) == [0.99]
    assert scores(chosen((large, 0.99), (small, 0.9), limits=Limits(max_side=115))) == [0.9]


def test_holes_are_filled_and_specks_removed() -> None:
    holed = np.minimum(disc(100, 100, 40), -disc(100, 100, 4))
    speckled = np.maximum(holed, disc(200, 100, 3))
    (plain,) = chosen((speckled, 0.95), limits=Limits(stability=0.8))
    (clean,) = chosen((speckled, 0.95), limits=Limits(stability=0.8, min_area=200))
    assert plain.measures.box[2] > 195
    assert clean.measures.box[2] < 145
    mask = clean.candidate.mask(200).full()
    assert mask[100, 100]
    assert not mask[100, 200]
    assert np.count_nonzero(mask) == clean.measures.area


def test_a_mask_in_a_crop_lies_at_its_place_in_the_image() -> None:
    crop = list(crops_of(SIZE, 1))[4]  # bottom right
    x0, y0 = crop.box[:2]
    limits = Limits()
    selection = Selection(limits, MANY)
    selection.add(candidates((disc(200, 120, 40), 0.95), limits=limits, crop=crop))
    (proposal,) = selection.chosen()
    box = proposal.measures.box
    assert box[0] > x0
    assert box[1] > y0
    ys, xs = np.nonzero(proposal.candidate.mask().full())
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == box


def test_a_mask_that_the_edge_of_a_crop_cuts_off_is_left_out_unless_it_is_the_image_s_edge() -> None:
    crop = list(crops_of(SIZE, 1))[1]  # top left
    limits = Limits()
    for at, kept in (((20, 20), 1), ((385, 150), 0)):
        selection = Selection(limits, MANY)
        selection.add(candidates((disc(*at, 40), 0.95), limits=limits, crop=crop))
        assert len(selection.chosen()) == kept


def test_of_duplicates_in_two_crops_the_one_of_the_smaller_is_kept() -> None:
    crop = list(crops_of(SIZE, 1))[1]
    limits = Limits()
    scale = 400 / crop.size.width
    selection = Selection(limits, MANY)
    selection.add(candidates((disc(80, 70, 25), 0.99), limits=limits))
    selection.add(candidates((disc(80 * scale, 70 * scale, 25 * scale), 0.9), limits=limits, crop=crop))
    assert [proposal.candidate.crop for proposal in selection.chosen()] == [crop]


def test_memory_is_bounded_and_the_best_are_kept() -> None:
    masks = [(disc(60 + 30 * (n % 10), 60 + 60 * (n // 10), 25), 0.9 + n / 1000) for n in range(40)]
    limits = Limits(box_iou=0.3)
    selection = Selection(limits, 60_000)
    for mask in masks:
        selection.add(candidates(mask, limits=limits))
        assert sum(one.nbytes for one in selection._candidates) <= 60_000
    assert scores(selection.chosen())[0] == 0.939


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("least", [1, 5, 40])
def test_specks_are_those_of_the_reference(seed: int, least: int) -> None:
    chance = np.random.default_rng(seed)
    mask: BinaryMask = np.zeros((40, 60), np.bool_)
    mask[1:-1, 1:-1] = chance.random((38, 58)) < 0.6
    mask[10:30, 10:40] = chance.random((20, 30)) < 0.95
    expected, filled = remove_small_regions(mask, least, "holes")
    expected, removed = remove_small_regions(expected, least, "islands")
    found, changed = without_specks(whole(mask), least)
    assert changed == (filled or removed)
    assert np.array_equal(found.pixels, expected)


def test_background_that_goes_on_outside_of_the_box_is_no_hole() -> None:
    corner = CroppedMask(np.ones((10, 10), np.bool_), 5, 5, Size(60, 80))
    corner.pixels[0, 0] = False
    assert not without_specks(corner, 50)[1]

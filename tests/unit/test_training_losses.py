from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.training.errors import CannotTrain
from models.training.losses import (
    LOSSES,
    centre_offset_loss,
    centre_offsets,
    cross_entropy,
    dice,
    focal,
    read_loss,
    tversky,
)
from models.training.options import SamLossWeights
from models.training.sam_learner import dice_loss, focal_loss, mask_ious, sam_loss
from models.types import PixelClass
from models.unet.constants import OFFSET_UNIT

B, H, I, FRUIT = PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT  # noqa: E741
EVERY_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))
ONE = torch.ones(1, 1)


def logits_of(*probabilities: tuple[float, float, float]) -> Tensor:
    """Logits of one row of pixels with these probabilities: (1, 3, 1, pixels)."""
    return torch.tensor(probabilities, dtype=torch.float64).log().float().T[None, :, None].contiguous()


def truth_of(*classes: int) -> Tensor:
    return torch.tensor([[classes]], dtype=torch.uint8)


TWO_PIXELS = logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1))


def test_cross_entropy_and_focal_loss_equal_their_formulas() -> None:
    found = cross_entropy(TWO_PIXELS, truth_of(B, H))
    assert float(found) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-6)
    found = focal(TWO_PIXELS, truth_of(B, H))
    assert float(found) == pytest.approx(-(0.25 * math.log(0.5) + 0.04 * math.log(0.8)) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("second", "quotient"),
    [(H, (2 * 0.8 + 1) / (0.25**2 + 0.8**2 + 1 + 1)), (FRUIT, (2 * 0.9 + 1) / (0.5**2 + 0.9**2 + 1 + 1))],
    ids=["known health", "unknown health"],
)
def test_dice_is_one_less_the_mean_quotient_of_the_classes_present(second: PixelClass, quotient: float) -> None:
    background = (2 * 0.5 + 1) / (0.5**2 + 0.1**2 + 1 + 1)
    assert float(dice(TWO_PIXELS, truth_of(B, second))) == pytest.approx(1 - (background + quotient) / 2, rel=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("cross-entropy", -math.log(0.7)), ("focal", -0.09 * math.log(0.7))])
def test_fruit_of_unknown_health_is_compared_with_background_however_it_is_divided(name: str, expected: float) -> None:
    for probabilities in ((0.3, 0.7 - 1e-6, 1e-6), (0.3, 0.2, 0.5)):
        assert float(LOSSES[name](logits_of(probabilities), truth_of(FRUIT))) == pytest.approx(expected, rel=1e-5)


def test_tversky_is_measured_in_each_image_and_missing_a_pixel_costs_more_than_a_false_one() -> None:
    index = (0.1 + 1) / (0.1 + 0.3 * 0.25 + 0.7 * 0.9 + 1)
    found = tversky(logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, I))
    assert float(found) == pytest.approx(1 - index, rel=1e-6)
    sure = logits_of(*[(1e-6, 1 - 2e-6, 1e-6)] * 9, (1e-6, 1e-6, 1 - 2e-6))
    missed, false = truth_of(*[H] * 8, I, I), truth_of(*[H] * 9, I)
    unsure = logits_of(*[(1e-6, 1 - 2e-6, 1e-6)] * 8, *[(1e-6, 1e-6, 1 - 2e-6)] * 2)
    assert float(tversky(sure, missed)) > 1.3 * float(tversky(unsure, false)) > 0
    # An image with few infected pixels weighs as much as one with many; one without weighs nothing.
    both = torch.cat([sure, sure, sure]), torch.cat([missed, truth_of(*[H] * 10), truth_of(*[I] * 10)])
    mean = (float(tversky(sure, missed)) + float(tversky(sure, truth_of(*[I] * 10)))) / 2
    assert float(tversky(*both)) == pytest.approx(mean, rel=1e-6)


@EVERY_LOSS
def test_ignored_pixels_change_nothing_and_get_no_gradient(name: str) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    truth[:, :2] = PixelClass.IGNORE
    loss = LOSSES[name](logits, truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(float(LOSSES[name](logits.detach()[:, :, 2:], truth[:, 2:])), rel=1e-6)
    assert logits.grad is not None
    assert not logits.grad[:, :, :2].any()
    assert (logits.grad[:, :, 2:] != 0).all()
    assert LOSSES[name](logits, torch.full_like(truth, PixelClass.IGNORE)) == 0


@EVERY_LOSS
def test_gradients_equal_finite_differences(name: str) -> None:
    truth = truth_of(B, H, I, FRUIT, PixelClass.IGNORE)
    start = torch.linspace(-1, 2, 15).reshape(1, 3, 1, 5)
    logits = start.clone().requires_grad_()
    LOSSES[name](logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    for place in range(15):
        step = torch.zeros(15).scatter(0, torch.tensor(place), 1e-2).reshape(start.shape)
        slope = (LOSSES[name](start + step, truth) - LOSSES[name](start - step, truth)) / 2e-2
        # Central differences in float32: errors of about 1e-7 / 1e-2 and of the square of the step.
        assert float(logits.grad.flatten()[place]) == pytest.approx(float(slope), abs=1e-4)


@EVERY_LOSS
def test_certain_correct_answers_cost_nothing_and_wrong_ones_stay_finite(name: str) -> None:
    truth = truth_of(B, H, I, FRUIT)
    right = torch.full((1, 3, 1, 4), -100.0)
    right[0, [0, 1, 2, 1], 0, range(4)] = 100.0
    logits = right.clone().requires_grad_()
    assert LOSSES[name](logits, truth).item() == pytest.approx(0, abs=1e-6)
    wrong = LOSSES[name](-logits, truth)
    wrong.backward()  # type: ignore[no-untyped-call]
    assert wrong.item() > 0.3
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_sum_of_losses_is_parsed() -> None:
    truth = truth_of(B, H)
    expected = dice(TWO_PIXELS, truth) + 0.5 * focal(TWO_PIXELS, truth) + cross_entropy(TWO_PIXELS, truth)
    found = read_loss("dice + 0.5*focal+cross-entropy")(TWO_PIXELS, truth)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("text", ["", "dice+", "iou", "dice*2", "-1*dice"])
def test_an_invalid_loss_is_rejected(text: str) -> None:
    with pytest.raises(CannotTrain, match="loss must be a sum"):
        read_loss(text)


def two_fruits() -> NDArray[np.uint16]:
    fruits = np.zeros((20, 30), np.uint16)
    fruits[2:12, 3:13] = 7
    fruits[5:15, 13:29] = 2
    return fruits


def test_offsets_point_to_the_centre_of_the_visible_part_of_a_fruit() -> None:
    offsets = centre_offsets(two_fruits(), 20, 30)
    assert offsets.dtype == np.float32
    # Pixels 3 to 12 have their centre at 7.5, pixels 2 to 11 at 6.5.
    assert offsets[:2, 2, 3].tolist() == [4.5, 4.5]
    assert offsets[:2, 11, 12].tolist() == [-4.5, -4.5]
    assert offsets[:2, 5, 13].tolist() == [7.5, 4.5]
    assert offsets[2, 2, 3] == pytest.approx(np.sqrt(100 / np.pi))
    assert not offsets[:, 0].any()


def test_offsets_cost_nothing_where_fruits_are_not_separated_or_outside_fruit() -> None:
    nothing = torch.from_numpy(centre_offsets(None, 20, 30))[None]
    assert centre_offset_loss(torch.randn(1, 2, 20, 30), nothing) == 0
    offsets = torch.from_numpy(centre_offsets(two_fruits(), 20, 30))[None]
    predicted = offsets[:, :2] / OFFSET_UNIT
    predicted[:, :, 0] = 9
    assert float(centre_offset_loss(predicted, offsets)) == pytest.approx(0, abs=1e-12)


def test_offset_errors_count_in_radii_and_every_fruit_the_same() -> None:
    offsets = torch.from_numpy(centre_offsets(two_fruits(), 20, 30))[None]
    for number in (7, 2):
        predicted = offsets[:, :2] / OFFSET_UNIT
        inside = torch.from_numpy(two_fruits().astype(np.int64) == number)[None]
        predicted[:, 0] += inside * offsets[:, 2] / OFFSET_UNIT
        # One fruit of two is off by one radius: half of 1 - 0.1 / 2.
        assert float(centre_offset_loss(predicted, offsets)) == pytest.approx(0.475)


def cells(*values: float) -> Tensor:
    return torch.tensor([list(values)])


def test_the_focal_loss_of_a_sam_weighs_cells_by_their_error() -> None:
    assert focal_loss(cells(0.0), ONE, ONE).item() == pytest.approx(0.25 * math.log(2))
    assert focal_loss(cells(9.0), ONE, ONE).item() < 1e-10
    assert focal_loss(cells(-9.0), ONE, ONE).item() == pytest.approx(9, rel=0.001)
    # A cell that is half covered is best predicted by a logit of 0.
    logits = torch.linspace(-3, 3, 61)
    losses = focal_loss(logits[:, None, None], torch.tensor(0.5), ONE)
    assert logits[losses.argmin()].item() == pytest.approx(0, abs=1e-6)


def test_the_dice_loss_of_a_sam_is_one_less_the_coefficient() -> None:
    # Probabilities 0.5 and 0.5, truth 1 and 0: 1 - (2 * 0.5 + 1) / (1 + 1 + 1).
    assert dice_loss(cells(0.0, 0.0), cells(1.0, 0.0), torch.ones(1, 2)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_cells_that_do_not_count_change_no_loss_of_a_sam(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    alone = loss(cells(0.3), ONE, ONE)
    assert loss(cells(0.3, 50.0), cells(1.0, 0.0), cells(1.0, 0.0)).item() == pytest.approx(alone.item())


def one_cell(weights: SamLossWeights | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A covered cell: token 0 is undecided and token 2 the best of three; the losses are computed by hand below."""
    logits = torch.tensor([0.0, -math.log(3), math.log(3), 0.0]).reshape(1, 4, 1, 1).requires_grad_()
    scores = torch.zeros(1, 4, requires_grad=True)
    ious = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    return sam_loss(logits, scores, ious, ONE[None], ONE[None], weights=weights or SamLossWeights()), logits, scores


def test_the_loss_of_a_sam_sums_two_masks_and_the_errors_of_all_scores() -> None:
    undecided = 20 * 0.25 * math.log(2) + (1 - 2 / 2.5)
    best_of_three = 20 * 0.25**2 * -math.log(0.75) + (1 - 2.5 / 2.75)
    loss, logits, scores = one_cell()
    assert loss.item() == pytest.approx(undecided + best_of_three + 1 / 4)
    only_dice, _, _ = one_cell(SamLossWeights(focal=0, dice=1, iou=0))
    assert only_dice.item() == pytest.approx((1 - 2 / 2.5) + (1 - 2.5 / 2.75))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    # Of the three masks only the best learns; all scores do.
    assert logits.grad is not None
    assert (logits.grad.flatten() != 0).tolist() == [True, False, True, False]
    assert logits.grad.flatten()[2] < 0  # towards a larger mask
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == pytest.approx([0, 0, -0.5, 0])


def test_ious_ignore_pixels_that_do_not_count() -> None:
    masks = torch.tensor([[[1, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)[None]
    truth = torch.tensor([[1, 0, 1, 0]], dtype=torch.bool)[None]
    assert mask_ious(masks, truth, torch.ones(1, 1, 4, dtype=torch.bool)).tolist() == [[1 / 4, 0.0]]
    three = torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)[None]
    assert mask_ious(masks, truth, three)[0].tolist() == pytest.approx([1 / 3, 0.0])


@pytest.mark.parametrize("weights", [(-1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (math.nan, 1.0, 1.0)])
def test_loss_weights_without_a_mask_loss_are_rejected(weights: tuple[float, float, float]) -> None:
    with pytest.raises(CannotTrain, match="Loss weights"):
        SamLossWeights(*weights)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.training.errors import CannotTrain
from models.training.sam_losses import LossWeights, dice_loss, focal_loss, mask_ious, sam_loss

PAPER = LossWeights()
ONE = torch.ones(1, 1)


def cells(*values: float) -> Tensor:
    return torch.tensor([list(values)])


def test_a_cell_in_doubt_costs_a_quarter_of_its_entropy() -> None:
    assert focal_loss(cells(0.0), ONE, ONE).item() == pytest.approx(0.25 * math.log(2))


def test_a_cell_that_is_nearly_right_costs_next_to_nothing() -> None:
    assert focal_loss(cells(9.0), ONE, ONE).item() < 1e-10
    assert focal_loss(cells(-9.0), ONE, ONE).item() == pytest.approx(9, rel=0.001)


def test_the_dice_loss_of_a_cell_in_doubt_beside_one_that_should_be_empty() -> None:
    # Probabilities 0.5 and 0.5, truth 1 and 0: 1 - (2 * 0.5 + 1) / (1 + 1 + 1).
    assert dice_loss(cells(0.0, 0.0), cells(1.0, 0.0), torch.ones(1, 2)).item() == pytest.approx(1 / 3)


def test_cells_that_do_not_count_change_no_loss() -> None:
    counted = cells(1.0, 0.0)
    for loss in (focal_loss, dice_loss):
        alone = loss(cells(0.3), ONE, ONE)
        assert loss(cells(0.3, 50.0), cells(1.0, 0.0), counted).item() == pytest.approx(alone.item())


def test_a_cell_half_covered_is_best_predicted_by_a_logit_of_zero() -> None:
    logits = torch.linspace(-3, 3, 61)
    losses = focal_loss(logits[:, None, None], torch.tensor(0.5), ONE)
    assert logits[losses.argmin()].item() == pytest.approx(0, abs=1e-6)


def third(weights: LossWeights = PAPER) -> tuple[Tensor, Tensor, Tensor]:
    """One cell that the object covers: token 0 is in doubt, token 2 the best of three; losses by hand below."""
    logits = torch.tensor([0.0, -math.log(3), math.log(3), 0.0]).reshape(1, 4, 1, 1).requires_grad_()
    scores = torch.zeros(1, 4, requires_grad=True)
    ious = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    return sam_loss(logits, scores, ious, ONE[None], ONE[None], weights=weights), logits, scores


def test_the_loss_is_twenty_focal_and_one_dice_of_two_masks_and_the_error_of_all_scores() -> None:
    in_doubt = 20 * 0.25 * math.log(2) + (1 - 2 / 2.5)
    best_of_three = 20 * 0.25**2 * -math.log(0.75) + (1 - 2.5 / 2.75)
    loss, _, _ = third()
    assert loss.item() == pytest.approx(in_doubt + best_of_three + 1 / 4)
    dice_alone, _, _ = third(LossWeights(focal=0, dice=1, iou=0))
    assert dice_alone.item() == pytest.approx((1 - 2 / 2.5) + (1 - 2.5 / 2.75))


def test_of_the_three_masks_only_the_best_learns_and_all_scores_do() -> None:
    loss, logits, scores = third()
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad.flatten() != 0).tolist() == [True, False, True, False]
    assert logits.grad.flatten()[2] < 0  # towards more of it
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == pytest.approx([0, 0, -0.5, 0])


def test_ious_are_counted_on_what_counts() -> None:
    masks = torch.tensor([[[1, 1, 0, 1]], [[0, 0, 0, 0]]], dtype=torch.bool)[None]
    truth = torch.tensor([[1, 0, 1, 0]], dtype=torch.bool)[None]
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    assert mask_ious(masks, truth, everything).tolist() == [[1 / 4, 0.0]]
    three = torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)[None]
    assert mask_ious(masks, truth, three)[0].tolist() == pytest.approx([1 / 3, 0.0])


@pytest.mark.parametrize("weights", [(-1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (math.nan, 1.0, 1.0)])
def test_weights_that_teach_no_masks_are_refused(weights: tuple[float, float, float]) -> None:
    with pytest.raises(CannotTrain, match="Loss weights"):
        LossWeights(*weights)

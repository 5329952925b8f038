from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.training.errors import CannotTrain
from models.training.losses import LOSSES, cross_entropy, dice, focal, read_loss
from models.types import PixelClass

B, H, I = PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED  # noqa: E741
EVERY_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))


def logits_of(*chances: tuple[float, float, float]) -> Tensor:
    """Logits of one row of pixels with these probabilities: (1, 3, 1, pixels)."""
    return torch.tensor(chances, dtype=torch.float64).log().float().T[None, :, None].contiguous()


def truth_of(*classes: int) -> Tensor:
    return torch.tensor([[classes]], dtype=torch.uint8)


def test_cross_entropy_is_the_mean_of_minus_log_p() -> None:
    found = cross_entropy(logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, H))
    assert float(found) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-6)


def test_focal_loss_weighs_each_pixel_by_the_square_of_what_is_missing() -> None:
    found = focal(logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, H))
    assert float(found) == pytest.approx(-(0.25 * math.log(0.5) + 0.04 * math.log(0.8)) / 2, rel=1e-6)


def test_dice_is_one_less_the_mean_quotient_of_the_classes_that_are_there() -> None:
    found = dice(logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, H))
    background = (2 * 0.5 + 1) / (0.5**2 + 0.1**2 + 1 + 1)
    healthy = (2 * 0.8 + 1) / (0.25**2 + 0.8**2 + 1 + 1)
    assert float(found) == pytest.approx(1 - (background + healthy) / 2, rel=1e-6)


def test_dice_of_fruit_that_is_not_told_apart_is_that_of_background_and_fruit() -> None:
    found = dice(logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, PixelClass.FRUIT))
    background = (2 * 0.5 + 1) / (0.5**2 + 0.1**2 + 1 + 1)
    fruit = (2 * 0.9 + 1) / (0.5**2 + 0.9**2 + 1 + 1)
    assert float(found) == pytest.approx(1 - (background + fruit) / 2, rel=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("cross-entropy", -math.log(0.7)), ("focal", -0.09 * math.log(0.7))])
def test_fruit_of_unknown_class_is_set_against_background_however_it_is_divided(name: str, expected: float) -> None:
    for chances in ((0.3, 0.7 - 1e-6, 1e-6), (0.3, 0.2, 0.5)):
        assert float(LOSSES[name](logits_of(chances), truth_of(PixelClass.FRUIT))) == pytest.approx(expected, rel=1e-5)


@EVERY_LOSS
def test_pixels_of_which_nobody_said_anything_change_nothing_and_get_no_gradient(name: str) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    truth[:, :2] = PixelClass.IGNORE
    loss = LOSSES[name](logits, truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(float(LOSSES[name](logits.detach()[:, :, 2:], truth[:, 2:])), rel=1e-6)
    assert logits.grad is not None
    assert not logits.grad[:, :, :2].any()
    assert (logits.grad[:, :, 2:] != 0).all()


@EVERY_LOSS
def test_a_batch_that_says_nothing_costs_nothing(name: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((1, 2, 2), PixelClass.IGNORE, dtype=torch.uint8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@EVERY_LOSS
def test_the_gradient_is_that_of_the_loss(name: str) -> None:
    truth = truth_of(B, H, I, PixelClass.FRUIT, PixelClass.IGNORE)
    start = torch.linspace(-1, 2, 15).reshape(1, 3, 1, 5)
    logits = start.clone().requires_grad_()
    LOSSES[name](logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    for place in range(15):
        step = torch.zeros(15).scatter(0, torch.tensor(place), 1e-2).reshape(start.shape)
        slope = (LOSSES[name](start + step, truth) - LOSSES[name](start - step, truth)) / 2e-2
        # Central differences in float32: errors of about 1e-7 / 1e-2 and of the step's square.
        assert float(logits.grad.flatten()[place]) == pytest.approx(float(slope), abs=1e-4)


@EVERY_LOSS
def test_certain_right_answers_cost_nothing_and_certain_wrong_ones_stay_finite(name: str) -> None:
    truth = truth_of(B, H, I, PixelClass.FRUIT)
    right = torch.full((1, 3, 1, 4), -100.0)
    right[0, [0, 1, 2, 1], 0, range(4)] = 100.0
    logits = right.clone().requires_grad_()
    loss = LOSSES[name](logits, truth)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    wrong = LOSSES[name](-logits, truth)
    wrong.backward()  # type: ignore[no-untyped-call]
    assert wrong.item() > 0.3
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_sum_of_losses_is_read_from_words() -> None:
    logits, truth = logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), truth_of(B, H)
    found = read_loss("dice + 0.5*focal+cross-entropy")(logits, truth)
    assert float(found) == pytest.approx(
        float(dice(logits, truth) + 0.5 * focal(logits, truth) + cross_entropy(logits, truth)), rel=1e-6
    )


@pytest.mark.parametrize("text", ["", "dice+", "iou", "dice*2", "-1*dice"])
def test_a_loss_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CannotTrain, match="is right"):
        read_loss(text)

"""Losses of three-class logits, for annotations that may leave things unsaid.

Pixels marked IGNORE never count. Of FRUIT pixels nobody said whether they are healthy: there p_healthy + p_infected is
set against p_background, whichever way the network divides it. All are differentiable in every logit that counts; where
no pixel counts, they are 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from models.training.errors import CannotTrain
from models.types import CLASSES, PixelClass

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits float (batch, 3, height, width) and truth uint8 (batch, height, width) of `PixelClass`, to a scalar."""

_GAMMA: Final = 2.0
_SMOOTH: Final = 1.0  # pixels: keeps the quotient of a class with few of them from jumping


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of -log p, p being the probability of what is there; see `Loss`."""
    log_chance, counted = _log_chance_of_truth(logits, truth)
    return -(log_chance * counted).sum() / counted.sum().clamp(min=1)


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels of -(1 - p)² log p; see `Loss`.

    Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), with gamma 2 and without class weights.
    """
    log_chance, counted = _log_chance_of_truth(logits, truth)
    missing = -torch.expm1(log_chance)
    return -(missing.pow(_GAMMA) * log_chance * counted).sum() / counted.sum().clamp(min=1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - 2 Σpg / (Σp² + Σg²), the mean over the classes that are there, sums over the whole batch; see `Loss`.

    Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), section 3. Background counts at every pixel that says anything,
    healthy and infected where they are told apart, and fruit as one class at every pixel where there are FRUIT pixels.
    """
    chances = torch.softmax(logits.float(), dim=1)
    counted = truth != PixelClass.IGNORE
    told = counted & (truth != PixelClass.FRUIT)
    quotients, present = [], []
    for place, pixel_class in enumerate(CLASSES):
        there = truth == pixel_class
        where = counted if pixel_class == PixelClass.BACKGROUND else told
        quotients.append(_dice_quotient(chances[:, place], there, where))
        present.append(there.any())
    quotients.append(_dice_quotient(1 - chances[:, 0], counted & (truth != PixelClass.BACKGROUND), counted))
    present.append((truth == PixelClass.FRUIT).any())
    weights = torch.stack(present).to(chances.dtype)
    return (weights * (1 - torch.stack(quotients))).sum() / weights.sum().clamp(min=1)


LOSSES: Final[Mapping[str, Loss]] = MappingProxyType({"cross-entropy": cross_entropy, "dice": dice, "focal": focal})


def read_loss(text: str) -> Loss:
    """Read a loss from words: a sum of losses, each with a factor if wanted.

    Args:
        text: such as "dice", "dice+cross-entropy" or "dice+0.5*focal".

    Returns:
        The loss.

    Raises:
        CannotTrain: it is of another form.
    """
    terms: list[tuple[float, Loss]] = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d*\.?\d+)\s*\*)?\s*([a-z-]+)\s*", term)
        if match is None or match[2] not in LOSSES:
            known = ", ".join(LOSSES)
            raise CannotTrain(f"The loss {text!r}: a sum such as dice+0.5*focal of {known} is right.")
        terms.append((float(match[1] or 1), LOSSES[match[2]]))
    return lambda logits, truth: torch.stack([factor * loss(logits, truth) for factor, loss in terms]).sum()


def _dice_quotient(chance: Tensor, there: Tensor, where: Tensor) -> Tensor:
    p, g = chance * where, there.to(chance.dtype)
    return (2 * (p * g).sum() + _SMOOTH) / (p.square().sum() + g.sum() + _SMOOTH)


def _log_chance_of_truth(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Log probability of what is there, (batch, height, width), 0 to -inf; and 1 where it counts, else 0."""
    logs = functional.log_softmax(logits.float(), dim=1)
    index = torch.where(truth < len(CLASSES), truth, 0).long()
    chosen = logs.gather(1, index[:, None])[:, 0]
    fruit = torch.logaddexp(logs[:, PixelClass.HEALTHY], logs[:, PixelClass.INFECTED])
    # Rounding may leave the sum of two probabilities a little above 1.
    chance = torch.where(truth == PixelClass.FRUIT, fruit.clamp(max=0), chosen)
    return chance, (truth != PixelClass.IGNORE).to(chance.dtype)

"""Losses of a U-Net: of its three class logits and of its centre offsets.

Pixels marked IGNORE never count. FRUIT pixels are fruit of unknown health: there p_healthy + p_infected is compared
with p_background, however the network divides it. All losses are differentiable in every logit that counts; where no
pixel counts, they are 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.data.samples import InstanceMap
from models.training.errors import CannotTrain
from models.types import CLASSES, PixelClass
from models.unet.constants import OFFSET_UNIT

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps logits float (batch, 3, height, width) and truth uint8 (batch, height, width) of `PixelClass` to a scalar."""

_GAMMA: Final = 2.0
_FALSE, _MISSED = 0.3, 0.7  # weights of the errors of `tversky`
_SMOOTH: Final = 1.0  # pixels: keeps the quotient of a class with few pixels from jumping


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean over the pixels of -log p, p being the probability of the true class; see `Loss`."""
    log_chance, counted = _log_chance_of_truth(logits, truth)
    return -(log_chance * counted).sum() / counted.sum().clamp(min=1)


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the mean over the pixels of -(1 - p)² log p; see `Loss`.

    Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017), with gamma 2 and without class weights.
    """
    log_chance, counted = _log_chance_of_truth(logits, truth)
    missing = -torch.expm1(log_chance)
    return -(missing.pow(_GAMMA) * log_chance * counted).sum() / counted.sum().clamp(min=1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - 2 Σpg / (Σp² + Σg²), the mean over the classes present, sums over the whole batch; see `Loss`.

    Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), section 3. Background counts at every annotated pixel, healthy
    and infected where health is known, and, if there are FRUIT pixels, fruit as one class at every annotated pixel.
    """
    chances = torch.softmax(logits.float(), dim=1)
    counted = truth != PixelClass.IGNORE
    known = counted & (truth != PixelClass.FRUIT)
    quotients, present = [], []
    for place, pixel_class in enumerate(CLASSES):
        there = truth == pixel_class
        where = counted if pixel_class == PixelClass.BACKGROUND else known
        quotients.append(_dice_quotient(chances[:, place], there, where))
        present.append(there.any())
    quotients.append(_dice_quotient(1 - chances[:, 0], counted & (truth != PixelClass.BACKGROUND), counted))
    present.append((truth == PixelClass.FRUIT).any())
    weights = torch.stack(present).to(chances.dtype)
    return (weights * (1 - torch.stack(quotients))).sum() / weights.sum().clamp(min=1)


def tversky(logits: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - T of infected pixels, the mean over the images that have any; see `Loss`.

    T = Σpg / (Σpg + 0.3 Σp(1-g) + 0.7 Σ(1-p)g), of one image at a time, so that a few spots count as much as a wholly
    rotten fruit; a missed pixel weighs more than a false one. Salehi, Erdogmus and Gholipour, "Tversky loss function"
    (MLMI 2017). Only pixels of known health count.
    """
    chances = torch.softmax(logits.float(), dim=1)[:, PixelClass.INFECTED]
    known = (truth != PixelClass.IGNORE) & (truth != PixelClass.FRUIT)
    there = truth == PixelClass.INFECTED
    p, g = (chances * known).flatten(1), there.to(chances.dtype).flatten(1)
    hits = (p * g).sum(dim=1)
    false, missed = p.sum(dim=1) - hits, g.sum(dim=1) - hits
    index = (hits + _SMOOTH) / (hits + _FALSE * false + _MISSED * missed + _SMOOTH)
    present = there.flatten(1).any(dim=1).to(chances.dtype)
    return ((1 - index) * present).sum() / present.sum().clamp(min=1)


LOSSES: Final[Mapping[str, Loss]] = MappingProxyType(
    {"cross-entropy": cross_entropy, "dice": dice, "focal": focal, "tversky": tversky}
)


def read_loss(text: str) -> Loss:
    """Parse a sum of losses, each with an optional factor.

    Args:
        text: such as "dice", "dice+cross-entropy" or "dice+0.5*focal".

    Raises:
        CannotTrain: the text has another form.
    """
    terms: list[tuple[float, Loss]] = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d*\.?\d+)\s*\*)?\s*([a-z-]+)\s*", term)
        if match is None or match[2] not in LOSSES:
            known = ", ".join(LOSSES)
            raise CannotTrain(f"loss must be a sum of {known} such as dice+0.5*focal, got {text!r}.")
        terms.append((float(match[1] or 1), LOSSES[match[2]]))
    return lambda logits, truth: torch.stack([factor * loss(logits, truth) for factor, loss in terms]).sum()


def _dice_quotient(chance: Tensor, there: Tensor, where: Tensor) -> Tensor:
    p, g = chance * where, there.to(chance.dtype)
    return (2 * (p * g).sum() + _SMOOTH) / (p.square().sum() + g.sum() + _SMOOTH)


def _log_chance_of_truth(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log probability of the true class, (batch, height, width), and 1 where a pixel counts, else 0."""
    logs = functional.log_softmax(logits.float(), dim=1)
    index = torch.where(truth < len(CLASSES), truth, 0).long()
    chosen = logs.gather(1, index[:, None])[:, 0]
    fruit = torch.logaddexp(logs[:, PixelClass.HEALTHY], logs[:, PixelClass.INFECTED])
    # Rounding may leave the sum of two probabilities a little above 1.
    chance = torch.where(truth == PixelClass.FRUIT, fruit.clamp(max=0), chosen)
    return chance, (truth != PixelClass.IGNORE).to(chance.dtype)


_SQUARED_BELOW: Final = 0.1
"""Errors below this share of a fruit's radius count squared: a centre need not be met to the pixel."""


def centre_offsets(instance_map: InstanceMap | None, height: int, width: int) -> NDArray[np.float32]:
    """Compute the true centre offsets of a crop.

    Args:
        instance_map: uint16 (height, width) of the crop; None if the annotation does not separate fruits.
        height: height of the crop.
        width: width of the crop.

    Returns:
        float32 (3, height, width): pixels right and down to the mean position of the visible part of the fruit, and its
        radius, that of a disc of its area; radius 0 where there is no fruit.
    """
    offsets = np.zeros((3, height, width), np.float32)
    if instance_map is None:
        return offsets
    rows, columns = np.nonzero(instance_map)
    numbers = instance_map[rows, columns].astype(np.intp)
    areas = np.bincount(numbers)
    counted = np.maximum(areas, 1)
    for channel, places in enumerate((columns, rows)):
        centres = np.bincount(numbers, weights=places) / counted
        offsets[channel, rows, columns] = centres[numbers] - places
    offsets[2, rows, columns] = np.sqrt(areas / np.pi)[numbers]
    return offsets


def centre_offset_loss(predicted: Tensor, offsets: Tensor) -> Tensor:
    """Compute how far centre offsets miss, in radii of their fruit; every fruit counts the same, whatever its size.

    Args:
        predicted: float (batch, 2, height, width), in `OFFSET_UNIT`s.
        offsets: float32 (batch, 3, height, width) of `centre_offsets`.

    Returns:
        Scalar float32: the Huber loss of the distances, mean over the fruits' pixels weighted by 1 / area; 0 if
        there is no fruit.
    """
    radius = offsets[:, 2]
    weight = torch.where(radius > 0, 1 / radius.clamp(min=1).square(), 0.0)
    errors = (predicted.float() * OFFSET_UNIT - offsets[:, :2]) / radius.clamp(min=1)[:, None]
    distances = functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=_SQUARED_BELOW)
    return (distances.sum(dim=1) * weight).sum() / weight.sum().clamp(min=1e-6)

"""What the two last channels of a U-Net learn: from each pixel of a fruit to the middle of that fruit."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.data.samples import InstanceMap
from models.unet.constants import OFFSET_UNIT

_SQUARED_BELOW: Final = 0.1
"""Errors below this share of a fruit's radius count squared: a middle need not be met to the pixel."""


def votes_of(instance_map: InstanceMap | None, height: int, width: int) -> NDArray[np.float32]:
    """The true votes of a crop.

    Args:
        instance_map: uint16 (height, width) of the crop, None where fruits were not told apart.
        height: of the crop.
        width: of the crop.

    Returns:
        float32 (3, height, width): pixels right and down to the mean position of what the crop shows of the fruit, and
        its radius, that of a disc of its area; radius 0 where there is no fruit to vote for.
    """
    votes = np.zeros((3, height, width), np.float32)
    if instance_map is None:
        return votes
    rows, columns = np.nonzero(instance_map)
    numbers = instance_map[rows, columns].astype(np.intp)
    areas = np.bincount(numbers)
    counted = np.maximum(areas, 1)
    for channel, places in enumerate((columns, rows)):
        middles = np.bincount(numbers, weights=places) / counted
        votes[channel, rows, columns] = middles[numbers] - places
    votes[2, rows, columns] = np.sqrt(areas / np.pi)[numbers]
    return votes


def vote_loss(given: Tensor, votes: Tensor) -> Tensor:
    """How far votes miss, in radii of their fruit; every fruit counts the same, however large it is.

    Args:
        given: float (batch, 2, height, width), the network's, in `OFFSET_UNIT`s.
        votes: float32 (batch, 3, height, width) of `votes_of`.

    Returns:
        Scalar float32: the Huber loss of the distances, mean over the fruits' pixels weighted by 1 / area; 0 where
        there is no fruit.
    """
    radius = votes[:, 2]
    weight = torch.where(radius > 0, 1 / radius.clamp(min=1).square(), 0.0)
    errors = (given.float() * OFFSET_UNIT - votes[:, :2]) / radius.clamp(min=1)[:, None]
    distances = functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=_SQUARED_BELOW)
    return (distances.sum(dim=1) * weight).sum() / weight.sum().clamp(min=1e-6)

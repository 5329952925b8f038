from __future__ import annotations

import numpy as np
import pytest
import torch

from models.training.unet_votes import vote_loss, votes_of
from models.unet.constants import OFFSET_UNIT


def two_fruits() -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    fruits = np.zeros((20, 30), np.uint16)
    fruits[2:12, 3:13] = 7
    fruits[5:15, 13:29] = 2
    return fruits


def test_every_pixel_votes_for_the_middle_of_what_is_seen_of_its_fruit() -> None:
    votes = votes_of(two_fruits(), 20, 30)
    assert votes.dtype == np.float32
    # Pixels 3 to 12 have their middle at 7.5, pixels 2 to 11 at 6.5.
    assert votes[:2, 2, 3].tolist() == [4.5, 4.5]
    assert votes[:2, 11, 12].tolist() == [-4.5, -4.5]
    assert votes[:2, 5, 13].tolist() == [7.5, 4.5]
    assert votes[2, 2, 3] == pytest.approx(np.sqrt(100 / np.pi))
    assert not votes[:, 0].any()


def test_where_fruits_were_not_told_apart_nothing_is_asked() -> None:
    votes = torch.from_numpy(votes_of(None, 20, 30))[None]
    assert vote_loss(torch.randn(1, 2, 20, 30), votes) == 0


def test_right_votes_cost_nothing_and_votes_beside_a_fruit_are_free() -> None:
    votes = torch.from_numpy(votes_of(two_fruits(), 20, 30))[None]
    given = votes[:, :2] / OFFSET_UNIT
    given[:, :, 0] = 9
    assert float(vote_loss(given, votes)) == pytest.approx(0, abs=1e-12)


def test_errors_count_in_radii_and_every_fruit_the_same() -> None:
    votes = torch.from_numpy(votes_of(two_fruits(), 20, 30))[None]
    losses = []
    for number in (7, 2):
        given = votes[:, :2] / OFFSET_UNIT
        inside = torch.from_numpy(two_fruits().astype(np.int64) == number)[None]
        given[:, 0] += inside * votes[:, 2] / OFFSET_UNIT
        losses.append(float(vote_loss(given, votes)))
    # One fruit of two is off by one radius: half of 1 - 0.1 / 2.
    assert losses == pytest.approx([0.475, 0.475])


def test_the_loss_leads_to_the_right_votes() -> None:
    votes = torch.from_numpy(votes_of(two_fruits(), 20, 30))[None]
    given = torch.zeros(1, 2, 20, 30, requires_grad=True)
    optimiser = torch.optim.Adam([given], 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        vote_loss(given, votes).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    off = (given.detach() * OFFSET_UNIT - votes[:, :2])[:, :, votes[0, 2] > 0]
    assert float(off.abs().max()) < 0.5

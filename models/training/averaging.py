"""Exponential moving average of a network's weights (Polyak and Juditsky, 1992), which often judge better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class AveragedNetwork:
    """A copy of a network whose tensors follow the original's slowly.

    Early on it follows faster: after n updates the decay is at most (1 + n) / (10 + n).

    Args:
        network: the original; its present weights are the first average.
        decay: share of the average that an update keeps, 0 (no averaging) to below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move towards the original's weights and running statistics; counters are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        theirs = network.state_dict()
        floats = []
        for name, mine in self.network.state_dict().items():
            if mine.is_floating_point():
                floats.append((mine, theirs[name]))
            else:
                mine.copy_(theirs[name])
        torch._foreach_lerp_([mine for mine, _ in floats], [other for _, other in floats], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """What to store."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what was stored."""
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])

"""Learning rates over a run, as shares of the highest."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["constant", "cosine"]


def rate_share(schedule: Schedule, step: int, *, steps: int, warm_up: float, floor: float = 0.01) -> float:
    """The learning rate of one step.

    Args:
        schedule: "constant", or "cosine": falls along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017).
        step: 0 to `steps` - 1.
        steps: of the whole run, at least 1.
        warm_up: share of the steps in which the rate rises linearly (Goyal et al., "Accurate, Large Minibatch SGD",
            2017), 0 to 1.
        floor: share of the highest rate at which the cosine ends.

    Returns:
        Above 0, at most 1.
    """
    rising = math.ceil(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, steps - rising)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

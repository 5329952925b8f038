"""When requests of an open loop fall due: fixed before the run, so that slow answers do not thin out the load."""

from __future__ import annotations

import numpy as np


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of many callers who know nothing of each other.

    Args:
        rate_per_s: mean rate, above 0.
        seconds: length of the stretch.
        seed: the same arrivals for every server.

    Returns:
        Rising seconds from the start, each below `seconds`.
    """
    rng = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    return sorted(float(due) for due in rng.uniform(0, seconds, rng.poisson(rate_per_s * seconds)))

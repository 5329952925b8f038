"""Random numbers that depend on a seed and a place, never on what was drawn before.

What happens to the tenth image of the third epoch is drawn from a generator of its own. So a run that is resumed, or
has another number of workers, sees the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def generator_of(seed: int, *place: int) -> np.random.Generator:
    """A generator for one place of a run.

    Args:
        seed: of the run, at least 0.
        place: what tells it from all other places, such as the epoch and the index; each at least 0.
    """
    return np.random.default_rng([seed, *place])


def generator_states() -> dict[str, Any]:
    """The states of PyTorch's generators on the CPU and on all CUDA devices, to be stored."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put PyTorch's generators back into states from `generator_states`; on other devices, the CPU's alone."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])

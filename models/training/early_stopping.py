"""When to stop: after the score has not risen for long enough (Prechelt, "Early Stopping - But When?", 1998)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """The best score so far, and how long ago it was.

    Attributes:
        patience: epochs without a better score after which to stop; 0 never stops.
        min_delta: by how much a score must exceed the best to start the wait anew, at least 0.
        best: highest score that was seen.
        best_epoch: when, -1 before the first.
        waited: epochs since a score was better by `min_delta`.
        mark: the score that must be exceeded.
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    best_epoch: int = -1
    waited: int = 0
    mark: float = -math.inf

    def after(self, epoch: int, score: float) -> EarlyStopping:
        """Take an epoch's score into account.

        Args:
            epoch: its number.
            score: higher is better; NaN is never better.
        """
        state = replace(self, best=score, best_epoch=epoch) if score > self.best else self
        if score > self.mark + self.min_delta:
            return replace(state, mark=score, waited=0)
        return replace(state, waited=self.waited + 1)

    def improved_in(self, epoch: int) -> bool:
        """Whether the best score is that epoch's."""
        return self.best_epoch == epoch

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.waited

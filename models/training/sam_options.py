"""What decides how a SAM is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from models.catalog import Architecture
from models.letterbox import Padding
from models.sam.constants import INPUT_SIDE, PADDING_STEP
from models.training.errors import CannotTrain
from models.training.fitting import FitOptions
from models.training.sam_losses import LossWeights


def _short_fit() -> FitOptions:
    return FitOptions(epochs=10, learning_rate=1e-4, patience=4)


@dataclass(frozen=True, slots=True)
class SamOptions:
    """How a SAM is fine-tuned.

    Attributes:
        fit: epochs, learning rate, averaging, patience, seed.
        model: what to begin from, a name of the catalogue.
        side: of the model's square, as the result will be served: 1024, 768, 512, or another multiple of 64.
        padding: likewise.
        batch: most prompts at a time.
        rounds: corrections after the first prompt of each fruit: a click on what is wrong with the answer before, and
            that answer as a mask prompt.
        loss: weights of its parts.

    Raises:
        CannotTrain: a number outside its range.
    """

    fit: FitOptions = field(default_factory=_short_fit)
    model: str = "mobile-sam"
    side: int = INPUT_SIDE
    padding: Padding = "square"
    batch: int = 16
    rounds: int = 1
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.side < PADDING_STEP or self.side % PADDING_STEP:
            raise CannotTrain(f"An input size of {self.side}: multiples of {PADDING_STEP} are right.")
        if self.padding not in ("none", "square"):
            raise CannotTrain(f"A padding {self.padding!r}: 'none' or 'square' is right.")
        if self.batch < 1 or self.rounds < 0:
            raise CannotTrain(f"Batches of {self.batch} and {self.rounds} rounds: at least 1 and 0 are right.")

    def check_fits(self, architecture: Architecture) -> None:
        """Refuse an architecture that cannot be trained so.

        Raises:
            CannotTrain: it is no SAM, or takes no images of that side and padding.
        """
        if architecture.family != "sam":
            raise CannotTrain(f"{self.model} is a {architecture}, not a SAM.")
        if architecture not in _FLEXIBLE and (self.side != INPUT_SIDE or self.padding != "square"):
            raise CannotTrain(
                f"{self.model} is a {architecture}, whose position embeddings are of the padded square of {INPUT_SIDE} "
                f"pixels; --size {INPUT_SIDE} --padding square is right for it."
            )


_FLEXIBLE: Final = frozenset({Architecture.MOBILE_SAM})
"""Architectures whose encoders have no absolute position embeddings."""

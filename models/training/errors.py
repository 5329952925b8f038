"""What goes wrong in training besides data and checkpoints."""

from __future__ import annotations

from models.errors import PomonaError


class CannotTrain(PomonaError):
    """Options that make no sense, a run folder that does not fit them, or a training that came to nothing."""

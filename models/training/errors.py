"""Errors of training, besides those of data and checkpoints."""

from __future__ import annotations

from models.errors import PomonaError


class CannotTrain(PomonaError):
    """Options are out of range, a run folder does not match them, or a training failed."""

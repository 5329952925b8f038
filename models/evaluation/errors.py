"""What goes wrong in an evaluation besides data and checkpoints."""

from __future__ import annotations

from models.errors import PomonaError


class CannotEvaluate(PomonaError):
    """Options that make no sense, or nothing to evaluate."""

"""The files of a training run.

run.json            options and data hashes; a resumed run must have the same
state.pt            everything needed to resume after the last complete epoch
last.safetensors    weights after that epoch, float32
best.safetensors    weights of the epoch with the best score, float32
curves.csv, .png    numbers of every epoch
model.safetensors   the best weights to be served; float16 for a U-Net, float32 for a SAM
card.json, card.md  the model card
models.yaml         a models file with this one model
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a training run and the paths of its files.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def record(self) -> Path:
        """Options and data hashes."""
        return self.path / "run.json"

    @property
    def state(self) -> Path:
        """Everything needed to resume."""
        return self.path / "state.pt"

    @property
    def last(self) -> Path:
        """Weights after the last epoch."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "best.safetensors"

    @property
    def curves(self) -> Path:
        """Numbers by epoch."""
        return self.path / "curves.csv"

    @property
    def plot(self) -> Path:
        """Plot of the numbers."""
        return self.path / "curves.png"

    @property
    def model(self) -> Path:
        """Weights to serve."""
        return self.path / "model.safetensors"

    @property
    def card_json(self) -> Path:
        """Model card for programs."""
        return self.path / "card.json"

    @property
    def card_text(self) -> Path:
        """Model card for people."""
        return self.path / "card.md"

    @property
    def models_file(self) -> Path:
        """Models file with this one model."""
        return self.path / "models.yaml"

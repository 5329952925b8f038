"""The folder of one run.

run.json            what was asked for; a resumed run must ask for the same
state.pt            all that is needed to go on after the last complete epoch
last.safetensors    weights after that epoch, float32
best.safetensors    weights of the epoch with the best score, float32
curves.csv, .png    the numbers of every epoch
model.safetensors   the best weights to be served, a U-Net's in float16, a SAM's in float32
card.json, card.md  what the model is and how it came about
models.yaml         a models file with this one model
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.training.errors import CannotTrain


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def record(self) -> Path:
        """What was asked for."""
        return self.path / "run.json"

    @property
    def state(self) -> Path:
        """What is needed to go on."""
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
        """An image of them."""
        return self.path / "curves.png"

    @property
    def model(self) -> Path:
        """The weights to serve."""
        return self.path / "model.safetensors"

    @property
    def card_json(self) -> Path:
        """The model card for programs."""
        return self.path / "card.json"

    @property
    def card_text(self) -> Path:
        """The model card for people."""
        return self.path / "card.md"

    @property
    def models_file(self) -> Path:
        """A models file with this one model."""
        return self.path / "models.yaml"


def open_run(path: Path, record: Mapping[str, object], *, resume: bool) -> RunFolder:
    """Begin a run, or take one up again.

    Args:
        path: its folder, made where there is none.
        record: all that decides what comes out: options, data hashes; written as JSON.
        resume: go on where a run in this folder stopped; where none was begun, begin.

    Returns:
        The folder.

    Raises:
        CannotTrain: there is a run already and it is not to be resumed; or it was asked for something else; or the
            folder cannot be written.
    """
    folder = RunFolder(path)
    wanted = json.loads(json.dumps(record, default=str))
    try:
        if folder.record.is_file():
            if not resume:
                raise CannotTrain(f"{path}: there is a run already; --resume goes on with it, another folder begins.")
            _compare(folder.record, wanted)
        else:
            path.mkdir(parents=True, exist_ok=True)
            folder.record.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise CannotTrain(f"{error.filename or path}: {error.strerror or error}.") from error
    return folder


def _compare(file: Path, wanted: Mapping[str, object]) -> None:
    try:
        begun = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CannotTrain(f"{file}: is no valid JSON; start anew elsewhere.") from error
    before, now = _flat(begun), _flat(wanted)
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changed:
        shown = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed[:5])
        raise CannotTrain(f"{file.parent}: the run was begun with other options or data: {shown}.")


def _flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {path: leaf for key, each in value.items() for path, leaf in _flat(each, f"{name}.{key}".strip(".")).items()}

"""Model cards of trained models (Mitchell et al., "Model Cards for Model Reporting", 2019)."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.catalog import CATALOGUE
from models.provenance import versions
from models.training.errors import CannotTrain
from models.weights.run_folder import RunFolder

_PACKAGES = ("numpy", "opencv-python-headless", "safetensors", "segmentation-models-pytorch", "timm", "torch")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A trained model.

    Attributes:
        name: name in requests: lower-case letters, digits, dots, dashes, underscores.
        architecture: architecture in the catalogue.
        file: name of the checkpoint, beside the card.
        sha256: hash of that file.
        size: size of that file in bytes.
        licence: licence of the weights, as the user states it.
        task: what the model does, in one sentence.
        initial_weights: weights that the training started from, with origin and licence.
        data: parts, hash and licence of each source.
        chosen_by: meaning of the score.
        score: score of the best epoch.
        best_epoch: best epoch, counted from 0.
        epochs: number of epochs that were run.
        validation: measures of the best epoch, by name.
        options: options of the run.
        remarks: what a user should know.
        input_area: most pixels of a U-Net's input, where it is not that of 448 x 224.
        input_size: longest side in pixels at which a SAM is to be served, where it is not that of the settings.
    """

    name: str
    architecture: str
    file: str
    sha256: str
    size: int
    licence: str
    task: str
    initial_weights: str
    data: Mapping[str, Mapping[str, object]]
    chosen_by: str
    score: float
    best_epoch: int
    epochs: int
    validation: Mapping[str, float]
    options: Mapping[str, object]
    remarks: Sequence[str]
    input_area: int | None = None
    input_size: int | None = None


def check_name(name: str) -> None:
    """Reject a model name that a models file cannot have, before hours are spent on it.

    Raises:
        CannotTrain: the name is invalid, or is that of a built-in model.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) or name in CATALOGUE:
        raise CannotTrain(
            "A model name must be at most 64 lower-case letters, digits, dots, dashes and underscores, and not that of "
            f"a built-in model, got {name!r}."
        )


def write_card(folder: RunFolder, card: ModelCard) -> str:
    """Write a card as JSON and as Markdown, and a models file with the model.

    Args:
        folder: run folder with the checkpoint.
        card: card to write.

    Returns:
        The text of the models file.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {**dataclasses.asdict(card), "versions": versions(_PACKAGES)}
    folder.card_json.write_text(json.dumps(_plain(content), indent=1, default=str) + "\n", "utf-8")
    folder.card_text.write_text(_markdown(card), "utf-8")
    entry = models_entry(card)
    folder.models_file.write_text(entry, "utf-8")
    return entry


def models_entry(card: ModelCard) -> str:
    """Return a models file with this one model, as `models.catalog` reads it from the card's folder."""
    keys: dict[str, object] = {
        "architecture": card.architecture,
        "file": card.file,
        "licence": card.licence,
        "sha256": card.sha256,
    }
    if card.input_area is not None:
        keys["input_area"] = card.input_area
    if card.input_size is not None:
        keys["input_size"] = card.input_size
    return str(yaml.safe_dump({"models": {card.name: keys}}, sort_keys=False, allow_unicode=True))


def _markdown(card: ModelCard) -> str:
    measured = {name: value for name, value in card.validation.items() if not math.isnan(value)}
    return "\n".join([
        f"# {card.name}",
        "",
        card.task,
        "",
        *_table("", "", {
            "architecture": card.architecture,
            "file": f"{card.file}, {card.size:,} bytes",
            "SHA-256": card.sha256,
            "licence": card.licence,
            "initial weights": card.initial_weights,
            "epochs": f"{card.epochs}, best {card.best_epoch} (counted from 0)",
        }),
        "## Validation",
        "",
        f"The best epoch was chosen by {card.chosen_by}: {card.score:.4f}. It was chosen on these images, so the",
        "numbers are slightly optimistic; the test part was not used.",
        "",
        *_table("measure", "value", {name: f"{value:.4f}" for name, value in measured.items()}),
        "## Data",
        "",
        *[line for name, record in card.data.items() for line in (f"### {name}", "", *_table("", "", record))],
        "## Options",
        "",
        *_table("option", "value", card.options),
        "## Versions",
        "",
        *_table("package", "version", versions(_PACKAGES)),
        "## Remarks",
        "",
        *[f"- {remark}" for remark in card.remarks],
        "",
    ])  # fmt: skip


def _table(left: str, right: str, rows: Mapping[str, object]) -> list[str]:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return [f"| {left} | {right} |", "|---|---|", *lines, ""]


def _cell(value: object) -> str:
    text = json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> object:
    """Replace what JSON does not have, such as NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

"""What a trained model is and how it came about (Mitchell et al., "Model Cards for Model Reporting", 2019)."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from models.catalog import CATALOGUE
from models.training.errors import CannotTrain
from models.training.run_folder import RunFolder

_PACKAGES = ("numpy", "opencv-python-headless", "safetensors", "segmentation-models-pytorch", "timm", "torch")


@dataclass(frozen=True, slots=True)
class Product:
    """What a run is to make.

    Attributes:
        out: the run's folder.
        name: what a request will call the model.
        licence: of its weights.
    """

    out: Path
    name: str
    licence: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A trained model.

    Attributes:
        name: what a request will call it: lower-case letters, digits, dots, dashes, underscores.
        architecture: as the zoo knows it.
        file: the checkpoint's name, beside the card.
        sha256: of that file.
        size: of that file in bytes.
        licence: of the weights, as the user states it.
        task: what it does, in one sentence.
        initial_weights: what it began from, with origin and licence.
        data: of each source: parts, hash, licence, as recorded.
        chosen_by: what the score is.
        score: of the best epoch.
        best_epoch: counted from 0.
        epochs: that were run.
        validation: measures of the best epoch, by name.
        options: of the run.
        remarks: what a user should know.
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


def check_name(name: str) -> None:
    """Refuse a name that no models file could give a model, before hours are spent on it.

    Raises:
        CannotTrain: it is none, or a built-in model's.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) or name in CATALOGUE:
        raise CannotTrain(
            f"{name!r} is no name for a model: at most 64 lower-case letters, digits, dots, dashes and underscores are "
            "right, and none of a built-in model."
        )


def write_card(folder: RunFolder, card: ModelCard) -> str:
    """Write the card as JSON and as Markdown, and a models file with the model.

    Args:
        folder: holds the checkpoint too.
        card: what to write.

    Returns:
        The models file's text.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {**dataclasses.asdict(card), "versions": versions()}
    folder.card_json.write_text(json.dumps(_plain(content), indent=1, default=str) + "\n", "utf-8")
    folder.card_text.write_text(_markdown(card), "utf-8")
    entry = models_entry(card)
    folder.models_file.write_text(entry, "utf-8")
    return entry


def models_entry(card: ModelCard) -> str:
    """A models file with this one model, as `models.catalog` reads it from the card's folder."""
    keys = {"architecture": card.architecture, "file": card.file, "licence": card.licence, "sha256": card.sha256}
    return str(yaml.safe_dump({"models": {card.name: keys}}, sort_keys=False, allow_unicode=True))


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a training gives."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _markdown(card: ModelCard) -> str:
    known = {name: value for name, value in card.validation.items() if not math.isnan(value)}
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
            "began from": card.initial_weights,
            "epochs": f"{card.epochs}, best {card.best_epoch} (counted from 0)",
        }),
        "## Validation",
        "",
        f"The best epoch was chosen by {card.chosen_by}: {card.score:.4f}. It was chosen on these very images, so",
        "the numbers are a little too good; the test part was not touched.",
        "",
        *_table("measure", "value", {name: f"{value:.4f}" for name, value in known.items()}),
        "## Data",
        "",
        *[line for name, record in card.data.items() for line in (f"### {name}", "", *_table("", "", record))],
        "## Options",
        "",
        *_table("option", "value", card.options),
        "## Versions",
        "",
        *_table("package", "version", versions()),
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
    """JSON knows no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

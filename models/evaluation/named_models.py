"""From a name, a run folder or a file that a user gives to the models that are meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors

from models.catalog import Architecture, CatalogueEntry, Family, LocalFile, read_models_file
from models.errors import UnknownModel
from models.evaluation.errors import CannotEvaluate
from models.weights.checkpoints import sha256_of
from models.weights.run_folder import RunFolder


def find_models(word: str, family: Family, catalogue: Mapping[str, CatalogueEntry]) -> list[CatalogueEntry]:
    """Who is meant.

    Args:
        word: a name of the catalogue, a run folder, a models file or a `.safetensors` file of a training's.
        family: that is wanted.
        catalogue: known models.

    Returns:
        At least one model; of a models file all of that family.

    Raises:
        UnknownModel: nothing of that name.
        CannotEvaluate: nothing of that family in it, or a checkpoint that does not say what it is of.
        CatalogueError: a models file is wrong.
    """
    path = Path(word)
    if word in catalogue:
        found = [catalogue[word]]
    elif path.is_dir():
        found = list(read_models_file(RunFolder(path).models_file).values())
    elif path.suffix == ".safetensors" and path.is_file():
        found = [_entry_of(path)]
    elif path.is_file():
        found = list(read_models_file(path).values())
    else:
        raise UnknownModel(
            f"There is no model, run folder or file {word!r}; of the catalogue there are {', '.join(catalogue)}."
        )
    fitting = [entry for entry in found if entry.architecture.family == family]
    if not fitting:
        kinds = ", ".join(f"{entry.name} is a {entry.architecture}" for entry in found)
        raise CannotEvaluate(f"{word}: {kinds}, not of the family {family!r}.")
    return fitting


def _entry_of(file: Path) -> CatalogueEntry:
    """A checkpoint of a training's, which tells its architecture."""
    try:
        with safetensors.safe_open(file, "np") as opened:
            told = json.loads((opened.metadata() or {})["pomona"])
        architecture = Architecture(told["architecture"])
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise CannotEvaluate(
            f"{file}: does not say what it is of ({error}); give it an entry in a models file, and name that."
        ) from error
    name = f"{file.absolute().parent.name}-{file.stem}"
    return CatalogueEntry(
        name, architecture, "not stated", file.name, file.stat().st_size, sha256_of(file), (LocalFile(file),)
    )

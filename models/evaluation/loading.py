"""Load the candidates that a user names: models of the catalogue, run folders, models files or checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import safetensors

from models.backends.base import BackendName, DetectorBackend, SamBackend
from models.backends.load import ModelStore, load_detector, load_sam, load_sam2, load_unet
from models.catalog import Architecture, CatalogueEntry, Family, LocalFile, read_models_file
from models.errors import UnknownModel, WeightsError
from models.evaluation.candidates import Candidates, SamCandidate, SamSetup, UNetCandidate
from models.evaluation.samples import CannotEvaluate
from models.sam.constants import INPUT_SIDE, PADDING_STEP
from models.unet.letterbox import input_area
from models.weights.checkpoints import sha256_of
from models.weights.run_folder import RunFolder

NONE: Final = "none"
"""Name that leaves a family out."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The models to evaluate: names of the catalogue, run folders, models files or checkpoints.

    Attributes:
        unets: if empty, those of the catalogue whose weights are available; the first finds fruits for the SAMs.
        sams: zero-shot; each may end with `@` and an input size.
        tuned: fine-tuned SAMs; likewise.
        input_size: of SAMs without their own; None for that of a fine-tuned model's card, else 1024.
        detectors: find fruit as boxes.
    """

    unets: tuple[str, ...] = ()
    sams: tuple[str, ...] = ("mobile-sam",)
    tuned: tuple[str, ...] = ()
    input_size: int | None = None
    detectors: tuple[str, ...] = ("yolox-nano",)


@dataclass(frozen=True, slots=True)
class Loader:
    """Where models come from and what runs them.

    Attributes:
        catalogue: known models by name.
        model_store: of checkpoints.
        backend: runs the models.
        threads: CPU threads of one inference on OpenVINO; 0 for all cores.
    """

    catalogue: Mapping[str, CatalogueEntry]
    model_store: ModelStore
    backend: BackendName
    threads: int = 0


def load_candidates(selection: Selection, loader: Loader) -> tuple[Candidates, tuple[str, ...]]:
    """Load the selected models.

    Returns:
        The candidates, and notes on what was left out and why.

    Raises:
        UnknownModel: a name that is neither a model, a folder nor a file.
        CannotEvaluate: a model of another family, an input size that it does not support, or two of the same name.
        CatalogueError: a models file is wrong.
        WeightsError, BackendError: a model that was named cannot be loaded.
    """
    setups = sam_setups(selection, loader.catalogue)
    unets, notes = load_unets(selection, loader)
    scaled = [UNetCandidate(each.entry, each.backend, "scales") for each in unets if each.view == "own"]
    _check_unique([each.candidate.name for each in unets])
    _check_unique([each.name for each in setups])
    if not setups:
        notes.append("No SAM was selected.")
    elif not selection.tuned:
        notes.append("No fine-tuned SAM was selected (--fine-tuned).")
    sams = _load_sams(setups, loader, scaled[0].candidate.name if scaled else None)
    if not unets and not sams:
        raise CannotEvaluate(f"there are no models to evaluate: {' '.join(notes)}")
    return Candidates([*unets, *scaled], sams), tuple(notes)


def load_sams(selection: Selection, loader: Loader) -> list[SamCandidate]:
    """Load the selected SAMs alone.

    Raises:
        UnknownModel, CannotEvaluate, CatalogueError, WeightsError, BackendError: see `load_candidates`.
    """
    setups = sam_setups(selection, loader.catalogue)
    _check_unique([each.name for each in setups])
    return _load_sams(setups, loader, None)


def _load_sams(setups: Sequence[SamSetup], loader: Loader, finder: str | None) -> list[SamCandidate]:
    backends: dict[str, SamBackend] = {}
    sams = []
    for setup in setups:
        key = setup.entry.sha256
        if key not in backends:
            load = load_sam2 if setup.entry.architecture.family == "sam2" else load_sam
            backends[key] = load(setup.entry, loader.backend, loader.model_store, threads=loader.threads)
        sams.append(SamCandidate(_supported(setup, backends[key]), backends[key], finder))
    return sams


def _supported(setup: SamSetup, backend: SamBackend) -> SamSetup:
    """Return the setup with the letterbox that a backend takes, where it takes but one."""
    if backend.stretched_to is not None:
        return replace(setup, side=backend.stretched_to, padding="stretch")
    return setup if backend.flexible else replace(setup, padding="square")


def sam_setups(selection: Selection, catalogue: Mapping[str, CatalogueEntry]) -> list[SamSetup]:
    """Return how every selected SAM is used, zero-shot ones first.

    Returns:
        One for each SAM and input size; with the padding for backends that support any.

    Raises:
        UnknownModel, CatalogueError: as `find_models`.
        CannotEvaluate: likewise; or an input size that the model does not support, or a card that cannot be read.
    """
    setups: list[SamSetup] = []
    for word, tuned in [*((word, False) for word in selection.sams), *((word, True) for word in selection.tuned)]:
        if word == NONE:
            continue
        before, at, after = word.rpartition("@")
        name, size = (before, int(after)) if at and after.isdecimal() else (word, selection.input_size)
        for entry in find_models(name, "sam", catalogue):
            trained = _as_trained(entry) if tuned else [SamSetup(entry, side=entry.input_size or INPUT_SIDE)]
            sized = [replace(each, side=_checked_side(size or each.side, entry)) for each in trained]
            setups += sized[:1] if size else sized
    return setups


def find_models(word: str, family: Family, catalogue: Mapping[str, CatalogueEntry]) -> list[CatalogueEntry]:
    """Find the models that a word names.

    Args:
        word: a name of the catalogue, a run folder, a models file or a training's `.safetensors` file.
        family: of the models to return; a SAM 2 is a SAM, too.
        catalogue: known models.

    Returns:
        At least one model; all models of that family in a models file.

    Raises:
        UnknownModel: the word names nothing.
        CannotEvaluate: no model of that family, or a checkpoint without the name of its architecture.
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
            f"there is no model, run folder or file {word!r}; models of the catalogue are {', '.join(catalogue)}"
        )
    able = ("sam", "sam2") if family == "sam" else (family,)
    fitting = [entry for entry in found if entry.architecture.family in able]
    if not fitting:
        kinds = ", ".join(f"{entry.name} ({entry.architecture})" for entry in found)
        raise CannotEvaluate(f"{word} must hold a model of the family {family!r}, got {kinds}")
    return fitting


def _entry_of(file: Path) -> CatalogueEntry:
    """Return the entry of a training's checkpoint, whose metadata names its architecture."""
    try:
        with safetensors.safe_open(file, "np") as opened:
            metadata = json.loads((opened.metadata() or {})["pomona"])
        architecture = Architecture(metadata["architecture"])
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise CannotEvaluate(
            f"{file} does not name its architecture ({error}); add it to a models file and name that"
        ) from error
    name = f"{file.absolute().parent.name}-{file.stem}"
    return CatalogueEntry(
        name, architecture, "not stated", file.name, file.stat().st_size, sha256_of(file), (LocalFile(file),)
    )


def load_unets(selection: Selection, loader: Loader) -> tuple[list[UNetCandidate], list[str]]:
    """Load the selected U-Nets alone.

    Returns:
        The U-Nets, and notes on those that were left out.

    Raises:
        UnknownModel, CannotEvaluate, CatalogueError, WeightsError, BackendError: see `load_candidates`.
    """
    if NONE in selection.unets:
        return [], ["No U-Net was selected."]
    notes, unets = [], []
    by_default = [entry for entry in loader.catalogue.values() if entry.architecture.family == "unet"]
    named = [entry for word in selection.unets for entry in find_models(word, "unet", loader.catalogue)]
    for entry in named or by_default:
        try:
            backend = load_unet(entry, loader.backend, loader.model_store, threads=loader.threads)
        except WeightsError as error:
            if named:
                raise
            notes.append(f"{entry.name} was left out: {error.detail}")
        else:
            unets.append(UNetCandidate(entry, backend))
            if input_area(entry.input_area, fast=True) < input_area(entry.input_area):
                unets.append(UNetCandidate(entry, backend, "fast"))
    if not (unets or notes):
        notes.append("The catalogue has no U-Net, and none was selected (--unet): no SAM is prompted with its fruits.")
    return unets, notes


def load_detectors(words: Sequence[str], loader: Loader) -> list[tuple[str, DetectorBackend]]:
    """Load detectors.

    Args:
        words: see `find_models`.
        loader: where they come from.

    Returns:
        Their names and backends.

    Raises:
        UnknownModel, CannotEvaluate, CatalogueError, WeightsError, BackendError: see `load_candidates`.
    """
    entries = [entry for word in words if word != NONE for entry in find_models(word, "detector", loader.catalogue)]
    _check_unique([entry.name for entry in entries])
    return [(entry.name, load_detector(entry, loader.backend, loader.model_store)) for entry in entries]


def _as_trained(entry: CatalogueEntry) -> list[SamSetup]:
    """Return a setup for each input size of a fine-tuned model's card, with its padding, if the card lies beside it."""
    setup = SamSetup(entry, tuned=True)
    cards = [RunFolder(each.path.parent).card_json for each in entry.sources if isinstance(each, LocalFile)]
    for file in cards:
        if not file.is_file():
            continue
        try:
            card = json.loads(file.read_bytes())
            if card["sha256"] != entry.sha256:
                continue  # of another model
            sides, padding = [int(side) for side in card["options"]["sides"]], card["options"]["padding"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotEvaluate(f"{file} does not hold the input size of the training: {error!r}") from error
        return [replace(setup, side=side, padding="square" if padding == "square" else "none") for side in sides]
    return [setup]


def _checked_side(side: int, entry: CatalogueEntry) -> int:
    if side < PADDING_STEP or side % PADDING_STEP:
        raise CannotEvaluate(f"the input size must be a multiple of {PADDING_STEP}, got {side}")
    if side != INPUT_SIDE and entry.architecture is not Architecture.MOBILE_SAM:
        raise CannotEvaluate(f"the input size of {entry.name} ({entry.architecture}) must be {INPUT_SIDE}, got {side}")
    return side


def _check_unique(names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CannotEvaluate(f"every model must be selected once, got {', '.join(repeated)} more than once")

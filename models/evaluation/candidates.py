"""From the names, run folders and files that a user gives to the models that compete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from models.backends.base import BackendName, SamBackend
from models.backends.load import ModelStore, load_sam, load_unet
from models.catalog import Architecture, CatalogueEntry, LocalFile
from models.errors import WeightsError
from models.evaluation.errors import CannotEvaluate
from models.evaluation.measuring import Panel
from models.evaluation.named_models import find_models
from models.evaluation.sam_subject import SamCandidate, SamSetup
from models.evaluation.unet_subject import UNetCandidate
from models.sam.constants import INPUT_SIDE, PADDING_STEP
from models.weights.run_folder import RunFolder

NONE: Final = "none"
"""Leaves a family out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who shall compete, in the user's words: names of the catalogue, run folders, models files or checkpoints.

    Attributes:
        unets: if empty, the catalogue's that can be had; the first finds fruits for the SAMs.
        sams: zero-shot; each may end with `@` and an input size.
        tuned: fine-tuned SAMs; likewise.
        input_size: of the SAMs that name none; None for what a fine-tuned one's card says, else 1024.
    """

    unets: tuple[str, ...] = ()
    sams: tuple[str, ...] = ("mobile-sam",)
    tuned: tuple[str, ...] = ()
    input_size: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where models come from and what runs them.

    Attributes:
        catalogue: by name.
        model_store: of checkpoints.
        backend: runs them.
        threads: CPU threads of one inference on OpenVINO; 0 for all cores.
    """

    catalogue: Mapping[str, CatalogueEntry]
    model_store: ModelStore
    backend: BackendName
    threads: int = 0


def open_panel(asked: Asked, place: Place) -> tuple[Panel, tuple[str, ...]]:
    """Load everybody.

    Args:
        asked: who shall compete.
        place: where from.

    Returns:
        The candidates, and what was left out and why.

    Raises:
        UnknownModel: a name that is nothing known.
        CannotEvaluate: a model of the wrong family, an input size that none has, or two of the same name.
        CatalogueError: a models file is wrong.
        WeightsError, BackendError: a model that was named cannot be loaded.
    """
    setups = sam_setups(asked, place.catalogue)
    unets, notes = _unets(asked, place)
    _refuse_twins([each.subject.name for each in unets], [each.name for each in setups])
    if not setups:
        notes.append("No SAM was asked for.")
    elif not asked.tuned:
        notes.append("No fine-tuned SAM was named (--fine-tuned).")
    loaded: dict[str, SamBackend] = {}
    sams = []
    for setup in setups:
        if setup.entry.sha256 not in loaded:
            loaded[setup.entry.sha256] = load_sam(setup.entry, place.backend, place.model_store, threads=place.threads)
        backend = loaded[setup.entry.sha256]
        fitting = setup if backend.flexible else replace(setup, padding="square")
        sams.append(SamCandidate(fitting, backend, unets[0].subject.name if unets else None))
    if not unets and not sams:
        raise CannotEvaluate(f"Nobody is left to evaluate. {' '.join(notes)}")
    return Panel(unets, sams), tuple(notes)


def sam_setups(asked: Asked, catalogue: Mapping[str, CatalogueEntry]) -> list[SamSetup]:
    """How every SAM is asked, zero-shot ones first.

    Args:
        asked: who shall compete.
        catalogue: known models.

    Returns:
        One for each SAM and input size; their padding is for backends that take any.

    Raises:
        UnknownModel, CatalogueError: as `find_models`.
        CannotEvaluate: likewise; or an input size that the model has not, or a card that cannot be read.
    """
    setups = []
    for word, tuned in [*((word, False) for word in asked.sams), *((word, True) for word in asked.tuned)]:
        if word == NONE:
            continue
        before, at, after = word.rpartition("@")
        name, size = (before, int(after)) if at and after.isdecimal() else (word, asked.input_size)
        for entry in find_models(name, "sam", catalogue):
            setup = _as_trained(entry) if tuned else SamSetup(entry)
            setups.append(replace(setup, side=_checked(size or setup.side, entry)))
    return setups


def _unets(asked: Asked, place: Place) -> tuple[list[UNetCandidate], list[str]]:
    if NONE in asked.unets:
        return [], ["No U-Net was asked for."]
    notes, unets = [], []
    by_default = [entry for entry in place.catalogue.values() if entry.architecture.family == "unet"]
    named = [entry for word in asked.unets for entry in find_models(word, "unet", place.catalogue)]
    for entry in named or by_default:
        try:
            backend = load_unet(entry, place.backend, place.model_store, threads=place.threads)
        except WeightsError as error:
            if named:
                raise
            notes.append(f"{entry.name} is left out: {error.detail}")
        else:
            unets.append(UNetCandidate(entry, backend))
    if not (unets or notes):
        notes.append("The catalogue has no U-Net, and none was named (--unet): no SAM is prompted with its fruits.")
    return unets, notes


def _as_trained(entry: CatalogueEntry) -> SamSetup:
    """At the input size and padding at which it was fine-tuned, where its card lies beside it."""
    setup = SamSetup(entry, tuned=True)
    cards = [RunFolder(each.path.parent).card_json for each in entry.sources if isinstance(each, LocalFile)]
    for file in cards:
        if not file.is_file():
            continue
        try:
            card = json.loads(file.read_bytes())
            if card["sha256"] != entry.sha256:
                continue  # another model's
            side, padding = int(card["options"]["side"]), card["options"]["padding"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotEvaluate(f"{file}: does not tell the input size that it was trained at ({error!r}).") from error
        return replace(setup, side=side, padding="square" if padding == "square" else "none")
    return setup


def _checked(side: int, entry: CatalogueEntry) -> int:
    if side < PADDING_STEP or side % PADDING_STEP:
        raise CannotEvaluate(f"An input size of {side}: multiples of {PADDING_STEP} are right, such as 1024.")
    if side != INPUT_SIDE and entry.architecture is not Architecture.MOBILE_SAM:
        raise CannotEvaluate(f"{entry.name} is a {entry.architecture}, which sees images at {INPUT_SIDE} only.")
    return side


def _refuse_twins(*families: Sequence[str]) -> None:
    for names in families:
        twins = {name for name in names if names.count(name) > 1}
        if twins:
            raise CannotEvaluate(
                f"{', '.join(sorted(twins))}: named more than once; the results could not be told apart."
            )

"""Fine-tune a SAM: from options and data to a run folder that can be served."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.backends.base import SamBackend
from models.backends.load import BackendChoice, ModelStore, choose_backend, load_sam
from models.catalog import CatalogueEntry, load_catalogue
from models.data.sources import DataSource, OpenedSource, open_sources
from models.errors import UnknownModel
from models.sam.build import build_sam
from models.training.errors import CannotTrain
from models.training.model_card import ModelCard, check_name, write_card
from models.training.options import Machine, Product, SamOptions
from models.training.run_files import open_run, write_weights
from models.training.sam_data import EmbeddingStore, Tasks, load_images
from models.training.sam_learner import TRAINED, SamLearner
from models.training.sam_validation import MEASURES, SCORE, SamValidator
from models.training.trainer import FitResult, Trainer, Validation
from models.weights.checkpoints import load_state_dict, sha256_of
from models.weights.fetch import fetch
from models.weights.run_folder import RunFolder

_log = logging.getLogger("pomona.training")

EMBEDDINGS: Final = "embeddings"
"""Folder inside the run folder; may be deleted when the run is over."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the model to start from comes from.

    Attributes:
        model_store: store of checkpoints and converted models.
        models_file: models file that extends the catalogue, or None.
        backend: backend that computes the embeddings.
    """

    model_store: ModelStore
    models_file: Path | None = None
    backend: BackendChoice = "auto"


def train_sam(
    options: SamOptions,
    sources: Sequence[DataSource],
    product: Product,
    machine: Machine,
    origin: Origin,
    *,
    resume: bool = False,
) -> FitResult:
    """Fine-tune a SAM, export its best epoch and write its model card.

    Args:
        options: options of the training.
        sources: sets of annotated images that separate fruits; their test parts are never read.
        product: folder, name and licence of the model.
        machine: device and workers.
        origin: where the model to start from comes from.
        resume: whether to continue the run in that folder, if there is one.

    Returns:
        The outcome; all files of `models.weights.run_folder` are written. `best.safetensors` and `last.safetensors`
        hold only the mask decoder, `model.safetensors` the whole model: all other tensors are those of the original, in
        their order and type.

    Raises:
        CannotTrain: options, data, folder or machine cannot be used, or the training failed.
        UnknownModel: the model to start from is not in the catalogue.
        DataError: a set cannot be used.
        WeightsError: the model to start from is not available.
        BackendError: its encoder cannot be run.
        OSError: the folder cannot be written.
    """
    check_name(product.name)
    entry = _entry(options, origin)
    device = torch.device(machine.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotTrain("There is no CUDA device; use --device cpu.")
    opened = open_sources(sources)
    if not opened:
        raise CannotTrain("There is nothing to train on: give annotated images with --data.")
    record = {
        "architecture": entry.architecture,
        "revision": entry.revision,
        "options": dataclasses.asdict(options),
        "data": {each.name: each.record() for each in opened},
    }
    folder = open_run(product.out, record, resume=resume)
    tensors = load_state_dict(
        fetch(entry, cache_dir=origin.model_store.cache_dir, weights_dir=origin.model_store.weights_dir)
    )
    decoder = build_sam(entry.architecture, tensors).decoder

    stores = _stores(folder, entry, options, origin)
    validator = SamValidator(opened, stores, original=decoder.to(device), device=device)
    images = [
        (load_images(each.dataset, names, store), weight / len(stores))
        for store in stores
        for each in opened
        for names, weight in each.weighted
    ]
    tasks = Tasks.of(images, batch=options.batch, seed=options.fit.seed)
    learner = SamLearner(
        decoder, tasks=tasks, validator=validator, weights=options.loss, rounds=options.rounds, device=device
    )
    metadata = {"architecture": str(entry.architecture), "fine-tuned from": entry.revision}
    trainer = Trainer(learner, options.fit, folder, metadata=metadata, mixed=machine.mixed, progress=machine.progress)
    fitted = trainer.fit()

    export(folder, tensors, metadata)
    with torch.inference_mode():
        after = validator.validate(build_sam(entry.architecture, load_state_dict(folder.model)).decoder.to(device))
    if after.score <= 0:
        _log.warning("The model is not better than %s on every set, by box and by centre: see its card.", entry.name)
    written = write_card(folder, _card(options, entry, opened, product, folder, fitted, (validator.before, after)))
    _log.info("%s\nAn entry for a models file, also in %s:\n%s", folder.card_text, folder.models_file, written)
    return fitted


def export(folder: RunFolder, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `model.safetensors`: a whole checkpoint with the best mask decoder in it.

    Args:
        folder: run folder with `best.safetensors`.
        tensors: tensors of the original checkpoint; all but those of the mask decoder are written as they are.
        metadata: header of the checkpoint.

    Raises:
        CannotTrain: the mask decoders have different tensors.
        BadCheckpoint: the best weights cannot be read.
        OSError: the folder cannot be written.
    """
    best = load_state_dict(folder.best)
    replaced = {name for name in tensors if name.startswith(TRAINED)}
    if replaced != best.keys():
        raise CannotTrain(f"{folder.best}: is not a mask decoder of that model; start in another folder.")
    write_weights(folder.model, {**tensors, **best}, half=False, metadata=metadata)


def _entry(options: SamOptions, origin: Origin) -> CatalogueEntry:
    catalogue = load_catalogue(origin.models_file)
    if options.model not in catalogue:
        raise UnknownModel(f"The model to start from must be one of {', '.join(catalogue)}, got {options.model!r}.")
    entry = catalogue[options.model]
    options.check_fits(entry.architecture)
    return entry


def _stores(
    folder: RunFolder, entry: CatalogueEntry, options: SamOptions, origin: Origin
) -> tuple[EmbeddingStore, ...]:
    """Return a store for each size; they share one encoder, which is loaded if an embedding is missing."""

    @cache
    def encoder() -> SamBackend:
        backend = choose_backend(origin.backend)
        return load_sam(entry, backend, origin.model_store, threads=torch.get_num_threads())

    return tuple(
        EmbeddingStore(
            folder.path / EMBEDDINGS, revision=entry.revision, side=side, padding=options.padding, open_backend=encoder
        )
        for side in options.sides
    )


def _card(
    options: SamOptions,
    entry: CatalogueEntry,
    opened: Sequence[OpenedSource],
    product: Product,
    folder: RunFolder,
    fitted: FitResult,
    validations: tuple[Mapping[str, float], Validation],
) -> ModelCard:
    before, after = validations
    sides = " or ".join(map(str, options.sides))
    return ModelCard(
        name=product.name,
        architecture=entry.architecture.value,
        file=folder.model.name,
        sha256=sha256_of(folder.model),
        size=folder.model.stat().st_size,
        licence=product.licence,
        task="Segments the fruit at a point or in a box, and predicts the quality of the mask.",
        initial_weights=f"{entry.name}, revision {entry.revision}, {entry.licence}; its encoders are unchanged",
        data={each.name: each.record() for each in opened},
        chosen_by=SCORE,
        score=after.score,
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.rows),
        validation={**after.measures, **{f"{name} before": value for name, value in before.items()}},
        options=dataclasses.asdict(options),
        remarks=(
            f"Serve it as it was trained: at an input size of {sides}, with padding {options.padding}.",
            *(f"{name}: {meaning}." for name, meaning in MEASURES.items()),
            "Measures with 'before' are those of the original model for the same prompts. A score above 0 means that "
            "the masks are better on every set, by box and by centre.",
        ),
        input_size=options.input_size,
    )

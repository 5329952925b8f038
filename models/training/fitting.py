"""The loop that all trainings share: epochs, learning rate, averaging, validation, checkpoints, early stopping.

A run is stored after every epoch. One that is taken up again goes on from there as if nothing had happened: on a CPU
with as many threads to the last bit, on a GPU as far as its kernels are deterministic.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.training.averaging import AveragedNetwork
from models.training.checkpoint_files import read_state, write_state, write_weights
from models.training.curves import plot_curves, write_curves
from models.training.early_stopping import EarlyStopping
from models.training.errors import CannotTrain
from models.training.optimisers import Optimiser, mixed_type, new_optimiser
from models.training.run_folder import RunFolder
from models.training.schedules import Schedule, rate_share
from models.training.seeding import generator_states, restore_generators

_log = logging.getLogger("pomona.training")

_WORTH_A_PLOT_S = 20.0  # epochs that take less are plotted at the end


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How weights are fitted.

    Attributes:
        epochs: most that are run, at least 1.
        optimiser: "adam" or "adamw".
        learning_rate: the highest.
        weight_decay: of weights; biases and the scales of normalisations are not decayed.
        schedule: of the learning rate.
        warm_up: share of all steps in which the learning rate rises, 0 to 1.
        clip: gradients of a greater norm are scaled down to it; 0 for never.
        averaging: decay of the exponential average of the weights, 0 (none) to below 1.
        patience: epochs without a better validation after which to stop; 0 never stops.
        min_delta: by how much a score must be better to count for that.
        seed: of everything drawn by lot.

    Raises:
        CannotTrain: a number outside its range.
    """

    epochs: int
    optimiser: Optimiser = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Schedule = "cosine"
    warm_up: float = 0.05
    clip: float = 1.0
    averaging: float = 0.0
    patience: int = 0
    min_delta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warm_up": 0 <= self.warm_up <= 1,
            "clip": 0 <= self.clip < math.inf,
            "averaging": 0 <= self.averaging < 1,
            "patience": self.patience >= 0,
            "min_delta": 0 <= self.min_delta < math.inf,
            "seed": self.seed >= 0,
        }
        for name, fine in checks.items():
            if not fine:
                raise CannotTrain(f"{name} cannot be {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found.

    Attributes:
        score: chooses the best epoch; higher is better.
        measures: by name; always the same names. NaN where nothing was measured.
    """

    score: float
    measures: Mapping[str, float]


class Learner(Protocol):
    """What is trained, on what, and how it is judged."""

    network: nn.Module
    """On its device. The parameters that require a gradient are fitted; all of it is put into training mode."""

    @property
    def steps(self) -> int:
        """Batches in every epoch, at least 1."""

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Names of measures to plot together, by title; the loss and the rate have panels of their own."""

    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch, as many as `steps`; the same ones whenever it is asked for the same epoch."""

    def loss(self, batch: Any) -> Tensor:
        """Run `network` on a batch: a scalar to minimise. Called within autocast where precision is mixed."""

    def validate(self, network: nn.Module) -> Validation:
        """Validator a network in evaluation mode, without gradients."""

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """What a checkpoint of that network holds."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a run went.

    Attributes:
        rows: numbers of every epoch: epoch, loss, rate, seconds, score and the measures.
        best_epoch: whose weights are in `best.safetensors`.
        best: that epoch's validation.
        stopped_early: whether patience ran out.
    """

    rows: Sequence[Mapping[str, float]]
    best_epoch: int
    best: Validation
    stopped_early: bool


def fit(
    learner: Learner,
    options: FitOptions,
    folder: RunFolder,
    *,
    metadata: Mapping[str, str],
    mixed: bool = False,
    progress: bool = True,
) -> Fitted:
    """Train until the epochs are over or patience is, beginning where the folder's state says.

    Args:
        learner: what to train.
        options: how.
        folder: where everything is written after each epoch, and read from at the start.
        metadata: for the header of the checkpoints.
        mixed: bfloat16 where the device has it, on other cards float16 with scaled losses.
        progress: draw bars on a terminal.

    Returns:
        How it went.

    Raises:
        CannotTrain: the loss or every score is no number, or the folder's state is not of this run.
        OSError: the folder cannot be written.
    """
    run = _Run(learner, options, mixed=mixed)
    if folder.state.is_file():
        run.restore(read_state(folder.state))
    while run.epoch < options.epochs and not run.stopping.over:
        row, validation = run.one_epoch(progress=progress)
        _store(run, folder, metadata)
        _log.info("epoch %d: loss %.4f, score %.4f", run.epoch - 1, row["loss"], validation.score)
        if row["seconds"] > _WORTH_A_PLOT_S:
            _plot(run, folder)
    _plot(run, folder)
    if run.best is None:
        raise CannotTrain("No epoch could be validated: every score is no number.")
    return Fitted(run.rows, run.stopping.best_epoch, run.best, run.stopping.over)


def _store(run: _Run, folder: RunFolder, metadata: Mapping[str, str]) -> None:
    """The state last: a run that is killed before repeats the epoch and writes the same again."""
    epoch = run.epoch - 1
    named = {**metadata, "epoch": str(epoch)}
    weights = run.learner.weights(run.averaged.network)
    write_weights(folder.last, weights, half=False, metadata=named)
    if run.stopping.improved_in(epoch):
        write_weights(folder.best, weights, half=False, metadata=named)
    write_curves(folder.curves, run.rows)
    write_state(folder.state, run.state())


def _plot(run: _Run, folder: RunFolder) -> None:
    plot_curves(folder.plot, run.rows, {"loss": ["loss"], **run.learner.panels, "learning rate": ["rate"]})


class _Run:
    def __init__(self, learner: Learner, options: FitOptions, *, mixed: bool) -> None:
        torch.manual_seed(options.seed)
        self.learner = learner
        self.options = options
        self.epoch = 0
        self.rows: list[dict[str, float]] = []
        self.best: Validation | None = None
        self.stopping = EarlyStopping(options.patience, options.min_delta)
        self.averaged = AveragedNetwork(learner.network, options.averaging)
        self._fitted = [each for each in learner.network.parameters() if each.requires_grad]
        if not self._fitted or learner.steps < 1:
            raise CannotTrain("There is nothing to train, or nothing to train with.")
        self._optimiser = new_optimiser(
            options.optimiser, self._fitted, rate=options.learning_rate, decay=options.weight_decay
        )
        self._device = self._fitted[0].device
        self._type = mixed_type(self._device) if mixed else None
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._type is torch.float16)

    def one_epoch(self, *, progress: bool) -> tuple[dict[str, float], Validation]:
        """Train on every batch once, then validate."""
        began = time.perf_counter()
        self.learner.network.train()
        total = torch.zeros((), device=self._device)
        bar = tqdm(
            self.learner.batches(self.epoch),
            desc=f"epoch {self.epoch}",
            total=self.learner.steps,
            leave=False,
            disable=None if progress else True,
        )
        rate = 0.0
        for place, batch in enumerate(bar):
            rate = self._set_rate(self.epoch * self.learner.steps + place)
            total += self._step(batch)
        loss = float(total) / self.learner.steps
        if not math.isfinite(loss):
            raise CannotTrain(f"The loss is no number in epoch {self.epoch}: a lower learning rate may help.")
        seconds = time.perf_counter() - began
        with torch.inference_mode():
            validation = self.learner.validate(self.averaged.network)
        self.stopping = self.stopping.after(self.epoch, validation.score)
        if self.stopping.improved_in(self.epoch):
            self.best = validation
        row = {"epoch": float(self.epoch), "loss": loss, "rate": rate, "seconds": seconds, "score": validation.score}
        self.rows.append({**row, **validation.measures})
        self.epoch += 1
        return self.rows[-1], validation

    def _set_rate(self, step: int) -> float:
        share = rate_share(
            self.options.schedule,
            step,
            steps=self.options.epochs * self.learner.steps,
            warm_up=self.options.warm_up,
        )
        for group in self._optimiser.param_groups:
            group["lr"] = self.options.learning_rate * share
        return self.options.learning_rate * share

    def _step(self, batch: Any) -> Tensor:
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, self._type, enabled=self._type is not None):
            loss = self.learner.loss(batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.options.clip:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._fitted, self.options.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self.averaged.follow(self.learner.network)
        return loss.detach().float()

    def state(self) -> dict[str, Any]:
        """All that is needed to go on after the last epoch."""
        return {
            "epoch": self.epoch,
            "network": self.learner.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generators": generator_states(),
            "rows": self.rows,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        try:
            self.learner.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._scaler.load_state_dict(state["scaler"])
            self.rows = list(state["rows"])
            self.epoch = int(state["epoch"])
            restore_generators(state["generators"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CannotTrain(f"The run's state does not fit this network: {str(error)[:200]}") from error
        for place, row in enumerate(self.rows):
            self.stopping = self.stopping.after(place, row["score"])
            if self.stopping.improved_in(place):
                self.best = Validation(row["score"], {name: row[name] for name in row if name not in _OWN})


_OWN = frozenset({"epoch", "loss", "rate", "seconds", "score"})

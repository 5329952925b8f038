"""The training loop: epochs, learning rate, averaging, validation, checkpoints, early stopping.

A run is stored after every epoch. A resumed run continues as if it had never stopped: on a CPU with the same number of
threads bit for bit, on a GPU as far as its kernels are deterministic. For that, everything random depends either on the
seed, the epoch and an index, never on earlier random numbers, or on PyTorch's generators, whose states are stored.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from models.training.errors import CannotTrain
from models.training.options import FitOptions, Schedule
from models.training.run_files import plot_curves, read_state, write_curves, write_state, write_weights
from models.weights.run_folder import RunFolder

_log = logging.getLogger("pomona.training")

_PLOT_AFTER_S: Final = 20.0  # runs with shorter epochs are plotted only at the end
_COLUMNS: Final = frozenset({"epoch", "loss", "rate", "seconds", "score"})
_FLOOR: Final = 0.01  # share of the highest learning rate at which the cosine ends


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of a validation.

    Attributes:
        score: chooses the best epoch; higher is better.
        measures: measures by name, always the same names; NaN if nothing was measured.
    """

    score: float
    measures: Mapping[str, float]


class Learner(Protocol):
    """What is trained, on what, and how it is validated."""

    network: nn.Module
    """Network on its device. Parameters that require a gradient are fitted; all of it is put into training mode."""

    @property
    def steps(self) -> int:
        """Number of batches in every epoch, at least 1."""

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Names of measures to plot together, by title; the loss and the rate have their own panels."""

    def batches(self, epoch: int) -> Iterable[Any]:
        """Return the batches of an epoch, as many as `steps`; equal epochs give equal batches."""

    def loss(self, batch: Any) -> Tensor:
        """Run `network` on a batch and return a scalar to minimise; called within autocast in mixed precision."""

    def validate(self, network: nn.Module) -> Validation:
        """Validate a network in evaluation mode, without gradients."""

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors of a network that a checkpoint holds."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """The outcome of a run.

    Attributes:
        rows: numbers of every epoch: epoch, loss, rate, seconds, score and the measures.
        best_epoch: epoch whose weights are in `best.safetensors`.
        best: validation of that epoch.
        stopped_early: whether patience ran out.
    """

    rows: Sequence[Mapping[str, float]]
    best_epoch: int
    best: Validation
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Stop when the score has not improved for long enough (Prechelt, "Early Stopping - But When?", 1998).

    Attributes:
        patience: epochs without a better score after which to stop; 0 never stops.
        min_delta: by how much a score must exceed the mark to reset the wait.
        best: highest score so far.
        best_epoch: its epoch, -1 before the first.
        waited: epochs since a score exceeded the mark.
        mark: score to exceed.
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    best_epoch: int = -1
    waited: int = 0
    mark: float = -math.inf

    def after(self, epoch: int, score: float) -> EarlyStopping:
        """Return the state after an epoch with a score, higher is better; NaN is never better."""
        state = replace(self, best=score, best_epoch=epoch) if score > self.best else self
        if score > self.mark + self.min_delta:
            return replace(state, mark=score, waited=0)
        return replace(state, waited=self.waited + 1)

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.waited


class Trainer:
    """Trains until the epochs or the patience are over, starting from the state in the run folder.

    Args:
        learner: what to train.
        options: how to fit it.
        folder: folder that everything is written to after each epoch, and resumed from.
        metadata: header of the checkpoints.
        mixed: whether to use bfloat16 where the device has it, on other cards float16 with scaled losses.
        progress: whether to show progress bars on a terminal.

    Raises:
        CannotTrain: there is nothing to train, or the state in the folder is not of this run.
    """

    def __init__(
        self,
        learner: Learner,
        options: FitOptions,
        folder: RunFolder,
        *,
        metadata: Mapping[str, str],
        mixed: bool = False,
        progress: bool = True,
    ) -> None:
        torch.manual_seed(options.seed)
        self._learner, self._options, self._folder = learner, options, folder
        self._metadata, self._progress = metadata, progress
        self._epoch = 0
        self._rows: list[dict[str, float]] = []
        self._best: Validation | None = None
        self._stopping = EarlyStopping(options.patience, options.min_delta)
        self._fitted = [each for each in learner.network.parameters() if each.requires_grad]
        if not self._fitted or learner.steps < 1:
            raise CannotTrain("There is nothing to train, or no data to train on.")
        self._averaged = AveragedModel(learner.network, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.module.eval()
        self._optimiser = _optimiser(self._fitted, options)
        steps = options.epochs * learner.steps
        self._rates = LambdaLR(
            self._optimiser, lambda step: rate_share(options.schedule, step, steps=steps, warm_up=options.warm_up)
        )
        self._device = self._fitted[0].device
        self._type = mixed_type(self._device) if mixed else None
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._type is torch.float16)
        if folder.state.is_file():
            self._restore(read_state(folder.state))

    def fit(self) -> FitResult:
        """Train and return the outcome.

        Raises:
            CannotTrain: the loss or every score is not a number.
            OSError: the folder cannot be written.
        """
        while self._epoch < self._options.epochs and not self._stopping.over:
            row = self._run_epoch()
            self._store()
            _log.info("epoch %d: loss %.4f, score %.4f", self._epoch - 1, row["loss"], row["score"])
            if row["seconds"] > _PLOT_AFTER_S:
                self._plot()
        self._plot()
        if self._best is None:
            raise CannotTrain("No epoch has a score: every score is not a number.")
        return FitResult(self._rows, self._stopping.best_epoch, self._best, self._stopping.over)

    def _run_epoch(self) -> dict[str, float]:
        """Train on every batch once, then validate."""
        began = time.perf_counter()
        self._learner.network.train()
        total = torch.zeros((), device=self._device)
        rate = 0.0
        for batch in tqdm(
            self._learner.batches(self._epoch),
            desc=f"epoch {self._epoch}",
            total=self._learner.steps,
            leave=False,
            disable=None if self._progress else True,
        ):
            rate = self._optimiser.param_groups[0]["lr"]
            total += self._step(batch)
        loss = float(total) / self._learner.steps
        if not math.isfinite(loss):
            raise CannotTrain(f"The loss is not a number in epoch {self._epoch}: a lower learning rate may help.")
        seconds = time.perf_counter() - began
        with torch.inference_mode():
            validation = self._learner.validate(self._averaged.module)
        self._judge(self._epoch, validation)
        row = {"epoch": float(self._epoch), "loss": loss, "rate": rate, "seconds": seconds, "score": validation.score}
        self._rows.append({**row, **validation.measures})
        self._epoch += 1
        return row

    def _step(self, batch: Any) -> Tensor:
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, self._type, enabled=self._type is not None):
            loss = self._learner.loss(batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._options.clip:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._fitted, self._options.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._rates.step()
        self._averaged.update_parameters(self._learner.network)
        return loss.detach().float()

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _count: Tensor | int) -> None:
        """Average tensors of one type exponentially (Polyak and Juditsky, 1992), faster early in the run.

        After n steps the decay is at most (1 + n) / (10 + n). Counters are copied. The count of `AveragedModel` lies on
        the device, where reading it would wait for the kernels; the schedule has the same count.
        """
        steps = self._rates.last_epoch
        decay = min(self._options.averaging, (1 + steps) / (10 + steps))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)

    def _judge(self, epoch: int, validation: Validation) -> None:
        self._stopping = self._stopping.after(epoch, validation.score)
        if self._stopping.best_epoch == epoch:
            self._best = validation

    def _store(self) -> None:
        """Write everything, the state last: a run that is killed before repeats the epoch and writes the same again."""
        epoch = self._epoch - 1
        metadata = {**self._metadata, "epoch": str(epoch)}
        weights = self._learner.weights(self._averaged.module)
        write_weights(self._folder.last, weights, half=False, metadata=metadata)
        if self._stopping.best_epoch == epoch:
            write_weights(self._folder.best, weights, half=False, metadata=metadata)
        write_curves(self._folder.curves, self._rows)
        write_state(
            self._folder.state,
            {
                "epoch": self._epoch,
                "network": self._learner.network.state_dict(),
                "averaged": self._averaged.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "rates": self._rates.state_dict(),
                "scaler": self._scaler.state_dict(),
                "generators": {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                },
                "rows": self._rows,
            },
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self._learner.network.load_state_dict(state["network"])
            self._averaged.load_state_dict(state["averaged"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._rates.load_state_dict(state["rates"])
            self._scaler.load_state_dict(state["scaler"])
            self._rows = list(state["rows"])
            self._epoch = int(state["epoch"])
            torch.set_rng_state(state["generators"]["cpu"])
            cuda = state["generators"]["cuda"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CannotTrain(f"The state of the run does not fit this network: {str(error)[:200]}") from error
        if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)
        for epoch, row in enumerate(self._rows):
            measures = {name: value for name, value in row.items() if name not in _COLUMNS}
            self._judge(epoch, Validation(row["score"], measures))

    def _plot(self) -> None:
        panels = {"loss": ["loss"], **self._learner.panels, "learning rate": ["rate"]}
        plot_curves(self._folder.plot, self._rows, panels)


def rate_share(schedule: Schedule, step: int, *, steps: int, warm_up: float) -> float:
    """Return the learning rate of a step as a share of the highest.

    Args:
        schedule: see `Schedule`.
        step: index of the step, from 0 on.
        steps: number of steps of the whole run, at least 1.
        warm_up: share of the steps in which the rate rises linearly (Goyal et al., "Accurate, Large Minibatch SGD",
            2017), 0 to 1.

    Returns:
        Above 0, at most 1.
    """
    rising = math.ceil(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, steps - rising)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def mixed_type(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that a device is faster with: bfloat16 if it has it, otherwise float16 on a card.

    A CPU without bfloat16 gives None. On two cores with AVX-512 BF16 both U-Nets were measured to train twice as fast
    with it.
    """
    if device.type != "cuda":
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _optimiser(parameters: Sequence[nn.Parameter], options: FitOptions) -> torch.optim.Optimizer:
    """Make an optimiser that decays weights, but neither biases nor the scales of normalisations."""
    groups = [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    make = torch.optim.AdamW if options.optimiser == "adamw" else torch.optim.Adam
    return make([group for group in groups if group["params"]], lr=options.learning_rate)

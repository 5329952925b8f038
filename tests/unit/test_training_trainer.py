from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.training.errors import CannotTrain
from models.training.options import FitOptions
from models.training.run_files import open_run, plot_curves, read_curves, write_curves
from models.training.trainer import EarlyStopping, FitResult, Trainer, Validation, rate_share
from models.weights.checkpoints import load_state_dict
from models.weights.run_folder import RunFolder

pytestmark = pytest.mark.slow

OPTIONS = FitOptions(epochs=4, learning_rate=0.05, averaging=0.9, seed=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for a second thread, which a busy machine makes long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Line:
    """Learns y = 2x + 1 from noisy points, with dropout, which uses PyTorch's own generator."""

    steps = 5
    panels: Mapping[str, Sequence[str]] = {"error": ["error"]}

    def __init__(self, *, breaks_in: int | None = None, scores: Sequence[float] | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network: nn.Module = nn.Sequential(
                nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1)
            )
        self.breaks_in = breaks_in
        self.scores = scores
        self.epochs: list[int] = []

    def batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        self.epochs.append(epoch)
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps):
            x = torch.rand(16, 1, generator=generator)
            yield x, 2 * x + 1 + 0.01 * torch.randn(16, 1, generator=generator)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def validate(self, network: nn.Module) -> Validation:
        epoch = self.epochs[-1]
        if epoch == self.breaks_in:
            raise KeyboardInterrupt
        assert not network.training
        x = torch.linspace(0, 1, 20)[:, None]
        error = float((network(x) - 2 * x - 1).square().mean())
        return Validation(self.scores[epoch] if self.scores else -error, {"error": error})

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def run(learner: Line, path: Path, options: FitOptions = OPTIONS) -> FitResult:
    folder = open_run(path, {"seed": options.seed}, resume=True)
    return Trainer(learner, options, folder, metadata={"made": "here"}, progress=False).fit()


def without_seconds(result: FitResult) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, RunFolder]:
    path = tmp_path_factory.mktemp("whole")
    return run(Line(), path), RunFolder(path)


def test_the_loss_falls_and_every_file_is_written(whole: tuple[FitResult, RunFolder]) -> None:
    result, folder = whole
    assert len(result.rows) == 4
    assert result.rows[-1]["loss"] < result.rows[0]["loss"] / 2
    assert {each.name for each in folder.path.iterdir()} == {
        each.name for each in (folder.record, folder.state, folder.last, folder.best, folder.curves, folder.plot)
    }
    assert [row["epoch"] for row in read_curves(folder.curves)] == [0, 1, 2, 3]
    assert folder.plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("breaks_in", [0, 1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole: tuple[FitResult, RunFolder], tmp_path: Path, breaks_in: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Line(breaks_in=breaks_in), tmp_path)
    torch.rand(17)  # whatever else happened in between
    learner = Line()
    resumed = run(learner, tmp_path)
    assert learner.epochs == list(range(breaks_in, 4))
    assert without_seconds(resumed) == without_seconds(whole[0])
    assert resumed.best_epoch == whole[0].best_epoch
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole[1].path / name).read_bytes()
    finished = Line()
    assert run(finished, tmp_path).rows == resumed.rows
    assert finished.epochs == []  # a finished run does nothing


def test_training_stops_when_patience_is_over_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.4, math.nan, 0.49, 0.9]
    options = replace(OPTIONS, epochs=6, patience=3)
    with pytest.raises(KeyboardInterrupt):
        run(Line(scores=scores, breaks_in=3), tmp_path, options)
    result = run(Line(scores=scores), tmp_path, options)
    assert (len(result.rows), result.stopped_early, result.best_epoch, result.best.score) == (5, True, 1, 0.5)
    best, last = (load_state_dict(tmp_path / name) for name in ("best.safetensors", "last.safetensors"))
    assert not torch.equal(best["0.weight"], last["0.weight"])


def test_a_score_that_rises_too_little_does_not_reset_the_patience() -> None:
    state = EarlyStopping(patience=2, min_delta=0.1)
    for epoch, score in enumerate((0.5, 0.55, 0.58)):
        state = state.after(epoch, score)
    assert state.over
    assert state.best == 0.58
    assert not EarlyStopping(patience=0, waited=1000).over


def test_losses_or_scores_that_are_not_numbers_end_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match=r"not a number in epoch \d"):
        run(Line(), tmp_path / "loss", replace(OPTIONS, optimiser="adam", clip=0.0, learning_rate=1e25))
    with pytest.raises(CannotTrain, match="every score is not a number"):
        run(Line(scores=[math.nan]), tmp_path / "score", replace(OPTIONS, epochs=1))


def test_a_run_is_neither_overwritten_nor_resumed_with_other_options(tmp_path: Path) -> None:
    record = {"options": {"loss": "dice", "size": Path("a")}, "data": {}}
    open_run(tmp_path, record, resume=False)
    assert open_run(tmp_path, record, resume=True).path == tmp_path
    with pytest.raises(CannotTrain, match="--resume"):
        open_run(tmp_path, record, resume=False)
    with pytest.raises(CannotTrain, match=r"options\.loss was 'dice', got 'focal'"):
        open_run(tmp_path, {**record, "options": {"loss": "focal", "size": Path("a")}}, resume=True)


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_damaged_state_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    folder = open_run(tmp_path, {}, resume=False)
    if content is None:
        torch.save({"network": {}}, folder.state)
    else:
        folder.state.write_bytes(content)
    with pytest.raises(CannotTrain, match="state"):
        Trainer(Line(), OPTIONS, folder, metadata={}, progress=False)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"learning_rate": 0.0}, {"averaging": 1.0}, {"warm_up": 1.5}, {"seed": -1}]
)
def test_options_out_of_range_are_rejected_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CannotTrain, match=f"{next(iter(changes))} must be"):
        replace(OPTIONS, **changes)


def test_the_rate_rises_then_falls_along_half_a_cosine(whole: tuple[FitResult, RunFolder]) -> None:
    shares = [rate_share("cosine", step, steps=100, warm_up=0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.505)  # half way down
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.01, abs=1e-3)
    assert {rate_share("constant", step, steps=9, warm_up=0.0) for step in range(9)} == {1.0}
    # The rate of the last of 5 steps of each epoch.
    expected = [0.05 * rate_share("cosine", 5 * epoch + 4, steps=20, warm_up=0.05) for epoch in range(4)]
    assert [row["rate"] for row in whole[0].rows] == pytest.approx(expected)


@pytest.mark.parametrize(("decay", "kept"), [(0.9, 3 / 12), (0.0, 0.0)])
def test_the_average_follows_the_weights_and_copies_counters(tmp_path: Path, decay: float, kept: float) -> None:
    class TwoSteps(Line):
        """Records the weights after each step."""

        steps = 2

        def __init__(self) -> None:
            super().__init__()
            self.before: list[Tensor] = []

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            self.before.append(self.network.get_parameter("0.weight").detach().clone())
            return super().loss(batch)

    learner = TwoSteps()
    run(learner, tmp_path, replace(OPTIONS, epochs=1, averaging=decay))
    after = learner.network.get_parameter("0.weight").detach()
    average = load_state_dict(tmp_path / "last.safetensors")
    # The first step is copied; after the second the decay is at most (1 + 2) / (10 + 2).
    torch.testing.assert_close(average["0.weight"], kept * learner.before[1] + (1 - kept) * after)
    assert int(average["1.num_batches_tracked"]) == 2


def test_curves_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"epoch": 0.0, "loss": 1.5, "iou": math.nan}, {"epoch": 1.0, "loss": 0.25, "iou": 0.5}]
    write_curves(tmp_path / "curves.csv", rows)
    back = read_curves(tmp_path / "curves.csv")
    assert [row["loss"] for row in back] == [1.5, 0.25]
    assert math.isnan(back[0]["iou"])
    plot_curves(tmp_path / "curves.png", rows, {"loss": ["loss"], "nothing": ["absent"]})
    assert (tmp_path / "curves.png").stat().st_size > 1000

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.training.averaging import AveragedNetwork
from models.training.curves import plot_curves, read_curves, write_curves
from models.training.early_stopping import EarlyStopping
from models.training.errors import CannotTrain
from models.training.fitting import FitOptions, Fitted, Validation, fit
from models.training.run_folder import RunFolder, open_run
from models.training.schedules import rate_share
from models.weights.checkpoints import load_state_dict

OPTIONS = FitOptions(epochs=6, learning_rate=0.05, averaging=0.9, seed=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for a second thread, which a busy machine makes long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Line:
    """Learns y = 2x + 1 from noisy points, with a layer that draws from PyTorch's own generator."""

    def __init__(self, *, breaks_in: int | None = None, scores: Sequence[float] | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network: nn.Module = nn.Sequential(
                nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1)
            )
        self.breaks_in = breaks_in
        self.scores = scores
        self.seen: list[int] = []

    steps = 5
    panels: Mapping[str, Sequence[str]] = {"error": ["error"]}

    def batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        self.seen.append(epoch)
        lots = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps):
            x = torch.rand(16, 1, generator=lots)
            yield x, 2 * x + 1 + 0.01 * torch.randn(16, 1, generator=lots)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def validate(self, network: nn.Module) -> Validation:
        epoch = self.seen[-1]
        if epoch == self.breaks_in:
            raise KeyboardInterrupt
        x = torch.linspace(0, 1, 20)[:, None]
        error = float((network(x) - 2 * x - 1).square().mean())
        return Validation(self.scores[epoch] if self.scores else -error, {"error": error})

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def run(learner: Line, path: Path, options: FitOptions = OPTIONS) -> Fitted:
    folder = open_run(path, {"seed": options.seed}, resume=True)
    return fit(learner, options, folder, metadata={"made": "here"}, progress=False)


def without_seconds(fitted: Fitted) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in fitted.rows]


def test_the_loss_falls_and_every_file_is_written(tmp_path: Path) -> None:
    fitted = run(Line(), tmp_path)
    folder = RunFolder(tmp_path)
    assert len(fitted.rows) == 6
    assert fitted.rows[-1]["loss"] < fitted.rows[0]["loss"] / 2
    assert {each.name for each in tmp_path.iterdir()} == {
        each.name for each in (folder.record, folder.state, folder.last, folder.best, folder.curves, folder.plot)
    }
    assert [row["epoch"] for row in read_curves(folder.curves)] == [0, 1, 2, 3, 4, 5]
    assert folder.plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("breaks_in", [0, 1, 3, 5])
def test_a_run_that_is_resumed_equals_one_that_was_never_interrupted(tmp_path: Path, breaks_in: int) -> None:
    whole = run(Line(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Line(breaks_in=breaks_in), tmp_path / "broken")
    torch.rand(17)  # whatever else happened in between
    learner = Line()
    resumed = run(learner, tmp_path / "broken")
    assert learner.seen == list(range(breaks_in, 6))
    assert without_seconds(resumed) == without_seconds(whole)
    assert resumed.best_epoch == whole.best_epoch
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(Line(), tmp_path)
    learner = Line()
    again = run(learner, tmp_path)
    assert learner.seen == []
    assert again.best == first.best
    assert again.rows == first.rows


def test_training_stops_when_patience_is_over_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.4, math.nan, 0.49, 0.9]
    fitted = run(Line(scores=scores), tmp_path, replace(OPTIONS, patience=3))
    assert len(fitted.rows) == 5
    assert fitted.stopped_early
    assert fitted.best_epoch == 1
    assert fitted.best.score == 0.5
    best, last = (load_state_dict(tmp_path / name) for name in ("best.safetensors", "last.safetensors"))
    assert not torch.equal(best["0.weight"], last["0.weight"])
    with pytest.raises(KeyboardInterrupt):
        run(Line(scores=scores, breaks_in=3), tmp_path / "broken", replace(OPTIONS, patience=3))
    resumed = run(Line(scores=scores), tmp_path / "broken", replace(OPTIONS, patience=3))
    assert [len(resumed.rows), resumed.best_epoch, resumed.best.score] == [5, 1, 0.5]


def test_a_score_that_rises_too_little_does_not_start_the_wait_anew() -> None:
    state = EarlyStopping(patience=2, min_delta=0.1)
    for epoch, score in enumerate((0.5, 0.55, 0.58)):
        state = state.after(epoch, score)
    assert state.over
    assert state.best == 0.58
    assert not EarlyStopping(patience=0, waited=1000).over


def test_a_loss_that_is_no_number_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match=r"no number in epoch \d"):
        run(Line(), tmp_path, replace(OPTIONS, optimiser="adam", clip=0.0, learning_rate=1e25))


def test_scores_that_are_no_numbers_end_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="every score is no number"):
        run(Line(scores=[math.nan] * 6), tmp_path)


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_with_other_options(tmp_path: Path) -> None:
    record = {"options": {"loss": "dice", "size": Path("a")}, "data": {}}
    open_run(tmp_path, record, resume=False)
    assert open_run(tmp_path, record, resume=True).path == tmp_path
    with pytest.raises(CannotTrain, match="--resume"):
        open_run(tmp_path, record, resume=False)
    with pytest.raises(CannotTrain, match=r"options\.loss was 'dice', is 'focal'"):
        open_run(tmp_path, {**record, "options": {"loss": "focal", "size": Path("a")}}, resume=True)


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes | None) -> None:
    folder = open_run(tmp_path, {}, resume=False)
    if content is None:
        torch.save({"network": {}}, folder.state)
    else:
        folder.state.write_bytes(content)
    with pytest.raises(CannotTrain, match="state"):
        fit(Line(), OPTIONS, folder, metadata={}, progress=False)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"learning_rate": 0.0}, {"averaging": 1.0}, {"warm_up": 1.5}, {"seed": -1}]
)
def test_options_out_of_range_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CannotTrain, match=f"{next(iter(changes))} cannot be"):
        replace(OPTIONS, **changes)


def test_the_rate_rises_then_falls_along_half_a_cosine() -> None:
    shares = [rate_share("cosine", step, steps=100, warm_up=0.1, floor=0.01) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.505)  # half way down
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.01, abs=1e-3)
    assert {rate_share("constant", step, steps=9, warm_up=0.0) for step in range(9)} == {1.0}


def test_the_average_follows_the_weights_and_copies_counters() -> None:
    network = nn.BatchNorm1d(1)
    average = AveragedNetwork(network, decay=0.9)
    network.weight.data.fill_(5.0)
    network(torch.zeros(4, 1))
    average.follow(network)
    # After the first update the decay is (1 + 1) / (10 + 1), so 9 of 11 parts are the new weight.
    assert float(average.network.get_parameter("weight").detach()) == pytest.approx(1 + 4 * 9 / 11)
    assert int(average.network.get_buffer("num_batches_tracked")) == 1
    plain = AveragedNetwork(network, decay=0.0)
    network.weight.data.fill_(7.25)
    plain.follow(network)
    assert float(plain.network.get_parameter("weight").detach()) == 7.25


def test_curves_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"epoch": 0.0, "loss": 1.5, "iou": math.nan}, {"epoch": 1.0, "loss": 0.25, "iou": 0.5}]
    write_curves(tmp_path / "curves.csv", rows)
    back = read_curves(tmp_path / "curves.csv")
    assert [row["loss"] for row in back] == [1.5, 0.25]
    assert math.isnan(back[0]["iou"])
    plot_curves(tmp_path / "curves.png", rows, {"loss": ["loss"], "nothing": ["absent"]})
    assert (tmp_path / "curves.png").stat().st_size > 1000

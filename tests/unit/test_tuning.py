"""How an encoder's form is chosen for a shape: encoders of one layer, and a stopwatch that is told the times."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from models.backends.compiled import Compiler, twin
from models.backends.tuned_encoder import TunedEncoder, apart
from models.backends.tuning import Chosen, Run, Tools, choose, cover, stopwatch_of


class Scaling(nn.Module):
    """Averages cells of 16 x 16 pixels, and notes the batches that it got."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor), requires_grad=False)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.batches.append(tuple(batch.shape))
        return nn.functional.avg_pool2d(batch, 16) * self.factor


class Named:
    """A form that computes what the one under it does, and says what it is."""

    def __init__(self, name: str, under: Run) -> None:
        self.name, self.under = name, under

    def __call__(self, batch: Tensor) -> Tensor:
        return self.under(batch)


def as_graph(run: Run, example: Tensor) -> Run:
    return Named("graph", run)


def compiled(encoder: nn.Module, example: Tensor) -> Run:
    return Named("compiled", encoder)


class TableStopwatch:
    """Seconds in the order in which forms are timed, without running them."""

    def __init__(self, *seconds: float) -> None:
        self.left = list(seconds)

    def __call__(self, _: Callable[[], object]) -> float:
        return self.left.pop(0)


EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tools(*seconds: float, **variants: nn.Module) -> Tools:
    return Tools(variants or {"plain": Scaling()}, compiled, as_graph, TableStopwatch(*seconds))


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ((1.0, 2.0, 3.0, 4.0), "plain"),
        ((1.0, 0.5, 0.8, 0.9), "plain, compiled"),
        ((1.0, 2.0, 0.5, 0.9), "plain, as a graph"),
        ((1.0, 0.5, 0.8, 0.3), "plain, compiled, as a graph"),
        ((1.0, 0.98, 0.98, 0.98), "plain"),  # gains too small to be more than noise
    ],
)
def test_the_fastest_form_is_taken(seconds: tuple[float, ...], name: str) -> None:
    chosen = choose(tools(*seconds), EXAMPLE, compiling=True)
    assert chosen.name == name
    if name != "plain":
        assert chosen.seconds == min(seconds)


def test_where_there_is_no_time_for_compiling_only_graphs_are_tried() -> None:
    given = tools(1.0, 0.5)
    assert choose(given, EXAMPLE, compiling=False).name == "plain, as a graph"


def test_what_is_compiled_and_recorded_is_the_fastest_variant() -> None:
    plain, other = Scaling(), Scaling()
    chosen = choose(tools(1.0, 0.5, 0.4, 0.6, 0.7, plain=plain, other=other), EXAMPLE, compiling=True)
    assert chosen.name == "other, compiled"
    assert isinstance(chosen.run, Named)
    assert chosen.run.under is other


def fails(run: Run, example: Tensor) -> Run:
    raise FileNotFoundError("no C compiler")


def test_a_compiler_that_fails_is_logged_and_the_plain_encoder_kept(caplog: pytest.LogCaptureFixture) -> None:
    given = Tools({"plain": Scaling()}, fails, fails, TableStopwatch(1.0))
    with caplog.at_level(logging.WARNING, "pomona.tuning"):
        assert choose(given, EXAMPLE, compiling=True).name == "plain"
    assert [record.message.partition(" not used: ")[2] for record in caplog.records] == [
        "plain, compiled: no C compiler",
        "plain, as a graph: no C compiler",
    ]


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_form_that_answers_otherwise_is_not_taken(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    chosen = choose(tools(1.0, 9.0, 9.0, plain=Scaling(), wrong=Scaling(factor)), EXAMPLE, compiling=True)
    assert chosen.name == "plain"
    assert "wrong: its embeddings are" in caplog.text


@pytest.mark.parametrize(
    ("count", "seconds", "sizes"),
    [
        (1, {1: 1.0, 2: 1.0, 4: 2.0}, (1,)),
        (3, {1: 1.0, 2: 1.5, 4: 2.0}, (4,)),  # an empty place is cheaper than a second batch
        (3, {1: 1.0, 2: 1.5, 4: 3.0}, (2, 1)),
        (9, {1: 1.0, 2: 1.9, 4: 3.7, 8: 7.0, 16: 14.0}, (8, 1)),
        (9, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.5}, (16,)),
        (40, {1: 1.0, 16: 2.0}, (16, 16, 16)),
    ],
)
def test_images_are_done_in_the_batches_that_take_least_time(
    count: int, seconds: Mapping[int, float], sizes: tuple[int, ...]
) -> None:
    assert cover(count, seconds) == sizes


def test_no_other_batches_would_take_less_time() -> None:
    seconds = {1: 1.0, 2: 1.3, 4: 2.9, 8: 4.1}
    for count in range(1, 12):
        ways = (
            way
            for length in range(1, count + 1)
            for way in itertools.combinations_with_replacement(seconds, length)
            if sum(way) >= count
        )
        least = min(sum(seconds[size] for size in way) for way in ways)
        assert sum(seconds[size] for size in cover(count, seconds)) == pytest.approx(least)


def test_a_stopwatch_takes_the_best_run_after_the_first_and_waits_for_the_device() -> None:
    now, waits = [0.0], []
    costs = iter([9.0, 3.0, 2.0, 4.0])

    def run() -> None:
        now[0] += next(costs)

    stopwatch = stopwatch_of(lambda: waits.append(now[0]), lambda: now[0], rounds=3)
    assert stopwatch(run) == 2.0
    assert waits == [0, 9, 9, 12, 12, 14, 14, 18]


def square(count: int) -> Tensor:
    return torch.randn(count, 3, 1024, 1024, generator=torch.Generator().manual_seed(count))


def test_odd_batches_of_the_square_are_filled_up_and_answered_in_order() -> None:
    encoder = Scaling()
    # Of each size: plain, compiled. Four images take hardly longer than one.
    given = Tools({"plain": encoder}, compiled, None, TableStopwatch(1.0, 0.5, 1.0, 0.6))
    tuned = TunedEncoder(given, (1, 4))
    for count in (1, 4):
        tuned(square(count))
    encoder.batches.clear()
    images = square(3)
    embeddings = tuned(images)
    assert encoder.batches == [(4, 3, 1024, 1024)]
    torch.testing.assert_close(torch.stack(embeddings), encoder(images))


def test_until_all_sizes_are_tuned_batches_run_as_they_come() -> None:
    encoder = Scaling()
    tuned = TunedEncoder(Tools({"plain": encoder}, None, None, TableStopwatch(1.0)), (1, 4))
    tuned(square(1))
    encoder.batches.clear()
    tuned(square(3))
    assert encoder.batches == [(3, 3, 1024, 1024)]


class Recorder:
    """Notes the shapes for which a graph was asked."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, run: Run, example: Tensor) -> Run:
        self.shapes.append(tuple(example.shape))
        return run


def instantly(run: Callable[[], object]) -> float:
    return 1.0


def test_other_shapes_get_a_graph_once_they_came_often_and_are_never_compiled() -> None:
    record = Recorder()
    tuned = TunedEncoder(Tools({"plain": Scaling()}, fails, record, instantly), (1, 2))
    wide = torch.zeros(1, 3, 64, 128)
    for _ in range(7):
        tuned(wide)
    assert record.shapes == []
    for _ in range(3):
        tuned(wide)
    assert record.shapes == [(1, 3, 64, 128)]


def test_only_the_shapes_used_last_keep_their_graphs() -> None:
    record = Recorder()
    tuned = TunedEncoder(Tools({"plain": Scaling()}, None, record, instantly), (1,))

    def use(width: int) -> None:
        for _ in range(8):
            tuned(torch.zeros(1, 3, 64, width))

    for number in range(1, 9):
        use(64 * number)
    use(64)  # used again, and so kept
    use(64 * 9)
    use(64)
    assert len(record.shapes) == 9
    use(128)  # was forgotten
    assert record.shapes[-1] == (1, 3, 64, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_that_is_kept_does_not_keep_its_batch_mates(dtype: torch.dtype) -> None:
    first, _ = apart(torch.ones(2, 256, 4, 4, dtype=dtype))
    assert first.dtype == torch.float32
    assert first.untyped_storage().nbytes() == first.nbytes


def test_a_twin_shares_weights_and_nothing_else() -> None:
    encoder = Scaling()
    other = twin(encoder)
    assert isinstance(other, Scaling)
    assert other.factor is encoder.factor
    other(EXAMPLE)
    assert encoder.batches == []


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16, 16)

    def forward(self, batch: Tensor) -> Tensor:
        out: Tensor = self.conv(batch)
        return out


def test_a_compiled_encoder_answers_as_the_plain_one_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    encoder = Plain().requires_grad_(requires_grad=False)
    compiler = Compiler(backend="eager")
    with torch.inference_mode():
        run = compiler(encoder, EXAMPLE)
        assert run is compiler(encoder, EXAMPLE[:1])
        torch.testing.assert_close(run(EXAMPLE), encoder(EXAMPLE))
    assert encoder._compiled_call_impl is None


def test_a_compiler_that_is_not_there_leaves_the_plain_encoder() -> None:
    encoder = Plain().requires_grad_(requires_grad=False)
    given = Tools({"plain": encoder}, Compiler(backend="no such compiler"), None, TableStopwatch(1.0))
    assert choose(given, EXAMPLE, compiling=True) == Chosen("plain", encoder, 1.0)

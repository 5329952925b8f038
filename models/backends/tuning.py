"""Finds out by measuring in which form an encoder is fastest for a shape, and in which batches images pass it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from torch import Tensor, nn

from models.errors import BackendError

Run = Callable[[Tensor], Tensor]
"""Images (n, 3, height, width) to embeddings (n, 256, height / 16, width / 16)."""

Maker = Callable[[Run, Tensor], Run]
"""Another form of a run for batches like the example, or an exception."""

Compile = Callable[[nn.Module, Tensor], Run]

Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that a call takes on the device."""

_GAIN: Final = 0.97
"""Of the best time so far: what a form must stay below to be taken instead."""

_ROUNDS: Final = 5

_LARGEST_ERROR: Final = 0.05
"""Of the embedding's norm. In bfloat16, MobileSAM's embeddings of photographs differ from float32 by up to 0.018."""

_LOG = logging.getLogger("pomona.tuning")


@dataclass(frozen=True, slots=True)
class Tools:
    """What can be done to an encoder.

    Attributes:
        variants: the encoder by name, in ways that compute the same; the first is the plain one, which always works.
        compile: from `models.backends.compiled`, or None.
        record: from `models.backends.cuda_graphs`, or None.
        stopwatch: measures.
    """

    variants: Mapping[str, nn.Module]
    compile: Compile | None
    record: Maker | None
    stopwatch: Stopwatch


@dataclass(frozen=True, slots=True)
class Chosen:
    """The fastest form for one shape.

    Attributes:
        name: what it is, for the log.
        run: takes batches of that shape.
        seconds: of one batch.
    """

    name: str
    run: Run
    seconds: float


def choose(tools: Tools, example: Tensor, *, compiling: bool) -> Chosen:
    """Try an encoder's forms on one shape: its variants, then the fastest one compiled, and both as graphs.

    A form that fails, or answers otherwise than the plain one, is logged and left out.

    Args:
        tools: the forms.
        example: a batch of the shape.
        compiling: whether there is time for it.

    Raises:
        RuntimeError: the plain one fails.
    """
    (plain, encoder), *others = tools.variants.items()
    trial = _Trial(example, encoder(example), tools.stopwatch)
    best = Chosen(plain, encoder, tools.stopwatch(lambda: encoder(example)))
    for name, variant in others:
        form = trial.of(name, _as_it_is, variant)
        if form is not None and form.seconds < best.seconds * _GAIN:
            best, encoder = form, variant
    forms = [best]
    if compiling and tools.compile is not None:
        forms += filter(None, [trial.of(f"{best.name}, compiled", tools.compile, encoder)])
    if tools.record is not None:
        forms += filter(None, [trial.of(f"{form.name}, as a graph", tools.record, form.run) for form in forms])
    for form in forms[1:]:
        if form.seconds < best.seconds * _GAIN:
            best = form
    return best


@dataclass(frozen=True, slots=True)
class _Trial:
    """Of the forms of one encoder on one batch."""

    example: Tensor
    expected: Tensor
    stopwatch: Stopwatch

    def of(self, name: str, maker: Callable[[Any, Tensor], Run], subject: Run) -> Chosen | None:
        """Make, check and time a form; None where it cannot be used."""
        try:
            run = maker(subject, self.example)
            self._check(run)
            return Chosen(name, run, self.stopwatch(lambda: run(self.example)))
        except Exception as error:  # noqa: BLE001 (compilers raise anything; the plain encoder serves)
            _LOG.warning("encoder for %s not used: %s: %s", tuple(self.example.shape), name, error)
            return None

    def _check(self, run: Run) -> None:
        expected = self.expected.float()
        error = float((run(self.example).float() - expected).norm() / expected.norm())
        # Written so that a NaN is an error too.
        if not error <= _LARGEST_ERROR:
            raise BackendError(f"its embeddings are {error:.3f} of their norm away from the plain encoder's")


def _as_it_is(run: Run, _: Tensor) -> Run:
    return run


def cover(count: int, seconds: Mapping[int, float]) -> tuple[int, ...]:
    """The batches in which `count` images are done soonest; in the last one some places may stay empty.

    Args:
        count: at least 1.
        seconds: that a batch takes, by its size.

    Returns:
        sizes of batches, falling, in all at least `count`.
    """

    @cache
    def best(left: int) -> tuple[float, tuple[int, ...]]:
        if left <= 0:
            return 0.0, ()
        ways = ((size, *best(left - size)) for size in seconds)
        return min((seconds[size] + rest, (size, *sizes)) for size, rest, sizes in ways)

    return tuple(sorted(best(count)[1], reverse=True))


def stopwatch_of(
    synchronise: Callable[[], None], clock: Callable[[], float] = time.perf_counter, rounds: int = _ROUNDS
) -> Stopwatch:
    """What takes the best of some runs, each waited for; one run before them does not count.

    Args:
        synchronise: waits for the device.
        clock: seconds.
        rounds: how many runs count.
    """

    def spent(run: Callable[[], object]) -> float:
        synchronise()
        started = clock()
        run()
        synchronise()
        return clock() - started

    def measure(run: Callable[[], object]) -> float:
        spent(run)
        return min(spent(run) for _ in range(rounds))

    return measure

"""The loaded models and the threads that work for requests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from models.catalog import CatalogueEntry, Family
from models.errors import UnknownModel
from models.images import Stop
from models.types import Size
from service.api.context import RequestContext
from service.api.schema import InputSize
from service.errors import DeadlineExceeded, ModelNotLoaded, WrongFamily
from service.memory import WORKING
from service.pipelines.source import ImageSource
from service.pipelines.workers import RankedThreads, rank_work
from service.runners.base import Runner, megapixels
from service.scheduler.latency import LatencyModel
from service.settings import Settings

T = TypeVar("T")
R = TypeVar("R", bound=Runner)

_KINDS: Final[Mapping[Family, str]] = {
    "sam": "a SAM, which masks what prompts point at",
    "sam2": "a SAM 2, which masks what prompts point at and follows it over frames",
    "unet": "a U-Net, which separates healthy from infected fruit",
    "detector": "a detector, which finds objects of known classes",
    "grounding": "a model of an open vocabulary, which finds what a text names",
}


_ABLE: Final[Mapping[Family, tuple[Family, ...]]] = {"sam": ("sam", "sam2")}
"""Families whose models can do what this one can; others are on their own."""


@dataclass(frozen=True, slots=True)
class Engine:
    """See the module.

    Attributes:
        runners: loaded models by name, the revisions that answer; the first of a family is its default.
        catalogue: all models by name.
        settings: limits.
        beside: other loaded revisions, by name and revision; they answer those who name them as `NAME@REVISION`.
        workers: threads for decoding and encoding, so that the event loop stays free.
        clock: seconds, monotonic; the event loop's.
        latency: learned times of what the workers do, by megapixels.
        quiet: called each time when no request is being answered any more.
    """

    runners: dict[str, Runner]
    catalogue: Mapping[str, CatalogueEntry]
    settings: Settings
    beside: dict[tuple[str, str], Runner] = field(default_factory=dict)
    workers: RankedThreads = field(default_factory=RankedThreads)
    clock: Callable[[], float] = time.monotonic
    latency: LatencyModel = field(default_factory=LatencyModel)
    quiet: list[Callable[[], None]] = field(default_factory=list)
    _requests: set[asyncio.Future[None]] = field(default_factory=set)

    @property
    def broken(self) -> bool:
        """Whether a device failed for good."""
        return any(runner.broken for runner in self.runners.values())

    def default(self, family: Family) -> str | None:
        """Return the model that answers requests that name none, where one is loaded."""
        return next((name for name, runner in self.runners.items() if runner.family in _able(family)), None)

    def input_size(self, sam: Runner) -> InputSize:
        """Return the input size of requests that have none."""
        return sam.entry.input_size or self.settings.input_size

    def runner(self, kind: type[R], name: str | None) -> R:
        """Choose the runner that answers.

        Args:
            kind: of runners that can do it.
            name: in the catalogue, where needed followed by `@` and a loaded revision; or None for the default.

        Raises:
            UnknownModel: there is no such model, or none is loaded.
            WrongFamily: the model cannot do this.
        """
        if name is None:
            for runner in self.runners.values():
                if isinstance(runner, kind):
                    return runner
        else:
            name, _, revision = name.partition("@")
            found = self.loaded(name, revision) if revision else self.runners.get(name)
            if isinstance(found, kind):
                return found
        raise self._refusal(kind.family, name)

    def loaded(self, name: str, revision: str) -> Runner:
        """Return a revision that is loaded.

        Raises:
            UnknownModel: there is no such model, or this revision of it is not loaded.
        """
        active = self.runners.get(name)
        if active is None:
            raise self.not_loaded(name) if name in self.catalogue else UnknownModel(f"There is no model {name!r}.")
        if active.entry.revision == revision:
            return active
        found = self.beside.get((name, revision))
        if found is None:
            revisions = [active.entry.revision, *(other for model, other in self.beside if model == name)]
            raise ModelNotLoaded(
                f"The revision {revision!r} of {name} is not loaded; loaded: {', '.join(revisions)}. "
                "POST /v1/models/load loads others."
            )
        return found

    async def settle(self) -> None:
        """Wait until the requests that are being answered now have ended: they may use any runner of before."""
        if self._requests:
            await asyncio.wait(set(self._requests))

    @property
    def busy(self) -> bool:
        """Whether requests are being answered."""
        return bool(self._requests)

    def not_loaded(self, name: str) -> ModelNotLoaded:
        """Return the error of a model of the catalogue that is not loaded."""
        return ModelNotLoaded(
            f"The model {name} is in the catalogue but not loaded; loaded: {', '.join(self.runners)}. "
            f"{self._loading(name)} loads it."
        )

    @asynccontextmanager
    async def in_time(self, context: RequestContext, runner: Runner) -> AsyncIterator[None]:
        """Rank the work of a request, cancel it the moment its deadline passes, and measure the whole.

        Raises:
            DeadlineExceeded: the deadline passed.
        """
        met = False
        rank = rank_work(context.urgency, context.deadline)
        ended = asyncio.get_running_loop().create_future()
        self._requests.add(ended)
        try:
            self._check_deadline(context)
            async with asyncio.timeout_at(context.deadline):
                yield
            met = True
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed before the answer was ready.") from error
        finally:
            rank.restore()
            self._requests.discard(ended)
            ended.set_result(None)
            context.timings.total = self.clock() - context.arrived
            if context.deadline is not None:
                context.observer.deadline_checked(runner.entry.name, met=met)
            if not self._requests:
                for listener in self.quiet:
                    listener()

    async def in_worker(self, call: Callable[..., T], *arguments: object) -> T:
        """Call a function in a worker thread, which is not stopped where the caller leaves: its memory stays held."""
        work = self.workers.submit(call, *arguments)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            holding = WORKING.get()
            if holding is not None and not work.cancel():
                holding.outlive(work)
            raise

    async def size(self, source: ImageSource) -> Size:
        """Return the size of an image; in a worker thread, where its header is long.

        Raises:
            ImageError: the image cannot be used.
        """
        limit = self.settings.max_pixels
        size = source.quick_size(limit)
        return await self.in_worker(source.size, limit) if size is None else size

    async def decode(self, context: RequestContext, work: Hashable, size: Size, decode: Callable[[Stop], T]) -> T:
        """Decode an image in a worker thread, until the caller leaves or its deadline passes.

        Args:
            context: of the request.
            work: what the time is learned as.
            size: of the image.
            decode: takes what says when to stop.
        """
        tick, left = self.clock(), threading.Event()
        try:
            decoded = await self.in_worker(decode, left.is_set)
        except asyncio.CancelledError:
            left.set()
            raise
        seconds = self.clock() - tick
        context.took("decode", seconds)
        self.learn(work, size, seconds)
        return decoded

    def predict(self, work: Hashable, size: Size, count: int = 1) -> float:
        """Predict seconds of `work` on `count` images or masks of `size`; 0 where nothing was learned."""
        return self.predict_cost(work, count * megapixels(size))

    def learn(self, work: Hashable, size: Size, seconds: float, count: int = 1) -> None:
        """Learn from `work` that took `seconds`."""
        self.learn_cost(work, count * megapixels(size), seconds)

    def predict_cost(self, work: Hashable, cost: float) -> float:
        """Predict seconds of `work` that is not counted in megapixels; 0 where nothing was learned."""
        self.latency.heal(self.clock())
        return self.latency.predict(work, cost)

    def learn_cost(self, work: Hashable, cost: float, seconds: float) -> None:
        """Learn from `work` that is not counted in megapixels and took `seconds`."""
        self.latency.learn(work, cost, seconds, self.clock())

    async def close(self, within: float) -> None:
        """Finish admitted work, for at most `within` seconds, and let all threads end."""
        until = time.monotonic() + within
        for runner in self.runners.values():
            await runner.close(max(0.0, until - time.monotonic()))
        if self._requests:  # their masks are still to be encoded
            await asyncio.wait(set(self._requests), timeout=max(0.0, until - time.monotonic()))
        self.workers.shutdown(wait=False, cancel_futures=True)

    def _check_deadline(self, context: RequestContext) -> None:
        """Check that a request's deadline has not passed before anything was done for it.

        Raises:
            TimeoutError: it has.
        """
        if context.deadline is not None and self.clock() >= context.deadline:
            raise TimeoutError

    def _refusal(self, family: Family, name: str | None) -> UnknownModel | WrongFamily:
        fitting = [loaded for loaded, runner in self.runners.items() if runner.family in _able(family)]
        loaded = f"loaded: {', '.join(fitting)}" if fitting else f"none is loaded. {self._how_to_load(family)}"
        if name is None:
            return ModelNotLoaded(f"This operation needs {_KINDS[family]}; {loaded}")
        if name not in self.catalogue:
            return UnknownModel(f"There is no model {name!r}; {loaded}")
        if (other := self.catalogue[name].architecture.family) not in _able(family):
            return WrongFamily(f"{name} is {_KINDS[other]}. This operation needs {_KINDS[family]}; {loaded}")
        return self.not_loaded(name)

    def _how_to_load(self, family: Family) -> str:
        known = [name for name, entry in self.catalogue.items() if entry.architecture.family == family]
        if known:
            return f"{self._loading(known[0])} loads one."
        return "Describe your own in POMONA_MODELS_FILE and name it in POMONA_MODELS."

    def _loading(self, name: str) -> str:
        return f"POMONA_MODELS={','.join([*self.runners, name])}"


def _able(family: Family) -> tuple[Family, ...]:
    return _ABLE.get(family, (family,))

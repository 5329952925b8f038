"""Where every request begins: which model answers it, until when, and the threads that work for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from models.catalog import CatalogueEntry, Family
from models.errors import UnknownModel
from service.errors import DeadlineExceeded, ModelNotLoaded, WrongFamily
from service.messages import Timings, Together, When
from service.observability.observer import Observer
from service.observability.tracing import took
from service.runners.base import Runner
from service.settings import Settings
from service.work import Terms

T = TypeVar("T")
R = TypeVar("R", bound=Runner)

WAY_BACK_S: Final = 0.005
"""For an answer to be written and to reach its caller on the same network."""

_KINDS: Final[Mapping[Family, str]] = {
    "sam": "a SAM, which masks what prompts point at",
    "unet": "a U-Net, which tells healthy from infected fruit",
}


@dataclass(frozen=True, slots=True)
class Visit(Generic[R]):
    """One request on its way: who answers it, since when and until when, and where its time went."""

    runner: R
    arrived: float
    deadline: float | None
    urgency: int
    timings: Timings = field(default_factory=Timings)
    together: Together = field(default_factory=Together)

    def terms(self, *, after: float = 0.0) -> Terms:
        """What it asks of the device, where `after` seconds of work come when that is done, and then the way back."""
        deadline = None if self.deadline is None else self.deadline - after - WAY_BACK_S
        return Terms(self.arrived, deadline, self.urgency)


@dataclass(frozen=True, slots=True)
class Reception:
    """What the paths of all families share.

    Attributes:
        runners: loaded models by name; the first of a family is its default.
        catalogue: all models by name.
        settings: limits.
        workers: threads for images and masks, so that the event loop stays free.
        clock: seconds, monotonic; the event loop's.
        observer: hears of deadlines and of what the workers do.
    """

    runners: Mapping[str, Runner]
    catalogue: Mapping[str, CatalogueEntry]
    settings: Settings
    workers: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)
    clock: Callable[[], float] = time.monotonic
    observer: Observer = field(default_factory=Observer)

    def arrive(self, kind: type[R], model: str | None, when: When) -> Visit[R]:
        """Let a request in.

        Args:
            kind: of the runners that can do it.
            model: catalogue name, or None for the default.
            when: until when.

        Raises:
            UnknownModel: no such model, or none that is loaded.
            WrongFamily: the model cannot do this.
        """
        now = self.clock()
        deadline = None if when.within is None else now + when.within
        return Visit(self._runner(kind, model), now, deadline, when.urgency)

    def default(self, family: Family) -> str | None:
        """The model that answers requests that name none, where one is loaded."""
        return next((name for name, runner in self.runners.items() if runner.family == family), None)

    def not_loaded(self, name: str) -> ModelNotLoaded:
        """Why a model of the catalogue that is not loaded does not answer, and what would load it."""
        return ModelNotLoaded(
            f"The model {name} is in the catalogue but not loaded here; loaded: {', '.join(self.runners)}. "
            f"{self._loading(name)} would load it."
        )

    @asynccontextmanager
    async def in_time(self, visit: Visit[R]) -> AsyncIterator[None]:
        """Answer that it is late the moment it is, and tell where the time went.

        Raises:
            DeadlineExceeded: it is late.
        """
        met = False
        try:
            async with asyncio.timeout_at(visit.deadline):
                yield
            met = True
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed before the answer was there.") from error
        finally:
            visit.timings.total = self.clock() - visit.arrived
            if visit.deadline is not None:
                self.observer.had_deadline(visit.runner.entry.name, met=met)

    async def in_worker(self, call: Callable[..., T], *arguments: object) -> T:
        """Call it in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, call, *arguments)

    async def in_decoder(self, visit: Visit[R], decode: Callable[[], T]) -> T:
        """Decode the image in a thread, and note how long it took."""
        tick = self.clock()
        decoded = await self.in_worker(decode)
        seconds = self.clock() - tick
        visit.timings.decode += seconds
        self.observer.decoded(seconds)
        took("decode", seconds)
        return decoded

    def _runner(self, kind: type[R], name: str | None) -> R:
        fitting = {loaded: runner for loaded, runner in self.runners.items() if isinstance(runner, kind)}
        if name is None:
            name = next(iter(fitting), None)
        if name in fitting:
            return fitting[name]
        raise self._refusal(kind.family, name, list(fitting))

    def _refusal(self, family: Family, name: str | None, fitting: list[str]) -> UnknownModel | WrongFamily:
        """Why no model answers, and what would be right."""
        loaded = f"loaded: {', '.join(fitting)}" if fitting else f"none is loaded. {self._how_to_load(family)}"
        if name is None:
            return ModelNotLoaded(f"This takes {_KINDS[family]}; {loaded}")
        if name not in self.catalogue:
            return UnknownModel(f"There is no model {name!r}; {loaded}")
        if (other := self.catalogue[name].architecture.family) != family:
            return WrongFamily(f"{name} is {_KINDS[other]}. This takes {_KINDS[family]}; {loaded}")
        return self.not_loaded(name)

    def _how_to_load(self, family: Family) -> str:
        known = [name for name, entry in self.catalogue.items() if entry.architecture.family == family]
        if known:
            return f"{self._loading(known[0])} would load one."
        return "Describe your own in POMONA_MODELS_FILE and name it in POMONA_MODELS."

    def _loading(self, name: str) -> str:
        return f"POMONA_MODELS={','.join([*self.runners, name])}"

"""One queue for all models on a device: the batching policy on an event loop and the device's own thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from models.errors import DeviceBroken
from service.errors import PROBLEMS, DeadlineExceeded, DeadlineUnreachable, NotReady, Overloaded, problem_of
from service.observability.observer import Observer
from service.observability.tracing import Ride, record_batch
from service.runners.keys import Key
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, QueueOptions, WorkItem

T = TypeVar("T")

R = TypeVar("R")


def run_isolated(run: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R | Exception]:
    """Run a batch; where it fails, run its halves, down to the items that fail by themselves.

    This serves a bad item, which is found in about log2(n) failing runs, and a device that is out of memory, for which
    smaller batches may fit.

    Args:
        run: gives one result per item, in their order, or raises.
        batch: at least one item.

    Returns:
        for each item its result, or the exception that it alone raised.

    Raises:
        DeviceBroken: at once; nothing can run any more.
    """
    try:
        return list(run(batch))
    except DeviceBroken:
        raise
    except Exception as error:  # noqa: BLE001 (whatever it is, it goes to the item's caller)
        if len(batch) == 1:
            return [error]
    middle = len(batch) // 2
    return run_isolated(run, batch[:middle]) + run_isolated(run, batch[middle:])


_Outcomes = tuple[list[Any], float]
"""Of a batch's items in their order, and the seconds that it ran."""

_HANDOVER_S: Final = 0.002
"""For a request to come back with its next piece of work: some turns of the event loop."""


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[T]):
    """What came off the device: when it was started there, how long it had waited and ran, how many ran together."""

    value: T
    queued: float
    ran: float
    batch_size: int = 1
    started: float = 0.0


class Ticket:
    """A place in the queue, taken at the door; `run` hands in the payload once that is prepared."""

    def __init__(self, queue: DeviceQueue, item: WorkItem[Key, Any]) -> None:
        self._queue = queue
        self._item = item
        self._future: asyncio.Future[BatchResult[Any]] = asyncio.get_running_loop().create_future()
        self._ready_at = 0.0
        self.recording = item.request.recording
        self.ride: Ride | None = None

    async def run(self, payload: Any) -> BatchResult[Any]:
        """Wait for the device and the result.

        Raises:
            DeadlineExceeded: it was dropped, as it would have been late.
            Exception: whatever the device raised for this item.
        """
        self._ready_at = self._queue.clock()
        if not self._future.done():
            self._item.payload = payload
            self._queue.pump()
        ran = None
        try:
            ran = await self._future
        except asyncio.CancelledError:
            self.release()
            raise
        else:
            return ran
        finally:
            if self.recording is not None:
                stage, now = self._item.key.stage, self._queue.clock()
                self.recording.came_back(stage, self.ride, ready_at=self._ready_at, now=now, failed=ran is None)

    def release(self) -> None:
        """Give the place up, where it is not running yet; harmless afterwards."""
        self._item.abandoned = True
        self._queue.leave(self)

    @property
    def item(self) -> WorkItem[Key, Any]:
        """What the policy sees."""
        return self._item

    @property
    def ready_at(self) -> float:
        """When the payload was handed in."""
        return self._ready_at

    def settle(self, outcome: BatchResult[Any] | Exception) -> None:
        """Give whoever waits the result or the error; nobody may be waiting any more."""
        if self._future.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
            # Seen: a place may be settled before anybody awaits it, and then be given up.
            self._future.exception()
        else:
            self._future.set_result(outcome)


class DeviceQueue:
    """One device, one thread, one policy, for the work of all models on the device. For one event loop.

    A piece's key says whose work it is: its owner runs it and bounds its batches, and observers hear of it by its name.

    Args:
        device: names the thread.
        options: of the queue.
        clock: seconds, monotonic.
        observer: hears of batches, waits and drops.
    """

    def __init__(
        self,
        device: str,
        *,
        options: QueueOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.clock = clock
        self._observer = observer or Observer()
        self._policy: BatchPolicy[Key, Any] = BatchPolicy(
            lambda key: key.owner.limits(key),
            LatencyModel(),
            clock=clock,
            options=options,
            family=lambda key: key.family,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pomona-{device}")
        self._places: dict[int, Ticket] = {}
        self._closing = False
        self._broken: DeviceBroken | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._holding = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def broken(self) -> bool:
        """The device failed for good: the process should be replaced."""
        return self._broken is not None

    async def alone(self, call: Callable[[], None]) -> None:
        """Run something on the device's thread that is no batch: no batch runs meanwhile, and no other such call."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def learn(self, key: Key, cost: float, seconds: float) -> None:
        """A batch that ran apart from the queue took `seconds`."""
        self._policy.learn(key, cost, seconds)

    def predict(self, key: Key, cost: float) -> float:
        """Seconds that a batch of `cost` will take at most, more often than not; 0 where nothing was learned."""
        return self._policy.predict(key, cost)

    def reserve(self, *items: WorkItem[Key, Any], may_probe: bool = True) -> list[Ticket]:
        """Take the places of one request, all or none.

        Args:
            items: of one owner, in the order in which they run.
            may_probe: see `BatchPolicy.admit`.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the queue is closing.
            DeviceBroken: the device failed for good.
        """
        if self._broken is not None:
            raise DeviceBroken(self._broken.detail)
        if self._closing:
            raise NotReady("The server is shutting down; another one takes this request.")
        try:
            self._policy.admit(*items, may_probe=may_probe)
        except (Overloaded, DeadlineUnreachable) as refusal:
            self._observer.work_dropped(items[0].key.owner.name, problem_of(refusal).code)
            raise
        places = [Ticket(self, item) for item in items]
        self._places |= {id(place.item): place for place in places}
        self._idle.clear()
        return places

    def leave(self, place: Ticket) -> None:
        """Forget a place that is not running."""
        if not self._policy.is_running(place.item):
            if self._policy.drop(place.item):
                self._observer.work_dropped(place.item.key.owner.name, "abandoned")
            self._places.pop(id(place.item), None)
            # Others may wait for what its holder began: they begin it anew.
            place.settle(DeadlineExceeded("It was given up by the request that had asked for it."))
            self._note_idle()

    def pump(self) -> None:
        """Start the next batch where the device is free."""
        if self._policy.busy or self._broken is not None:
            return
        if self._holding and self._policy.expects_better():
            return  # a timer is set, and whoever hands in the better item pumps
        self._holding = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        taken = self._policy.take()
        for item in taken.late:
            self._observer.work_dropped(item.key.owner.name, PROBLEMS[DeadlineExceeded].code)
            self._settle(item, DeadlineExceeded("The deadline passed, or could not be met any more, while waiting."))
        for item in taken.abandoned:
            self._observer.work_dropped(item.key.owner.name, "abandoned")
            self._places.pop(id(item), None)
        if taken.items:
            started = self.clock()
            batch = taken.items
            future = asyncio.get_running_loop().run_in_executor(self._thread, self._execute, batch)
            future.add_done_callback(lambda done: self._finished(batch, started, done))
        self._note_idle()

    async def close(self, within: float) -> None:
        """Admit nothing more, finish what was admitted, stop; after `within` seconds drop what is left.

        Harmless where it was done before: all runners of the device close the same queue.
        """
        self._closing = True
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            for place in list(self._places.values()):
                self._policy.drop(place.item)
                self._settle(place.item, NotReady("The server shut down before it came to this request."))
        await asyncio.to_thread(self._thread.shutdown, wait=True)

    def _execute(self, batch: list[WorkItem[Key, Any]]) -> _Outcomes:
        key = batch[0].key
        started = self.clock()
        outcomes = run_isolated(lambda payloads: key.owner.run(key, payloads), [item.payload for item in batch])
        return outcomes, self.clock() - started

    def _finished(self, batch: list[WorkItem[Key, Any]], started: float, done: asyncio.Future[_Outcomes]) -> None:
        error = done.exception()
        if error is not None:
            self._policy.finished(None)
            broken = error if isinstance(error, DeviceBroken) else DeviceBroken(f"The device's thread died: {error!r}")
            self._break(broken, batch)
            return
        outcomes, seconds = done.result()
        failed = any(isinstance(outcome, Exception) for outcome in outcomes)
        self._policy.finished(None if failed else seconds)
        runner, stage = batch[0].key.owner.name, batch[0].key.stage
        self._observer.batch_ran(runner, stage, len(batch), seconds)
        places = [self._places[id(item)] for item in batch if id(item) in self._places]
        record_batch(places, stage, {"runner": runner, "items": len(batch)}, ran=(started, seconds), now=self.clock())
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._observer.item_failed(runner, stage)
                self._settle(item, outcome)
            else:
                queued = started - self._places[id(item)].ready_at if id(item) in self._places else 0.0
                self._observer.item_waited(runner, stage, max(0.0, queued))
                self._settle(item, BatchResult(outcome, max(0.0, queued), seconds, len(batch), started))
        if self._policy.expects_better():
            # Whoever got an embedding just now hands in its prompts within this time, and goes before the next image.
            self._holding = True
            self._timer = asyncio.get_running_loop().call_later(_HANDOVER_S, self._stop_holding)
        else:
            self.pump()

    def _stop_holding(self) -> None:
        self._holding = False
        self.pump()

    def _break(self, error: DeviceBroken, batch: list[WorkItem[Key, Any]]) -> None:
        self._broken = error
        self._observer.readiness_changed(ready=False)
        for item in batch:
            self._observer.item_failed(item.key.owner.name, item.key.stage)
        for place in list(self._places.values()):
            place.settle(DeviceBroken(error.detail))
        self._places.clear()
        self._note_idle()

    def _settle(self, item: WorkItem[Key, Any], outcome: BatchResult[Any] | Exception) -> None:
        place = self._places.pop(id(item), None)
        if place is not None:
            place.settle(outcome)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._places:
            self._idle.set()

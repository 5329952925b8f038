"""One queue for all models on a device: the batching policy on an event loop, and the device's own thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from models.errors import DeviceBroken
from service.errors import PROBLEMS, DeadlineExceeded, DeadlineUnreachable, NotReady, Overloaded, problem_of
from service.observability.observer import Observer, Stage
from service.observability.tracing import BatchSpan, record_batch
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, QueueOptions, WorkItem

T = TypeVar("T")
R = TypeVar("R")

_SILENT: Final = Observer()

_HANDOVER_S: Final = 0.002
"""Time for a request to come back with its next item: some turns of the event loop."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelInstance:
    """A model on a device that it may share with others.

    Attributes:
        name: in the catalogue; metrics are labelled with it.
        limits: of a batch, by key.
        execute: what the device does with a batch: key and payloads to results in their order.
    """

    name: str
    limits: Callable[[BatchKey], Limits]
    execute: Callable[[BatchKey, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Work with equal keys may share a batch.

    Attributes:
        model: whose work it is.
        stage: of the model's work.
        shape: what else must be equal.
    """

    model: ModelInstance
    stage: Stage
    shape: Hashable

    @property
    def latency_key(self) -> Hashable:
        """Under which times are learned: keys that differ in shape alone differ in cost alone."""
        return self.model, self.stage


@dataclass(frozen=True, slots=True)
class Background:
    """Requests work that no caller waits for: least urgent, and not counted among the device's batches."""

    arrived: float
    urgency: int = 7
    recording: None = None


_Item: TypeAlias = WorkItem[BatchKey, Any]
_Outcomes: TypeAlias = tuple[list[Any], float]
"""Results or errors of a batch's items in their order, and the seconds that it ran."""


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[T]):
    """The result of an item.

    Attributes:
        value: what the device returned.
        queued: seconds that the item waited for the device.
        ran: seconds that its batch ran.
        batch_size: items in the batch.
        started: when the batch started, seconds on the queue's clock.
    """

    value: T
    queued: float
    ran: float
    batch_size: int = 1
    started: float = 0.0


class Ticket:
    """A place in the queue, reserved on arrival; `run` hands in the payload once that is prepared."""

    def __init__(self, queue: DeviceQueue, item: _Item) -> None:
        self._queue = queue
        self._future: asyncio.Future[BatchResult[Any]] = asyncio.get_running_loop().create_future()
        self.item = item
        self.ready_at = 0.0
        self.recording = item.request.recording
        self.batch_span: BatchSpan | None = None

    async def run(self, payload: Any) -> BatchResult[Any]:
        """Wait for the device and the result.

        Raises:
            DeadlineExceeded: the item was dropped, as it would have been late.
            Exception: whatever the device raised for this item.
        """
        self.ready_at = self._queue.clock()
        if not self._future.done():
            self.item.payload = payload
            self._queue.pump()
        result = None
        try:
            result = await self._future
        except asyncio.CancelledError:
            self.release()
            raise
        else:
            return result
        finally:
            if self.recording is not None:
                self.recording.returned(
                    self.item.key.stage,
                    self.batch_span,
                    ready_at=self.ready_at,
                    now=self._queue.clock(),
                    failed=result is None,
                )

    async def result(self) -> BatchResult[Any]:
        """Wait for the result of an item that runs already."""
        return await self._future

    def release(self) -> None:
        """Give the place up if its item is not running yet; harmless afterwards."""
        self._queue.release(self)

    def settle(self, outcome: BatchResult[Any] | Exception) -> None:
        """Set the result or the error; the caller may have left."""
        if self._future.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
            # Retrieved: a ticket may be settled before it is awaited, and then be released.
            self._future.exception()
        else:
            self._future.set_result(outcome)


class DeviceQueue:
    """One device, one thread, one policy, for the work of all models on the device. For one event loop.

    Args:
        device: names the thread.
        options: of the queue.
        clock: seconds, monotonic.
        observer: receives batches, waits and drops.
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
        self._policy: BatchPolicy[BatchKey, Any] = BatchPolicy(
            lambda key: key.model.limits(key),
            LatencyModel(),
            clock=clock,
            options=options,
            family=lambda key: key.latency_key,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pomona-{device}")
        self._tickets: dict[int, Ticket] = {}
        self._closing = False
        self._running: asyncio.Future[_Outcomes] | None = None
        self._broken: DeviceBroken | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._holding = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def broken(self) -> bool:
        """Whether the device failed for good, so that the process should be replaced."""
        return self._broken is not None

    async def alone(self, call: Callable[[], None]) -> None:
        """Run something on the device's thread that is not a batch; nothing else runs there meanwhile."""
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def learn(self, key: BatchKey, cost: float, seconds: float) -> None:
        """Learn from a batch that ran apart from the queue."""
        self._policy.learn(key, cost, seconds)

    def predict(self, key: BatchKey, cost: float) -> float:
        """Predict an upper estimate, in seconds, for a batch of `cost`; 0 where nothing was learned."""
        return self._policy.predict(key, cost)

    def reserve(self, *items: _Item, may_probe: bool = True) -> list[Ticket]:
        """Reserve the places of one request, all or none.

        Args:
            items: of one model, in the order in which they run.
            may_probe: see `BatchPolicy.admit`.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the queue is closing.
            DeviceBroken: the device failed for good.
        """
        if self._broken is not None:
            raise DeviceBroken(self._broken.detail)
        if self._closing:
            raise NotReady("The server is shutting down; send the request to another one.")
        try:
            self._policy.admit(*items, may_probe=may_probe)
        except (Overloaded, DeadlineUnreachable) as refusal:
            self._observer_of(items[0]).work_dropped(items[0].key.model.name, problem_of(refusal).code)
            raise
        tickets = [Ticket(self, item) for item in items]
        self._tickets |= {id(ticket.item): ticket for ticket in tickets}
        self._idle.clear()
        return tickets

    def release(self, ticket: Ticket) -> None:
        """Forget a ticket whose item is not running."""
        if not self._policy.is_running(ticket.item):
            if self._policy.drop(ticket.item):
                self._observer_of(ticket.item).work_dropped(ticket.item.key.model.name, "abandoned")
            self._tickets.pop(id(ticket.item), None)
            # Others may wait for what its holder began: they begin it again.
            ticket.settle(DeadlineExceeded("The request that began this work gave it up."))
            self._note_idle()

    def pump(self) -> None:
        """Start the next batch if the device is free."""
        if self._policy.busy or self._broken is not None:
            return
        if self._holding and self._policy.expects_better():
            return  # a timer is set, and handing in the better item pumps
        self._holding = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._policy.take()
        for item in batch.late:
            self._observer.work_dropped(item.key.model.name, PROBLEMS[DeadlineExceeded].code)
            self._settle(item, DeadlineExceeded("The deadline passed, or became unreachable, while the item waited."))
        if batch.items:
            self._start(batch.items)
        elif batch.hold_until is not None:
            wait = max(0.0, batch.hold_until - self.clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self.pump)
        self._note_idle()

    async def run_idle(self, item: _Item, payload: Any) -> BatchResult[Any] | None:
        """Run an item that no caller waits for, if the device is idle and can spare the time; see `BatchPolicy.spare`.

        Returns:
            The result, or None where the device has better things to do, now or in a moment.

        Raises:
            Exception: whatever the device raised for this item.
        """
        if self._broken is not None or self._closing or self._holding or not self._policy.take_idle(item):
            return None
        item.payload = payload
        ticket = Ticket(self, item)
        self._tickets[id(item)] = ticket
        self._idle.clear()
        self._start([item])
        return await ticket.result()

    def forget(self, model: ModelInstance) -> None:
        """Forget what was learned of a model that is not used any more."""

        def of_model(known: Hashable) -> bool:
            owner = known.model if isinstance(known, BatchKey) else known[0] if isinstance(known, tuple) else None
            return owner is model

        self._policy.forget(of_model)

    async def close(self, within: float) -> None:
        """Admit nothing more, finish what was admitted, and stop; after `within` seconds drop what is left.

        Harmless when repeated: all runners of the device close the same queue.
        """
        self._closing = True
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        try:
            async with asyncio.timeout_at(until):
                await self._idle.wait()
        except TimeoutError:
            for ticket in list(self._tickets.values()):
                self._policy.drop(ticket.item)
                self._settle(ticket.item, NotReady("The server shut down before it came to this request."))
        # The batch that runs cannot be interrupted; where it takes longer, the process ends without waiting for it.
        if self._running is not None:
            await asyncio.wait([self._running], timeout=max(0.0, until - loop.time()))
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self, items: list[_Item]) -> None:
        started = self.clock()
        self._running = future = asyncio.get_running_loop().run_in_executor(self._thread, self._execute, items)
        future.add_done_callback(lambda done: self._finished(items, started, done))

    def _observer_of(self, item: _Item) -> Observer:
        return _SILENT if isinstance(item.request, Background) else self._observer

    def _execute(self, items: list[_Item]) -> _Outcomes:
        key = items[0].key
        started = self.clock()
        outcomes = run_bisected(lambda payloads: key.model.execute(key, payloads), [item.payload for item in items])
        return outcomes, self.clock() - started

    def _finished(self, items: list[_Item], started: float, done: asyncio.Future[_Outcomes]) -> None:
        error = done.exception()
        if error is not None:
            self._policy.finished(None)
            broken = error if isinstance(error, DeviceBroken) else DeviceBroken(f"The device's thread died: {error!r}")
            self._break(broken, items)
            return
        outcomes, seconds = done.result()
        failed = any(isinstance(outcome, Exception) for outcome in outcomes)
        self._policy.finished(None if failed else seconds)
        model, stage = items[0].key.model.name, items[0].key.stage
        observer = self._observer_of(items[0])
        observer.batch_ran(model, stage, len(items), seconds)
        waiting = [self._tickets[id(item)] for item in items if id(item) in self._tickets]
        record_batch(
            waiting, stage, {"runner": model, "items": len(items)}, started=started, seconds=seconds, now=self.clock()
        )
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Exception):
                observer.item_failed(model, stage)
                self._settle(item, outcome)
            else:
                ticket = self._tickets.get(id(item))
                queued = 0.0 if ticket is None else max(0.0, started - ticket.ready_at)
                observer.item_waited(model, stage, queued)
                self._settle(item, BatchResult(outcome, queued, seconds, len(items), started))
        if self._policy.expects_better():
            # A request that just got its embedding hands in its prompts within this time, and they go before the next
            # image.
            self._holding = True
            self._timer = asyncio.get_running_loop().call_later(_HANDOVER_S, self._stop_holding)
        else:
            self.pump()

    def _stop_holding(self) -> None:
        self._holding = False
        self.pump()

    def _break(self, error: DeviceBroken, items: list[_Item]) -> None:
        self._broken = error
        self._observer.readiness_changed(ready=False)
        for item in items:
            self._observer.item_failed(item.key.model.name, item.key.stage)
        for ticket in list(self._tickets.values()):
            self._policy.drop(ticket.item)  # it was not given up
            ticket.settle(DeviceBroken(error.detail))
        self._tickets.clear()
        self._note_idle()

    def _settle(self, item: _Item, outcome: BatchResult[Any] | Exception) -> None:
        ticket = self._tickets.pop(id(item), None)
        if ticket is not None:
            ticket.settle(outcome)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._tickets:
            self._idle.set()


def run_bisected(run: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R | Exception]:
    """Run a batch; where it fails, run its halves, down to the items that fail by themselves.

    This isolates a bad item in about log2(n) failing runs, and helps a device that is out of memory, for which smaller
    batches may fit.

    Args:
        run: returns one result per item, in their order, or raises.
        batch: at least one item.

    Returns:
        For each item its result, or the exception that it alone raised.

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
    return run_bisected(run, batch[:middle]) + run_bisected(run, batch[middle:])

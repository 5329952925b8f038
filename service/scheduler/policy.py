"""The batching policy: which items run next and together, which are refused, which are dropped.

Pure and synchronous: no device, no HTTP, no event loop; the clock is an argument. The queue calls `admit` when work
arrives, `take` when the device is free, and `finished` when a batch is done.

- A lone item on an idle device runs at once; while the device is busy, items gather.
- More urgent items go first (RFC 9218), then the earliest deadline, then the first come.
- None starves: the item without a deadline that has waited longest, if longer than `max_age`, gets a turn. From then on
  nothing that comes later overtakes it. Turns take at most a fourth of the device's time where others have a better
  place, so that a crowd without deadlines delays those with one by its share, not by its number.
- Items share a batch only if their keys are equal; keys, of one model or of several, compete by the same rules. A batch
  grows while its count, its cost and its predicted end allow.
- A batch that would make an item late that goes before it and is nearly prepared is not started: the device waits.
- What cannot be in time is refused on arrival or dropped from the queue, never run; an item that would make one late
  that was admitted before is refused.
- Work in idle time runs only where nothing else runs or waits, and takes no longer than what arrived lately with a
  deadline could have waited: by what is known, it makes nothing late and gets nothing refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Generic, TypeVar

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.forecast import Forecast
from service.scheduler.latency import ArrivalRate, LatencyModel, retry_after
from service.scheduler.plan import Lane, grow, held_until
from service.scheduler.work import Limits, Rank, Requester, WorkItem

__all__ = ["Batch", "BatchPolicy", "Limits", "QueueOptions", "Requester", "WorkItem"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_RESERVE: Final = 0.05
"""Fraction of a predicted wait, kept for the errors of its predictions: if times vary by a tenth, it saves nine of ten
admitted items that would be dropped without it, and costs no goodput (`tests/unit/test_overload.py`)."""

_SHARE: Final = 0.25
"""Of a busy device's time, what turns may take; also the part of the queue's places that only work with a deadline may
take."""

_SLACKS: Final = 32
"""Admissions with a deadline whose slack is remembered."""

_SLACK_AGE_S: Final = 10.0
"""Seconds for which it is: what came earlier says nothing about what comes next."""

_by_rank: Final = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a device's queue behaves, for the work of all models on the device together.

    Attributes:
        max_queued: most items waiting for the device, whichever model they belong to; those without a deadline may
            take three fourths.
        max_age: seconds after which an item without a deadline gets a turn.
        probe_after: least seconds without a batch of its family after which an idle device takes an item that would be
            late by the learned times, see `service.scheduler.latency`: they may never have been learned in a good
            moment.
    """

    max_queued: int = 256
    max_age: float = 5.0
    probe_after: float = 2.0


@dataclass(frozen=True, slots=True)
class Batch(Generic[K, T]):
    """What the policy decided for a free device.

    Attributes:
        items: run these together; empty if there is nothing to run now.
        late: dropped because their deadline has passed or cannot be met any more.
        hold_until: decide again then, seconds on the clock, or when an item is prepared; None where nothing waits.
    """

    items: list[WorkItem[K, T]] = field(default_factory=list)
    late: list[WorkItem[K, T]] = field(default_factory=list)
    hold_until: float | None = None


class BatchPolicy(Generic[K, T]):
    """Decide what runs on one device.

    Args:
        limits: of a batch, by key; constant while items of the key wait.
        latency: of batches, by family.
        clock: seconds, monotonic.
        options: of the queue.
        family: of a key: keys of one family differ in cost alone, and the time of their batches is learned together.
    """

    def __init__(
        self,
        limits: Callable[[K], Limits],
        latency: LatencyModel,
        *,
        clock: Callable[[], float],
        options: QueueOptions | None = None,
        family: Callable[[K], Hashable] = lambda key: key,
    ) -> None:
        self._limits = limits
        self._latency = latency
        self._clock = clock
        self._options = options or QueueOptions()
        self._family = family
        self._arrivals = ArrivalRate()
        self._forecast: Forecast[K, T] = Forecast(self._lane, self._arrivals)
        self._waiting: dict[int, WorkItem[K, T]] = {}  # by id, in the order of admission
        self._admitted = 0
        self._turn: WorkItem[K, T] | None = None  # waits, and nothing new overtakes it
        self._turn_from = -math.inf  # no other turn begins before
        self._patient_since = math.inf  # no item that may get a turn arrived earlier
        self._oldest_runs = False
        self._running: list[WorkItem[K, T]] = []
        self._running_until = -math.inf
        self._taken_at = -math.inf
        self._last_run: dict[Hashable, float] = {}
        self._idle_until = -math.inf  # when work in idle time will have ended
        self._slacks: deque[tuple[float, float]] = deque(maxlen=_SLACKS)  # when, and seconds before the deadline

    @property
    def waiting(self) -> int:
        """Number of items in the queue, prepared or not."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a batch was taken and is not finished."""
        return bool(self._running)

    def admit(self, *items: WorkItem[K, T], may_probe: bool = True) -> None:
        """Queue the items of one request, which run one after another: all or none.

        Args:
            items: in the order in which they run.
            may_probe: take them although they would be late, where the learned times may be wrong (see
                `QueueOptions.probe_after`).

        Raises:
            Overloaded: the queue is full, or an item that was admitted before would become late.
            DeadlineUnreachable: by the learned times, one would end after its deadline.
        """
        now = self._clock()
        self._latency.heal(now)
        for item in items:
            self._arrivals.add(item.key, item.cost, now)
        self._check_room(items, now)
        self._give_turn(now)
        for number, item in enumerate(items):
            item.rank = (1, item.request.urgency, item.due, item.request.arrived, self._admitted + number)
            needed_by = now + (item.due - item.margin - now) / (1 + _RESERVE) - self.predict(item.key, item.cost)
            item.needed_by = needed_by if item.ready_by <= needed_by else math.inf
        try:
            self._check_in_time(items, now)
        except DeadlineUnreachable:
            if not (may_probe and self._may_probe(items, now)):
                raise
            for item in items:
                item.probe = True
        self._admitted += len(items)
        self._patient_since = min(
            self._patient_since, *(item.request.arrived for item in items if item.due == math.inf), math.inf
        )
        self._waiting |= {id(item): item for item in items}
        self._forecast.admit(items, now)

    def drop(self, item: WorkItem[K, T]) -> bool:
        """Remove an item that is no longer wanted from the queue; return whether it was still there."""
        if self._waiting.pop(id(item), None) is None:
            return False
        if item is self._turn:
            self._turn = None
        self._forecast.remove([item])
        return True

    def is_running(self, item: WorkItem[K, T]) -> bool:
        """Return whether the item is in the batch that runs now."""
        return any(other is item for other in self._running)

    def take(self) -> Batch[K, T]:
        """Choose the next batch for a free device, and drop what must not run.

        Raises:
            RuntimeError: the last batch is not finished.
        """
        if self._running:
            raise RuntimeError("take() before finished()")
        now = self._clock()
        self._give_turn(now)
        ready: list[WorkItem[K, T]] = []
        asleep: list[WorkItem[K, T]] = []
        late: list[WorkItem[K, T]] = []
        for item in self._waiting.values():
            if item.due < math.inf and self._is_late(item, now):
                late.append(item)
            elif item.payload is not None:
                ready.append(item)
            elif item.ready_by > now:
                asleep.append(item)
        self._remove(late)
        if not ready:
            return Batch(late=late)
        head = min(ready, key=_by_rank)
        lane = self._forecast.lanes[head.key]
        asleep = [item for item in asleep if item.rank < head.rank]
        hold_until = held_until(asleep, now, lane.curve.predict(head.cost))
        if hold_until is not None:
            return Batch(late=late, hold_until=hold_until)
        alike = sorted((item for item in ready if item.key == head.key), key=_by_rank)
        chosen, _ = grow(lane, alike, 0, now, asleep)
        self._running = chosen.items
        self._taken_at = now
        self._running_until = now + lane.curve.predict(chosen.cost)
        self._oldest_runs = _oldest(ready) in chosen.items
        if self._turn in chosen.items:
            self._turn = None
        self._remove(chosen.items)
        return Batch(chosen.items, late)

    def take_idle(self, item: WorkItem[K, T]) -> bool:
        """Take an item that was not admitted as the next batch if the device is idle and can spare the time.

        From then on it counts as running: those who arrive meanwhile are admitted by when it will end.

        Returns:
            Whether it is to be run, and `finished` called.
        """
        now = self._clock()
        self._latency.heal(now)
        seconds = self.predict(item.key, item.cost)
        if self._running or self._waiting or seconds > self.spare(now):
            return False
        self._running = [item]
        self._taken_at = now
        self._running_until = self._idle_until = now + seconds
        return True

    def spare(self, now: float) -> float:
        """Return the seconds for which each item that arrived lately with a deadline could have waited longer.

        Returns:
            0 where one of them was refused; infinity where none had a deadline.
        """
        while self._slacks and now - self._slacks[0][0] > _SLACK_AGE_S:
            self._slacks.popleft()
        return min((slack for _, slack in self._slacks), default=math.inf)

    def expects_better(self) -> bool:
        """Return whether an item that should be prepared by now would go before all that are prepared."""
        now = self._clock()
        self._give_turn(now)
        ready: Rank | None = None
        coming: Rank | None = None
        for item in self._waiting.values():
            if item.payload is not None:
                if ready is None or item.rank < ready:
                    ready = item.rank
            elif item.ready_by <= now and (coming is None or item.rank < coming):
                coming = item.rank
        # Of equals none is better: the order of admission does not count.
        return ready is not None and coming is not None and coming[:-1] < ready[:-1]

    def finished(self, seconds: float | None) -> None:
        """Note that the batch that was taken last has ended.

        Args:
            seconds: how long it ran, to learn from, or None if that says nothing (it failed). If more time has passed
                since it was taken, that is learned: the way to the device and back keeps others waiting too.
        """
        if self._running:
            now, key = self._clock(), self._running[0].key
            if seconds is not None:
                self.learn(key, sum(item.cost for item in self._running), max(seconds, now - self._taken_at))
            self._last_run[self._family(key)] = now
            if self._oldest_runs:
                self._turn_from = now + (now - self._taken_at) * (1 / _SHARE - 1)
        self._running = []
        self._oldest_runs = False
        self._running_until = -math.inf

    def learn(self, key: K, cost: float, seconds: float) -> None:
        """Learn that a batch of `cost` took `seconds`."""
        self._latency.learn(self._family(key), cost, seconds, self._clock())
        self._last_run[self._family(key)] = self._clock()

    def predict(self, key: K, cost: float) -> float:
        """Return seconds that more often than not suffice for a batch of `cost`; 0 if nothing was learned."""
        return self._latency.predict(self._family(key), cost)

    def forget(self, matches: Callable[[Hashable], bool]) -> None:
        """Forget what was learned about keys and families, none of which waits: nothing of them comes again."""
        self._latency.forget(matches)
        self._arrivals.forget(matches)
        self._forecast.forget_trials()
        self._last_run = {family: when for family, when in self._last_run.items() if not matches(family)}

    def _lane(self, key: K) -> Lane[K, T]:
        return Lane(key, self._limits(key), self._latency.curve(self._family(key)))

    def _remove(self, items: Sequence[WorkItem[K, T]]) -> None:
        for item in items:
            del self._waiting[id(item)]
        self._forecast.remove(items)

    def _check_room(self, items: Sequence[WorkItem[K, T]], now: float) -> None:
        """Check that there are places in the queue; work without a deadline leaves some to work with one."""
        most, waiting = self._options.max_queued, len(self._waiting)
        undated = waiting - self._forecast.dated
        if any(item.due < math.inf for item in items):
            full = waiting + len(items) > most
        else:
            full = waiting + len(items) > most or undated + len(items) > most - int(most * _SHARE)
        # A request with more items than there are places is taken while nothing else waits.
        if waiting and full:
            raise Overloaded(f"{waiting} work items are waiting already.", self._drain(now))

    def _may_probe(self, items: Sequence[WorkItem[K, T]], now: float) -> bool:
        """Return whether the device is idle and a time that decides about `items` may be out of date or unknown."""
        # The request's own items are no reason: an inspection reserves a place for its first model, then the second.
        if self._running or any(other.request is not items[0].request for other in self._waiting.values()):
            return False
        if any(item.due < now for item in items):
            return False
        waits = [
            (now - self._last_run[family], retry_after(self.predict(item.key, item.cost)))
            for item in items
            if (family := self._family(item.key)) in self._last_run
        ]
        return not waits or any(waited >= max(self._options.probe_after, needed) for waited, needed in waits)

    def _is_late(self, item: WorkItem[K, T], now: float) -> bool:
        earliest = now if item.probe else now + self._forecast.lanes[item.key].curve.predict(item.cost)
        return earliest > item.due

    def _give_turn(self, now: float) -> None:
        """Let nothing new overtake the item without a deadline that has waited longest, if its time has come."""
        options = self._options
        if self._turn is not None or self._oldest_runs or now < self._turn_from:
            return
        if not now - self._patient_since > options.max_age:
            return
        self._patient_since = min(
            (item.request.arrived for item in self._waiting.values() if item.due == math.inf), default=math.inf
        )
        oldest = _oldest(item for item in self._waiting.values() if item.payload is not None)
        if oldest is None or not now - oldest.request.arrived > options.max_age:
            return
        self._turn, last = oldest, oldest.rank
        for item in self._waiting.values():
            if item.rank <= last:
                item.rank = (0, *item.rank[1:])
        self._forecast.reorder()

    def _check_in_time(self, items: Sequence[WorkItem[K, T]], now: float) -> None:
        """Check that each item would be in time, and every other that would have been without them."""
        forecast = self._forecast
        if not forecast.dated and all(item.due == math.inf for item in items):
            return
        forecast.update(now, max(now, self._running_until) if self._running else now)
        forecast.begin()
        for item in items:
            trial = forecast.attempt(item)
            if not forecast.dated and item.due == math.inf:
                continue
            if trial.end is not None and item.due < math.inf:
                end = trial.end
                if self._running or self._waiting:
                    end += _RESERVE * (end - now)
                end += item.margin
                if max(now, item.ready_by) + self.predict(item.key, item.cost) <= item.due:  # else it never could
                    without_idle_work = max(now, item.ready_by, end - max(0.0, self._idle_until - now))
                    self._slacks.append((now, max(0.0, item.due - without_idle_work)))
                if end > item.due:
                    raise DeadlineUnreachable(
                        f"The answer would come {(end - item.due) * 1000:.0f} ms after its deadline, "
                        f"with {forecast.ahead_of(item.rank)} work items ahead of it."
                    )
            if trial.harms:
                self._slacks.append((now, 0.0))
                raise Overloaded("It would make a request late that was admitted before.", self._drain(now))

    def _drain(self, now: float) -> float:
        """Predict seconds until all that runs and waits is done."""
        running = max(0.0, self._running_until - now) if self._running else 0.0
        return running + sum(lane.drain() for lane in self._forecast.lanes.values())


def _oldest(items: Iterable[WorkItem[K, T]]) -> WorkItem[K, T] | None:
    """Return the item without a deadline that has waited longest, or None."""
    undated = (item for item in items if item.due == math.inf)
    return min(undated, key=lambda item: (item.request.arrived, item.rank[-1]), default=None)

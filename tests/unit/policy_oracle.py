"""The batching policy in its plain form, which simulates the whole queue for each admission.

It decides what `service.scheduler.policy` must decide, in time that grows with the square of the queue's length.

Changed with the policy, on purpose: age no longer goes before everything, as a crowd without deadlines that waits
longer than `max_age` would then keep all work with deadlines out; it gives turns, at most a fourth of the device's
time, and a crowd leaves a fourth of the places. Probes disregard the request's own items and are spaced by what they
cost. A batch is not expected to grow beyond the most items that it may have. What callers left is dropped when they
leave. A batch that would make an item late that goes before it and is not prepared yet is not started.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Generic, TypeVar

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import Limits, QueueOptions

_ARRIVALS: Final = 32
_FEWEST_ARRIVALS: Final = 8

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

SHARE: Final = 0.25
RETRY: Final = 4.0

_RESERVE: Final = 0.05
"""Of a predicted wait, for the errors of its predictions: with times that vary by a tenth it saves nine of ten admitted
items that were dropped without it, and costs no goodput (`tests/unit/test_overload.py`)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks of the queue.

    Attributes:
        arrived: when it came, seconds on the policy's clock.
        deadline: when its work must have ended, on the same clock, or None.
        urgency: 0 to 7, less is more urgent.
        spare: seconds before the deadline at which it must end by the learned times to be admitted.
        request: which it belongs to.
    """

    arrived: float
    deadline: float | None = None
    urgency: int = 3
    spare: float = 0.0
    request: object = None


@dataclass(frozen=True, slots=True)
class Piece(Generic[K]):
    """A piece of work for which a place is asked.

    Attributes:
        key: only equal keys share a batch.
        terms: of its request; the deadline is this piece's own.
        cost: at least 0, in the runner's unit.
        ready_by: when it should be prepared, seconds on the policy's clock.
    """

    key: K
    terms: Terms
    cost: float = 1.0
    ready_by: float = -math.inf


@dataclass(slots=True, eq=False)
class Item(Generic[K, T]):
    """One piece of work: a place in the queue from its admission on, runnable once its payload is there.

    Attributes:
        piece: what was asked for.
        payload: what the device gets, or None while it is being prepared.
        probe: admitted to learn again, whatever the learned times say.
        number: order of admission.
        needed_by: when the device must be free for it; infinity where it need not be, or cannot be ready by then.
        in_front: nothing that came later goes before it: it has a turn, or was before the one that has.
    """

    piece: Piece[K]
    payload: T | None = None
    probe: bool = False
    number: int = 0
    in_front: bool = False
    needed_by: float = math.inf

    @property
    def key(self) -> K:
        """Only equal keys share a batch."""
        return self.piece.key

    @property
    def terms(self) -> Terms:
        """Of its request."""
        return self.piece.terms

    @property
    def cost(self) -> float:
        """In the runner's unit."""
        return self.piece.cost


@dataclass(frozen=True, slots=True)
class Taken(Generic[K, T]):
    """What the policy decided for a free device.

    Attributes:
        batch: run these together; empty where there is nothing to run now.
        late: dropped, their deadline has passed or cannot be met any more.
    """

    batch: list[Item[K, T]] = field(default_factory=list)
    late: list[Item[K, T]] = field(default_factory=list)


class Arrivals:
    """Cost per second of what arrived lately, admitted or not, by key."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, deque[tuple[float, float]]] = {}

    def note(self, key: Hashable, cost: float, now: float) -> None:
        """Something of `cost` came."""
        self._seen.setdefault(key, deque(maxlen=_ARRIVALS)).append((now, cost))

    def expected(self, key: Hashable, now: float, until: float, most: int) -> float:
        """Cost of what will come between `now` and `until`, at most `most`, where it goes on as it did."""
        seen = self._seen.get(key)
        if seen is None or len(seen) < _FEWEST_ARRIVALS or until <= now or now <= seen[0][0]:
            return 0.0
        total = sum(cost for _, cost in seen)
        return min(total / (now - seen[0][0]) * (until - now), most * total / len(seen))


class BatchPolicy(Generic[K, T]):
    """See the module.

    Args:
        limits: of a batch, by key.
        times: of batches, by family.
        clock: seconds, monotonic.
        options: of the queue.
        family: of a key: keys of one family differ in cost alone, and how long their batches take is learned together.
    """

    def __init__(
        self,
        limits: Callable[[K], Limits],
        times: LatencyModel,
        *,
        clock: Callable[[], float],
        options: QueueOptions | None = None,
        family: Callable[[K], Hashable] = lambda key: key,
    ) -> None:
        self._limits = limits
        self._times = times
        self._clock = clock
        self._options = options or QueueOptions()
        self._family = family
        self._waiting: list[Item[K, T]] = []
        self._arrivals = Arrivals()
        self._running: list[Item[K, T]] = []
        self._running_until = -math.inf
        self._taken_at = -math.inf
        self._last_tried: dict[Hashable, float] = {}
        self._admitted = 0
        self._turn: Item[K, T] | None = None
        self._turn_from = -math.inf
        self._oldest_runs = False

    @property
    def waiting(self) -> int:
        """Items in the queue, prepared or not."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """A batch was taken and is not finished."""
        return bool(self._running)

    def admit(self, *items: Item[K, T], may_probe: bool = True) -> None:
        """Queue the items of one request, which run one after another: all or none.

        Args:
            items: in the order in which they run.
            may_probe: take them although they would be late, where the learned times may be wrong (see
                `QueueOptions.probe_after`).

        Raises:
            Overloaded: the queue is full, or an item that was admitted before would become late.
            DeadlineUnreachable: by the learned times one would end after its deadline.
        """
        now = self._clock()
        self._times.heal(now)
        for item in items:
            self._arrivals.note(item.key, item.cost, now)
        most, undated = self._options.max_queued, sum(item.terms.deadline is None for item in self._waiting)
        full = len(self._waiting) + len(items) > most
        if all(item.terms.deadline is None for item in items):
            full = full or undated + len(items) > most - int(most * SHARE)
        if self._waiting and full:
            raise Overloaded(f"{len(self._waiting)} pieces of work are waiting already.", self._drain(now))
        self._give_turn(now)
        for item in items:
            item.number = self._admitted + items.index(item)
            if item.terms.deadline is not None:
                end_by = now + (item.terms.deadline - item.terms.spare - now) / (1 + _RESERVE)
                needed_by = end_by - self.predict(item.key, item.cost)
                item.needed_by = needed_by if item.piece.ready_by <= needed_by else math.inf
        try:
            for number in range(len(items)):
                self._check_in_time(items[: number + 1], now)
        except DeadlineUnreachable:
            if not (may_probe and self._may_probe(items, now)):
                raise
            for item in items:
                item.probe = True
        self._admitted += len(items)
        self._waiting.extend(items)

    def drop(self, item: Item[K, T]) -> bool:
        """Take an item out of the queue that no caller wants any more; returns whether it was still there."""
        before = len(self._waiting)
        if self._turn is item:
            self._turn = None
        self._waiting = [other for other in self._waiting if other is not item]
        return len(self._waiting) < before

    def is_running(self, item: Item[K, T]) -> bool:
        """The item is in the batch that runs now."""
        return any(other is item for other in self._running)

    def take(self) -> Taken[K, T]:
        """Choose the next batch for a free device, and drop what must not run.

        Raises:
            RuntimeError: the last batch is not finished.
        """
        if self._running:
            raise RuntimeError("take() before finished()")
        now = self._clock()
        self._give_turn(now)
        taken: Taken[K, T] = Taken()
        kept: list[Item[K, T]] = []
        for item in self._waiting:
            if self._is_late(item, now):
                taken.late.append(item)
            else:
                kept.append(item)
        self._waiting = kept
        ready = sorted((item for item in kept if item.payload is not None), key=self._rank)
        if not ready:
            return taken
        asleep = self._asleep(kept, ready[0], now)
        if self._held_until(ready[0], asleep, now) is not None:
            return taken
        batch, _ = self._grow(ready, now, asleep)
        chosen = {id(item) for item in batch}
        self._waiting = [item for item in kept if id(item) not in chosen]
        self._oldest_runs = self._oldest(ready) in batch
        if self._turn in batch:
            self._turn = None
        self._running = batch
        self._taken_at = now
        self._running_until = now + self.predict(batch[0].key, sum(item.cost for item in batch))
        taken.batch.extend(batch)
        return taken

    def expects_better(self) -> bool:
        """Whether an item that should be prepared by now would go before all that are."""
        now = self._clock()
        self._give_turn(now)
        ready = [self._rank(item)[:-1] for item in self._waiting if item.payload is not None]
        coming = [
            self._rank(item)[:-1] for item in self._waiting if item.payload is None and item.piece.ready_by <= now
        ]
        return bool(ready and coming) and min(coming) < min(ready)

    def finished(self, seconds: float | None) -> None:
        """The batch that was taken last has ended.

        Args:
            seconds: how long it ran, to learn from, or None where that tells nothing (it failed). Where more has passed
                since it was taken, that is learned: the way to the device and back keeps others waiting too.
        """
        if self._running:
            now, key = self._clock(), self._running[0].key
            if seconds is not None:
                self.learn(key, sum(item.cost for item in self._running), max(seconds, now - self._taken_at))
            self._last_tried[self._family(key)] = now
            if self._oldest_runs:
                self._turn_from = now + (now - self._taken_at) * (1 / SHARE - 1)
        self._running = []
        self._oldest_runs = False
        self._running_until = -math.inf

    def learn(self, key: K, cost: float, seconds: float) -> None:
        """A batch of `cost` took `seconds`."""
        self._times.learn(self._family(key), cost, seconds, self._clock())
        self._last_tried[self._family(key)] = self._clock()

    def predict(self, key: K, cost: float) -> float:
        """Seconds that a batch of `cost` will take at most, more often than not; 0 where nothing was learned."""
        return self._times.predict(self._family(key), cost)

    def _may_probe(self, items: Sequence[Item[K, T]], now: float) -> bool:
        """Whether the device is idle, and a time that `items` are judged by may be out of date, or none is known."""
        # An inspection reserves the place of its first model before the second's.
        if self._running or any(other.terms.request is not items[0].terms.request for other in self._waiting):
            return False
        if any(item.terms.deadline is not None and item.terms.deadline < now for item in items):
            return False
        known = [item for item in items if self._family(item.key) in self._last_tried]
        return not known or any(
            now - self._last_tried[self._family(item.key)]
            >= max(self._options.probe_after, 2.0, RETRY * self.predict(item.key, item.cost))
            for item in known
        )

    def _is_late(self, item: Item[K, T], now: float) -> bool:
        if item.terms.deadline is None:
            return False
        earliest = now if item.probe else now + self.predict(item.key, item.cost)
        return earliest > item.terms.deadline

    def _rank(self, item: Item[K, T]) -> tuple[bool, int, float, float, int]:
        """Smaller goes first."""
        terms = item.terms
        deadline = math.inf if terms.deadline is None else terms.deadline
        return (not item.in_front, terms.urgency, deadline, terms.arrived, item.number)

    def _oldest(self, items: Sequence[Item[K, T]]) -> Item[K, T] | None:
        """The one without a deadline that has waited longest."""
        undated = [item for item in items if item.terms.deadline is None]
        return min(undated, key=lambda item: (item.terms.arrived, item.number), default=None)

    def _give_turn(self, now: float) -> None:
        """The item without a deadline that has waited longest, and what is before it, are overtaken no more."""
        if self._turn is not None or self._oldest_runs or now < self._turn_from:
            return
        oldest = self._oldest([item for item in self._waiting if item.payload is not None])
        if oldest is None or not now - oldest.terms.arrived > self._options.max_age:
            return
        self._turn = oldest
        last = self._rank(oldest)
        for item in self._waiting:
            if self._rank(item) <= last:
                item.in_front = True

    def _asleep(self, items: Sequence[Item[K, T]], head: Item[K, T], now: float) -> list[Item[K, T]]:
        """What goes before `head` and is not prepared."""
        return [
            item
            for item in items
            if item.payload is None and item.piece.ready_by > now and self._rank(item) < self._rank(head)
        ]

    def _held_until(self, head: Item[K, T], asleep: Sequence[Item[K, T]], now: float) -> float | None:
        """When to decide again, where starting `head` would make one late that will be prepared in time."""
        end = now + self.predict(head.key, head.cost)
        return min((item.piece.ready_by for item in asleep if end > item.needed_by), default=None)

    def _grow(
        self, ordered: list[Item[K, T]], now: float, asleep: Sequence[Item[K, T]]
    ) -> tuple[list[Item[K, T]], bool]:
        """The head of the queue and what may run with it; and whether more could not have joined."""
        head = ordered[0]
        limits = self._limits(head.key)
        batch, cost = [head], head.cost
        tightest = math.inf if head.terms.deadline is None else head.terms.deadline
        bound = min((item.needed_by for item in asleep), default=math.inf)
        for item in ordered[1:]:
            if item.key != head.key:
                continue
            tighter = tightest if item.terms.deadline is None else min(tightest, item.terms.deadline)
            if (
                len(batch) >= limits.items
                or cost + item.cost > limits.cost
                or now + self.predict(head.key, cost + item.cost) > min(tighter, bound)
            ):
                return batch, True
            batch.append(item)
            cost, tightest = cost + item.cost, tighter
        return batch, len(batch) >= limits.items or cost >= limits.cost

    def _check_in_time(self, chain: Sequence[Item[K, T]], now: float) -> None:
        """Refuse the last of `chain` where it, or another that would have been in time, would be late."""
        item = chain[-1]
        if all(other.terms.deadline is None for other in (item, *self._waiting)):
            return
        ends = self._ends(chain, now)
        if item.terms.deadline is not None:
            end = ends[id(item)]
            if self._running or self._waiting:
                end += _RESERVE * (end - now)
            end += item.terms.spare
            if end > item.terms.deadline:
                rank = self._rank(item)
                ahead = sum(self._rank(other) <= rank for other in self._waiting)
                raise DeadlineUnreachable(
                    f"The answer would come {(end - item.terms.deadline) * 1000:.0f} ms after its deadline, "
                    f"with {ahead} pieces of work ahead of it."
                )
        without = self._ends((), now)
        for other in self._waiting:
            if other.terms.deadline is None:
                continue
            if without[id(other)] <= other.terms.deadline < ends[id(other)]:
                raise Overloaded("It would make a request late that was admitted before.", self._drain(now))

    def _ends(self, chain: Sequence[Item[K, T]], now: float) -> dict[int, float]:
        """When work with a deadline would end: what waits and `chain`, in the batches that `take` would form of them.

        A batch that starts later and is not full will be joined by others: it is taken to be as large as the arrivals
        of the last moments would make it. Without that, each item is admitted as if it ran nearly alone, its batch is
        then cut for its sake, and the smaller batches make those behind late: under overload half the goodput is lost.
        """
        before = {id(own): id(earlier) for earlier, own in pairwise(chain)}
        pending = sorted([*self._waiting, *chain], key=self._rank)
        moment = max(now, self._running_until) if self._running else now
        ends: dict[int, float] = {}
        while any(item.terms.deadline is not None for item in pending):
            free = [item for item in pending if id(item) not in before or before[id(item)] in ends]
            ready = [item for item in free if item.payload is not None or item.piece.ready_by <= moment]
            if not ready:
                moment = min(item.piece.ready_by for item in free)
                continue
            asleep = self._asleep(free, ready[0], moment)
            if (until := self._held_until(ready[0], asleep, moment)) is not None:
                moment = until
                continue
            batch, full = self._grow(ready, moment, asleep)
            key, cost = batch[0].key, sum(item.cost for item in batch)
            if not full:
                joined = cost + self._arrivals.expected(key, now, moment, self._limits(key).items - len(batch))
                cost = max(cost, min(joined, self._limits(key).cost))
            moment += self.predict(key, cost)
            done = {id(item) for item in batch}
            ends |= dict.fromkeys(done, moment)
            pending = [item for item in pending if id(item) not in done]
        return ends

    def _drain(self, now: float) -> float:
        """Predicted seconds until all that runs and waits is done."""
        backlog: dict[K, tuple[int, float]] = {}
        for item in self._waiting:
            count, cost = backlog.get(item.key, (0, 0.0))
            backlog[item.key] = (count + 1, cost + item.cost)
        running = max(0.0, self._running_until - now) if self._running else 0.0
        return running + sum(self._batches(key, count, cost) for key, (count, cost) in backlog.items())

    def _batches(self, key: K, count: int, cost: float) -> float:
        limits = self._limits(key)
        batches = max(1, math.ceil(count / limits.items), math.ceil(cost / limits.cost))
        return batches * self.predict(key, cost / batches)

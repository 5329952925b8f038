"""When waiting items will run: the batches that the policy would form of them, predicted and kept between admissions.

Admission must know when every item with a deadline would end, without the newcomer and with it. Simulating the whole
queue for each admission takes time that grows with the square of its length. The forecast therefore keeps the predicted
batches, and after a change forms again only those of the changed item's key, from the first batch that the item can
reach on; the others are merely shifted in time. Each batch carries the range of start times within which its
composition holds (`earliest` to `latest`); one that is shifted out of it is formed again, with all that follow.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress, count
from operator import attrgetter, gt, lt
from typing import Any, Final, Generic, TypeVar

from service.scheduler.latency import ArrivalRate, LatencyCurve
from service.scheduler.work import Limits, Rank, WorkItem

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_TOLERANCE: Final = 1e-6
"""Seconds by which start times are kept from the exact edge of their range, where rounding would decide; a batch that
starts there is formed again, exactly."""

_SHIFTS: Final = 4
"""Times that the rest of a plan is shifted before all of it is formed again, where batches keep falling out of their
range."""

_ALIKE: Final = 256
"""Most items of equal cost that are put into a batch at once."""

_FEW: Final = 3
"""So few items are put into a batch one by one."""

_by_rank: Final = attrgetter("rank")
_cost: Final = attrgetter("cost")
_due: Final = attrgetter("due")
_ready_by: Final = attrgetter("ready_by")


@dataclass(slots=True, eq=False)
class Lane(Generic[K, T]):
    """The waiting items of one key.

    Attributes:
        key: of the items.
        limits: of a batch.
        curve: predicts the batches' seconds.
        items: by rank.
        cost: of all items together.
    """

    key: K
    limits: Limits
    curve: LatencyCurve
    items: list[WorkItem[K, T]] = field(default_factory=list)
    cost: float = 0.0
    _longest: dict[tuple[float, int], float] = field(default_factory=dict)
    _version: int = -1

    def longest(self, unit: float, number: int) -> float:
        """Return the longest predicted seconds of a batch of two and up to `number` items that cost `unit` each."""
        if self._version != self.curve.version:
            self._version = self.curve.version
            self._longest.clear()
        seconds = self._longest.get((unit, number))
        if seconds is None:
            costs = list(accumulate([unit] * number))[1:]
            seconds = self._longest[unit, number] = max(map(self.curve.predict, costs))
        return seconds

    def add(self, item: WorkItem[K, T]) -> None:
        """Insert an item by its rank."""
        insort(self.items, item, key=_by_rank)
        self.cost += item.cost

    def remove(self, item: WorkItem[K, T]) -> None:
        """Remove an item that is there."""
        del self.items[bisect_left(self.items, item.rank, key=_by_rank)]
        self.cost = self.cost - item.cost if self.items else 0.0

    def drain(self) -> float:
        """Return predicted seconds of all items, in batches of equal size."""
        batches = max(1, math.ceil(len(self.items) / self.limits.items), math.ceil(self.cost / self.limits.cost))
        return batches * self.curve.predict(self.cost / batches)


@dataclass(slots=True, eq=False)
class Group(Generic[K, T]):
    """A batch as `grow` forms it.

    Attributes:
        lane: of its items.
        items: by rank.
        cost: of all items together.
        full: nothing more could have joined.
        sealed: it has the most items that a batch may have.
        tightest: earliest deadline of its items, or infinity.
        closing: the first item that did not fit, where a count did not decide it.
        passed: items that would have been looked at earlier but are not prepared at its start.
        earliest, latest: start times between which the composition holds.
        out_of_order: items of its key with a higher rank ran before it.
    """

    lane: Lane[K, T]
    items: list[WorkItem[K, T]]
    cost: float
    full: bool
    sealed: bool
    tightest: float
    closing: WorkItem[K, T] | None
    passed: list[WorkItem[K, T]]
    earliest: float = -math.inf
    latest: float = math.inf
    out_of_order: bool = False

    def hold(self) -> None:
        """Compute the range of start times again, from the times learned since."""
        self.latest = math.inf
        if self.tightest < math.inf and len(self.items) > 1:
            head, number = self.items[0], len(self.items)
            if number > _FEW and list(map(_cost, self.items)).count(head.cost) == number:
                self.latest = self.tightest - self.lane.longest(head.cost, number) - _TOLERANCE
            else:
                cost, tightest = head.cost, head.due
                for item in self.items[1:]:
                    cost, tightest = cost + item.cost, min(tightest, item.due)
                    if tightest < math.inf:
                        self.latest = min(self.latest, tightest - self.lane.curve.predict(cost) - _TOLERANCE)
        self.limit()

    def limit(self) -> None:
        """Limit the range by the items that must be prepared or must not be, and by the one that did not fit."""
        self.earliest = max((item.ready_by for item in self.items if item.payload is None), default=-math.inf)
        for item in self.passed:
            self.latest = min(self.latest, math.nextafter(item.ready_by, -math.inf))
        closing = self.closing
        if closing is not None:
            if closing.payload is None:
                self.earliest = max(self.earliest, closing.ready_by)
            more = self.cost + closing.cost
            if more <= self.lane.limits.cost:
                takes = self.lane.curve.predict(more)
                self.earliest = max(self.earliest, min(self.tightest, closing.due) - takes + _TOLERANCE)


@dataclass(slots=True)
class Queued(Generic[K, T]):
    """Items of one lane that are still to be formed into batches: `items` from position `at` on."""

    lane: Lane[K, T]
    items: list[WorkItem[K, T]]
    at: int = 0

    def head(self, moment: float, before: Rank | None) -> int | None:
        """Return the position of the first item that is prepared at `moment`, if it comes before a rank."""
        items = self.items
        for position in range(self.at, len(items)):
            item = items[position]
            if before is not None and item.rank > before:
                return None
            if item.ready_by <= moment or item.payload is not None:
                return position
        return None

    def insert(self, item: WorkItem[K, T]) -> None:
        """Add an item, without changing the lane."""
        self.items, self.at = self.items[self.at :], 0
        insort(self.items, item, key=_by_rank)

    def take(self, position: int, moment: float, asleep: list[WorkItem[K, T]]) -> Group[K, T]:
        """Form the batch whose head is at `position`, and remove its items; `asleep` were passed over for it."""
        group, end = grow(self.lane, self.items, position, moment, asleep)
        if group.passed:
            chosen = set(group.items)
            self.items = [item for item in self.items[self.at : end] if item not in chosen] + self.items[end:]
            self.at = 0
        else:
            self.at = end
        return group


def grow(
    lane: Lane[K, T],
    items: Sequence[WorkItem[K, T]],
    position: int,
    moment: float,
    passed: list[WorkItem[K, T]],
) -> tuple[Group[K, T], int]:
    """Form a batch of the items of one key: of the head and as many as may run with it.

    A batch grows while its count, its cost and its predicted end allow. Items that are not prepared are passed over.

    Args:
        lane: of the items.
        items: by rank.
        position: of the head.
        moment: when the batch starts.
        passed: items before the head, not prepared; those passed over are added.

    Returns:
        the batch, and the position after the last item that was looked at and did not stay.
    """
    most, room, predict = lane.limits.items, lane.limits.cost, lane.curve.predict
    members, cost, tightest, latest = _alike(lane, items, position, moment)
    position += len(members)
    closing: WorkItem[K, T] | None = None
    while position < len(items) and len(members) < most:
        item = items[position]
        if item.ready_by > moment and item.payload is None:
            passed.append(item)
            position += 1
            continue
        more, tighter = cost + item.cost, item.due if item.due < tightest else tightest
        if more > room:
            closing = item
            break
        if tighter < math.inf:
            takes = predict(more)
            if moment + takes > tighter:
                closing = item
                break
            latest = min(latest, tighter - takes - _TOLERANCE)
        members.append(item)
        cost, tightest = more, tighter
        position += 1
    sealed = len(members) >= most
    full = sealed or closing is not None or cost >= room
    group = Group(lane, members, cost, full, sealed, tightest, closing, passed, latest=latest)
    group.limit()
    return group, position


def _alike(
    lane: Lane[K, T], items: Sequence[WorkItem[K, T]], position: int, moment: float
) -> tuple[list[WorkItem[K, T]], float, float, float]:
    """Return the first items of a batch, if many cost the same and are clearly in time; else the head alone.

    Returns:
        the items, their cost together, their tightest deadline, and the latest start time at which they hold.
    """
    head = items[position]
    unit, limits = head.cost, lane.limits
    number = min(limits.items, len(items) - position, int(min(limits.cost / unit, _ALIKE)) if unit > 0 else 1)
    if number > _FEW:
        members = list(items[position : position + number])
        costs = list(map(_cost, members))
        if costs.count(unit) == number and max(map(_ready_by, members)) <= moment:
            cost, tightest, longest = sum(costs), min(map(_due, members)), 0.0
            if tightest < math.inf:
                longest = lane.longest(unit, number)
            if cost <= limits.cost and moment + longest <= tightest:
                return members, cost, tightest, tightest - longest - _TOLERANCE
    return [head], unit, head.due, math.inf


class Plan(Generic[K, T]):
    """Predicted batches in the order in which they run; the lists have one entry for each."""

    __slots__ = (
        "dated",
        "disordered",
        "earliest",
        "ends",
        "full",
        "gap",
        "groups",
        "heads",
        "late_items",
        "latest",
        "open",
        "passing",
        "seconds",
        "starts",
        "tightest",
    )

    def __init__(self) -> None:
        self.groups: list[Group[K, T]] = []
        self.heads: list[Rank] = []
        self.seconds: list[float] = []
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.earliest: list[float] = []
        self.latest: list[float] = []
        self.tightest: list[float] = []
        self.dated: list[int] = []
        self.full: list[bool] = []
        self.passing: list[bool] = []
        self.disordered = False
        """Whether any batch is `passing`."""
        self.open = False
        """Whether any batch is not full."""
        self.gap = False
        """The device would have nothing to do in between: such a plan is not kept."""
        self.late_items: set[WorkItem[K, T]] | None = None

    def part(self, begin: int, end: int) -> Plan[K, T]:
        """Return a copy of the batches from `begin` to `end`."""
        plan: Plan[K, T] = Plan()
        plan.extend(self, begin, end)
        plan.seconds = self.seconds[begin:end]
        plan.starts = self.starts[begin:end]
        plan.ends = self.ends[begin:end]
        return plan

    def extend(self, other: Plan[K, T], begin: int, end: int) -> None:
        """Append batches of another plan, without their times."""
        self.groups += other.groups[begin:end]
        self.heads += other.heads[begin:end]
        self.earliest += other.earliest[begin:end]
        self.latest += other.latest[begin:end]
        self.tightest += other.tightest[begin:end]
        self.dated += other.dated[begin:end]
        self.full += other.full[begin:end]
        self.open = self.open or (other.open and False in other.full[begin:end])
        self.disordered = self.disordered or (other.disordered and True in other.passing[begin:end])
        self.passing += other.passing[begin:end]

    def append(self, group: Group[K, T], start: float, seconds: float) -> float:
        """Append a batch and return its end."""
        self.groups.append(group)
        self.heads.append(group.items[0].rank)
        self.seconds.append(seconds)
        self.starts.append(start)
        self.ends.append(start + seconds)
        self.earliest.append(group.earliest)
        self.latest.append(group.latest)
        self.tightest.append(group.tightest)
        undated = list(map(_due, group.items)).count(math.inf) if group.tightest < math.inf else len(group.items)
        self.dated.append(len(group.items) - undated)
        self.full.append(group.full)
        self.open = self.open or not group.full
        passing = bool(group.passed) or group.out_of_order
        self.passing.append(passing)
        self.disordered = self.disordered or passing
        return self.ends[-1]

    def late(self) -> set[WorkItem[K, T]]:
        """Return the items that would end after their deadline."""
        if self.late_items is None:
            ends = self.ends
            self.late_items = {
                item
                for index in compress(count(), map(gt, ends, self.tightest))
                for item in self.groups[index].items
                if item.due < ends[index]
            }
        return self.late_items

    def next_open(self, begin: int) -> int:
        """Return the index of the first batch from `begin` on that is not full, or the number of batches."""
        if self.open and False in (rest := self.full[begin:]):
            return begin + rest.index(False)
        return len(self.full)

    def __contains__(self, item: WorkItem[K, T]) -> bool:
        """Return whether an item is in a batch."""
        return self.index_of(item) < len(self.groups)

    def index_of(self, item: WorkItem[K, T], begin: int = 0) -> int:
        """Return the index of the batch that holds an item, or the number of batches."""
        groups = self.groups
        for index in range(begin, len(groups)):
            if item in groups[index].items:
                return index
        return len(groups)


@dataclass(slots=True)
class Trial(Generic[K, T]):
    """What an admission would do.

    Attributes:
        item: the newcomer.
        own: its request's items.
        late: items that are late without the request.
        harms: whether it makes another item late.
        end: when it would end, once known.
    """

    item: WorkItem[K, T]
    own: set[WorkItem[K, T]]
    late: set[WorkItem[K, T]]
    harms: bool = False
    end: float | None = None

    @property
    def decided(self) -> bool:
        """Nothing more can change the answer."""
        return self.harms and (self.end is not None or self.item.due == math.inf)

    def see(self, group: Group[K, T], end: float) -> None:
        """Note when a batch would end."""
        if end > group.tightest and not self.harms:
            self.harms = any(item.due < end and item not in self.own and item not in self.late for item in group.items)
        if self.end is None and self.item in group.items:
            self.end = end


class Forecast(Generic[K, T]):
    """The waiting items of a device and when they would run.

    Args:
        make_lane: makes the empty lane of a key.
        arrivals: by key; a batch that starts later and is not full is expected to be joined by others.
    """

    def __init__(self, make_lane: Callable[[K], Lane[K, T]], arrivals: ArrivalRate) -> None:
        self._make_lane = make_lane
        self._arrivals = arrivals
        self._now = self._start = 0.0
        self._plan: Plan[K, T] | None = None
        self._versions: dict[LatencyCurve, int] = {}
        self._fresh: list[WorkItem[K, T]] = []
        self._gone: set[WorkItem[K, T]] = set()
        self._preparing: list[WorkItem[K, T]] = []  # those that should be prepared later than now
        self._trial: Plan[K, T] | None = None
        self._chain: list[WorkItem[K, T]] = []
        self._begun: Plan[K, T] | None = None  # with the first item of the chain
        self._new_lanes: dict[K, Lane[K, T]] = {}
        self.lanes: dict[K, Lane[K, T]] = {}
        self.dated = 0
        """Waiting items with a deadline."""

    def remove(self, items: Iterable[WorkItem[K, T]]) -> None:
        """Remove waiting items."""
        for item in items:
            lane = self.lanes[item.key]
            lane.remove(item)
            if not lane.items:
                del self.lanes[item.key]
            self.dated -= item.due < math.inf
            if item in self._preparing:
                self._preparing.remove(item)
            if item in self._fresh:
                self._fresh.remove(item)
            else:
                self._gone.add(item)
        if self.dated == 0:
            self.forget()

    def forget(self) -> None:
        """Drop the plan; it is made from scratch when it is needed."""
        self._plan = None
        self._fresh.clear()
        self._gone.clear()

    def reorder(self) -> None:
        """Sort all items again, whose ranks have changed."""
        for lane in self.lanes.values():
            lane.items.sort(key=_by_rank)
        self.forget()

    def ahead_of(self, rank: Rank) -> int:
        """Return the number of items that come before a rank."""
        return sum(bisect_left(lane.items, rank, key=_by_rank) for lane in self.lanes.values())

    def update(self, now: float, start: float) -> None:
        """Bring the plan up to date.

        Args:
            now: seconds on the policy's clock.
            start: when the device is free.
        """
        moved = start != self._start
        self._now, self._start = now, start
        self._preparing = [item for item in self._preparing if item.payload is None and item.ready_by > now]
        plan = self._plan
        if plan is None or plan.gap or _awoke(plan):
            self.forget()
            self._versions = {lane.curve: lane.curve.version for lane in self.lanes.values()}
            nothing: Plan[K, T] = Plan()
            self._plan = self._form(nothing, 0, self._queued(nothing, 0, self.lanes.values()))
            return
        moved = self._relearn(plan) or moved
        index = 0 if moved else plan.next_open(0)
        if self._gone:
            plan = self._without_gone(plan)
        elif index < len(plan.groups):
            plan = self._form(plan, index, {})
        while self._fresh:
            item = self._fresh.pop(0)
            if item.key in self.lanes:
                plan = self._with(plan, item)
        self._plan = plan

    def begin(self) -> None:
        """Begin to try the items of one request, against the plan as it is."""
        self._trial, self._chain, self._begun = self._plan, [], None
        self._new_lanes.clear()

    def attempt(self, item: WorkItem[K, T]) -> Trial[K, T]:
        """Find out what the next item of the request would do, which runs after those that were tried before."""
        if self._plan is None or self._trial is None:
            raise RuntimeError("attempt() before update() and begin()")
        trial = Trial(item, {item, *self._chain}, self._plan.late())
        chain, before = [*self._chain, item], self._chain[-1] if self._chain else None
        if before is not None and before not in self._trial:
            # It would run after all items with a deadline, and was left out.
            if item.due == math.inf:
                self._chain = chain
                return trial
            self._trial = self._plan
            for number, earlier in enumerate(self._chain):
                self._trial = self._with(self._trial, earlier, self._chain[: number + 1], needed=True)
        self._trial = self._with(self._trial, item, chain, trial)
        self._chain = chain
        if len(chain) == 1:
            self._begun = self._trial
            if not (trial.late or trial.harms) and (trial.end is None or trial.end <= item.due):
                self._begun.late_items = set()
        return trial

    def admit(self, items: Sequence[WorkItem[K, T]], now: float) -> None:
        """Add the items of one request, which were tried just before if that was needed."""
        for item in items:
            lane = self.lanes.get(item.key)
            if lane is None:
                lane = self._new_lanes.get(item.key) or self._make_lane(item.key)
                self.lanes[item.key] = lane
            lane.add(item)
            self.dated += item.due < math.inf
            if item.payload is None and item.ready_by > now:
                self._preparing.append(item)
        if self._plan is not None:
            if self._begun is not None and self._chain[0] is items[0]:
                self._plan = self._begun
                items = items[1:]
            self._fresh += items
        self._begun = None
        self._new_lanes.clear()

    def _with(
        self,
        plan: Plan[K, T],
        item: WorkItem[K, T],
        chain: Sequence[WorkItem[K, T]] = (),
        trial: Trial[K, T] | None = None,
        *,
        needed: bool = False,
    ) -> Plan[K, T]:
        """Return the plan with one more item.

        Args:
            plan: the plan before.
            item: in its lane already, unless there is a chain.
            chain: items of the request that is tried, up to this one; each runs after the one before.
            trial: sees what happens.
            needed: plan the item even if it comes after all items with a deadline.
        """
        lane = self.lanes.get(item.key) or self._new_lanes.get(item.key)
        if lane is None:
            lane = self._new_lanes[item.key] = self._make_lane(item.key)
        reached = first = _reached(plan, lane, item)
        if len(chain) > 1:
            first = max(first, plan.index_of(chain[-2]) + 1)
        if first == len(plan.groups) and item.due == math.inf and not needed:
            return plan
        queued = self._queued(plan, first, [lane, *self.lanes.values()] if plan.gap else [lane])
        if chain:
            queued[lane].insert(item)
        return self._form(
            plan,
            first,
            queued,
            item,
            trial,
            more=sum(other.due < math.inf for other in chain),
            needed=needed and item.due == math.inf,
            out_of_order=first > reached,
        )

    def _without_gone(self, old: Plan[K, T]) -> Plan[K, T]:
        """Return the plan without the items that were removed, brought up to date."""
        gone, stale, missing = self._gone, set(), len(self._gone)
        for index, group in enumerate(old.groups):
            if not gone.isdisjoint(group.items):
                stale.add(index)
                missing -= len(gone.intersection(group.items))
                if not missing:
                    break
            elif group.closing is not None and group.closing in gone:
                stale.add(index)
        plan: Plan[K, T] = Plan()
        first = min(stale, default=len(old.groups))
        upto = self._shift(plan, old, 0, self._start, None, first)
        lanes = {old.groups[index].lane for index in stale} | (set(self.lanes.values()) if upto < first else set())
        plan = self._form(old, upto, self._queued(plan, upto, lanes), stale=stale, plan=plan)
        gone.clear()
        return plan

    def _free_at(self, plan: Plan[K, T], index: int) -> float:
        return plan.ends[index - 1] if index else self._start

    def _relearn(self, plan: Plan[K, T]) -> bool:
        """Compute times again where batches were learned since; return whether there were any."""
        changed = set()
        for lane in self.lanes.values():
            if self._versions.get(lane.curve) != lane.curve.version:
                self._versions[lane.curve] = lane.curve.version
                changed.add(lane.curve)
        if not changed:
            return False
        for index, group in enumerate(plan.groups):
            curve = group.lane.curve
            if curve in changed:
                if group.full:
                    plan.seconds[index] = curve.predict(group.cost)
                if group.closing is not None or (group.tightest < math.inf and len(group.items) > 1):
                    group.hold()
                    plan.earliest[index], plan.latest[index] = group.earliest, group.latest
        return True

    def _queued(self, plan: Plan[K, T], index: int, lanes: Iterable[Lane[K, T]]) -> dict[Lane[K, T], Queued[K, T]]:
        """Return what each lane has left once the first `index` batches of a plan were taken."""
        found = {}
        pending = set(self._fresh)
        for lane in lanes:
            items, at = lane.items, 0
            if plan.disordered:
                taken = {item for group in plan.groups[:index] if group.lane is lane for item in group.items}
                items = [item for item in items if item not in taken]
            elif (last := _last_of(plan, lane, index)) is not None:
                at = bisect_right(items, plan.groups[last].items[-1].rank, key=_by_rank)
            if pending and any(item.key == lane.key for item in self._fresh):
                items, at = [item for item in items[at:] if item not in pending], 0
            found[lane] = Queued(lane, items, at)
        return found

    def _form(  # noqa: PLR0912, PLR0913, PLR0915 (one loop; its parts share all of its state)
        self,
        old: Plan[K, T],
        first: int,
        queued: dict[Lane[K, T], Queued[K, T]],
        fresh: WorkItem[K, T] | None = None,
        trial: Trial[K, T] | None = None,
        *,
        plan: Plan[K, T] | None = None,
        stale: set[int] | None = None,
        more: int = 0,
        needed: bool = False,
        out_of_order: bool = False,
    ) -> Plan[K, T]:
        """Return a plan with batches formed again from `first` on.

        Once the new batches have taken what the old ones had taken, the rest of the old plan holds, shifted in time.

        Args:
            old: the plan before.
            first: earlier batches stay.
            queued: what is to be formed again, by lane; batches of other lanes stay as long as they hold.
            fresh: an item that is not in the old plan.
            trial: sees every batch that may be affected, and may end the work early.
            plan: the earlier batches, if they are not those of the old plan.
            stale: indices of old batches that held or met items which were removed.
            more: items to plan that do not wait yet and have a deadline.
            needed: plan the new item although it has no deadline.
            out_of_order: the new item must not run in earlier batches, although it could.
        """
        end = len(old.groups)
        if plan is None:
            plan = old.part(0, first)
            plan.gap = old.gap
        moment = self._free_at(plan, first)
        left = self.dated - sum(item.due < math.inf for item in self._fresh) - sum(plan.dated) + more + needed
        place = following = first  # old batches before `place` are accounted for; the next that may stay: `following`
        ahead: set[WorkItem[K, T]] = set()  # items of new batches that are not in old ones before `place`
        kept: set[int] = set()  # old batches after `place` that stayed
        stale = stale or set()
        sleepers = [item for item in self._preparing if item.payload is None and item not in self._fresh]
        if fresh is not None and fresh.payload is None and fresh not in sleepers:
            sleepers.append(fresh)
        woken: list[WorkItem[K, T]] = []
        newcomer = fresh
        if first:
            sleepers = [item for item in sleepers if item.ready_by > moment]
        shifts = 0
        while True:
            place = _caught_up(old, place, ahead, kept, stale, self._gone)
            if place < end and fresh is None and shifts < _SHIFTS and not (ahead or kept or stale or old.gap):
                shifts += 1
                upto = self._shift(plan, old, place, moment, trial)
                left -= sum(old.dated[place:upto])
                place = following = upto
                moment = self._free_at(plan, len(plan.groups))
                queued = self._queued(plan, len(plan.groups), self.lanes.values())
            if left <= 0 or (trial is not None and trial.decided):
                break
            while following < end and old.groups[following].lane in queued:
                following += 1
            if following == end and any(lane not in queued for lane in self.lanes.values()):
                queued |= self._queued(old, end, [lane for lane in self.lanes.values() if lane not in queued])
            before = old.heads[following] if following < end else None
            chosen: tuple[Queued[K, T], int] | None = None
            for items in queued.values():
                if (position := items.head(moment, before)) is not None:
                    chosen, before = (items, position), items.items[position].rank
            if sleepers or woken:
                woken += [item for item in sleepers if item.ready_by <= moment]
                sleepers = [item for item in sleepers if item.ready_by > moment]
                woken = [item for item in woken if item is not newcomer and self.lanes[item.key] not in queued]
                if before is not None and any(item.rank < before for item in woken):
                    # It was not prepared in time in the old plan.
                    queued |= self._queued(old, following, [lane for lane in self.lanes.values() if lane not in queued])
                    continue
            asleep = [item for item in sleepers if before is None or item.rank < before]
            if chosen is not None:
                group = chosen[0].take(chosen[1], moment, asleep)
                if fresh is not None and fresh in group.items:
                    ahead.update(item for item in group.items if item is not fresh)
                    left -= needed
                    group.out_of_order, fresh = out_of_order, None
                else:
                    ahead.update(group.items)
            elif following < end:
                if not old.earliest[following] <= moment <= old.latest[following]:
                    queued |= self._queued(old, following, [lane for lane in self.lanes.values() if lane not in queued])
                    continue
                group = old.groups[following]
                if asleep:
                    group = replace(group, passed=[*group.passed, *asleep])
                    group.limit()
                woken = [item for item in woken if item not in group.items]
                kept.add(following)
                following += 1
            else:
                moment = min(item.ready_by for item in asleep)
                plan.gap = True
                continue
            moment = plan.append(group, moment, self._seconds(group, moment))
            left -= plan.dated[-1]
            if trial is not None:
                trial.see(group, moment)
        return plan

    def _seconds(self, group: Group[K, T], start: float) -> float:
        """Predict how long a batch takes that starts at `start`.

        A batch that starts later and is not full will be joined by others: it is taken to be as large as the recent
        arrivals would make it. Otherwise each item would be admitted as if it ran nearly alone, its batch would then be
        cut for its sake, and the smaller batches would make those behind it late: under overload, that costs half the
        goodput.
        """
        cost, lane = group.cost, group.lane
        if not group.full:
            joined = cost + self._arrivals.expected(lane.key, self._now, start)
            cost = max(cost, min(joined, lane.limits.cost))
        return lane.curve.predict(cost)

    def _shift(
        self,
        plan: Plan[K, T],
        old: Plan[K, T],
        index: int,
        moment: float,
        trial: Trial[K, T] | None,
        end: int | None = None,
    ) -> int:
        """Append the old batches from `index` to `end`, the first of which starts at `moment`, as far as they hold.

        Returns:
            the index of the first that does not hold, or `end`; also where a trial is decided.
        """
        end = len(old.groups) if end is None else end
        # What was learned since may have changed the ranges too; within a trial, nothing is learned.
        sooner = trial is None or (index < end and moment < old.starts[index])
        while index < end:
            stop = min(end, old.next_open(index))
            if stop == index:
                if not old.earliest[index] <= moment <= old.latest[index]:
                    return index
                group = old.groups[index]
                moment = plan.append(group, moment, self._seconds(group, moment))
                if trial is not None:
                    trial.see(group, moment)
                    if trial.decided:
                        return end
                index += 1
                continue
            times = list(accumulate(old.seconds[index:stop], initial=moment))
            stop = _until(index, stop, map(gt, times, old.latest[index:stop]))
            if sooner:
                stop = _until(index, stop, map(lt, times, old.earliest[index:stop]))
            ends = times[1 : stop - index + 1]
            if trial is not None:
                for late in compress(count(index), map(gt, ends, old.tightest[index:stop])):
                    trial.see(old.groups[late], ends[late - index])
                    if trial.decided:
                        return end
            holds = stop == end or not old.full[stop]  # else one that is full is out of its range
            plan.extend(old, index, stop)
            plan.seconds += old.seconds[index:stop]
            plan.starts += times[: stop - index]
            plan.ends += ends
            moment = times[stop - index]
            index = stop
            if not holds:
                return index
        return end


def _until(begin: int, end: int, flags: Iterable[bool]) -> int:
    """Return the index of the first flag that is set, counted from `begin`, or `end`."""
    return min(end, next(compress(count(begin), flags), end))


def _awoke(plan: Plan[Any, Any]) -> bool:
    """Return whether an item that was passed over in a plan has been prepared since."""
    return plan.disordered and any(item.payload is not None for group in plan.groups for item in group.passed)


def _last_of(plan: Plan[K, T], lane: Lane[K, T], before: int) -> int | None:
    """Return the index of a lane's last batch before `before`."""
    groups = plan.groups
    for index in range(before - 1, -1, -1):
        if groups[index].lane is lane:
            return index
    return None


def _reached(plan: Plan[K, T], lane: Lane[K, T], item: WorkItem[K, T]) -> int:
    """Return the index of the first batch that a new item of a lane could change, were it prepared."""
    rank = item.rank
    if plan.gap:
        return 0
    if plan.disordered:
        for index, group in enumerate(plan.groups):
            if plan.heads[index] > rank or (group.lane is lane and not (group.sealed and group.items[-1].rank < rank)):
                return index
        return len(plan.groups)
    following = bisect_left(plan.heads, rank)
    last = _last_of(plan, lane, following)
    if last is not None:
        group = plan.groups[last]
        if not (group.sealed and group.items[-1].rank < rank):
            return last
    return following


def _caught_up(
    old: Plan[K, T],
    place: int,
    ahead: set[WorkItem[K, T]],
    kept: set[int],
    stale: set[int],
    gone: set[WorkItem[K, T]],
) -> int:
    """Pass the old batches that were kept or whose items are all taken or gone; return the index of the next."""
    end = len(old.groups)
    while place < end:
        if place in kept:
            kept.discard(place)
        elif ahead or stale:
            items = old.groups[place].items
            if not ahead.issuperset(items) and not all(item in ahead or item in gone for item in items):
                break
            ahead.difference_update(items)
            stale.discard(place)
        else:
            break
        place += 1
    return place

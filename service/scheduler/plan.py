"""Predicted batches: how items of one key form them, and when those of all keys would run."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress, count
from operator import attrgetter, gt
from typing import Final, Generic, TypeVar

from service.scheduler.latency import LatencyCurve
from service.scheduler.work import Limits, Rank, WorkItem

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_TOLERANCE: Final = 1e-6
"""Seconds by which start times are kept from the exact edge of their range, where rounding would decide; a batch that
starts there is formed again, exactly."""

_ALIKE: Final = 256
"""Most items of equal cost that are put into a batch at once."""

_FEW: Final = 3
"""So few items are put into a batch one by one."""

_by_rank: Final = attrgetter("rank")
_cost: Final = attrgetter("cost")
_due: Final = attrgetter("due")
_needed_by: Final = attrgetter("needed_by")
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
        bound: when it must have ended for the sake of items before it that are not prepared, or infinity.
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
    bound: float = math.inf

    def meets(self, rank: Rank) -> bool:
        """Return whether a new item of its lane would be looked at when the batch is formed."""
        return not self.sealed or self.items[-1].rank > rank

    def hold(self, moment: float = -math.inf) -> None:
        """Compute the range of start times again, from the times learned since; see `limit`."""
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
        if self.bound < math.inf:
            self.latest = min(self.latest, self.bound - self.longest() - _TOLERANCE)
        self.limit(moment)

    def longest(self) -> float:
        """Return the longest predicted seconds of its first items, any number of them."""
        return max(map(self.lane.curve.predict, accumulate(map(_cost, self.items))))

    def limit(self, moment: float = -math.inf) -> None:
        """Limit the range by the items that must be prepared or must not be, and by the one that did not fit.

        Args:
            moment: when it starts; an item that should be prepared by then counts as if it had no payload yet.
        """
        self.earliest = max(map(_ready_by, self.items))
        if self.earliest > moment:
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
                due = min(self.tightest, closing.due, self.bound)
                self.earliest = max(self.earliest, due - takes + _TOLERANCE)


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

    A batch grows while its count, its cost and its predicted end allow. Items that are not prepared are passed over,
    but it must not make those late that come before it.

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
    bound = min(map(_needed_by, passed), default=math.inf)
    members, cost, tightest, latest = _alike(lane, items, position, moment, bound)
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
        end_by = min(tighter, bound)
        if end_by < math.inf:
            takes = predict(more)
            if moment + takes > end_by:
                closing = item
                break
            latest = min(latest, end_by - takes - _TOLERANCE)
        members.append(item)
        cost, tightest = more, tighter
        position += 1
    sealed = len(members) >= most
    full = sealed or closing is not None or cost >= room
    group = Group(lane, members, cost, full, sealed, tightest, closing, passed, latest=latest, bound=bound)
    group.limit(moment)
    return group, position


def _alike(
    lane: Lane[K, T], items: Sequence[WorkItem[K, T]], position: int, moment: float, bound: float
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
            end_by = min(tightest, bound)
            if end_by < math.inf:
                longest = max(lane.longest(unit, number), lane.curve.predict(unit) if bound < math.inf else 0.0)
            if cost <= limits.cost and moment + longest <= end_by:
                return members, cost, tightest, end_by - longest - _TOLERANCE
    latest = bound - lane.curve.predict(unit) - _TOLERANCE if bound < math.inf else math.inf
    return [head], unit, head.due, latest


def held_until(asleep: Sequence[WorkItem[K, T]], moment: float, seconds: float) -> float | None:
    """Return when to decide again instead of starting a batch, or None to start it.

    A batch that would make an item late is not started while that item will soon be prepared: no device can be
    interrupted. The device is idle for less than the batch would have taken.

    Args:
        asleep: items before the head of the batch that are not prepared.
        moment: when it would start.
        seconds: how long its head alone takes.
    """
    return min((item.ready_by for item in asleep if moment + seconds > item.needed_by), default=None)


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

    def free_at(self, index: int, start: float) -> float:
        """Return when the device is free for the batch at `index`, if it is free for the first at `start`."""
        return self.ends[index - 1] if index else start

    def last_of(self, lane: Lane[K, T], before: int) -> int | None:
        """Return the index of a lane's last batch before `before`."""
        groups = self.groups
        for index in range(before - 1, -1, -1):
            if groups[index].lane is lane:
                return index
        return None

    def left(self, lane: Lane[K, T], index: int) -> tuple[list[WorkItem[K, T]], int]:
        """Return a lane's items, and the position of those that the first `index` batches have not taken."""
        if self.disordered:
            taken = {item for group in self.groups[:index] if group.lane is lane for item in group.items}
            return [item for item in lane.items if item not in taken], 0
        last = self.last_of(lane, index)
        if last is None:
            return lane.items, 0
        return lane.items, bisect_right(lane.items, self.groups[last].items[-1].rank, key=_by_rank)

    def reached_by(self, item: WorkItem[K, T], lane: Lane[K, T]) -> int:
        """Return the index of the first batch that a new item of a lane could change, were it prepared."""
        rank = item.rank
        if self.gap:
            return 0
        if self.disordered:
            for index, group in enumerate(self.groups):
                if self.heads[index] > rank or (group.lane is lane and group.meets(rank)):
                    return index
            return len(self.groups)
        following = bisect_left(self.heads, rank)
        last = self.last_of(lane, following)
        return last if last is not None and self.groups[last].meets(rank) else following

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

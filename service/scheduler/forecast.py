"""When waiting items will run: the batches that the policy would form of them, kept up to date between admissions.

Admission must know when every item with a deadline would end, without the newcomer and with it. Simulating the whole
queue for each admission takes time that grows with the square of its length. The forecast therefore keeps the predicted
batches, and after a change forms again only those of the changed item's key, from the first batch that the item can
reach on; the others are merely shifted in time. Each batch carries the range of start times within which its
composition holds (`earliest` to `latest`); one that is shifted out of it is formed again, with all that follow.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate, compress, count
from operator import attrgetter, gt, lt
from typing import Any, Final, Generic, TypeVar

from service.scheduler.change import PlanChange, Trial
from service.scheduler.latency import ArrivalRate, LatencyCurve
from service.scheduler.plan import Group, Lane, Plan, Queued, held_until
from service.scheduler.work import Rank, WorkItem

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_SHIFTS: Final = 4
"""Times that the rest of a plan is shifted before all of it is formed again, if batches keep falling out of their
range."""

_by_rank: Final = attrgetter("rank")


class Forecast(Generic[K, T]):
    """The waiting items of a device and when they would run.

    Args:
        make_lane: makes the empty lane of a key.
        arrivals: by key; a batch that starts later and is not full is expected to be joined by others.

    Attributes:
        lanes: waiting items by key.
        dated: number of waiting items with a deadline.
    """

    def __init__(self, make_lane: Callable[[K], Lane[K, T]], arrivals: ArrivalRate) -> None:
        self.lanes: dict[K, Lane[K, T]] = {}
        self.dated = 0
        self._make_lane = make_lane
        self._arrivals = arrivals
        self._now = self._start = 0.0
        self._plan: Plan[K, T] | None = None
        self._versions: dict[LatencyCurve, int] = {}
        self._fresh: list[WorkItem[K, T]] = []  # waiting, not in the plan yet
        self._gone: set[WorkItem[K, T]] = set()  # removed, still in the plan
        self._preparing: list[WorkItem[K, T]] = []  # should be prepared later than now
        self._chain: list[WorkItem[K, T]] = []  # on trial
        self._tried: Plan[K, T] | None = None  # with the chain
        self._begun: Plan[K, T] | None = None  # with the first item of the chain
        self._new_lanes: dict[K, Lane[K, T]] = {}  # of items on trial

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
            elif self._plan is not None:
                self._gone.add(item)
        if self.dated == 0:
            self.forget()

    def forget(self) -> None:
        """Drop the plan; it is made from scratch when it is needed."""
        self._plan = None
        self._fresh.clear()
        self._gone.clear()

    def forget_trials(self) -> None:
        """Drop what is left of the last request that was tried."""
        self._new_lanes.clear()
        self._chain, self._tried, self._begun = [], None, None

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
        if plan is None or plan.gap or _awoke(plan) or _freed(plan, self._gone):
            self.forget()
            self._versions = {lane.curve: lane.curve.version for lane in self.lanes.values()}
            nothing: Plan[K, T] = Plan()
            self._plan = self._form(PlanChange(nothing, 0, self._queued(nothing, 0, self.lanes.values())))
            return
        moved = self._relearn(plan) or moved
        index = 0 if moved else plan.next_open(0)
        if self._gone:
            plan = self._without_gone(plan)
        elif index < len(plan.groups):
            plan = self._form(PlanChange(plan, index, {}))
        while self._fresh:
            plan = self._with(plan, self._fresh.pop(0))
        self._plan = plan

    def begin(self) -> None:
        """Begin to try the items of one request, against the plan as it is."""
        self._tried, self._chain, self._begun = self._plan, [], None
        self._new_lanes.clear()

    def attempt(self, item: WorkItem[K, T]) -> Trial[K, T]:
        """Find out what the next item of the request would do, which runs after those that were tried before."""
        if self._plan is None or self._tried is None:
            raise RuntimeError("attempt() before update() and begin()")
        trial = Trial(item, {item, *self._chain}, self._plan.late())
        earlier, self._chain = self._chain, [*self._chain, item]
        if earlier and earlier[-1] not in self._tried:
            # It would run after all items with a deadline, and was left out.
            if item.due == math.inf:
                return trial
            self._tried = self._plan
            for number in range(len(earlier)):
                self._tried = self._with(self._tried, earlier[number], earlier[: number + 1], needed=True)
        self._tried = self._with(self._tried, item, self._chain, trial)
        if not earlier:
            self._begun = self._tried
            if not (trial.late or trial.harms) and (trial.end is None or trial.end <= item.due):
                self._begun.late_items = set()
        return trial

    def admit(self, items: Sequence[WorkItem[K, T]], now: float) -> None:
        """Add the items of one request, which were tried just before if that was needed."""
        for item in items:
            lane = self.lanes.get(item.key)
            if lane is None:
                lane = self.lanes[item.key] = self._new_lanes.get(item.key) or self._make_lane(item.key)
            lane.add(item)
            self.dated += item.due < math.inf
            if item.payload is None and item.ready_by > now:
                self._preparing.append(item)
        if self._plan is not None:
            if self._begun is not None and self._chain[0] is items[0]:
                self._plan = self._begun
                items = items[1:]
            self._fresh += items
        self._begun = self._tried = None

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
            chain: items of the request on trial, up to this one; each runs after the one before.
            trial: sees what happens.
            needed: plan the item even if it comes after all items with a deadline.
        """
        lane = self.lanes.get(item.key) or self._new_lanes.get(item.key)
        if lane is None:
            lane = self._new_lanes[item.key] = self._make_lane(item.key)
        reached = first = plan.reached_by(item, lane)
        if len(chain) > 1:
            first = max(first, plan.index_of(chain[-2]) + 1)
        if first == len(plan.groups) and item.due == math.inf and not needed:
            return plan
        queued = self._queued(plan, first, [lane, *self.lanes.values()] if plan.gap else [lane])
        if chain:
            queued[lane].insert(item)
        change = PlanChange(plan, first, queued, fresh=item, trial=trial)
        change.more = sum(other.due < math.inf for other in chain)
        change.needed = needed and item.due == math.inf
        change.out_of_order = first > reached
        return self._form(change)

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
        plan = self._form(PlanChange(old, upto, self._queued(plan, upto, lanes), plan=plan, stale=stale))
        gone.clear()
        return plan

    def _relearn(self, plan: Plan[K, T]) -> bool:
        """Compute times again if batches were learned since; return whether there were any."""
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
        for lane in lanes:
            items, at = plan.left(lane, index)
            if any(item.key == lane.key for item in self._fresh):
                fresh = set(self._fresh)
                items, at = [item for item in items[at:] if item not in fresh], 0
            found[lane] = Queued(lane, items, at)
        return found

    def _form(self, change: PlanChange[K, T]) -> Plan[K, T]:
        """Return a plan after a change.

        Batches of the changed lanes are formed again, from the first changed one on; batches of other lanes stay as
        long as they hold. Once the new batches have taken what the old ones had taken, the rest of the old plan holds,
        shifted in time.
        """
        old, plan, trial = change.old, change.plan, change.trial
        moment = plan.free_at(change.following, self._start)
        change.watch(self._preparing, self._fresh, moment)
        left = self.dated - sum(item.due < math.inf for item in self._fresh) - sum(plan.dated)
        left += change.more + change.needed
        shifts = 0
        while True:
            change.catch_up(self._gone)
            if change.settled and shifts < _SHIFTS:
                shifts += 1
                begin = change.place
                upto = self._shift(plan, old, begin, moment, trial)
                left -= sum(old.dated[begin:upto])
                change.place = change.following = upto
                moment = plan.free_at(len(plan.groups), self._start)
                change.queued = self._queued(plan, len(plan.groups), self.lanes.values())
            if left <= 0 or (trial is not None and trial.decided):
                return plan
            following = change.skip()
            if following == change.end:
                self._queue_all(change)
            chosen, before = change.head(moment)
            if change.overtaken(moment, before, self.lanes):
                self._queue_all(change)
                continue
            asleep = [item for item in change.sleepers if before is None or item.rank < before]
            if chosen is not None:
                if (until := held_until(asleep, moment, chosen.seconds)) is not None:
                    moment, plan.gap = until, True
                    continue
                group = chosen.form(moment, asleep)
                left -= change.take(group)
            elif following == change.end:
                moment, plan.gap = min(item.ready_by for item in asleep), True
                continue
            elif not old.earliest[following] <= moment <= old.latest[following] or change.delays(moment, asleep):
                self._queue_all(change)
                continue
            elif (stop := change.unaffected()) > following + 1:
                upto = self._shift(plan, old, following, moment, trial, stop)
                left -= sum(old.dated[following:upto])
                change.keep(following, upto)
                moment = plan.ends[-1]
                continue
            else:
                group = change.keep_one(moment, asleep)
            moment = plan.append(group, moment, self._seconds(group, moment))
            left -= plan.dated[-1]
            if trial is not None:
                trial.see(group, moment)

    def _queue_all(self, change: PlanChange[K, T]) -> None:
        """Form the batches of all lanes again, from here on."""
        lanes = [lane for lane in self.lanes.values() if lane not in change.queued]
        change.queued |= self._queued(change.old, change.following, lanes)

    def _seconds(self, group: Group[K, T], start: float) -> float:
        """Predict how long a batch takes that starts at `start`.

        A batch that starts later and is not full will be joined by others: it is taken to be as large as the recent
        arrivals would make it. Otherwise each item would be admitted as if it ran nearly alone, its batch would then be
        cut for its sake, and the smaller batches would make those behind it late: under overload, that costs half the
        goodput.
        """
        cost, lane = group.cost, group.lane
        if not group.full:
            room = lane.limits.items - len(group.items)
            joined = cost + self._arrivals.expected(lane.key, self._now, start, room)
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
            the index of the first that does not hold, or `end`; also if the trial is decided.
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


def _freed(plan: Plan[Any, Any], gone: set[WorkItem[Any, Any]]) -> bool:
    """Return whether a batch was kept short for the sake of an item that was removed."""
    return bool(gone) and any(
        group.bound < math.inf and not gone.isdisjoint(group.passed)
        for group in (plan.groups if plan.disordered else ())
    )

"""A plan of predicted batches while it is changed, and what an admission would do to it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from service.scheduler.plan import Group, Lane, Plan, Queued
from service.scheduler.work import Rank, WorkItem

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


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
        """Whether nothing more can change the answer."""
        return self.harms and (self.end is not None or self.item.due == math.inf)

    def see(self, group: Group[K, T], end: float) -> None:
        """Note when a batch would end."""
        if end > group.tightest and not self.harms:
            self.harms = any(item.due < end and item not in self.own and item not in self.late for item in group.items)
        if self.end is None and self.item in group.items:
            self.end = end


class PlanChange(Generic[K, T]):
    """A plan while it is changed.

    Args:
        old: the plan before.
        first: index of the first batch that may change.
        queued: what is to be formed again, by lane.
        plan: the earlier batches, if they are not those of the old plan.
        stale: indices of old batches that held or met items which were removed.
        fresh: an item that is not in the old plan.
        trial: sees every batch that may be affected, and may end the work early.

    Attributes:
        more: items to plan that have a deadline and do not wait yet.
        needed: plan the new item although it has no deadline.
        out_of_order: the new item must not run in earlier batches, although it could.
        place: old batches before this are accounted for.
        following: the next old batch that may stay.
        sleepers: items that are not prepared yet.
    """

    def __init__(
        self,
        old: Plan[K, T],
        first: int,
        queued: dict[Lane[K, T], Queued[K, T]],
        *,
        plan: Plan[K, T] | None = None,
        stale: set[int] | None = None,
        fresh: WorkItem[K, T] | None = None,
        trial: Trial[K, T] | None = None,
    ) -> None:
        self.old = old
        self.end = len(old.groups)
        self.place = self.following = first
        self.queued = queued
        if plan is None:
            plan = old.part(0, first)
            plan.gap = old.gap
        self.plan = plan
        self.trial = trial
        self.more = 0
        self.needed = self.out_of_order = False
        self.sleepers: list[WorkItem[K, T]] = []
        self._woken: list[WorkItem[K, T]] = []
        self._newcomer = self._fresh = fresh
        self._stale = stale or set()
        self._ahead: set[WorkItem[K, T]] = set()  # items of new batches that are not in old ones before `place`
        self._kept: set[int] = set()  # old batches after `place` that stayed

    @property
    def settled(self) -> bool:
        """Whether the new batches have taken exactly what the old ones before `place` had taken."""
        return (
            self.place < self.end
            and self._fresh is None
            and not (self._ahead or self._kept or self._stale or self.old.gap)
        )

    def watch(self, preparing: Iterable[WorkItem[K, T]], fresh: Sequence[WorkItem[K, T]], moment: float) -> None:
        """Set the items that are not prepared at `moment`, when the first changed batch starts."""
        self.sleepers = [item for item in preparing if item.payload is None and item not in fresh]
        newcomer = self._newcomer
        if newcomer is not None and newcomer.payload is None and newcomer not in self.sleepers:
            self.sleepers.append(newcomer)
        if self.following:
            self.sleepers = [item for item in self.sleepers if item.ready_by > moment]

    def catch_up(self, gone: set[WorkItem[K, T]]) -> None:
        """Pass the old batches that stayed or whose items are all taken or gone."""
        ahead, kept, stale = self._ahead, self._kept, self._stale
        while self.place < self.end:
            if self.place in kept:
                kept.discard(self.place)
            elif ahead or stale:
                items = self.old.groups[self.place].items
                if not ahead.issuperset(items):
                    if not stale or not all(item in ahead or item in gone for item in items):
                        return
                    stale.discard(self.place)
                stale.discard(self.place)
                ahead.difference_update(items)
            else:
                return
            self.place += 1

    def skip(self) -> int:
        """Skip the old batches of lanes that are formed again; return the index of the next that may stay."""
        groups = self.old.groups
        while self.following < self.end and groups[self.following].lane in self.queued:
            self.following += 1
        return self.following

    def head(self, moment: float) -> tuple[_Head[K, T] | None, Rank | None]:
        """Return the head of the next new batch, if it comes before the next old one, and the rank that comes next."""
        before = self.old.heads[self.following] if self.following < self.end else None
        chosen: _Head[K, T] | None = None
        for items in self.queued.values():
            if (position := items.head(moment, before)) is not None:
                chosen, before = _Head(items, position), items.items[position].rank
        return chosen, before

    def overtaken(self, moment: float, before: Rank | None, lanes: dict[K, Lane[K, T]]) -> bool:
        """Return whether an old batch's item that was not prepared in time in the old plan comes next now."""
        if not (self.sleepers or self._woken):
            return False
        self._woken += [item for item in self.sleepers if item.ready_by <= moment]
        self.sleepers = [item for item in self.sleepers if item.ready_by > moment]
        self._woken = [
            item for item in self._woken if item is not self._newcomer and lanes[item.key] not in self.queued
        ]
        return before is not None and any(item.rank < before for item in self._woken)

    def take(self, group: Group[K, T]) -> int:
        """Note a new batch; return how many items it holds that have no deadline but were needed."""
        self._ahead.update(group.items)
        if self._fresh is None or self._fresh not in group.items:
            return 0
        self._ahead.discard(self._fresh)
        group.out_of_order, self._fresh = self.out_of_order, None
        return int(self.needed)

    def keep(self, begin: int, end: int) -> None:
        """Note that old batches stay."""
        if self._woken:
            self._woken = [item for item in self._woken if all(item not in g.items for g in self.old.groups[begin:end])]
        self._kept.update(range(begin, end))
        self.following = end

    def delays(self, moment: float, asleep: list[WorkItem[K, T]]) -> bool:
        """Return whether the next old batch would make one of `asleep` late, which would have come before it."""
        needed_by = min((item.needed_by for item in asleep), default=math.inf)
        return needed_by < math.inf and moment + self.old.groups[self.following].longest() > needed_by

    def keep_one(self, moment: float, asleep: list[WorkItem[K, T]]) -> Group[K, T]:
        """Note that the next old batch stays, and return it; `asleep` would have come before it."""
        group = self.old.groups[self.following]
        self.keep(self.following, self.following + 1)
        if asleep:
            bound = min(group.bound, *(item.needed_by for item in asleep))
            group = replace(group, passed=[*group.passed, *asleep], bound=bound)
            group.hold(moment)
        return group

    def unaffected(self) -> int:
        """Return the end of the run of old batches that come before anything that is formed again."""
        if self.sleepers or self._woken or self.old.disordered:
            return self.following
        end = self.end
        for items in self.queued.values():
            if items.at < len(items.items):
                end = min(end, bisect_left(self.old.heads, items.items[items.at].rank))
        groups, queued = self.old.groups, self.queued
        for index in range(self.following, end):
            if groups[index].lane in queued:
                return index
        return end


@dataclass(frozen=True, slots=True)
class _Head(Generic[K, T]):
    """The first item of a new batch."""

    items: Queued[K, T]
    position: int

    @property
    def seconds(self) -> float:
        """Predicted seconds of the item alone."""
        return self.items.lane.curve.predict(self.items.items[self.position].cost)

    def form(self, moment: float, asleep: list[WorkItem[K, T]]) -> Group[K, T]:
        """Form its batch; `asleep` would have come before it."""
        return self.items.take(self.position, moment, asleep)

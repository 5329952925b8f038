"""Work items and the bounds of their batches."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from service.observability.tracing import Recording

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Rank: TypeAlias = tuple[int, int, float, float, int]
"""An item's place in the order: smaller runs first. The first field is 0 for the item whose turn it is and those that
were before it then, else 1; urgency, deadline, arrival and the order of admission follow."""


class Requester(Protocol):
    """What the scheduler reads of a request."""

    @property
    def arrived(self) -> float:
        """When it arrived, seconds on the scheduler's clock."""

    @property
    def urgency(self) -> int:
        """RFC 9218: 0 to 7, less is more urgent."""

    @property
    def recording(self) -> Recording | None:
        """Where its spans are recorded, if they are."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch.

    Attributes:
        items: most items.
        cost: most cost, in the unit that the runner counts (images, prompts).
    """

    items: int
    cost: float


class WorkItem(Generic[K, T]):
    """One part of a request's work: in the queue from its admission on, runnable once its payload is set.

    Args:
        key: only items with equal keys share a batch.
        request: what it belongs to.
        deadline: when this item must have ended, seconds on the scheduler's clock, or None.
        cost: at least 0, in the runner's unit.
        ready_by: when its payload should be prepared, seconds on the scheduler's clock.
        margin: seconds before the deadline at which it must end, by the learned times, to be admitted.

    Attributes:
        payload: what the device gets, or None while it is being prepared.
        probe: admitted to learn its time again, whatever the learned times predict.
        due: the deadline, or infinity.
        needed_by: when the device must be free for it, by the times learned at its admission; infinity where it has no
            deadline, or is prepared too late for it.
        rank: its place in the order; set at admission.
    """

    __slots__ = (
        "cost",
        "deadline",
        "due",
        "key",
        "margin",
        "needed_by",
        "payload",
        "probe",
        "rank",
        "ready_by",
        "request",
    )

    def __init__(
        self,
        key: K,
        request: Requester,
        *,
        deadline: float | None,
        cost: float = 1.0,
        ready_by: float = -math.inf,
        margin: float = 0.0,
    ) -> None:
        self.key = key
        self.request = request
        self.deadline = deadline
        self.cost = cost
        self.ready_by = ready_by
        self.margin = margin
        self.payload: T | None = None
        self.probe = False
        self.due: float = math.inf if deadline is None else deadline
        self.needed_by = math.inf
        self.rank: Rank = (0, 0, 0.0, 0.0, 0)

"""What the batching policy handles: pieces of work, bounds, decisions."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

DEFAULT_URGENCY: Final = 3
"""RFC 9218: 0 is the most urgent, 7 the least."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch.

    Attributes:
        items: most items.
        cost: most cost, in the unit that the runner counts (images, prompts).
    """

    items: int
    cost: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks of the queue.

    Attributes:
        arrived: when it came, seconds on the policy's clock.
        deadline: when its work must have ended, on the same clock, or None.
        urgency: 0 to 7, less is more urgent.
        spare: seconds before the deadline at which it must end by the learned times to be admitted.
    """

    arrived: float
    deadline: float | None = None
    urgency: int = DEFAULT_URGENCY
    spare: float = 0.0


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
        abandoned: set by whoever waited for it and left.
        probe: admitted to learn anew, whatever the learned times say.
    """

    piece: Piece[K]
    payload: T | None = None
    abandoned: bool = False
    probe: bool = False

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
        abandoned: dropped, their callers left.
        wait: seconds after which to ask again, where lingering holds a batch back, else None.
    """

    batch: list[Item[K, T]] = field(default_factory=list)
    late: list[Item[K, T]] = field(default_factory=list)
    abandoned: list[Item[K, T]] = field(default_factory=list)
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a device's queue behaves, for the work of all models on the device together.

    Attributes:
        max_queued: most items waiting for the device, whichever model's they are.
        max_age: seconds after which a waiting item goes before all others.
        linger: seconds that an item may wait for company on an idle device.
        probe_after: seconds without a batch of its family after which an idle device takes an item that by the learned
            times would be late: else times that were learned in a bad moment would refuse its family for ever.
    """

    max_queued: int = 256
    max_age: float = 5.0
    linger: float = 0.0
    probe_after: float = 2.0

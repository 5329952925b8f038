"""One budget for the memory that requests make the process hold, so that no number of them can exhaust it.

Everything that grows with what callers send is charged before it is spent, by a cost that is known by then: a body by
its announced length, an image by the pixels of its header, a mask prompt by its RLE. What does not fit waits, the more
urgent and then the earlier first, within its deadline.

A request holds memory of several kinds at a time, and asks for them in the order of `Kind`. For each kind as much is
kept free of the kinds before it as the largest request needs, so the one that waits for the last kind always gets it,
ends, and gives way: requests never wait for each other in a circle.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from service.errors import DeadlineExceeded, Overloaded, TooMuchMemory
from service.observability.observer import Observer

PATIENCE_S: Final = 20.0
"""Longest wait for memory of a request without a deadline."""

MAX_WAITING: Final = 4096
"""Most requests that wait for memory; each is a connection or a frame."""

_READ_BESIDE_STREAMS: Final = 2
"""Messages of unary calls that can be read while all places of streams are taken."""

_MIB: Final = 1024 * 1024
_RETRY_AFTER_S: Final = 2.0
_UNLIMITED: Final = 1 << 60
_LIMIT_FILES: Final = ("memory.max", "memory.limit_in_bytes")


class Kind(IntEnum):
    """What memory is held for, in the order in which a request asks for it."""

    READING = 0
    """A message whose length is not known before it is there; its sender may be slow."""

    INPUT = 1
    """What callers sent, from the first byte of a body to its answer; and answers until they are sent."""

    QUEUED = 2
    """What waits for the device, and what the device returned: the model's input, logits, pixels for an overlay."""

    WORK = 3
    """What a worker thread needs while it decodes or encodes; its holder waits for nothing else."""


@dataclass(slots=True, eq=False)
class Claim:
    """Memory that is held or waited for.

    Attributes:
        kind: what for.
        nbytes: how much.
        rank: among those that wait for the same kind, smaller first: urgency, order of arrival.
        granted: whether it is held.
    """

    kind: Kind
    nbytes: int
    rank: tuple[int, int] = (0, 0)
    granted: bool = False


class Ledger:
    """Who holds how much, and who is next; knows neither time nor event loops.

    Args:
        total: bytes of all kinds together.
        largest: bytes of one request by kind but READING, kept free of the kinds before.

    Raises:
        ValueError: `largest` leaves nothing for READING.
    """

    def __init__(self, total: int, largest: Mapping[Kind, int]) -> None:
        self._waiting: dict[Kind, list[Claim]] = {kind: [] for kind in Kind}
        self.used = dict.fromkeys(Kind, 0)
        self.resize(total, largest)

    def resize(self, total: int, largest: Mapping[Kind, int]) -> None:
        """Set other limits; what is held stays held."""
        limit, self.limits = total, dict.fromkeys(Kind, total)
        """Bytes of a kind together with the kinds before it."""

        for kind in reversed(Kind):
            self.limits[kind] = limit
            limit -= largest.get(kind, 0)
        if self.limits[Kind.READING] <= 0:
            raise ValueError(f"total must be more than the largest request's {sum(largest.values())}, got {total}")
        self.largest = {Kind.READING: self.limits[Kind.READING], **largest}
        """Bytes of one claim."""

    @property
    def waiting(self) -> int:
        """Number of claims that wait."""
        return sum(len(claims) for claims in self._waiting.values())

    def ask(self, claim: Claim) -> bool:
        """Grant a claim if none waits before it and it fits, else let it wait; return whether it is granted."""
        line = self._waiting[claim.kind]
        at = bisect.bisect(line, claim.rank, key=lambda other: other.rank)
        if at == 0 and self._fits(claim):
            self._grant(claim)
        else:
            line.insert(at, claim)
        return claim.granted

    def force(self, claim: Claim) -> None:
        """Grant a claim for what is there already, also beyond the limits: others wait until that is over."""
        self._grant(claim)

    def give(self, claim: Claim, keep: int = 0) -> list[Claim]:
        """Give back all that a claim holds but `keep` bytes, or stop its waiting; return those that are granted now."""
        if claim.granted:
            self.used[claim.kind] -= claim.nbytes - keep
            claim.nbytes = keep
            claim.granted = keep > 0
        elif claim in self._waiting[claim.kind]:
            self._waiting[claim.kind].remove(claim)
        granted = []
        # Those that end soonest first.
        for kind in reversed(Kind):
            line = self._waiting[kind]
            while line and self._fits(line[0]):
                granted.append(line.pop(0))
                self._grant(granted[-1])
        return granted

    def _fits(self, claim: Claim) -> bool:
        held = itertools.accumulate(self.used[kind] for kind in Kind)
        return all(
            kind < claim.kind or used + claim.nbytes <= self.limits[kind] for kind, used in zip(Kind, held, strict=True)
        )

    def _grant(self, claim: Claim) -> None:
        claim.granted = True
        self.used[claim.kind] += claim.nbytes


@dataclass(slots=True, eq=False)
class Holding:
    """Memory that is held until `release`, or until the end of a block."""

    _budget: MemoryBudget
    _claim: Claim
    _running: int = 0
    _ended: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self._claim.nbytes

    def shrink(self, nbytes: int) -> None:
        """Keep at most `nbytes`."""
        if nbytes < self._claim.nbytes:
            self._budget.give(self._claim, nbytes)

    def outlive(self, work: Future[Any]) -> None:
        """Hold the memory until a thread that cannot be stopped is done, although its request has ended."""
        loop = asyncio.get_running_loop()
        self._running += 1

        def done(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._stopped)

        work.add_done_callback(done)

    def release(self) -> None:
        """Give all back, once no thread needs it; harmless when repeated."""
        self._ended = True
        if not self._running:
            self._budget.give(self._claim)

    def _stopped(self) -> None:
        self._running -= 1
        if self._ended:
            self.release()

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


WORKING: Final[ContextVar[Holding | None]] = ContextVar("what the current task's worker threads need", default=None)


@dataclass(slots=True)
class MemoryBudget:
    """A ledger for the tasks of one event loop.

    Attributes:
        ledger: who holds how much.
        observer: receives the bytes in use.
        patience_s: longest wait of a request without a deadline.
    """

    ledger: Ledger = field(
        default_factory=lambda: Ledger(len(Kind) * _UNLIMITED, dict.fromkeys((*Kind,)[1:], _UNLIMITED))
    )
    observer: Observer = field(default_factory=Observer)
    patience_s: float = PATIENCE_S
    _placed: int = 0
    _turnover: int = 0
    _futures: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    _order: Iterator[int] = field(default_factory=itertools.count)

    async def take(
        self,
        kind: Kind,
        nbytes: int,
        *,
        urgency: int = 0,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Holding:
        """Hold memory until the holding is released.

        Args:
            kind: what for; a holder of one kind may only ask for later kinds.
            nbytes: at least 0.
            urgency: RFC 9218, less is more urgent.
            deadline: until when to wait, seconds on `clock`; None for `patience_s`, infinity for as long as it takes.
            clock: seconds, monotonic.

        Raises:
            TooMuchMemory: it would never fit.
            DeadlineExceeded: it did not fit before the deadline.
            Overloaded: it did not fit in time, or too many wait already.
        """
        if nbytes > (most := self.ledger.largest[kind]):
            raise TooMuchMemory(
                f"The request needs {_mib(nbytes)} MiB of memory at once, of which the service has {_mib(most)} MiB "
                "for one request (POMONA_MEMORY_MIB): send a smaller image, fewer prompts or ask for fewer outputs."
            )
        claim = Claim(kind, nbytes, (urgency, next(self._order)))
        if self.ledger.waiting >= MAX_WAITING:
            raise self._overloaded()
        if not self.ledger.ask(claim):
            await self._wait(claim, deadline, clock)
        self._report(claim)
        return Holding(self, claim)

    @asynccontextmanager
    async def place(self, nbytes: int) -> AsyncIterator[None]:
        """Hold memory within a block for the messages of a stream, which is open for long.

        Args:
            nbytes: largest message.

        Raises:
            Overloaded: too many are open; calls that are read at once need room too.
        """
        if self._placed + nbytes * (1 + _READ_BESIDE_STREAMS) > self.ledger.limits[Kind.READING]:
            raise Overloaded(
                f"{self._placed // nbytes} streams are open, as many as there is memory for with messages of "
                f"{_mib(nbytes)} MiB. A lower POMONA_MAX_UPLOAD_MIB or more memory allows more.",
                retry_after=_RETRY_AFTER_S,
            )
        self._placed += nbytes
        try:
            with await self.take(Kind.READING, nbytes):
                yield
        finally:
            self._placed -= nbytes

    def debit(self, nbytes: int) -> Holding:
        """Count an answer until it is sent: it is there already, so nothing is refused, but others wait longer."""
        claim = Claim(Kind.INPUT, nbytes)
        self.ledger.force(claim)
        self._report(claim)
        return Holding(self, claim)

    def give(self, claim: Claim, keep: int = 0) -> None:
        """Give memory back, and wake those that get it."""
        before = claim.nbytes if claim.granted else 0
        granted = self.ledger.give(claim, keep)
        self._turnover += before - claim.nbytes if before else 0
        for other in granted:
            if not (future := self._futures[id(other)]).done():  # else its task was cancelled and gives it back
                future.set_result(None)
        self._report(claim, *granted)

    def resize(self, total: int, largest: Mapping[Kind, int]) -> None:
        """Set other limits: what the models take is known when they are loaded.

        Raises:
            ValueError: see `Ledger`.
        """
        self.ledger.resize(total, largest)
        self.observer.memory_limited(total)

    def take_turnover(self, least: int) -> bool:
        """Return whether at least so many bytes were given back since this was true."""
        if self._turnover < least:
            return False
        self._turnover = 0
        return True

    async def _wait(self, claim: Claim, deadline: float | None, clock: Callable[[], float]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._futures[id(claim)] = future
        within = self.patience_s if deadline is None else deadline - clock()
        try:
            async with asyncio.timeout(within):
                await future
        except TimeoutError as error:
            self.give(claim)
            if deadline is not None:
                raise DeadlineExceeded("The deadline passed while the request waited for memory.") from error
            raise self._overloaded() from error
        except BaseException:
            self.give(claim)  # it may have been granted just now
            raise
        finally:
            del self._futures[id(claim)]

    def _report(self, *claims: Claim) -> None:
        for kind in {claim.kind for claim in claims}:
            self.observer.memory_used(kind.name.lower(), self.ledger.used[kind])

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            "The memory for requests is in use; send fewer or smaller ones at a time.", retry_after=_RETRY_AFTER_S
        )


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes that the process may have: the least limit of its control groups and of the machine.

    Args:
        root: of the file system.

    Returns:
        None where nothing says.
    """
    limits = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = base / path.lstrip("/")
        # A container sees its own group as the root, while the file may name it from the host's.
        for group in (base, *(parent for parent in (folder, *folder.parents) if base in parent.parents)):
            limits += [int(text) for name in _LIMIT_FILES for text in _lines(group / name) if text.isdecimal()]
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    return min(limits, default=None)


def resident_bytes() -> int:
    """Return the resident memory of this process and of the one that started it; 0 where `/proc` is missing."""
    lines = (line for pid in (os.getpid(), os.getppid()) for line in _lines(Path(f"/proc/{pid}/status")))
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _mib(nbytes: int) -> int:
    return math.ceil(nbytes / _MIB)

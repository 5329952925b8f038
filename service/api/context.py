"""The context of a request: its id, deadline and priority, its trace, and where its time went.

Made where a request arrives and passed down to the device's queue; nothing copies from it.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from service.access import Scope
from service.api import schema
from service.errors import MalformedRequest
from service.memory import WORKING, Holding, Kind, MemoryBudget
from service.observability.observer import Observer
from service.observability.tracing import Recording, RequestTrace

Part = Literal["decode", "queue", "encode", "prompt", "infer", "postprocess"]
"""Of a request's time."""

DEFAULT_URGENCY: Final = 3
"""RFC 9218: 0 is the most urgent, 7 the least."""

LEAST_URGENT: Final = 7
MAX_DEADLINE_MS: Final = 3_600_000
RETURN_S: Final = 0.005
"""Time for an answer to be written and to reach a caller on the same network."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_URGENCY: Final = re.compile(r"(?:^|,)\s*u\s*=\s*([0-7])\s*(?:[,;]|$)")


@dataclass(slots=True)
class Timings:
    """Seconds that the parts of a request took; 0 for parts that it did not have."""

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class BatchSizes:
    """How many items ran in the batches with this request's work; 0 where none of it ran."""

    encode: int = 0
    prompt: int = 0
    infer: int = 0


@dataclass(slots=True)
class StreamScope:
    """What frames of one stream share, and what ends with it.

    Attributes:
        track_session: session of `track` that was opened for its frames.
        ending: called when the stream ends.
    """

    track_session: str | None = None
    ending: list[Callable[[], None]] = field(default_factory=list)

    def __enter__(self) -> StreamScope:
        return self

    def __exit__(self, *_: object) -> None:
        while self.ending:
            self.ending.pop()()


@dataclass(slots=True)
class RequestContext:
    """See the module.

    Attributes:
        endpoint: label of metrics: the path or method.
        request_id: the caller's, or a new one.
        needs: scope that the caller's API key must have; None where none is needed.
        caller: name of that key, or "" where there is none.
        received: when the request began to arrive, seconds on `clock`.
        arrived: when all of it had arrived, on the same clock.
        deadline: when the answer is too late, on the same clock, or None.
        urgency: RFC 9218, 0 the most urgent to 7 the least.
        clock: seconds, monotonic.
        observer: receives what is measured.
        memory: what all requests may hold.
        held: what this one holds until it ends.
        trace: of the request, or None.
        model: the one that answers, or "" where none was chosen.
        log: further fields of the request's log line.
        report: receives what is found before the answer is ready, as the schema has it, where the caller listens.
        stream: of the stream that the frame came in, or None.
    """

    endpoint: str = ""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    needs: Scope | None = "infer"
    caller: str = ""
    received: float = 0.0
    arrived: float = 0.0
    deadline: float | None = None
    urgency: int = DEFAULT_URGENCY
    clock: Callable[[], float] = time.monotonic
    observer: Observer = field(default_factory=Observer)
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    held: list[Holding] = field(default_factory=list)
    trace: RequestTrace | None = None
    model: str = ""
    log: dict[str, Any] = field(default_factory=dict)
    report: Callable[[Any], Awaitable[None]] | None = None
    stream: StreamScope | None = None
    timings: Timings = field(default_factory=Timings)
    batch: BatchSizes = field(default_factory=BatchSizes)

    @property
    def recording(self) -> Recording | None:
        """Where the parts of the request are recorded, if they are."""
        return None if self.trace is None else self.trace.recording

    @asynccontextmanager
    async def hold(self, kind: Kind, nbytes: int) -> AsyncIterator[Holding]:
        """Hold memory within a block, waiting for it until the deadline; see `MemoryBudget.take`."""
        with await self._take(kind, nbytes) as holding:
            if kind is not Kind.WORK:
                yield holding
                return
            token = WORKING.set(holding)
            try:
                yield holding
            finally:
                WORKING.reset(token)

    async def keep(self, kind: Kind, nbytes: int) -> Holding:
        """Hold memory until the request ends, or the holding is released; see `MemoryBudget.take`."""
        holding = await self._take(kind, nbytes)
        self.held.append(holding)
        return holding

    async def _take(self, kind: Kind, nbytes: int) -> Holding:
        return await self.memory.take(kind, nbytes, urgency=self.urgency, deadline=self.deadline, clock=self.clock)

    def count_answer(self, nbytes: int) -> None:
        """Count what is answered until the request ends; see `MemoryBudget.debit`."""
        self.held.append(self.memory.debit(nbytes))

    def release(self) -> None:
        """Give back all memory that was kept: the request ended."""
        while self.held:
            self.held.pop().release()

    def due(self, before: float = 0.0) -> float | None:
        """Return when work must end that is followed by `before` seconds of other work and the way back."""
        return None if self.deadline is None else self.deadline - before - RETURN_S

    def took(self, part: Part, seconds: float) -> None:
        """Add `seconds`, which ended just now, to a part of the request."""
        setattr(self.timings, part, getattr(self.timings, part) + seconds)
        if part == "decode":
            self.observer.image_decoded(seconds)
        self.record(part, seconds)

    def record(self, part: Part, seconds: float) -> None:
        """Record a part in the trace alone."""
        if self.recording is not None:
            self.recording.took(part, seconds)

    def timing_ms(self) -> schema.Timings:
        """Return the parts in milliseconds, as answers have them."""
        timings = self.timings
        return schema.Timings.model_construct(
            decode=round(timings.decode * 1000, 2),
            queue=round(timings.queue * 1000, 2),
            encode=round(timings.encode * 1000, 2),
            prompt=round(timings.prompt * 1000, 2),
            infer=round(timings.infer * 1000, 2),
            postprocess=round(timings.postprocess * 1000, 2),
            total=round(timings.total * 1000, 2),
        )

    def batch_sizes(self) -> schema.Batch:
        """Return the batch sizes, as answers have them."""
        return schema.Batch.model_construct(encode=self.batch.encode, prompt=self.batch.prompt, infer=self.batch.infer)


def request_id_of(given: str) -> str:
    """Return the caller's request id where it is a plain token, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def deadline_of(headers: Mapping[str, str], received: float) -> float | None:
    """Read `X-Deadline-Ms`: milliseconds from the request's arrival.

    Raises:
        MalformedRequest: it is not a number above 0. Ignoring it would make answers late.
    """
    given = headers.get("x-deadline-ms")
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = 0.0
    return received + deadline_seconds(milliseconds, "X-Deadline-Ms", given)


def deadline_seconds(milliseconds: float, name: str, given: object) -> float:
    """Convert a deadline to seconds.

    Raises:
        MalformedRequest: it is not above 0, or too far away.
    """
    if not 0 < milliseconds <= MAX_DEADLINE_MS:
        raise MalformedRequest(f"{name} must be above 0 and at most {MAX_DEADLINE_MS} milliseconds, got {given!r}.")
    return milliseconds / 1000


def urgency_of(headers: Mapping[str, str]) -> int:
    """Read the urgency of `Priority` (RFC 9218); the default where it cannot be read, as the RFC says in section 4."""
    given = headers.get("priority")
    found = None if given is None else _URGENCY.search(given)
    return DEFAULT_URGENCY if found is None else int(found[1])

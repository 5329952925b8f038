"""A call, or a frame of a stream, on its way: its id, until when it is wanted, what its line in the log will say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from models.catalog import Family
from service.callers import request_id_of, seconds_left, when_of
from service.errors import MalformedRequest
from service.messages import When
from service.observability.tracing import context_of
from service.pipeline import Pipeline

_CURRENT: ContextVar[Call] = ContextVar("call")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a frame says of time and importance; None where the stream's metadata say it.

    Attributes:
        deadline_ms: from the frame's arrival until it is too late.
        urgency: RFC 9218, 0 the most urgent to 7 the least.
    """

    deadline_ms: float | None = None
    urgency: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """See the module.

    Attributes:
        path: service and method.
        request_id: the caller's, or made here.
        arrived: seconds of `time.monotonic`.
        deadline: of the call itself, on the same clock, or None.
        metadata: of the call, without what is binary.
        wish: of a frame.
        facts: what the log's line will also say.
        trace: the trace context (W3C) that goes back: the caller's, where there is one, until a span is begun.
    """

    path: str
    request_id: str
    arrived: float
    deadline: float | None
    metadata: Mapping[str, str]
    wish: Wish = field(default_factory=Wish)
    facts: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str, metadata: Mapping[str, str], arrived: float, remaining: float | None) -> Call:
        """A call that came at `arrived` and has `remaining` seconds left, where it has a deadline."""
        deadline = None if remaining is None else time.monotonic() + remaining
        request_id = request_id_of(metadata.get("x-request-id", ""))
        return cls(path, request_id, arrived, deadline, metadata, trace=context_of(metadata))

    def frame(self, number: int, wish: Wish) -> Call:
        """A frame of this stream that came just now."""
        request_id = f"{self.request_id}.{number}"
        return replace(self, request_id=request_id, arrived=time.monotonic(), wish=wish, facts={}, trace={})

    @property
    def echo(self) -> tuple[tuple[str, str], ...]:
        """Metadata that go back."""
        return (("x-request-id", self.request_id), *self.trace.items())

    @property
    def expired(self) -> bool:
        """The call's own deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def when(self) -> When:
        """Until when an answer is wanted: the earlier of the call's own deadline and the one that it was sent with.

        Raises:
            MalformedRequest: a deadline or an urgency that is none.
        """
        wish, asked = self.wish, self.metadata.get("x-deadline-ms")
        told = when_of(asked if wish.deadline_ms is None else None, self.metadata.get("priority", ""), self.arrived)
        if wish.deadline_ms is not None:
            said = f"deadline_ms is {wish.deadline_ms:g}"
            told = replace(told, within=seconds_left(wish.deadline_ms, self.arrived, said=said))
        if wish.urgency is not None:
            if wish.urgency > 7:
                raise MalformedRequest(f"urgency is {wish.urgency}; 0, the most urgent, to 7 would be right.")
            told = replace(told, urgency=wish.urgency)
        own = None if self.deadline is None else self.deadline - time.monotonic()
        return replace(told, within=min((limit for limit in (told.within, own) if limit is not None), default=None))

    def note_model(self, pipeline: Pipeline, asked: str | None, family: Family) -> None:
        """For the log and the metrics, also where no answer comes; a name that is not loaded is left out."""
        name = pipeline.default(family) if asked is None else asked
        if name in pipeline.runners:
            self.facts["model"] = name

    def note_frame(self, frame_id: str | None, trigger_id: str | None) -> None:
        """For the log: what the camera says of a frame."""
        told = {"frame_id": frame_id, "trigger_id": trigger_id}
        self.facts.update({name: value for name, value in told.items() if value})

    def make_current(self) -> None:
        """For `current_call`, in this task and those that it starts."""
        _CURRENT.set(self)


def current_call() -> Call:
    """The call that this task answers."""
    return _CURRENT.get()

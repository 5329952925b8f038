"""Spans of OpenTelemetry: a request's, those of its parts, and those of the batches that held it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, Tracer

from service.observability.observer import Stage

Part: TypeAlias = str
"""Of a request: decode, queue, encode, prompt, infer or postprocess."""

_PARTS: Final[Mapping[Stage, Part]] = {"encode": "encode", "decode": "prompt", "infer": "infer"}
"""What the work of a stage is to a request: a SAM decodes prompts, and `decode` is the image's."""

_FAILED: Final = Status(StatusCode.ERROR)


@dataclass(frozen=True, slots=True)
class Tracers:
    """Who records.

    Attributes:
        requests: requests and their parts, as often as the sampler says.
        batches: every batch that it is told of: those with a request that is recorded.
    """

    requests: Tracer
    batches: Tracer


@dataclass(frozen=True, slots=True)
class Ride:
    """A batch as those in it know it.

    Attributes:
        started: seconds on the queue's clock.
        seconds: that it ran.
        context: of its span.
    """

    started: float
    seconds: float
    context: SpanContext


@dataclass(frozen=True, slots=True)
class Recording:
    """A request whose parts are recorded.

    Attributes:
        span: its own, open until it is answered.
        context: in which its parts are children of that.
        tracers: where parts and batches go.
    """

    span: Span
    context: Context
    tracers: Tracers

    def took(self, part: Part, seconds: float) -> None:
        """A part that ended just now took `seconds`."""
        end = time.time_ns()
        self._record(part, end - _ns(seconds), end, failed=False)

    def came_back(self, stage: Stage, ride: Ride | None, *, ready_at: float, now: float, failed: bool) -> None:
        """A piece of work came back from the device's queue just now.

        Args:
            stage: of the work.
            ride: the batch in which it ran, or None where it left before.
            ready_at: when it began to wait; this and `now` are seconds on the queue's clock.
            now: when it came back.
            failed: it came back without a result.
        """
        wall = time.time_ns()
        started = now if ride is None else max(ride.started, ready_at)
        start = wall - _ns(now - started)
        self._record("queue", wall - _ns(now - ready_at), start, failed=failed and ride is None)
        if ride is not None:
            self._record(_PARTS[stage], start, start + _ns(ride.seconds), failed=failed, link=ride.context)

    def _record(self, part: Part, start: int, end: int, *, failed: bool, link: SpanContext | None = None) -> None:
        links = () if link is None else (Link(link),)
        span = self.tracers.requests.start_span(part, self.context, start_time=start, links=links)
        if failed:
            span.set_status(_FAILED)
        span.end(end)


class Rider(Protocol):
    """A piece of work in a device's queue.

    Attributes:
        recording: where its request's parts are recorded, if they are.
        ride: the batch in which it ran; set by `record_batch`.
    """

    recording: Recording | None
    ride: Ride | None


def record_batch(
    riders: Iterable[Rider],
    stage: Stage,
    attributes: Mapping[str, str | int],
    *,
    ran: tuple[float, float],
    now: float,
) -> None:
    """A span of its own for a batch, with links to the requests in it that are recorded, where there are any.

    Args:
        riders: those in it who are still there; they are told of the batch.
        stage: of the work.
        attributes: without the prefix `pomona.batch.`.
        ran: when it was started, on the queue's clock, and for how many seconds it ran.
        now: on the same clock.
    """
    recorded = [(rider, rider.recording) for rider in riders if rider.recording is not None]
    if not recorded:
        return
    started, seconds = ran
    start = time.time_ns() - _ns(now - started)
    # A request may have several pieces of work in a batch.
    spans = {id(recording.span): recording.span for _, recording in recorded}
    span = recorded[0][1].tracers.batches.start_span(
        f"batch {_PARTS[stage]}",
        Context(),  # no child of one request: it is that of all of them
        start_time=start,
        links=[Link(span.get_span_context()) for span in spans.values()],
        attributes={f"pomona.batch.{name}": value for name, value in attributes.items()},
    )
    span.end(start + _ns(seconds))
    for rider, _ in recorded:
        rider.ride = Ride(started, seconds, span.get_span_context())


def end(recording: Recording, attributes: Mapping[str, object], *, failed: bool) -> None:
    """Close a request's span.

    Args:
        recording: the request's.
        attributes: texts and numbers; what is neither is left out.
        failed: the server is at fault, or there was no answer in time.
    """
    recording.span.set_attributes(
        {name: value for name, value in attributes.items() if isinstance(value, (str, bool, int, float))}
    )
    if failed:
        recording.span.set_status(_FAILED)
    recording.span.end()


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

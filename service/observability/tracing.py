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

_PARTS: Final[Mapping[Stage, Part]] = {"encode": "encode", "mask_decode": "prompt", "infer": "infer"}
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


"""The request that a task answers: its id, its trace context (W3C), and where its parts are recorded.

Without tracers nothing is recorded, and a caller's context is only handed on: to the log and back to the caller.
"""


from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C: Final = TraceContextTextMapPropagator()


@dataclass(slots=True)
class RequestTrace:
    """See the module.

    Attributes:
        request_id: the caller's, or made here.
        trace_id: 32 hexadecimal digits, or None where there is no trace.
        headers: the answer's `traceparent` and `tracestate`: of the request's span where the tracers have one, else the
            caller's own; empty where there is neither.
        recording: None where nothing is recorded.
        attributes: of the span; known, as is the next, at the request's end.
        failed: the server is at fault, or there was no answer in time.
    """

    request_id: str
    trace_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    recording: Recording | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def finish(self, facts: Mapping[str, object], attributes: Mapping[str, object], *, failed: bool) -> None:
        """Tell how the request ended.

        Args:
            facts: what its line in the log says; numbers and texts become attributes `pomona.…`.
            attributes: what else the span says, by names of OpenTelemetry's conventions.
            failed: the server is at fault, or there was no answer in time.
        """
        if self.recording is not None:
            self.attributes = {f"pomona.{name}": value for name, value in facts.items()} | dict(attributes)
            self.failed = failed


_CURRENT: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)


class Tracing:
    """Begins the traces of requests.

    Args:
        tracers: who records; None for nobody.
    """

    def __init__(self, tracers: Tracers | None = None) -> None:
        self._tracers = tracers

    @contextmanager
    def request(self, name: str, request_id: str, caller: Mapping[str, str]) -> Iterator[RequestTrace]:
        """A request, while it is answered; `current` in this task and those that it starts.

        Args:
            name: of its span: a route or a method.
            request_id: the caller's, or made here.
            caller: headers, of which `traceparent` and `tracestate` are read; what is no trace context is passed over.
        """
        traced = self._begin(name, request_id, caller)
        token = _CURRENT.set(traced)
        try:
            yield traced
        finally:
            _CURRENT.reset(token)
            if traced.recording is not None:
                end(traced.recording, traced.attributes, failed=traced.failed)

    def _begin(self, name: str, request_id: str, caller: Mapping[str, str]) -> RequestTrace:
        if self._tracers is None and "traceparent" not in caller:
            return RequestTrace(request_id)
        context = _W3C.extract(caller, Context())
        if self._tracers is not None:
            span = self._tracers.requests.start_span(name, context, SpanKind.SERVER)
            context = trace.set_span_in_context(span, context)
        span = trace.get_current_span(context)
        told = span.get_span_context()
        if not told.is_valid:
            return RequestTrace(request_id)
        headers: dict[str, str] = {}
        _W3C.inject(headers, context)
        recording = None
        if self._tracers is not None and span.is_recording():
            recording = Recording(span, context, self._tracers)
        return RequestTrace(request_id, trace.format_trace_id(told.trace_id), headers, recording)


def context_of(caller: Mapping[str, str]) -> dict[str, str]:
    """A caller's `traceparent` and `tracestate`, where they are a trace context."""
    headers: dict[str, str] = {}
    if "traceparent" in caller:
        _W3C.inject(headers, _W3C.extract(caller, Context()))
    return headers


def current() -> RequestTrace | None:
    """The request that this task answers, if it answers one."""
    return _CURRENT.get()


def recorded() -> Recording | None:
    """Where the current request's parts are recorded, if they are."""
    found = _CURRENT.get()
    return None if found is None else found.recording


def took(part: Part, seconds: float) -> None:
    """A part of the current request, which ended just now, took `seconds`."""
    found = _CURRENT.get()
    if found is not None and found.recording is not None:
        found.recording.took(part, seconds)


"""Traces to an OpenTelemetry collector over OTLP, as OpenTelemetry's own variables say; off unless they name one."""


import threading
import uuid
from typing import TYPE_CHECKING

from models.errors import PomonaError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"


class TracingMisconfigured(PomonaError):
    """A variable of OpenTelemetry asks for what is not here."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are exported: where an endpoint of OTLP is named and neither switch says no.

    The switches are `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none`; OpenTelemetry's own reading of an absent
    endpoint, that a collector is on this machine, needs `OTEL_TRACES_EXPORTER=otlp`.

    Raises:
        TracingMisconfigured: another exporter or another protocol is asked for.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise TracingMisconfigured(f"OTEL_TRACES_EXPORTER is {exporter!r}; otlp or none would be right.")
    if not exporter and not any(environment.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise TracingMisconfigured(
            f"Traces are sent over {_PROTOCOL} (a collector's port 4318), not over {protocol!r}, which "
            "OTEL_EXPORTER_OTLP_PROTOCOL asks for."
        )
    return True


class TraceExporter:
    """What records and sends; `close` sends what is left.

    Args:
        processor: takes the spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        # Here, as the SDK is of no use to a process that records nothing.
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        ours = Resource.create({"service.name": "pomona", "service.instance.id": str(uuid.uuid4())})
        resource = ours.merge(OTELResourceDetector().detect())
        self._processor = processor
        tracers = []
        # None is the sampler that the variables name. Of a batch it was asked before: it is told of for its requests.
        for sampler in (None, ALWAYS_ON):
            provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            provider.add_span_processor(processor)
            tracers.append(provider.get_tracer("pomona"))
        self.tracing = Tracing(Tracers(*tracers))

    def close(self, within: float = 2.0) -> None:
        """Send what is left, for at most `within` seconds: a collector that is not there does not hold up the end."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within)


def export_traces(environment: Mapping[str, str]) -> TraceExporter | None:
    """Traces to the collector that the variables name, where they are wanted.

    Raises:
        TracingMisconfigured: see `wanted`.
    """
    if not wanted(environment):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return TraceExporter(BatchSpanProcessor(OTLPSpanExporter()))

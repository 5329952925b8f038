"""Traces: a span per request with its parts, a span per batch, and their export over OTLP.

A request's trace context (W3C) is read from its headers and returned. Without an exporter nothing is recorded, and the
caller's context is only passed on: to the log and back to the caller.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.errors import PomonaError
from service.observability.observer import Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

Part: TypeAlias = str
"""Of a request: decode, queue, encode, prompt, infer or postprocess."""

_PARTS: Final[Mapping[Stage, Part]] = {"encode": "encode", "mask_decode": "prompt", "infer": "infer"}
"""Parts of a request by the stage of work on the device."""

_FAILED: Final = Status(StatusCode.ERROR)
_W3C: Final = TraceContextTextMapPropagator()
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"


class TracingMisconfigured(PomonaError):
    """A variable of OpenTelemetry has a value that is not supported."""


@dataclass(frozen=True, slots=True)
class Tracers:
    """Where spans are recorded.

    Attributes:
        requests: requests and their parts, as often as the sampler decides.
        batches: every batch with a request that is recorded.
    """

    requests: Tracer
    batches: Tracer


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """The span of a batch, as its items need it.

    Attributes:
        started: seconds on the queue's clock.
        seconds: that it ran.
        context: of the span.
    """

    started: float
    seconds: float
    context: SpanContext


@dataclass(frozen=True, slots=True)
class Recording:
    """A request whose parts are recorded.

    Attributes:
        span: the request's, open until it is answered.
        context: in which its parts are children of that span.
        tracers: where parts and batches are recorded.
    """

    span: Span
    context: Context
    tracers: Tracers

    def took(self, part: Part, seconds: float) -> None:
        """Record a part that took `seconds` and ended just now."""
        end = time.time_ns()
        self._record(part, end - _ns(seconds), end, failed=False)

    def returned(self, stage: Stage, batch: BatchSpan | None, *, ready_at: float, now: float, failed: bool) -> None:
        """Record an item that came back from the device's queue just now.

        Args:
            stage: of the work.
            batch: in which it ran, or None where it left before.
            ready_at: when it began to wait; this and `now` are seconds on the queue's clock.
            now: when it came back.
            failed: whether it came back without a result.
        """
        wall = time.time_ns()
        started = now if batch is None else max(batch.started, ready_at)
        start = wall - _ns(now - started)
        self._record("queue", wall - _ns(now - ready_at), start, failed=failed and batch is None)
        if batch is not None:
            self._record(_PARTS[stage], start, start + _ns(batch.seconds), failed=failed, link=batch.context)

    def _record(self, part: Part, start: int, end: int, *, failed: bool, link: SpanContext | None = None) -> None:
        links = () if link is None else (Link(link),)
        span = self.tracers.requests.start_span(part, self.context, start_time=start, links=links)
        if failed:
            span.set_status(_FAILED)
        span.end(end)


class Waiting(Protocol):
    """An item in a device's queue.

    Attributes:
        recording: where the parts of its request are recorded, if they are.
        batch_span: the batch in which it ran; set by `record_batch`.
    """

    recording: Recording | None
    batch_span: BatchSpan | None


def record_batch(
    items: Iterable[Waiting],
    stage: Stage,
    attributes: Mapping[str, str | int],
    *,
    started: float,
    seconds: float,
    now: float,
) -> None:
    """Record a batch as a span of its own, with links to its recorded requests, if there are any.

    Args:
        items: of the batch that are still waited for.
        stage: of the work.
        attributes: without the prefix `pomona.batch.`.
        started: when it started, on the queue's clock.
        seconds: that it ran.
        now: on the same clock.
    """
    recorded = [(item, item.recording) for item in items if item.recording is not None]
    if not recorded:
        return
    start = time.time_ns() - _ns(now - started)
    # A request may have several items in a batch.
    spans = {id(recording.span): recording.span for _, recording in recorded}
    span = recorded[0][1].tracers.batches.start_span(
        f"batch {_PARTS[stage]}",
        Context(),  # not the child of one request: it belongs to all of them
        start_time=start,
        links=[Link(span.get_span_context()) for span in spans.values()],
        attributes={f"pomona.batch.{name}": value for name, value in attributes.items()},
    )
    span.end(start + _ns(seconds))
    for item, _ in recorded:
        item.batch_span = BatchSpan(started, seconds, span.get_span_context())


@dataclass(slots=True)
class RequestTrace:
    """The trace of a request.

    Attributes:
        request_id: the caller's, or a new one.
        trace_id: 32 hexadecimal digits, or None where there is no trace.
        headers: of the answer, `traceparent` and `tracestate`: of the request's span where it is recorded, else the
            caller's own; empty where there is neither.
        recording: None where nothing is recorded.
    """

    request_id: str
    trace_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    recording: Recording | None = None
    _attributes: dict[str, Any] = field(default_factory=dict)
    _failed: bool = False

    def finish(self, log_fields: Mapping[str, object], attributes: Mapping[str, object], *, failed: bool) -> None:
        """Set how the request ended, for its span.

        Args:
            log_fields: of its log line; numbers and texts become attributes `pomona.…`.
            attributes: further ones, by names of OpenTelemetry's conventions.
            failed: whether the server is at fault, or there was no answer in time.
        """
        self._attributes = {f"pomona.{name}": value for name, value in log_fields.items()} | dict(attributes)
        self._failed = failed

    def end(self) -> None:
        """Close the request's span."""
        if self.recording is None:
            return
        span = self.recording.span
        span.set_attributes(
            {name: value for name, value in self._attributes.items() if isinstance(value, (str, bool, int, float))}
        )
        if self._failed:
            span.set_status(_FAILED)
        span.end()


_CURRENT: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)


def current() -> RequestTrace | None:
    """Return the trace of the request that this task answers, if it answers one; for log lines."""
    return _CURRENT.get()


class Tracing:
    """Begins the traces of requests.

    Args:
        tracers: where spans are recorded; None records nothing.
    """

    def __init__(self, tracers: Tracers | None = None) -> None:
        self._tracers = tracers

    @contextmanager
    def request(self, name: str, request_id: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """Trace a request while it is answered; `current` in this task and those that it starts.

        Args:
            name: of its span: a route or a method.
            request_id: the caller's, or a new one.
            headers: the caller's, of which `traceparent` and `tracestate` are read; an invalid context is ignored.
        """
        request = self._begin(name, request_id, headers)
        token = _CURRENT.set(request)
        try:
            yield request
        finally:
            _CURRENT.reset(token)
            request.end()

    def _begin(self, name: str, request_id: str, headers: Mapping[str, str]) -> RequestTrace:
        if self._tracers is None and "traceparent" not in headers:
            return RequestTrace(request_id)
        context = _W3C.extract(headers, Context())
        if self._tracers is not None:
            span = self._tracers.requests.start_span(name, context, SpanKind.SERVER)
            context = trace.set_span_in_context(span, context)
        span = trace.get_current_span(context)
        span_context = span.get_span_context()
        if not span_context.is_valid:
            return RequestTrace(request_id)
        returned: dict[str, str] = {}
        _W3C.inject(returned, context)
        recording = None
        if self._tracers is not None and span.is_recording():
            recording = Recording(span, context, self._tracers)
        return RequestTrace(request_id, trace.format_trace_id(span_context.trace_id), returned, recording)


def context_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a caller's `traceparent` and `tracestate`, where they are a valid trace context."""
    returned: dict[str, str] = {}
    if "traceparent" in headers:
        _W3C.inject(returned, _W3C.extract(headers, Context()))
    return returned


class TraceExporter:
    """Records spans and sends them; `close` sends what is left.

    Args:
        processor: receives the spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        # Imported here, as a process that records nothing does not need the SDK.
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        ours = Resource.create({"service.name": "pomona", "service.instance.id": str(uuid.uuid4())})
        resource = ours.merge(OTELResourceDetector().detect())
        self._processor = processor
        tracers = []
        # None is the sampler of OTEL_TRACES_SAMPLER. Batches need none: they are recorded for their sampled requests.
        for sampler in (None, ALWAYS_ON):
            provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            provider.add_span_processor(processor)
            tracers.append(provider.get_tracer("pomona"))
        self.tracing = Tracing(Tracers(*tracers))

    def close(self, within: float = 2.0) -> None:
        """Send what is left, for at most `within` seconds: an unreachable collector must not hold up the end."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within)


def exports_traces(environment: Mapping[str, str]) -> bool:
    """Return whether traces are exported: where an OTLP endpoint is set and neither switch says no.

    The switches are `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none`. OpenTelemetry's default for an absent
    endpoint, a collector on this machine, needs `OTEL_TRACES_EXPORTER=otlp`.

    Raises:
        TracingMisconfigured: another exporter or another protocol is set.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise TracingMisconfigured(f"OTEL_TRACES_EXPORTER must be otlp or none, got {exporter!r}.")
    if not exporter and not any(environment.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise TracingMisconfigured(
            f"OTEL_EXPORTER_OTLP_PROTOCOL must be {_PROTOCOL} (a collector's port 4318), got {protocol!r}."
        )
    return True


def export_traces(environment: Mapping[str, str]) -> TraceExporter | None:
    """Return an exporter to the collector of OpenTelemetry's variables, where one is set.

    Raises:
        TracingMisconfigured: see `exports_traces`.
    """
    if not exports_traces(environment):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return TraceExporter(BatchSpanProcessor(OTLPSpanExporter()))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

"""The request that a task answers: its id, its trace context (W3C), and where its parts are recorded.

Without tracers nothing is recorded, and a caller's context is only handed on: to the log and back to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.recording import Part, Recording, Tracers, end

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

    def ended(self, facts: Mapping[str, object], attributes: Mapping[str, object], *, failed: bool) -> None:
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

"""Traces are exported where OpenTelemetry's variables say so, and arrive at a collector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service.observability.otlp import Traces, TracingMisconfigured, exported, wanted
from service.observability.recording import Recording, Ride, record_batch

from service.observability.tracing import Tracing, recorded
from tests.collector import collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
COLLECTOR = {ENDPOINT: "http://collector:4318"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: ""}, False),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "false"}, True),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_traces_are_exported_where_the_variables_name_an_endpoint(environment: Mapping[str, str], answer: bool) -> None:
    assert wanted(environment) is answer


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "4318"),
    ],
)
def test_what_is_not_here_is_refused_with_what_would_be_right(environment: Mapping[str, str], named: str) -> None:
    with pytest.raises(TracingMisconfigured, match=named):
        wanted(environment)


def test_nothing_is_made_where_no_endpoint_is_named() -> None:
    assert exported({}) is None


def test_spans_arrive_at_the_collector_when_the_traces_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as at:
        monkeypatch.setenv(ENDPOINT, at.address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pomona-0")
        traces = exported(os.environ)
        assert traces is not None
        with traces.tracing.request("POST /v1/segment", "frame-1", {}) as request:
            request.ended({"prompts": 2, "timing_ms": {"total": 1.0}}, {}, failed=False)
        traces.close()
    (resource,) = at.resources()
    facts = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (facts["service.name"], facts["k8s.pod.name"]) == ("pomona", "pomona-0")
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("POST /v1/segment", request.trace_id)
    assert {pair.key: pair.value.int_value for pair in span.attributes} == {"pomona.prompts": 2}


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as at:
        at.answers.clear()
        monkeypatch.setenv(ENDPOINT, at.address)
        traces = exported(os.environ)
        assert traces is not None
        with traces.tracing.request("POST /v1/segment", "frame-1", {}):
            pass
        traces.close(within=0.05)
        assert at.bodies == []
        at.answers.set()


def test_the_variables_name_wins_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pomona-line-7")
    memory = InMemorySpanExporter()
    with Traces(SimpleSpanProcessor(memory)).tracing.request("ListModels", "1", {}):
        pass
    (span,) = memory.get_finished_spans()
    assert span.resource.attributes["service.name"] == "pomona-line-7"


@dataclass
class Passenger:
    """See `Rider`."""

    recording: Recording | None
    ride: Ride | None = None


def recording_of(tracing: Tracing) -> Recording | None:
    with tracing.request("POST /v1/embed", "1", {}):
        return recorded()


@pytest.mark.parametrize(("ratio", "names"), [("1", ["POST /v1/embed"] * 2 + ["batch encode"]), ("0", [])])
def test_a_batch_is_recorded_where_its_requests_are(
    ratio: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    memory = InMemorySpanExporter()
    tracing = Traces(SimpleSpanProcessor(memory)).tracing
    riders = [Passenger(recording_of(tracing)) for _ in range(2)]
    record_batch(riders, "encode", {"items": 3}, ran=(10.0, 0.25), now=10.5)
    assert [span.name for span in memory.get_finished_spans()] == names
    assert [rider.ride is not None for rider in riders] == [bool(names)] * 2


def test_spans_of_the_past_last_as_long_as_the_queues_clock_says() -> None:
    memory = InMemorySpanExporter()
    tracing = Traces(SimpleSpanProcessor(memory)).tracing
    recording = recording_of(tracing)
    assert recording is not None
    rider = Passenger(recording)
    record_batch([rider, Passenger(None)], "decode", {"items": 2}, ran=(12.0, 3.0), now=15.5)
    recording.came_back("decode", rider.ride, ready_at=10.0, now=16.0, failed=False)
    recording.took("postprocess", 0.5)
    lasted = {
        span.name: ((span.end_time or 0) - (span.start_time or 0)) / 1e9 for span in memory.get_finished_spans()[1:]
    }
    assert lasted == {"batch prompt": 3.0, "queue": 2.0, "prompt": 3.0, "postprocess": 0.5}

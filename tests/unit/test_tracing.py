"""Traces are exported if OpenTelemetry's variables say so, and spans last as long as what they record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.observability.tracing import (
    BatchSpan,
    Recording,
    TraceExporter,
    Tracing,
    TracingMisconfigured,
    export_traces,
    exports_traces,
    record_batch,
)
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
def test_traces_are_exported_if_an_endpoint_is_set(environment: Mapping[str, str], answer: bool) -> None:
    assert exports_traces(environment) is answer
    assert answer or export_traces(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "console"}, "must be otlp or none, got 'console'"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "4318"),
    ],
)
def test_other_exporters_and_protocols_are_refused_with_the_supported_one(
    environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(TracingMisconfigured, match=message):
        exports_traces(environment)


def test_spans_arrive_at_the_collector_when_the_exporter_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as at:
        monkeypatch.setenv(ENDPOINT, at.address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pomona-0")
        exporter = export_traces(os.environ)
        assert exporter is not None
        with exporter.tracing.request("POST /v1/segment", "frame-1", {}) as request:
            request.finish({"prompts": 2, "timing_ms": {"total": 1.0}}, {}, failed=False)
        exporter.close()
    (resource,) = at.resources()
    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (attributes["service.name"], attributes["k8s.pod.name"]) == ("pomona", "pomona-0")
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("POST /v1/segment", request.trace_id)
    assert {pair.key: pair.value.int_value for pair in span.attributes} == {"pomona.prompts": 2}


def test_a_collector_that_does_not_answer_does_not_delay_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as at:
        at.answers.clear()
        monkeypatch.setenv(ENDPOINT, at.address)
        exporter = export_traces(os.environ)
        assert exporter is not None
        with exporter.tracing.request("POST /v1/segment", "frame-1", {}):
            pass
        exporter.close(within=0.05)
        assert at.bodies == []
        at.answers.set()


def test_the_service_name_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pomona-line-7")
    memory = InMemorySpanExporter()
    with TraceExporter(SimpleSpanProcessor(memory)).tracing.request("ListModels", "1", {}):
        pass
    (span,) = memory.get_finished_spans()
    assert span.resource.attributes["service.name"] == "pomona-line-7"


@dataclass
class Item:
    """An item that waits for a device; see `Waiting`."""

    recording: Recording | None
    batch_span: BatchSpan | None = None


def record_request(tracing: Tracing) -> Recording | None:
    with tracing.request("POST /v1/embed", "1", {}) as request:
        return request.recording


@pytest.mark.parametrize(("ratio", "names"), [("1", ["POST /v1/embed"] * 2 + ["batch encode"]), ("0", [])])
def test_a_batch_is_recorded_if_a_request_of_it_is_sampled(
    ratio: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    memory = InMemorySpanExporter()
    tracing = TraceExporter(SimpleSpanProcessor(memory)).tracing
    items = [Item(record_request(tracing)) for _ in range(2)]
    record_batch(items, "encode", {"items": 3}, started=10.0, seconds=0.25, now=10.5)
    assert [span.name for span in memory.get_finished_spans()] == names
    assert [item.batch_span is not None for item in items] == [bool(names)] * 2


def test_spans_of_the_past_last_as_long_as_on_the_queues_clock() -> None:
    memory = InMemorySpanExporter()
    recording = record_request(TraceExporter(SimpleSpanProcessor(memory)).tracing)
    assert recording is not None
    item = Item(recording)
    record_batch([item, Item(None)], "mask_decode", {"items": 2}, started=12.0, seconds=3.0, now=15.5)
    recording.returned("mask_decode", item.batch_span, ready_at=10.0, now=16.0, failed=False)
    recording.took("postprocess", 0.5)
    lasted = {
        span.name: ((span.end_time or 0) - (span.start_time or 0)) / 1e9 for span in memory.get_finished_spans()[1:]
    }
    assert lasted == {"batch prompt": 3.0, "queue": 2.0, "prompt": 3.0, "postprocess": 0.5}

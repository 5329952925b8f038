"""Traces of requests at both doors: spans, links, trace context in and out, ids in the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from models.errors import BackendError
from service.observability.logs import json_handler
from service.observability.tracing import TraceExporter
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, Door, image, plain, problem, prompted, within
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused, segment_request
from tests.fakes import image_bytes

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
CALLER = {"traceparent": PARENT, "tracestate": "belt=7,shop=9"}
SEGMENT = "pomona.v1.Segmentation/Segment"
SLACK_NS = 5_000_000
"""Times of spans come from two clocks, read one after the other."""


class Recorded:
    """The spans so far."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.tracing = TraceExporter(SimpleSpanProcessor(self._memory)).tracing

    def all(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def parts(self, of: ReadableSpan) -> list[ReadableSpan]:
        """Return its children in the order in which they began."""
        children = [span for span in self.all() if span.parent is not None and span.parent.span_id == ids(of)[1]]
        return sorted(children, key=lambda span: span.start_time or 0)

    def forget(self) -> None:
        self._memory.clear()


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def caller(recorded: Recorded) -> AsyncIterator[Caller]:
    async with open_grpc(tracing=recorded.tracing) as opened:
        yield opened


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Collect the log as it is written."""
    stream, logger = io.StringIO(), logging.getLogger("pomona")
    handler, level = json_handler(stream), logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


async def together(caller: Caller, *images: bytes) -> list[Any]:
    """Send one request over HTTP and one over gRPC, whose images and prompts share batches."""
    door = caller.door
    door.sam.image_batches, door.sam.encode_s_per_batch = (1, 2), 1
    await door.learn()
    door.sam.encode_s_per_batch = 0
    busy = await door.hold()
    over_http = door.start(image(images[0]), prompted(BOX), headers=CALLER)
    over_grpc = caller.start(caller.stub.Segment(segment_request(images[1])))
    await door.runner.images.reach(3)
    door.let_go()
    await busy
    return [await over_http, await over_grpc]


async def test_requests_that_share_a_batch_are_linked_with_it(caller: Caller, recorded: Recorded) -> None:
    over_http, over_grpc = await together(caller, image_bytes(1), image_bytes(2))
    assert over_http.json()["batch"]["encode"] == over_grpc.batch.encode == 2
    first, second = recorded.only("POST /v1/segment"), recorded.only(SEGMENT)
    both = {ids(first), ids(second)}
    assert len({trace_id for trace_id, _ in both}) == 2
    batch = next(span for span in recorded.named("batch encode") if len(span.links) == 2)
    assert links(batch) == both
    assert batch.parent is None
    assert attributes(batch) == {"pomona.batch.runner": "orange-sam", "pomona.batch.items": 2}
    for request in (first, second):
        assert request.kind is SpanKind.SERVER
        parts = recorded.parts(request)
        assert [span.name for span in parts] == ["decode", "queue", "encode", "queue", "prompt", "postprocess"]
        assert links(parts[2]) == {ids(batch)}
        (of_prompts,) = [span for span in recorded.named("batch prompt") if ids(span) in links(parts[4])]
        assert ids(request) in links(of_prompts)
        for part in parts:
            assert request.start_time is not None
            assert request.end_time is not None
            assert request.start_time - SLACK_NS <= (part.start_time or 0) <= (part.end_time or 0)
            assert (part.end_time or 0) <= request.end_time + SLACK_NS
            assert part.status.status_code is StatusCode.UNSET


async def test_a_callers_trace_continues_in_the_request_and_its_answer(caller: Caller, recorded: Recorded) -> None:
    over_http = await caller.door.post(image(), prompted(BOX), headers=CALLER)
    call = caller.stub.Segment(segment_request(), metadata=tuple(CALLER.items()))
    await call
    over_grpc = dict(await call.trailing_metadata() or ())
    for name, answer in (("POST /v1/segment", over_http.headers), (SEGMENT, over_grpc)):
        span = recorded.only(name)
        assert span.parent is not None
        assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
        assert answer["traceparent"] == f"00-{TRACE_ID}-{ids(span)[1]:016x}-01"
        assert answer["tracestate"] == CALLER["tracestate"]


async def test_an_answer_names_the_trace_that_was_begun_for_it(caller: Caller, recorded: Recorded) -> None:
    answer = await caller.door.post(image(), prompted(BOX))
    trace_id, span_id = ids(recorded.only("POST /v1/segment"))
    begun, _, flags = answer.headers["traceparent"].rpartition("-")
    assert begun == f"00-{trace_id:032x}-{span_id:016x}"
    assert int(flags, 16) & 1  # sampled; another flag says that the id is random
    assert "tracestate" not in answer.headers


async def test_a_request_that_its_caller_does_not_sample_is_not_recorded(caller: Caller, recorded: Recorded) -> None:
    answer = await caller.door.post(image(), prompted(BOX), headers={"traceparent": UNSAMPLED})
    assert answer.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert answer.headers["traceparent"].endswith("-00")
    assert recorded.all() == []


async def test_without_tracing_a_callers_context_is_returned_as_it_came(door: Door) -> None:
    answer = await door.post(image(), prompted(BOX), headers=CALLER)
    assert {name: answer.headers[name] for name in CALLER} == CALLER
    for odd in ("my trace", PARENT.replace(TRACE_ID, "0" * 32), f"ff{PARENT[2:]}"):
        answer = await door.post(image(), prompted(BOX), headers={"traceparent": odd})
        assert "traceparent" not in answer.headers


async def test_a_span_has_the_attributes_of_the_log_line(caller: Caller, recorded: Recorded) -> None:
    await caller.door.post(image(), prompted(BOX), headers={"x-request-id": "frame-1"})
    found = attributes(recorded.only("POST /v1/segment"))
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/segment",
        "http.response.status_code": 200,
        "pomona.request_id": "frame-1",
        "pomona.model": "orange-sam",
        "pomona.prompts": 1,
        "pomona.degraded": False,
    }
    await caller.segment()
    found = attributes(recorded.only(SEGMENT))
    assert (found["rpc.system.name"], found["rpc.method"]) == ("grpc", SEGMENT)
    assert (found["rpc.response.status_code"], found["pomona.prompts"]) == ("OK", 1)


async def test_a_refusal_has_its_code_and_a_failure_is_an_error(caller: Caller, recorded: Recorded) -> None:
    problem(await caller.door.post(prompted(BOX)), "no_image")
    await refused(caller.segment(b"no image"), "not_an_image")
    spans = [recorded.only("POST /v1/segment"), recorded.only(SEGMENT)]
    assert [attributes(span)["pomona.code"] for span in spans] == ["no_image", "not_an_image"]
    assert [span.status.status_code for span in spans] == [StatusCode.UNSET] * 2
    recorded.forget()
    caller.door.sam.fails = BackendError("the device failed")
    problem(await caller.door.post(image(), prompted(BOX)), "internal_error")
    span = recorded.only("POST /v1/segment")
    assert span.status.status_code is StatusCode.ERROR
    assert [(part.name, part.status.status_code) for part in recorded.parts(span)] == [
        ("decode", StatusCode.UNSET),
        ("queue", StatusCode.UNSET),
        ("encode", StatusCode.ERROR),
    ]


async def test_a_request_whose_deadline_passed_in_the_queue_has_a_failed_queue_span(
    caller: Caller, recorded: Recorded
) -> None:
    busy = await caller.door.hold()
    late = await caller.door.post(image(), prompted(BOX), headers=within(400))
    problem(late, "deadline_exceeded")
    caller.door.let_go()
    await busy
    span = next(span for span in recorded.named("POST /v1/segment") if attributes(span)["pomona.code"])
    assert span.status.status_code is StatusCode.ERROR
    parts = recorded.parts(span)
    assert [part.name for part in parts] == ["decode", "queue"]
    assert parts[1].status.status_code is StatusCode.ERROR


async def test_waiting_for_another_requests_encoding_is_recorded_as_queue(caller: Caller, recorded: Recorded) -> None:
    busy = await caller.door.hold()
    calls = [caller.door.start(image(), prompted(BOX)) for _ in range(2)]
    await caller.door.cache.lookups.reach(3)
    caller.door.let_go()
    await busy
    assert [(await call).status_code for call in calls] == [200, 200]
    seen = sorted([part.name for part in recorded.parts(span)] for span in recorded.named("POST /v1/segment"))
    assert seen == [
        ["decode", "queue", "encode", "queue", "prompt", "postprocess"],
        ["queue", "queue", "prompt", "postprocess"],
    ]


async def test_every_frame_of_a_stream_has_its_own_span(caller: Caller, recorded: Recorded) -> None:
    request = segment_request()
    frames = [pb.SegmentStreamRequest(request=request, frame=pb.Frame(frame_id=name)) for name in ("f1", "f2")]
    call = caller.stub.SegmentStream(frames_of(frames), metadata=tuple(CALLER.items()))
    assert len([reply async for reply in call]) == 2
    spans = recorded.named("pomona.v1.Segmentation/SegmentStream")
    assert {attributes(span)["pomona.frame_id"] for span in spans} == {"f1", "f2"}
    assert {f"{span.parent.span_id:016x}" for span in spans if span.parent is not None} == {SPAN_ID}


async def test_lines_of_the_log_have_the_request_and_trace_ids(
    caller: Caller, recorded: Recorded, written: io.StringIO
) -> None:
    await caller.door.post(image(), prompted(BOX), headers={"x-request-id": "a", **CALLER})
    caller.door.sam.fails = BackendError("the device failed")
    problem(
        await caller.door.post(image(image_bytes(9)), prompted(BOX), headers={"x-request-id": "b"}), "internal_error"
    )
    logged = [(line["message"], line["request_id"], line["trace_id"]) for line in lines(written)]
    began = f"{ids(recorded.named('POST /v1/segment')[1])[0]:032x}"
    assert logged == [("request", "a", TRACE_ID), ("internal error", "b", began), ("request", "b", began)]


async def test_without_tracing_the_log_has_a_callers_trace_id_and_invents_none(
    door: Door, written: io.StringIO
) -> None:
    await asyncio.gather(
        door.post(plain("image_id", "?"), prompted(BOX), headers={"x-request-id": "a", **CALLER}),
        door.post(plain("image_id", "?"), prompted(BOX), headers={"x-request-id": "b"}),
    )
    assert {line["request_id"]: line.get("trace_id") for line in lines(written)} == {"a": TRACE_ID, "b": None}

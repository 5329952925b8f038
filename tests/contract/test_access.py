"""Who is let in: API keys, their scopes and limits, through every door, and what is open to everybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2

from service import keys
from service.access import Access, KeyFile, Scope, new_key
from service.http.app import PROBES_ONLY
from service.observability.observer import Observer, Outcome
from service.oip.grpc import SERVICE_NAME as OIP
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import problem, scope_of
from tests.contract.doors import Name, Request, doors, good, hold, oip_doors, refusal_by, refused_everywhere
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused
from tests.contract.test_lifecycle import health_of
from tests.contract.test_streams import ANSWERED, FAILED, peel, rest_of
from tests.fakes import FakeClock

LATER: Final = 1.0
"""Seconds after which a changed file is noticed."""


@dataclass
class Guarded:
    """A service with keys.

    Attributes:
        caller: its doors.
        file: with the keys.
        clock: of its limits and of looking at the file.
        texts: of the keys by name.
        counted: names of callers and outcomes, as metrics get them.
    """

    caller: Caller
    file: Path
    clock: FakeClock
    texts: dict[str, str]
    counted: list[tuple[str, Outcome]]

    def add(self, name: str, *scopes: Scope, **limits: Any) -> dict[str, str]:
        """Add a key, and return the header with it."""
        key, self.texts[name] = new_key(name, scopes or ("infer",), **limits)
        keys.add(self.file, key)
        self.clock.leap(LATER)
        return self.bearer(name)

    def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[name]}"}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    file, clock = tmp_path / "keys.json", FakeClock()
    file.write_text('{"keys": []}')
    counted: list[tuple[str, Outcome]] = []

    class Counting(Observer):
        def caller_answered(self, caller: str, outcome: Outcome) -> None:
            counted.append((caller, outcome))

    access = Access(KeyFile(file, clock), clock)
    async with open_grpc(observer=Counting(), access=access, api_keys_file=file) as caller:
        made = Guarded(caller, file, clock, {}, counted)
        made.add("line-3")
        yield made


def with_headers(request: Request, headers: Mapping[str, str]) -> Request:
    return replace(request, headers=headers)


@pytest.mark.parametrize("name", ["segment", "semantic", "inspect"])
async def test_without_a_key_no_door_does_anything(guarded: Guarded, name: Name) -> None:
    refusals = await refused_everywhere(guarded.caller, good(name), "unauthenticated")
    assert {refusal.detail for refusal in refusals.values()} == {
        "An API key is needed, as Authorization: Bearer KEY or X-API-Key: KEY."
    }
    assert guarded.caller.door.encodes == []
    assert guarded.counted == []


async def test_a_refusal_over_http_says_how_to_authenticate(guarded: Guarded) -> None:
    answer = await guarded.caller.door.client.get("/v1/models")
    assert problem(answer, "unauthenticated").status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="pomona"'


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),  # the right id
        lambda key: key.replace("pomona_", "pomona_0"),
        lambda key: key + "A" * 300,
        lambda key: key.partition("_")[2],
        lambda key: key[:7],
        lambda key: "\xff" * len(key),
        lambda key: key[:0],
    ],
)
async def test_what_is_not_exactly_a_key_is_none(guarded: Guarded, change: Any) -> None:
    text = change(guarded.texts["line-3"])
    for header in (b"authorization", b"x-api-key"):
        value = text.encode("latin-1")
        headers = {header: b"Bearer " + value if header == b"authorization" else value}
        problem(await guarded.caller.door.client.get("/v1/models", headers=headers), "unauthenticated")
    if text.isascii():
        metadata = (("x-api-key", text),)
        await refused(guarded.caller.stub.ListModels(pb.ListModelsRequest(), metadata=metadata), "unauthenticated")


@pytest.mark.parametrize("name", ["segment", "semantic", "inspect"])
async def test_a_key_opens_every_door_in_either_header(guarded: Guarded, name: Name) -> None:
    text = guarded.texts["line-3"]
    for headers in (
        {"authorization": f"Bearer {text}"},
        {"authorization": f"bearer  {text}"},
        {"x-api-key": text},
        {"authorization": "Basic cHJveHk6cHJveHk=", "x-api-key": text},
    ):
        request = with_headers(good(name), headers)
        for send in (doors(request) | oip_doors(request)).values():
            await send(guarded.caller, request)
    assert set(guarded.counted) == {("line-3", "ok")}


async def test_metrics_need_the_scope_admin_and_operations_the_scope_infer(guarded: Guarded) -> None:
    admin, client = guarded.add("prometheus", "admin"), guarded.caller.door.client
    shown = await client.get("/metrics", headers=admin)
    assert shown.status_code == 200
    assert "pomona_requests" in shown.text
    assert (
        "scope admin"
        in problem(await client.get("/metrics", headers=guarded.bearer("line-3")), "permission_denied").detail
    )
    problem(await client.get("/metrics"), "unauthenticated")
    request = with_headers(good("segment"), admin)
    refusals = await refused_everywhere(guarded.caller, request, "permission_denied")
    assert {refusal.detail for refusal in refusals.values()} == {
        "This needs an API key with the scope infer; prometheus has admin."
    }
    both = guarded.add("engineer", "infer", "admin")
    assert (await client.get("/metrics", headers=both)).status_code == 200
    assert (await client.get("/v1/models", headers=both)).status_code == 200


async def test_metrics_may_be_open(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    async with open_grpc(api_keys_file=file, metrics_access="open") as caller:
        assert (await caller.door.client.get("/metrics")).status_code == 200
        problem(await caller.door.client.get("/v1/models"), "unauthenticated")


@pytest.mark.parametrize(
    ("way", "path", "status"),
    [
        ("admin", "/metrics", 200),
        ("admin", "/v1/models", 404),
        ("full", "/livez", 200),
        ("full", "/metrics", 429),  # not shown, as without a key elsewhere
        ("full", "/v1/models", 429),
    ],
)
async def test_the_port_for_probes_needs_no_key(guarded: Guarded, way: str, path: str, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    scope = {**scope_of(path, []), "method": "GET", PROBES_ONLY: way}
    await guarded.caller.door.app(scope, receive, send)
    assert sent[0]["status"] == status


async def test_health_and_the_description_need_no_key(guarded: Guarded) -> None:
    client = guarded.caller.door.client
    for path in (
        "/",
        "/docs",
        "/docs.json",
        "/page/main.js",
        "/static_content/swagger-ui.css",
        "/v2/health/live",
        "/v2/health/ready",
    ):
        assert (await client.get(path)).status_code == 200, path
    assert await health_of(guarded.caller) == health_pb2.HealthCheckResponse.SERVING
    for method in ("ServerLive", "ServerReady"):
        assert await guarded.caller.channel.unary_unary(f"/{OIP}/{method}")(b"") == b"\x08\x01"
    for path in ("/v2", "/nope", "/v2/models/fake"):
        assert (await client.get(path)).status_code == 401, path
    assert (await client.post("/readyz")).status_code == 405
    for method in (f"/{OIP}/ServerMetadata", "/pomona.v1.Segmentation/Segmnet"):
        await refused(guarded.caller.channel.unary_unary(method)(b""), "unauthenticated")


async def test_a_stranger_is_refused_before_anything_is_read(guarded: Guarded) -> None:
    never = asyncio.Event()
    method = "/pomona.v1.Segmentation/Segment"
    await refused(guarded.caller.channel.stream_stream(method)(frames_of([], until=never)).read(), "unauthenticated")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    headers = [(b"content-type", b"image/jpeg"), (b"content-length", b"20000000")]
    await guarded.caller.door.app(scope_of("/v1/inspect", headers), receive, send)
    assert sent[0]["status"] == 401


async def test_the_rate_of_a_key_counts_over_all_doors(guarded: Guarded) -> None:
    slow, client = guarded.add("slow", rate=2.0), guarded.caller.door.client
    metadata = tuple(slow.items())
    assert (await client.get("/v1/models", headers=slow)).status_code == 200
    await guarded.caller.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    answer = await client.get("/v1/models", headers=slow)
    assert "slow may make 2 requests per second" in problem(answer, "rate_limited").detail
    assert answer.headers["retry-after"] == "1"
    error = await refused(guarded.caller.stub.ListModels(pb.ListModelsRequest(), metadata=metadata), "rate_limited")
    assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s == 1
    assert (await client.get("/v1/models", headers=guarded.bearer("line-3"))).status_code == 200
    guarded.clock.leap(0.5)
    assert (await client.get("/v1/models", headers=slow)).status_code == 200
    problem(await client.get("/v1/models", headers=slow), "rate_limited")
    guarded.clock.leap(60)  # no more than a second of requests is saved
    statuses = [(await client.get("/v1/models", headers=slow)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    # A caller that has to slow down says nothing about how the service does.
    assert guarded.counted.count(("slow", "refused")) == 4
    assert ("slow", "shed") not in guarded.counted


async def test_the_requests_of_a_key_at_a_time_count_over_all_doors(guarded: Guarded) -> None:
    single, caller = guarded.add("single", concurrency=1), guarded.caller
    caller.door.client.headers.update(single)
    busy = await hold(caller, "inspect")
    request = with_headers(good("inspect"), single)
    for name, send in doors(request).items():
        refusal = await refusal_by(send, caller, request)
        assert (refusal.code, refusal.retry_after_s) == ("rate_limited", 1), name
        assert "single may have 1 requests at a time" in refusal.detail
    caller.door.let_go()
    await busy
    assert (await doors(request)["HTTP"](caller, request))["fruits"]


async def test_frames_of_a_stream_count_and_the_stream_itself_does_not(guarded: Guarded) -> None:
    metadata = tuple(guarded.add("camera", concurrency=1, rate=2.0).items())
    call = guarded.caller.stub.InspectStream(frames_of([peel(0)]), metadata=metadata)
    assert [reply.outcome for reply in await rest_of(call)] == [ANSWERED]
    call = guarded.caller.stub.InspectStream(frames_of([peel(1), peel(2)]), metadata=metadata)
    replies = await rest_of(call)
    assert sorted(reply.outcome for reply in replies) == sorted([ANSWERED, FAILED])
    assert {reply.problem.code for reply in replies if reply.outcome == FAILED} == {"rate_limited"}


async def test_a_removed_key_is_refused_even_in_an_open_stream(guarded: Guarded) -> None:
    headers, client = guarded.bearer("line-3"), guarded.caller.door.client
    second = asyncio.Event()

    async def frames() -> AsyncIterator[Any]:
        yield peel(1)
        await second.wait()
        yield peel(2)

    call = guarded.caller.stub.InspectStream(frames(), metadata=tuple(headers.items()))
    assert (await call.read()).outcome == ANSWERED
    keys.remove(guarded.file, "line-3")
    assert (await client.get("/v1/models", headers=headers)).status_code == 200  # not looked at yet
    guarded.clock.leap(LATER)
    problem(await client.get("/v1/models", headers=headers), "unauthenticated")
    second.set()
    (reply,) = await rest_of(call)
    assert (reply.outcome, reply.problem.code) == (FAILED, "unauthenticated")


async def test_the_last_good_keys_remain_where_the_file_breaks(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    headers, client = guarded.bearer("line-3"), guarded.caller.door.client
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    good_text = guarded.file.read_text()
    with caplog.at_level(logging.INFO, "pomona.access"):
        guarded.file.write_text(good_text[:-20])
        guarded.clock.leap(LATER)
        for _ in range(3):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
            guarded.clock.leap(LATER)
        guarded.file.unlink()
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        guarded.file.write_text('{"keys": []}')
        guarded.clock.leap(LATER)
        problem(await client.get("/v1/models", headers=headers), "unauthenticated")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2  # one for each change, not for each request
    assert "malformed" in vars(errors[0])["detail"]
    assert "cannot be read" in vars(errors[1])["detail"]


async def test_lines_of_the_log_name_the_caller_and_never_the_key(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        request = with_headers(good("segment"), guarded.bearer("line-3"))
        for send in (doors(request) | oip_doors(request)).values():
            await send(guarded.caller, request)
        wrong = {"x-api-key": guarded.texts["line-3"] + "x"}
        await guarded.caller.door.client.get("/v1/models", headers=wrong)
    lines = [vars(record) for record in caplog.records if record.getMessage() in ("request", "stream")]
    named = [line for line in lines if line.get("caller") == "line-3"]
    assert len(named) == len(lines) - 1 == len(doors(request)) + len(oip_doors(request)) + 1
    assert lines[-1]["code"] == "unauthenticated"
    secret = guarded.texts["line-3"].rpartition("_")[2]
    assert not [line for line in map(vars, caplog.records) if secret in str(line)]


async def test_the_description_has_the_ways_to_authenticate(guarded: Guarded) -> None:
    description = (await guarded.caller.door.client.get("/docs.json")).json()
    assert set(description["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert description["security"] == [{"bearer": []}, {"apiKey": []}]
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert description["paths"][path]["get"]["security"] == [], path
    assert "security" not in description["paths"]["/v1/inspect"]["post"]

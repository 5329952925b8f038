"""Calls over gRPC to a service that is not there: what is answered, and what goes wrong."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import trustme
from click.testing import CliRunner
from grpc_stand_in import ANSWERS, INSPECTED_MESSAGE, PATIENCE_S, Got, GrpcStandIn, Told, grpc_standing_in
from stand_in import StandIn

from pomona import NO_RETRY, AsyncClient, Box, Client, Inspect, Mask, Point, Prompt, Retry, Timeout, errors
from pomona._proto import segmentation_pb2 as pb
from pomona.cli.main import pomona as command_line
from pomona.errors import BY_CODE, PomonaError
from pomona.masks import Logits

PICTURE = b"\x89PNG\r\n\x1a\n and so on"
QUICK = Retry(attempts=3, first_delay=0)
Status = grpc.StatusCode


@pytest.fixture
def other() -> Iterator[GrpcStandIn]:
    with grpc_standing_in() as stand_in:
        yield stand_in


async def test_answers_are_those_of_http_for_the_sync_and_the_async_client(
    service: StandIn, other: GrpcStandIn
) -> None:
    with Client(service.address) as over_http, Client(other.address) as pomona:
        inspected = over_http.inspect(PICTURE)
        segmented = over_http.segment(PICTURE, Point(3, 3))
        assert pomona.inspect(PICTURE, request_id="r1") == inspected
        assert pomona.segment(PICTURE, Point(3, 3)) == segmented
        assert pomona.models() == over_http.models()
        assert pomona.ready() is True
    async with AsyncClient(other.address) as waiting:
        assert await waiting.inspect(PICTURE) == inspected
        assert await waiting.segment(PICTURE, Point(3, 3)) == segmented
        assert await waiting.ready() is True
    assert inspected.fruits[0].array[1:6, 2:6].all()


def test_everything_that_is_asked_is_in_the_message(other: GrpcStandIn) -> None:
    guess = Mask((8, 16), Logits((2, 4), bytes(16), (2, 4)))
    with Client(other.address, headers={"Authorization": "Bearer x"}) as pomona:
        pomona.inspect(
            PICTURE,
            mode="accurate",
            model="u",
            sam_model="s",
            grades={"A": 0.1},
            format="png",
            overlay=True,
            frame_id="7",
            trigger_id="t",
            captured_at_ns=5,
            deadline=9,
            urgency=2,
            request_id="belt-7",
        )
        prompts = [Prompt(points=(Point(1, 2, 0),), box=Box(1, 2, 3, 4), multimask=False), Prompt(mask=guess)]
        pomona.segment(PICTURE, prompts, model="m", format="logits", input_size="auto", padding="square")
    inspected, segmented = other.got
    assert inspected.message == pb.InspectRequest(
        image=PICTURE,
        mode=pb.INSPECT_MODE_ACCURATE,
        model="u",
        sam_model="s",
        grades=[pb.Grade(grade="A", max_infected_fraction=0.1)],
        format=pb.MASK_FORMAT_PNG,
        overlay=True,
        frame=pb.Frame(frame_id="7", trigger_id="t", captured_at_ns=5),
    )
    assert segmented.message == pb.SegmentRequest(
        image=PICTURE,
        prompts=[
            pb.Prompt(points=[pb.Point(x=1, y=2, label=0)], box=pb.Box(x0=1, y0=2, x1=3, y1=4), multimask=False),
            pb.Prompt(logits=pb.LogitsMask(height=2, width=4, data=bytes(16)), multimask=True),
        ],
        model="m",
        format=pb.MASK_FORMAT_LOGITS,
        input_size=pb.INPUT_SIZE_AUTO,
        padding=pb.PADDING_SQUARE,
    )
    told = inspected.metadata
    assert (told["x-request-id"], told["priority"], told["authorization"]) == ("belt-7", "u=2", "Bearer x")
    assert 8000 < float(told["x-deadline-ms"]) <= 9000
    assert 8 < inspected.left <= 9.2  # gRPC rounds it up on the way
    assert "x-deadline-ms" not in segmented.metadata
    assert 60 < segmented.left <= 65.2  # of Timeout: nobody waits longer


@pytest.mark.parametrize("code", sorted(BY_CODE))
async def test_every_code_is_raised_as_its_class_whatever_the_status(other: GrpcStandIn, code: str) -> None:
    other.always(Told(Status.DEADLINE_EXCEEDED, f"It is {code}.", code, retry_after=1.5))
    with Client(other.address, retry=NO_RETRY) as pomona, pytest.raises(PomonaError) as raised:
        pomona.inspect(PICTURE)
    async with AsyncClient(other.address, retry=NO_RETRY) as waiting:
        with pytest.raises(PomonaError) as later:
            await waiting.inspect(PICTURE)
    for error in (raised.value, later.value):
        assert type(error) is BY_CODE[code]
        assert (error.code, error.detail, error.request_id) == (code, f"It is {code}.", "r1")
        assert error.retry_after == 1.5


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (Told(Status.INVALID_ARGUMENT, code="too_sour"), errors.RequestRefused),
        (Told(Status.INTERNAL, code="too_sour"), errors.InternalError),
        (Told(Status.UNAVAILABLE), errors.ConnectionFailed),
        (Told(Status.CANCELLED), errors.ConnectionFailed),
        (Told(Status.RESOURCE_EXHAUSTED), errors.Overloaded),
        (Told(Status.UNIMPLEMENTED), errors.NotFound),
        (Told(Status.UNAUTHENTICATED), errors.RequestRefused),
        (Told(Status.UNKNOWN), errors.InternalError),
        (Told(Status.DEADLINE_EXCEEDED), errors.NoAnswer),
        (Told(Status.INTERNAL, raw=b"\xff\xff"), errors.InternalError),
    ],
)
def test_a_status_without_a_code_that_is_known_is_an_error_of_ours(
    other: GrpcStandIn, told: Told, error: type[PomonaError]
) -> None:
    other.always(told)
    with Client(other.address, retry=NO_RETRY) as pomona, pytest.raises(PomonaError) as raised:
        pomona.inspect(PICTURE)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff",
        b"",
        pb.InspectResponse(image=INSPECTED_MESSAGE.image, fruits=[pb.Fruit(id=1)], mode=pb.INSPECT_MODE_FAST),
        pb.InspectResponse(image=INSPECTED_MESSAGE.image),
    ],
)
def test_answers_that_are_not_pomona_s_are_errors_of_ours(other: GrpcStandIn, answer: Any) -> None:
    other.answer = lambda got: answer
    with Client(other.address, retry=NO_RETRY) as pomona, pytest.raises(errors.BadAnswer):
        pomona.inspect(PICTURE)


def test_what_is_too_large_for_the_service_is_told_as_such(other: GrpcStandIn) -> None:
    with Client(other.address) as pomona, pytest.raises(errors.UploadTooLarge, match="1048576"):
        pomona.inspect(PICTURE + bytes(2 << 20))
    assert other.got == []


def test_a_service_that_is_not_ready_is_no_error_when_asked_whether_it_is(other: GrpcStandIn) -> None:
    other.always(Told(Status.UNAVAILABLE, code="not_ready"))
    with Client(other.address) as pomona:
        assert pomona.ready() is False
    assert len(other.got) == 1


def test_overload_and_broken_connections_are_tried_again_by_the_client_alone(other: GrpcStandIn) -> None:
    replies: list[Any] = [
        Told(Status.RESOURCE_EXHAUSTED, code="overloaded", retry_after=2.5),
        Told(Status.UNAVAILABLE),
        ANSWERS["Segment"],
    ]

    def answer(got: Got) -> Any:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    other.answer = answer
    waits: list[float] = []
    with Client(other.address, retry=QUICK, sleep=waits.append) as pomona:
        assert len(pomona.segment(PICTURE, Point(1, 1)).masks) == 1
        assert waits == [2.5, 0]
        assert len({got.metadata["x-request-id"] for got in other.got}) == 1
        other.always(Told(Status.UNAVAILABLE))
        with pytest.raises(errors.ConnectionFailed):
            pomona.models()
    assert len(other.got) == 3 + QUICK.attempts


def test_nothing_is_tried_again_past_the_deadline(other: GrpcStandIn) -> None:
    other.always(Told(Status.RESOURCE_EXHAUSTED, code="overloaded", retry_after=5))
    with Client(other.address) as pomona, pytest.raises(errors.Overloaded):
        pomona.inspect(PICTURE, deadline=2)
    assert len(other.got) == 1


def test_a_forgotten_picture_is_sent_again(other: GrpcStandIn) -> None:
    def answer(got: Got) -> Any:
        if got.message.WhichOneof("picture") == "image_id":
            raise Told(Status.NOT_FOUND, code="unknown_image_id")
        return ANSWERS[got.method]

    with Client(other.address, retry=NO_RETRY) as pomona:
        embedding = pomona.embed(PICTURE)
        other.answer = answer
        assert len(pomona.segment(embedding, Point(1, 1)).masks) == 1
        with pytest.raises(errors.UnknownImageId):
            pomona.segment(embedding.forgetful(), Point(1, 1))
    assert [got.message.image_id or got.message.image for got in other.got[1:]] == ["6ae3", PICTURE, "6ae3"]


def test_nobody_there_is_told_after_the_attempts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    waits: list[float] = []
    with Client(f"grpc://127.0.0.1:{port}", retry=QUICK, sleep=waits.append) as pomona:
        with pytest.raises(errors.ConnectionFailed, match="cannot be reached"):
            pomona.models()
        with pytest.raises(errors.ConnectionFailed):
            pomona.ready()
    assert len(waits) == 4


def test_a_service_that_comes_back_is_found_again() -> None:
    with grpc_standing_in() as first:
        port = int(first.address.rpartition(":")[2])
        pomona = Client(first.address, retry=Retry(attempts=20, first_delay=0.1, longest_delay=0.2))
        assert pomona.ready()
    with pytest.raises(errors.ConnectionFailed):
        Client(first.address, retry=NO_RETRY).models()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 1)])
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    with pomona, pytest.raises(errors.NotFound):  # it has no services, but it is there
        pomona.models()
    server.stop(None).wait()


def test_a_connection_that_is_not_made_in_time_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        address = f"grpc://127.0.0.1:{mute.getsockname()[1]}"
        with Client(address, timeout=Timeout(connect=0.2), retry=NO_RETRY) as pomona:
            with pytest.raises(errors.ConnectionFailed):
                pomona.models()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("told", ["deadline", "timeout"])
async def test_silence_ends_in_time(other: GrpcStandIn, told: str) -> None:
    done = threading.Event()
    other.answer = lambda got: done.wait(PATIENCE_S) and b""
    expected = errors.DeadlineExceeded if told == "deadline" else errors.NoAnswer
    deadline, timeout = (0.2, None) if told == "deadline" else (None, 0.2)
    try:
        with Client(other.address, timeout=timeout) as pomona:
            began = time.monotonic()
            with pytest.raises(expected):
                pomona.ask(Inspect(), PICTURE, deadline=deadline)
            assert 0.19 <= time.monotonic() - began < 2
        async with AsyncClient(other.address, timeout=timeout) as waiting:
            began = time.monotonic()
            with pytest.raises(expected):
                await waiting.ask(Inspect(), PICTURE, deadline=deadline)
            assert 0.19 <= time.monotonic() - began < 2
    finally:
        done.set()


async def test_a_cancelled_call_is_cancelled_in_the_service(other: GrpcStandIn) -> None:
    done = threading.Event()
    other.answer = lambda got: done.wait(PATIENCE_S) and b""
    async with AsyncClient(other.address) as pomona:
        call = asyncio.create_task(pomona.inspect(PICTURE))
        await asyncio.to_thread(other.wait_for, lambda: bool(other.got))
        assert not other.cancelled.is_set()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(other.cancelled.wait, PATIENCE_S)
    done.set()


async def test_closing_ends_calls_on_their_way_and_refuses_new_ones(other: GrpcStandIn) -> None:
    done = threading.Event()
    other.answer = lambda got: done.wait(PATIENCE_S) and b""
    pomona, waiting = Client(other.address), AsyncClient(other.address)
    calls = [asyncio.create_task(asyncio.to_thread(pomona.models)), asyncio.create_task(waiting.models())]
    await asyncio.to_thread(other.wait_for, lambda: len(other.got) == 2)
    pomona.close()
    await waiting.close()
    for call in calls:
        with pytest.raises(errors.ClientClosed):
            await call
    pomona.close()
    await waiting.close()
    blocking: list[Any] = [pomona.models, pomona.ready, lambda: pomona.inspect(PICTURE)]
    for refused in blocking:
        with pytest.raises(errors.ClientClosed):
            refused()
    with pytest.raises(errors.ClientClosed):
        await waiting.models()
    with pytest.raises(errors.ClientClosed):
        await waiting.inspect(PICTURE)
    done.set()


@pytest.mark.parametrize(
    "url", ["grpc://", "grpc://[::1", "grpc://localhost:99999", "grpc://localhost/path", "grpc://me@localhost"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="localhost:3001 would be right"):
        Client(url)


def test_addresses_may_leave_the_port_out_and_be_of_ip_6() -> None:
    from pomona.grpc_channel import address_of

    assert address_of("grpc://oranges", None).target == "oranges:3001"
    assert address_of("grpc://[::1]:7", None).target == "[::1]:7"


@pytest.mark.parametrize("odd", ["belt 7\n", "b\u00e4lt"])
async def test_what_cannot_be_sent_is_refused(other: GrpcStandIn, odd: str) -> None:
    with Client(other.address) as pomona:
        with pytest.raises(errors.InvalidArgument):
            pomona.inspect(PICTURE, request_id=odd)
        with pytest.raises(errors.InvalidArgument):
            pomona.inspect(PICTURE, captured_at_ns=1 << 80)
        with pytest.raises(errors.InvalidArgument, match="'rle'"):
            pomona.inspect(PICTURE, format="jpeg")  # type: ignore[arg-type]
    async with AsyncClient(other.address) as waiting:
        with pytest.raises(errors.InvalidArgument):
            await waiting.inspect(PICTURE, request_id=odd)
    with pytest.raises(errors.InvalidArgument):
        Client(other.address, headers={"x-what": odd})
    assert other.got == []


def test_certificate_authorities_of_your_own_are_used() -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    chain = b"".join(part.bytes() for part in identity.cert_chain_pems)
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with grpc_standing_in(grpc.ssl_server_credentials([(identity.private_key_pem.bytes(), chain)])) as safe:
        with Client(safe.address, tls=trusting) as pomona:
            assert pomona.ready()
        with Client(safe.address, retry=NO_RETRY) as distrustful, pytest.raises(errors.ConnectionFailed):
            distrustful.models()


def test_what_grpc_cannot_take_of_tls_is_refused() -> None:
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for url, tls in (("grpcs://localhost", lax), ("grpc://localhost", ssl.create_default_context())):
        with pytest.raises(errors.InvalidArgument):
            Client(url, tls=tls)


def test_the_command_line_asks_over_grpc(other: GrpcStandIn, tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    for arguments in (["ping"], ["models"], ["inspect", str(tmp_path / "a.png")]):
        done = CliRunner().invoke(command_line, [*arguments, "--url", other.address])
        assert done.exit_code == 0, done.output
    assert {got.method for got in other.got} == {"ListModels", "Inspect"}


@pytest.mark.parametrize("lacking", ["grpc", "google.protobuf"])
def test_without_the_extra_the_package_works_and_says_what_it_lacks(lacking: str) -> None:
    code = f"""
import sys
sys.modules[{lacking!r}] = None
import pomona, pomona.cli.main
pomona.Client("http://localhost:3000").close()
for make in (pomona.Client, pomona.AsyncClient):
    try:
        make("grpc://localhost:3001")
    except pomona.errors.MissingPackage as error:
        assert "pip install 'pomona-client[grpc]'" in str(error), error
    else:
        raise SystemExit("no error")
sys.argv = ["pomona", "ping", "--url", "grpc://localhost:3001"]
pomona.cli.main.pomona()
"""
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pomona-client[grpc]" in done.stderr
    assert "Traceback" not in done.stderr

"""What is particular to gRPC: messages, statuses, addresses, TLS and the channel."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest
import trustme
from click.testing import CliRunner
from grpc_stand_in import GrpcStandIn, Status, serve_grpc
from stand_in import EMBEDDED, IMAGE, INSPECTED, MODELS, PATIENCE_S, SEGMENTED, SEMANTIC, use

from pomona import (
    NO_RETRY,
    AsyncClient,
    Box,
    Client,
    FrameInfo,
    Inspect,
    Point,
    Prompt,
    Retry,
    Segment,
    Timeout,
    errors,
)
from pomona._proto import segmentation_pb2 as pb
from pomona._requests import Attempt, Call
from pomona.cli.main import pomona as command_line
from pomona.errors import PomonaError
from pomona.grpc import parse_target
from pomona.grpc_codec import decode, encode, encode_call, encode_frame
from pomona.images import EncodedImage

Code = grpc.StatusCode
FILE = EncodedImage(IMAGE, "image/png")


def test_a_call_becomes_the_message_of_the_proto() -> None:
    prompts = [Prompt(points=(Point(1, 2, 0),), box=Box(1, 2, 3, 4)), Prompt(points=(Point(5, 6),), multimask=False)]
    request = Segment(prompts, logits=True, input_size="auto", padding="square")
    assert pb.SegmentRequest.FromString(encode_call(Call(request=request, image_id="6ae3"))) == pb.SegmentRequest(
        image_id="6ae3",
        prompts=[
            pb.Prompt(points=[pb.Point(x=1, y=2)], labels=[0], box=pb.Box(x0=1, y0=2, x1=3, y1=4), multimask=True),
            pb.Prompt(points=[pb.Point(x=5, y=6)], labels=[1], multimask=False),
        ],
        format=pb.MASK_FORMAT_LOGITS,
        input_size=pb.INPUT_SIZE_AUTO,
        padding=pb.PADDING_SQUARE,
    )


def test_a_frame_becomes_the_message_of_its_stream() -> None:
    attempt = Attempt(timeout=1, connect=1, deadline=0.25, urgency=1)
    info = FrameInfo("7", None, 0)
    inspected = encode_frame(Call(request=Inspect(grades={"A": 0.1}), image=FILE, frame=info), attempt)
    assert pb.InspectStreamRequest.FromString(inspected) == pb.InspectStreamRequest(
        request=pb.InspectRequest(
            image=IMAGE,
            mode=pb.INSPECT_MODE_AUTO,
            grades=[pb.Grade(grade="A", max_infected_fraction=0.1)],
            frame_id="7",
            captured_at_ns=0,
        ),
        deadline_ms=250,
        urgency=1,
    )
    segmented = encode_frame(Call(request=Segment(Point(1, 2)), image=FILE, frame=info), Attempt(timeout=1, connect=1))
    message = pb.SegmentStreamRequest.FromString(segmented)
    assert message.frame == pb.Frame(frame_id="7", captured_at_ns=0)
    assert not message.HasField("deadline_ms")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (pb.InspectResponse, INSPECTED),
        (pb.SegmentResponse, SEGMENTED),
        (pb.SemanticResponse, SEMANTIC),
        (pb.EmbedResponse, EMBEDDED),
        (pb.ListModelsResponse, MODELS),
    ],
)
def test_messages_and_objects_of_the_api_turn_into_each_other(kind: Any, body: dict[str, Any]) -> None:
    assert decode(encode(body, kind.DESCRIPTOR)) == body


def test_a_response_is_read_by_its_descriptor() -> None:
    message = pb.Fruit(
        id=1,
        box=pb.PixelBox(x0=2, y0=1, x1=6, y1=6),
        mask=pb.EncodedMask(rle=pb.RleMask(size=[8, 16], counts="a05300000_2")),
        infected_mask=pb.EncodedMask(logits=pb.LogitsMask(shape=[2, 4], dtype="float16", data=bytes(16))),
    )
    setattr(message, "class", pb.PIXEL_CLASS_INFECTED)
    fields = decode(message)
    assert (fields["box"], fields["class"], fields["mask"]["size"]) == ([2, 1, 6, 6], "infected", [8, 16])
    assert fields["infected_mask"] == {"shape": [2, 4], "dtype": "float16", "data": bytes(16)}


NOT_POMONA: list[tuple[Any, type[PomonaError]]] = [
    (Status(Code.INVALID_ARGUMENT, code="too_sour"), errors.RequestRefused),
    (Status(Code.INTERNAL, code="too_sour"), errors.InternalError),
    (Status(Code.DEADLINE_EXCEEDED, code="deadline_unreachable"), errors.DeadlineUnreachable),
    (Status(Code.UNAVAILABLE), errors.ConnectionFailed),
    (Status(Code.CANCELLED), errors.ConnectionFailed),
    (Status(Code.RESOURCE_EXHAUSTED), errors.Overloaded),
    (Status(Code.UNIMPLEMENTED), errors.NotFound),
    (Status(Code.UNAUTHENTICATED), errors.Unauthenticated),
    (Status(Code.PERMISSION_DENIED), errors.PermissionDenied),
    (Status(Code.UNKNOWN, ""), errors.InternalError),
    (Status(Code.DEADLINE_EXCEEDED), errors.NoAnswer),
    (Status(Code.INTERNAL, raw=b"\xff\xff"), errors.InternalError),
    (b"\xff\xff", errors.BadAnswer),
    (b"", errors.BadAnswer),
]


def test_statuses_and_messages_that_are_not_pomona_s_are_errors_of_ours(grpc_service: GrpcStandIn) -> None:
    with Client(grpc_service.address, retry=NO_RETRY) as pomona:
        for status, error in NOT_POMONA:
            grpc_service.always(status)
            with pytest.raises(PomonaError) as raised:
                pomona.inspect(IMAGE)
            assert type(raised.value) is error, status
            assert raised.value.detail
        grpc_service.always(Status(Code.RESOURCE_EXHAUSTED, code="overloaded", retry_after=1.5))
        with pytest.raises(errors.Overloaded) as overloaded:
            pomona.models()
        assert overloaded.value.retry_after == 1.5


def test_a_message_that_is_too_large_is_reported_with_the_limit(grpc_service: GrpcStandIn) -> None:
    with Client(grpc_service.address) as pomona, pytest.raises(errors.UploadTooLarge, match="1048576"):
        pomona.inspect(IMAGE + bytes(2 << 20))
    assert grpc_service.received == []


def test_deadlines_and_timeouts_become_those_of_grpc(grpc_service: GrpcStandIn) -> None:
    with Client(grpc_service.address) as pomona:
        pomona.inspect(IMAGE, deadline=9)
        pomona.inspect(IMAGE)
    first, second = grpc_service.received
    assert 8 < first.time_left <= 9.2  # gRPC rounds it up on the way
    assert 60 < second.time_left <= 65.2  # of Timeout


def test_broken_connections_are_tried_again_by_the_client_alone(grpc_service: GrpcStandIn) -> None:
    grpc_service.always(Status(Code.UNAVAILABLE))
    with Client(grpc_service.address, retry=Retry(attempts=3, first_delay=0)) as pomona:
        with pytest.raises(errors.ConnectionFailed):
            pomona.models()
    assert len(grpc_service.received) == 3


def test_a_service_that_comes_back_is_found_again() -> None:
    with serve_grpc() as first:
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


async def test_closing_ends_calls_in_flight(grpc_service: GrpcStandIn) -> None:
    done = threading.Event()
    grpc_service.answer = lambda received: done.wait(PATIENCE_S) and MODELS
    pomona, waiting = Client(grpc_service.address), AsyncClient(grpc_service.address)
    calls = [asyncio.create_task(asyncio.to_thread(pomona.models)), asyncio.create_task(waiting.models())]
    await asyncio.to_thread(grpc_service.wait_for, lambda: len(grpc_service.received) == 2)
    pomona.close()
    await waiting.close()
    for call in calls:
        with pytest.raises(errors.ClientClosed):
            await call
    done.set()


def test_urls_may_omit_the_port_and_have_an_ipv6_address() -> None:
    assert parse_target("grpc://oranges") == ("oranges:3001", False)
    assert parse_target("grpcs://[::1]:7") == ("[::1]:7", True)


@pytest.mark.parametrize("odd", ["belt 7\n", "b\u00e4lt"])
def test_values_that_cannot_be_sent_are_refused(grpc_service: GrpcStandIn, odd: str, kind: str) -> None:
    def inspect(client: Any, **options: Any) -> Any:
        return client.inspect(IMAGE, **options)

    cases: list[tuple[dict[str, Any], str]] = [
        ({"request_id": odd}, "printable ASCII"),
        ({"captured_at_ns": 1 << 80}, "whole number from 0 to"),
        ({"mode": "quick"}, "mode must be one of fast, accurate, auto, got 'quick'"),
    ]
    for options, match in cases:
        with pytest.raises(errors.InvalidArgument, match=match):
            use(kind, grpc_service.address, partial(inspect, **options))
    with pytest.raises(errors.InvalidArgument):
        Client(grpc_service.address, headers={"x-what": odd})
    assert grpc_service.received == []


def test_certificate_authorities_of_your_own_are_used() -> None:
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    chain = b"".join(part.bytes() for part in identity.cert_chain_pems)
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with serve_grpc(grpc.ssl_server_credentials([(identity.private_key_pem.bytes(), chain)])) as safe:
        with Client(safe.address, tls=trusting) as pomona:
            assert pomona.ready()
        with Client(safe.address, retry=NO_RETRY) as distrustful, pytest.raises(errors.ConnectionFailed):
            distrustful.models()


def test_contexts_that_grpc_cannot_use_are_refused() -> None:
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for url, tls in (("grpcs://localhost", lax), ("grpc://localhost", ssl.create_default_context())):
        with pytest.raises(errors.InvalidArgument):
            Client(url, tls=tls)


def test_the_command_line_works_over_grpc(grpc_service: GrpcStandIn, tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    for arguments in (["ping"], ["models"], ["inspect", str(tmp_path / "a.png")]):
        done = CliRunner().invoke(command_line, [*arguments, "--url", grpc_service.address])
        assert done.exit_code == 0, done.output
    assert {received.operation for received in grpc_service.received} == {"models", "inspect"}


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf"])
def test_without_the_extra_the_package_works_and_says_how_to_install_it(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
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

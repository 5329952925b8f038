"""Callers who leave while they send, wait, are computed for, or are answered: nothing of theirs stays behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.contract.door import BOX, Door
from tests.contract.grpc_door import segment_request
from tests.contract.live import LiveDoor, live_door
from tests.fakes import PATIENCE_S, image_bytes
from tests.system.faults.servers import seconds_until
from tests.system.faults.sockets import answer, get, opened, upload

SOON_S = 2.0
MINE, WAITING, OTHER = 11, 12, 13
"""Marks of images, by which the device tells what it was given."""


@pytest.fixture
def live() -> Iterator[LiveDoor]:
    with live_door(grpc=True, write_timeout_s=60.0) as started:
        yield started


@pytest.fixture
def port(live: LiveDoor) -> int:
    return httpx.URL(live.address).port or 0


def segmenting(mark: int) -> bytes:
    data = image_bytes(mark)
    query = httpx.QueryParams({"request": json.dumps({"prompts": [BOX]})})
    head = f"POST /v1/segment?{query} HTTP/1.1\r\nhost: pomona\r\ncontent-type: image/png\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def in_progress(live: LiveDoor) -> int:
    return live.door.app.drain.in_progress


def seconds_until_in_progress(live: LiveDoor, count: int) -> float:
    return seconds_until(lambda: in_progress(live) == count, PATIENCE_S)


def test_a_caller_who_leaves_while_it_sends_is_forgotten(live: LiveDoor, port: int) -> None:
    with opened(port, upload(1000, 500)):
        seconds_until_in_progress(live, 1)
    assert seconds_until_in_progress(live, 0) < SOON_S


def test_of_callers_who_leave_in_the_queue_and_on_the_device_only_the_batch_that_runs_is_finished(
    live: LiveDoor, port: int
) -> None:
    live.do(hold)
    with opened(port, segmenting(WAITING)):
        seconds_until_in_progress(live, 2)
        with grpc.insecure_channel(live.grpc_address.removeprefix("grpc://")) as channel:
            stub: Any = SegmentationStub(channel)  # type: ignore[arg-type]  # its types know asynchronous channels only
            call = stub.Segment.future(segment_request(image_bytes(MINE), BOX))
            seconds_until_in_progress(live, 3)
            call.cancel()
            assert seconds_until_in_progress(live, 2) < SOON_S
    assert seconds_until_in_progress(live, 1) < SOON_S
    live.door.let_go()
    with opened(port, segmenting(OTHER)) as other:
        assert answer(other)[0] == 200
    assert seconds_until_in_progress(live, 0) < SOON_S
    assert MINE not in live.door.sam.encoded
    assert WAITING not in live.door.sam.encoded
    assert OTHER in live.door.sam.encoded


async def hold(door: Door) -> None:
    await door.hold()


def test_a_caller_who_leaves_while_it_is_answered_is_forgotten(live: LiveDoor, port: int) -> None:
    asset = "/static_content/swagger-ui-bundle.js"
    with opened(port, get(asset) * 20) as leaving:
        leaving.recv(65536)
    began = time.monotonic()
    with opened(port, get("/livez")) as other:
        assert answer(other)[0] == 200
    assert time.monotonic() - began < SOON_S
    live.stop()  # waits for all connections
    assert time.monotonic() - began < 2 * SOON_S

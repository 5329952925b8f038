"""The memory budget at the doors: what is refused, what waits, and that everything is given back."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import grpc
import pytest

from service.memory import Kind, Ledger, MemoryBudget
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, Door, problem, scope_of
from tests.contract.grpc_door import Caller, open_grpc, segment_request
from tests.contract.scenes import IMAGE
from tests.fakes import Tally

MIB: Final = 1 << 20
AMPLE: Final = {Kind.INPUT: 8 * MIB, Kind.QUEUED: 64 * MIB, Kind.WORK: 64 * MIB}
UPLOAD_MIB: Final = 1


def budget(reading: int = 4 * MIB, **largest: int) -> MemoryBudget:
    """A budget with little of some kind; its callers do not wait long."""
    most = AMPLE | {Kind[kind.upper()]: nbytes for kind, nbytes in largest.items()}
    return MemoryBudget(Ledger(reading + sum(most.values()), most), patience_s=0.05)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 (the budget tells nobody)
            await asyncio.sleep(0.01)


async def at_rest(memory: MemoryBudget) -> None:
    """Wait until nothing is held; fails where something never is given back."""
    await until(lambda: not any(memory.ledger.used.values()))


@pytest.fixture
async def little_work() -> AsyncIterator[Caller]:
    async with open_grpc(memory=budget(work=MIB), max_upload_mib=UPLOAD_MIB) as caller:
        yield caller


@pytest.fixture
def memory() -> MemoryBudget:
    return budget()


@pytest.fixture
async def caller(memory: MemoryBudget) -> AsyncIterator[Caller]:
    async with open_grpc(memory=memory, max_upload_mib=UPLOAD_MIB) as opened:
        yield opened


async def post(caller: Caller, data: bytes = IMAGE, headers: Mapping[str, str] | None = None, **fields: Any) -> Any:
    """Send an image over HTTP, by default with a box."""
    text = json.dumps({"prompts": [BOX], **fields})
    files: dict[str, Any] = {"image": ("i", data), "request": (None, text)}
    return await caller.door.client.post("/v1/segment", files=files, headers=headers)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_request_that_never_fits_is_refused_with_what_to_change(little_work: Caller) -> None:
    answer = await post(little_work)
    assert "POMONA_MEMORY_MIB" in problem(answer, "too_much_memory").detail
    error = await refusal(little_work.segment())
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "POMONA_MEMORY_MIB" in (error.details() or "")


async def test_an_upload_for_which_there_is_no_memory_is_overloaded_before_it_is_read(
    caller: Caller, memory: MemoryBudget
) -> None:
    with await memory.take(Kind.INPUT, 8 * MIB), await memory.take(Kind.INPUT, 4 * MIB):
        answer = await post(caller)
        problem(answer, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await post(caller)).status_code == 200


async def test_a_message_for_which_there_is_no_memory_is_overloaded_before_it_is_read(
    caller: Caller, memory: MemoryBudget
) -> None:
    with await memory.take(Kind.READING, 4 * MIB):
        assert (await refusal(caller.segment())).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await caller.segment()


async def test_work_for_which_there_is_no_memory_ends_with_its_deadline(caller: Caller, memory: MemoryBudget) -> None:
    with await memory.take(Kind.WORK, 64 * MIB), await memory.take(Kind.WORK, 64 * MIB):
        answer = await post(caller, headers={"X-Deadline-Ms": "200"})
        problem(answer, "deadline_exceeded")
    await at_rest(memory)


async def test_everything_is_given_back_however_a_request_ends(caller: Caller, memory: MemoryBudget) -> None:
    door = caller.door
    for answer in (
        await post(caller, overlay=True),
        await post(caller, format="polygons"),
        await post(caller, prompts=[{"points": [[9999, 9999]]}]),
        await post(caller, IMAGE[:60]),
        await door.client.post("/v1/semantic", files={"image": ("i", IMAGE)}),
        await door.client.post("/v1/inspect", files={"image": ("i", IMAGE)}),
        await door.client.post("/v1/segment", content=b"x" * (2 * MIB), headers={"content-type": "image/jpeg"}),
    ):
        assert answer.status_code != 500, answer.text
    await caller.segment()
    await refusal(caller.segment(IMAGE[:60]))
    await at_rest(memory)
    busy = await door.hold()
    before = memory.ledger.used[Kind.QUEUED]
    leaving = [asyncio.create_task(caller.segment()), asyncio.create_task(post(caller))]
    await until(lambda: memory.ledger.used[Kind.QUEUED] > before)
    for task in leaving:
        task.cancel()
    door.let_go()
    await asyncio.gather(busy, *leaving, return_exceptions=True)
    await at_rest(memory)


async def test_frames_that_do_not_fit_together_are_answered_one_after_another() -> None:
    frame = IMAGE.ljust(300_000, b"\0")
    memory = budget(input=1_000_000, reading=2 * MIB)  # a frame takes three times its bytes

    def messages() -> list[pb.SegmentStreamRequest]:
        settings = pb.StreamSettings(max_in_flight=64)
        frames = [pb.SegmentStreamRequest(request=segment_request(frame)) for _ in range(8)]
        return [pb.SegmentStreamRequest(settings=settings), *frames]

    async with open_grpc(memory=memory, max_upload_mib=0.5) as caller:
        most = 0
        outcomes = []
        async for reply in caller.stub.SegmentStream(iter(messages())):
            most = max(most, memory.ledger.used[Kind.INPUT])
            outcomes.append(reply.outcome)
        assert outcomes == [pb.FRAME_OUTCOME_ANSWERED] * 8
        assert most <= memory.ledger.limits[Kind.INPUT]
        await at_rest(memory)


async def test_a_stream_that_its_caller_leaves_gives_everything_back(caller: Caller, memory: MemoryBudget) -> None:
    busy = await caller.door.hold()
    before = memory.ledger.used[Kind.QUEUED]
    stream = caller.stub.SegmentStream(iter([pb.SegmentStreamRequest(request=segment_request()) for _ in range(4)]))
    await until(lambda: memory.ledger.used[Kind.QUEUED] > before)
    stream.cancel()
    caller.door.let_go()
    await asyncio.gather(busy, return_exceptions=True)
    await at_rest(memory)


async def test_streams_beyond_the_places_there_are_are_refused(caller: Caller) -> None:
    settings = pb.SegmentStreamRequest(settings=pb.StreamSettings())
    streams = [caller.stub.SegmentStream() for _ in range(3)]  # 4 MiB, of which two are for calls
    for stream in streams:
        await stream.write(settings)
    reads = [asyncio.ensure_future(stream.read()) for stream in streams]
    done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    (error,) = [read.exception() for read in done]
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 streams are open" in (error.details() or "")
    await caller.segment()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*reads, return_exceptions=True)


async def test_json_of_many_values_is_refused_before_it_is_parsed(caller: Caller) -> None:
    text = json.dumps({"prompts": [{}] * 60_000})
    answer = await caller.door.client.post("/v1/segment", files={"image": ("i", IMAGE), "request": (None, text)})
    assert "values" in problem(answer, "too_many_prompts").detail


async def test_a_message_of_many_fields_is_refused_before_it_is_parsed(caller: Caller) -> None:
    call = caller.channel.unary_unary("/pomona.v1.Segmentation/Segment")
    error = await refusal(call(b"\x32\x00" * 60_000))
    assert "fields" in (error.details() or "")


@pytest.mark.parametrize("message", [b"\x32\x05\x0a", b"\x0a\xff", b"\x0b\x0c", b"\xff" * 12, b"\x32\x81\x80"])
async def test_a_damaged_message_is_malformed(caller: Caller, message: bytes) -> None:
    error = await refusal(caller.channel.unary_unary("/pomona.v1.Segmentation/Segment")(message))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "The message must be of the method's type."


async def test_compressed_messages_are_refused_without_being_unpacked(caller: Caller) -> None:
    image = bytes(64 * MIB)  # 64 KB of gzip
    assert len(gzip.compress(image)) < MIB
    error = await refusal(
        caller.stub.Segment(pb.SegmentRequest(image=image), compression=grpc.Compression.Gzip, timeout=30)
    )
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_large_metadata_are_refused(caller: Caller) -> None:
    error = await refusal(caller.stub.Segment(segment_request(), metadata=(("x-large", "m" * 100_000),)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await caller.segment()


async def test_a_large_file_of_the_page_is_held_once_and_sent_as_its_callers_take_it(door: Door) -> None:
    """Hundreds of callers who asked for it and read nothing held a copy of a megabyte each."""
    path = "/static_content/swagger-ui-bundle.js"
    whole = (await door.client.get(path)).content
    taking, asked = asyncio.Event(), Tally()
    sent: list[list[bytes]] = [[], []]

    async def visit(pieces: list[bytes]) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                pieces.append(message["body"])
                asked.add()
                await taking.wait()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await door.app(scope_of(path, []) | {"method": "GET"}, receive, send)

    callers = [asyncio.create_task(visit(pieces)) for pieces in sent]
    await asked.reach(2)
    assert [len(pieces) for pieces in sent] == [1, 1]
    assert len(sent[0][0]) <= MIB / 4
    taking.set()
    await asyncio.gather(*callers)
    assert [b"".join(pieces) for pieces in sent] == [whole, whole]

"""What every door says when the server cannot do what it is asked: the same, and at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, Final

import pytest

from models.errors import BackendError, DeviceBroken
from tests.contract.door import HELD, MIB
from tests.contract.doors import INSPECT, SEGMENT, SEMANTIC, Ask, Send, refused_by, same
from tests.contract.grpc_door import Caller, open_grpc
from tests.contract.oip_door import Refused
from tests.fakes import PATIENCE_S, FakeDevice, WatchedRunner, WatchedUNetRunner, image_bytes, peel_image

TASKS: Final[Mapping[str, Mapping[str, Send]]] = {"segment": SEGMENT, "semantic": SEMANTIC, "inspect": INSPECT}
every_task = pytest.mark.parametrize("task", TASKS)


def ask(task: str, mark: int = 1, **fields: Any) -> Ask:
    """A good question; another mark is another image_bytes."""
    if task == "segment":
        return Ask([{"points": [[64, 48]]}], image_bytes(mark), **fields)
    return Ask(data=peel_image(mark), fields={"mode": "fast"} if task == "inspect" else {}, **fields)


def device(caller: Caller, task: str) -> FakeDevice:
    return caller.door.sam if task == "segment" else caller.door.unet


def runner(caller: Caller, task: str) -> WatchedRunner | WatchedUNetRunner:
    return caller.door.runner if task == "segment" else caller.door.unet_runner


async def hold(caller: Caller, task: str) -> asyncio.Task[Any]:
    return await (caller.hold() if task == "segment" else caller.hold_unet())


async def refused_everywhere(caller: Caller, task: str, asked: Ask, code: str) -> dict[str, Refused]:
    """The refusals of all doors, asked at the same time."""
    doors = TASKS[task]
    refusals = await asyncio.gather(*(refused_by(send, caller, asked) for send in doors.values()))
    told = dict(zip(doors, refusals, strict=True))
    assert {name: refusal.code for name, refusal in told.items()} == dict.fromkeys(doors, code)
    return told


async def answered_everywhere(caller: Caller, task: str) -> None:
    same({name: await send(caller, ask(task)) for name, send in TASKS[task].items()})


def slow(caller: Caller, task: str) -> None:
    """An image takes minutes, by a clock that leaps."""
    if task == "segment":
        caller.door.sam.encode_s_per_megapixel = 1000
    else:
        caller.door.unet.infer_s_per_megapixel = 1000


async def learn(caller: Caller, task: str) -> None:
    await runner(caller, task).warm_up()
    for forgets in (caller.door.sam, caller.door.unet):
        forgets.forget()


@every_task
async def test_before_the_models_are_loaded_every_door_says_when_to_come_back(task: str) -> None:
    async with open_grpc(ready=False) as caller:
        pipeline, caller.door.app.pipelines = caller.door.pipeline, None
        for refusal in (await refused_everywhere(caller, task, ask(task), "not_ready")).values():
            assert refusal.retry_after_s == 2
        caller.door.app.pipelines = pipeline
        caller.server.open(pipeline)
        await answered_everywhere(caller, task)


@every_task
async def test_a_full_queue_is_told_at_every_door_with_the_same_time_to_come_back(task: str) -> None:
    # What is pointed at takes two pieces of work, the image's and its prompts'.
    async with open_grpc(max_queued=2 if task == "segment" else 1) as caller:
        slow(caller, task)
        await learn(caller, task)
        busy = await hold(caller, task)
        first = next(iter(TASKS[task].values()))
        admitted = asyncio.create_task(first(caller, ask(task, 2)))
        await runner(caller, task).images.reach(2)
        refusals = await refused_everywhere(caller, task, ask(task, 3), "overloaded")
        times = [refusal.retry_after_s or 0 for refusal in refusals.values()]
        # Minutes, and told some moments apart.
        assert max(times) - min(times) <= PATIENCE_S < min(times)
        caller.door.let_go()
        await busy
        await admitted
        assert device(caller, task).encoded == [HELD, 2]


@every_task
async def test_a_deadline_that_cannot_be_met_is_refused_at_every_door_before_anything_is_run(
    caller: Caller, task: str
) -> None:
    slow(caller, task)
    await learn(caller, task)
    await refused_everywhere(caller, task, ask(task, deadline="10000"), "deadline_unreachable")
    assert (device(caller, task).prepares, device(caller, task).encodes) == (0, [])


@every_task
async def test_a_deadline_that_passes_in_the_queue_is_told_at_every_door(caller: Caller, task: str) -> None:
    busy = await hold(caller, task)
    async with asyncio.timeout(PATIENCE_S / 2):
        await refused_everywhere(caller, task, ask(task, deadline="1000"), "deadline_exceeded")
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert device(caller, task).encoded == [HELD]
    await answered_everywhere(caller, task)


@every_task
async def test_no_answer_in_time_is_told_at_every_door(task: str) -> None:
    async with open_grpc(request_timeout_s=0.3) as caller:
        device(caller, task).blocks = threading.Event()
        for refusal in (await refused_everywhere(caller, task, ask(task), "timed_out")).values():
            assert "POMONA_REQUEST_TIMEOUT_S" in refusal.detail


@every_task
@pytest.mark.parametrize("failure", [BackendError("secret"), ZeroDivisionError("secret"), DeviceBroken("secret")])
async def test_a_failure_of_the_server_is_told_at_every_door_and_leaks_at_none(
    caller: Caller, task: str, failure: Exception
) -> None:
    device(caller, task).fails = failure
    for refusal in (await refused_everywhere(caller, task, ask(task), "internal_error")).values():
        assert "secret" not in refusal.detail
        assert type(failure).__name__ not in refusal.detail
    device(caller, task).fails = None
    if not isinstance(failure, DeviceBroken):
        await answered_everywhere(caller, task)


@every_task
async def test_what_is_larger_than_the_limit_is_refused_at_every_door(task: str) -> None:
    async with open_grpc(max_upload_mib=0.1) as caller:
        large = Ask(ask(task).prompts, bytes(MIB))
        for send in TASKS[task].values():  # one by one: the pipe to a door that does not read is not large
            assert (await refused_by(send, caller, large)).code == "upload_too_large"
        await answered_everywhere(caller, task)

"""Faults of the device and of the machine at the doors: too little memory, a clock that jumps."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import pytest

from models.errors import DeviceOutOfMemory
from service.api import schema
from tests.contract.door import BOX, Door, checked, image, only, plain, prompted, within
from tests.contract.doors import Name, device, doors, everywhere, good
from tests.contract.grpc_door import Caller
from tests.contract.oip_door import Refused
from tests.fakes import image_bytes, peel_image

every_operation = pytest.mark.parametrize("name", ["segment", "semantic", "inspect", "detect"])

A_YEAR_S: Final = 365 * 86_400.0


async def test_images_that_do_not_fit_into_the_devices_memory_together_are_run_apart(door: Door) -> None:
    door.unet.image_batches = (1, 2, 4)
    door.unet.infer_s_per_batch = 1
    await door.learn()
    busy = await door.hold_unet()
    before = door.unet_runner.images.count
    door.unet.memory = 1
    calls = [door.start(image(peel_image(mark)), path="/v1/semantic") for mark in (1, 2, 3)]
    await door.unet_runner.images.reach(before + 3)
    door.let_go()
    await busy
    for answer in await asyncio.gather(*calls):
        assert len(checked(answer, schema.SemanticResponse).objects) == 2
    assert door.unet.encodes == [1, 3, 1, 2, 1, 1]
    assert not door.pipelines.engine.broken


@every_operation
async def test_a_device_without_memory_for_one_image_fails_that_request_alone(caller: Caller, name: Name) -> None:
    device(caller, name).fails = DeviceOutOfMemory("out of memory")
    request = good(name, 1)
    with pytest.raises(Refused) as refused:
        await doors(request)["HTTP"](caller, request)
    assert refused.value.code == "internal_error"
    device(caller, name).fails = None
    await everywhere(caller, good(name, 2))


@pytest.mark.parametrize("jump", [A_YEAR_S, -A_YEAR_S])
async def test_a_jump_of_the_wall_clock_changes_no_deadline_and_no_age(
    door: Door, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = (await door.embed(image_bytes(1))).image.id
    busy = await door.hold()
    waiting = door.start(image(image_bytes(2)), prompted(BOX), headers=within(60_000))
    await door.runner.images.reach(3)
    wall, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(jump * 1e9))
    door.let_go()
    await busy
    answer = checked(await waiting, schema.SegmentResponse)
    assert only(answer).box == (32, 16, 64, 48)
    assert 0 <= answer.timing_ms.total < 60_000
    # The embedding has not expired, and what comes now is in time too.
    late = await door.segment(plain("image_id", known), prompted(BOX), headers=within(60_000))
    assert only(late).box == (32, 16, 64, 48)

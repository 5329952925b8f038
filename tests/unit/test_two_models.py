"""Inspections with both models on one device, as in a server: order, times, deadlines, places in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backends.base import Embedding
from models.sam.prompts import PackedPrompts
from models.types import Logits
from service.api import schema
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
)
from service.pipelines import Pipelines
from service.pipelines.source import encoded
from service.scheduler.policy import QueueOptions
from tests.fakes import (
    LOADED_UNET,
    PATIENCE_S,
    FakeImage,
    FakePeel,
    FakeSam,
    FakeUNet,
    WatchedUNetRunner,
    encode_image,
    make_pipelines,
)
from tests.unit.pipeline_calls import NEVER, context, held, let_go, watched


@dataclass
class LoggedSam(FakeSam):
    ran: list[str] = field(default_factory=list)

    def encode(self, prepared: Sequence[FakeImage]) -> list[Embedding]:
        self.ran.append("encode")
        return super().encode(prepared)

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        self.ran.append("decode")
        return super().decode(embeddings, image_index, prompts)


@dataclass
class LoggedUNet(FakeUNet):
    ran: list[str] = field(default_factory=list)

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        self.ran.append("infer")
        return super().infer(prepared)


@dataclass
class OneDevice:
    pipelines: Pipelines
    sam: LoggedSam
    unet: LoggedUNet

    async def inspect(
        self, mode: str = "accurate", within: float | None = None, data: bytes | None = None
    ) -> schema.InspectResponse:
        request = schema.InspectRequest.model_validate({"mode": mode})
        image = encoded(two_fruits() if data is None else data)
        return await self.pipelines.inspect.run(request, image, context(self.pipelines, within))


def two_fruits() -> bytes:
    pixels = np.zeros((224, 448, 3), np.uint8)
    for x0, y0, x1, y1 in ((40, 40, 140, 140), (240, 60, 340, 160)):
        pixels[y0:y1, x0:x1, 1] = 255
    return encode_image(pixels)


@pytest.fixture
async def device() -> AsyncIterator[OneDevice]:
    sam = LoggedSam()
    unet = LoggedUNet(clock=sam.clock, ran=sam.ran)
    pipelines = make_pipelines(sam, unet=unet, options=QueueOptions(probe_after=NEVER))
    yield OneDevice(pipelines, sam, unet)
    if sam.blocks is not None:
        sam.blocks.set()
    await pipelines.engine.close(PATIENCE_S)


@pytest.mark.parametrize("within", [None, 3600.0])
async def test_the_u_net_runs_before_the_sam_also_where_both_had_to_wait(
    device: OneDevice, within: float | None
) -> None:
    busy = await held(device.pipelines, device.sam)
    inspecting = asyncio.create_task(device.inspect(within=within))
    finder = device.pipelines.engine.runners[LOADED_UNET.name]
    assert isinstance(finder, WatchedUNetRunner)
    await finder.images.reach(1)
    await watched(device.pipelines).images.reach(2)
    let_go(device.sam)
    await busy
    answer = await inspecting
    assert device.sam.ran == ["encode", *["infer"] * 3, "encode", "decode"]
    assert [fruit.refined for fruit in answer.fruits] == [True, True]
    assert not device.sam.overlapped


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_the_parts_of_an_inspections_time_add_up_to_no_more_than_the_whole(device: OneDevice, mode: str) -> None:
    device.sam.encode_s_per_batch, device.sam.decode_s_per_prompt, device.unet.infer_s_per_batch = 40, 3, 2
    timings = (await device.inspect(mode)).timing_ms
    parts = timings.decode + timings.queue + timings.infer + timings.encode + timings.prompt + timings.postprocess
    assert parts <= timings.total + 0.05  # each is rounded to 0.01
    assert timings.infer == pytest.approx(6000 if mode == "accurate" else 2000, abs=1000)
    assert timings.encode == pytest.approx(40_000 if mode == "accurate" else 0, abs=1000)
    assert timings.prompt == pytest.approx(6000 if mode == "accurate" else 0, abs=1000)


async def test_an_inspections_deadline_must_leave_time_for_both_models(device: OneDevice) -> None:
    device.sam.encode_s_per_batch, device.unet.infer_s_per_batch = 400, 200
    for runner in device.pipelines.engine.runners.values():
        await runner.warm_up()
    device.sam.ran.clear()
    # The U-Net sees three scales.
    with pytest.raises(DeadlineUnreachable):
        await device.inspect(within=900)
    assert device.sam.ran == []
    degraded = await device.inspect("auto", within=900)
    assert (degraded.mode, degraded.degraded, device.sam.ran) == ("fast", True, ["infer"])
    assert (await device.inspect(within=1300)).mode == "accurate"


async def test_an_image_that_comes_too_late_off_the_u_net_for_the_sam_is_answered_without_it(device: OneDevice) -> None:
    device.sam.decode_s_per_prompt = 100
    await device.inspect()
    device.sam.entered.clear()
    busy = await held(device.pipelines, device.sam)
    inspecting = asyncio.create_task(device.inspect("auto", within=2000))
    await watched(device.pipelines).images.reach(3)
    # The outlines of two fruits take 200 seconds.
    device.sam.clock.leap(1900)
    let_go(device.sam)
    await busy
    answer = await inspecting
    assert (answer.mode, answer.degraded, len(answer.fruits)) == ("fast", True, 2)
    assert "became unreachable, while the item waited" in str(answer.reason)


async def test_nothing_stays_in_the_queue_whatever_became_of_an_inspection(device: OneDevice) -> None:
    device.unet.infer_s_per_batch = 200
    await device.inspect()
    await device.inspect("auto", data=encode_image(np.zeros((224, 448, 3), np.uint8)))
    with pytest.raises(DeadlineUnreachable):
        await device.inspect(within=100)
    with pytest.raises(DeadlineExceeded):
        await device.inspect(within=-1.0)
    # Closing waits for admitted work.
    async with asyncio.timeout(PATIENCE_S):
        await device.pipelines.engine.close(PATIENCE_S * 10)

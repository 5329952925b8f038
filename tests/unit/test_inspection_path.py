"""Inspections where both models are on one device, as they are in a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from service.messages import Capture, InspectRequest, When
from service.pipeline import Pipeline
from service.work import QueueOptions

from models.backends.base import Embedding
from models.sam.prompts import PackedPrompts
from models.types import Logits, Size
from service.errors import DeadlineUnreachable
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    FakeImage,
    FakePeel,
    FakeSam,
    FakeUNet,
    WatchedRunner,
    WatchedUNetRunner,
    encode_image,
    image_bytes,
    make_pipelines,
)

BOXES = ((40, 40, 140, 140), (240, 60, 340, 160))


def fruits(mark: int = 0) -> bytes:
    """Two healthy fruits as `FakeUNet` sees them."""
    pixels = np.zeros((224, 448, 3), np.uint8)
    for x0, y0, x1, y1 in BOXES:
        pixels[y0:y1, x0:x1, 1] = 255
    pixels[..., 2] = mark
    return encode_image(pixels)


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


@pytest.fixture
def sam() -> LoggedSam:
    return LoggedSam()


@pytest.fixture
def unet(sam: LoggedSam) -> LoggedUNet:
    return LoggedUNet(clock=sam.clock, ran=sam.ran)


@pytest.fixture
async def pipeline(sam: LoggedSam, unet: LoggedUNet) -> AsyncIterator[Pipeline]:
    pipeline = make_pipelines(sam, unet=unet, options=QueueOptions(probe_after=1e9))
    yield pipeline
    if sam.blocks is not None:
        sam.blocks.set()
    await pipeline.close(PATIENCE_S)


def asked(**fields: Any) -> InspectRequest:
    return InspectRequest(**{"data": fruits(), "mode": "accurate", **fields})


@pytest.mark.parametrize("within", [None, 3600.0])
async def test_the_u_net_goes_before_the_sam_also_where_both_had_to_wait(
    pipeline: Pipeline, sam: LoggedSam, within: float | None
) -> None:
    sam.blocks = threading.Event()
    busy = asyncio.create_task(pipeline.embed(image_bytes(200)))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    inspecting = asyncio.create_task(pipeline.inspect(asked(when=When(within))))
    watched, finder = pipeline.runners[LOADED.name], pipeline.runners[LOADED_UNET.name]
    assert isinstance(watched, WatchedRunner)
    assert isinstance(finder, WatchedUNetRunner)
    await finder.images.reach(1)
    await watched.images.reach(2)
    sam.blocks.set()
    await busy
    answer = await inspecting
    assert sam.ran == ["encode", "infer", "encode", "decode"]
    assert [fruit.refined for fruit in answer.fruits] == [True, True]
    assert not sam.overlapped


@pytest.mark.parametrize("mode", ["fast", "accurate"])
async def test_the_parts_of_the_time_add_up_to_no_more_than_the_whole(
    pipeline: Pipeline, sam: LoggedSam, unet: LoggedUNet, mode: str
) -> None:
    sam.encode_s_per_batch, sam.decode_s_per_prompt, unet.infer_s_per_batch = 40, 3, 2
    timings = (await pipeline.inspect(asked(mode=mode))).timings
    parts = timings.decode + timings.queue + timings.infer + timings.encode + timings.prompt + timings.postprocess
    assert parts <= timings.total
    assert timings.infer == pytest.approx(2, abs=1)
    assert timings.encode == pytest.approx(40 if mode == "accurate" else 0, abs=1)
    assert timings.prompt == pytest.approx(6 if mode == "accurate" else 0, abs=1)


async def test_a_deadline_must_leave_time_for_both_models(pipeline: Pipeline, sam: LoggedSam, unet: LoggedUNet) -> None:
    sam.encode_s_per_batch, unet.infer_s_per_batch = 400, 200
    for runner in pipeline.runners.values():
        await runner.warm_up()
    sam.ran.clear()
    with pytest.raises(DeadlineUnreachable):
        await pipeline.inspect(asked(when=When(500)))
    assert sam.ran == []
    degraded = await pipeline.inspect(asked(mode="auto", when=When(500)))
    assert (degraded.mode, degraded.degraded, sam.ran) == ("fast", True, ["infer"])
    assert (await pipeline.inspect(asked(when=When(700)))).mode == "accurate"


async def test_nothing_is_left_in_the_queue_whatever_became_of_a_request(pipeline: Pipeline, sam: LoggedSam) -> None:
    for request in (asked(), asked(mode="auto", data=encode_image(np.zeros((224, 448, 3), np.uint8)))):
        await pipeline.inspect(request)
    with pytest.raises(DeadlineUnreachable):
        await pipeline.inspect(asked(when=When(-1.0)))
    # Closing waits for whatever was admitted.
    async with asyncio.timeout(PATIENCE_S):
        await pipeline.close(PATIENCE_S * 10)


async def test_what_the_camera_said_is_told_again(pipeline: Pipeline) -> None:
    capture = Capture("frame", "trigger", 7)
    assert (await pipeline.inspect(asked(capture=capture, mode="fast"))).capture == capture


async def test_the_frames_of_both_models_are_told(pipeline: Pipeline) -> None:
    answer = await pipeline.inspect(asked())
    assert answer.frame.original == Size(224, 448)
    assert answer.sam is not None
    assert (answer.sam.model, answer.sam.frame.original) == (LOADED, Size(224, 448))

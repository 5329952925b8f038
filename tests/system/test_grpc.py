"""The real server over gRPC, beside HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtest.server import Server, free_port, running
from models.types import BinaryMask
from service.api import schema
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.contract.doors import pixels_of
from tests.contract.messages import to_json
from tests.system.calls import ENTRY, Scene, iou, render_scene, segment
from tests.system.test_lifecycle import in_flight

pytestmark = pytest.mark.checkpoint

ANY_SIZE = (("grpc.max_receive_message_length", -1),)


@pytest.fixture
async def channel(server: Server, grpc_port: int) -> AsyncIterator[grpc.aio.Channel]:
    assert server.process.poll() is None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}", options=ANY_SIZE) as opened:
        yield opened


def box(corners: list[float]) -> pb.Prompt:
    x0, y0, x1, y1 = corners
    return pb.Prompt(box=pb.Box(x0=x0, y0=y0, x1=x1, y1=y1), multimask=False)


def pixels(answer: pb.SegmentResponse) -> BinaryMask:
    return pixels_of(to_json(answer.results[0].masks[0].mask))


async def test_both_doors_answer_with_the_same_mask(
    channel: grpc.aio.Channel, client: httpx.Client, scene: Scene, known: str
) -> None:
    stub = SegmentationStub(channel)
    answer = await stub.Segment(pb.SegmentRequest(image=scene.data, prompts=[box(scene.box(1))]))
    assert iou(pixels(answer), scene.fruit(1)) >= 0.9
    assert (answer.model.name, answer.model.revision) == (ENTRY.name, ENTRY.revision)
    # The image was encoded over HTTP.
    assert (answer.image.id, answer.batch.encode) == (known, 0)
    over_http = segment(client, known, {"box": scene.box(1), "multimask": False}).results[0].masks[0].mask
    assert isinstance(over_http, schema.RleMask)
    assert answer.results[0].masks[0].mask.rle.counts == over_http.counts


async def test_a_stream_is_answered_frame_by_frame(channel: grpc.aio.Channel, scene: Scene) -> None:
    new = render_scene(41)

    async def frames() -> AsyncIterator[Any]:
        for name, data in (
            ("old", scene.data),
            ("bad", b"an orange"),
            ("new", new.data),
            ("late", render_scene(42).data),
        ):
            yield pb.SegmentStreamRequest(
                request=pb.SegmentRequest(image=data, prompts=[box(new.box(1))]),
                frame=pb.Frame(frame_id=name),
                deadline_ms=5 if name == "late" else 60_000,
            )

    replies = {reply.frame.frame_id: reply async for reply in SegmentationStub(channel).SegmentStream(frames())}
    assert {name: pb.FrameOutcome.Name(reply.outcome) for name, reply in replies.items()} == {
        "old": "FRAME_OUTCOME_ANSWERED",
        "bad": "FRAME_OUTCOME_FAILED",
        "new": "FRAME_OUTCOME_ANSWERED",
        "late": "FRAME_OUTCOME_LATE",
    }
    assert iou(pixels(replies["new"].response), new.fruit(1)) >= 0.9
    assert replies["bad"].problem.code == "not_an_image"


async def test_health_metrics_and_the_log_include_grpc(
    channel: grpc.aio.Channel, client: httpx.Client, server: Server
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    health = await stub.Check(health_pb2.HealthCheckRequest(service="pomona.v1.Segmentation"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await SegmentationStub(channel).Embed(pb.EmbedRequest(), metadata=(("x-request-id", "belt-7.grpc"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (line,) = [line for line in server.log().splitlines() if "belt-7.grpc" in line]
    fields = json.loads(line)
    assert (fields["path"], fields["code"]) == ("/pomona.v1.Segmentation/Embed", "no_image")
    text = (await asyncio.to_thread(client.get, "/metrics")).raise_for_status().text
    assert re.search(r'^pomona_requests_total\{.*Segmentation/Embed.*"refused".*\} 1', text, re.MULTILINE)


async def test_a_call_in_flight_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    new, port = render_scene(43), free_port()
    prompt = pb.Prompt(points=[pb.Point(x=new.centre(1)[0], y=new.centre(1)[1])])
    with running(tmp_path, grpc_port=str(port)) as server, ThreadPoolExecutor(2) as threads:
        loop = asyncio.get_running_loop()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=ANY_SIZE) as channel:
            call = SegmentationStub(channel).Segment(pb.SegmentRequest(image=new.data, prompts=[prompt] * 16))
            answering = asyncio.ensure_future(_answer(call))
            async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
                while not in_flight((await client.get("/metrics")).text, "Segmentation/Segment"):
                    assert not answering.done()
            await loop.run_in_executor(threads, server.stop)
            answer = await answering
    assert len(answer.results) == 16
    assert iou(pixels(answer), new.fruit(1)) >= 0.9


async def _answer(call: Any) -> pb.SegmentResponse:
    answer: pb.SegmentResponse = await call
    return answer

"""Metrics, traces and logs of the real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from loadtest.server import Server, free_port, running
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.collector import Collector, collector
from tests.exposition import documented, families
from tests.system.calls import Scene, embed, render_scene

pytestmark = pytest.mark.checkpoint

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNUSED = {
    "pomona_caller_requests_total": "API keys",
    "pomona_capture_reasons_total": "capture",
    "pomona_captures_total": "capture",
    "pomona_drift_psi": "a U-Net, and two hundred frames",
    "pomona_model_load_seconds": "a revision that is loaded while the service runs",
    "pomona_shadow_frames_total": "a shadow",
    "pomona_shadow_grade_changes_total": "a shadow",
    "pomona_shadow_infected_fraction_difference": "a shadow",
    "pomona_shadow_iou": "a shadow",
    "pomona_track_sessions_total": "a SAM 2",
}
"""Metrics that appear at first use only, and what this server lacks for that."""


def over_http(server: Server, scene: Scene) -> str:
    """Send one request, and one that is refused."""
    with httpx.Client(base_url=server.address, timeout=60) as client:
        known = embed(client, scene.data)
        assert client.post("/v1/embed").status_code == 400
    return known.image.id


async def over_grpc(port: int, image_id: str, point: pb.Point) -> None:
    """Send one request, and one in a stream."""
    request = pb.SegmentRequest(image_id=image_id, prompts=[pb.Prompt(points=[point])])
    metadata = (("x-request-id", "belt-7"), ("traceparent", PARENT))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = SegmentationStub(channel)  # its types are those of the threaded client
        await stub.Segment(request, metadata=metadata)
        frames = stub.SegmentStream(iter([pb.SegmentStreamRequest(request=request)]))
        assert [reply.outcome async for reply in frames] == [pb.FRAME_OUTCOME_ANSWERED]


def test_the_server_exposes_all_documented_metrics_and_its_traces_and_logs_name_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with collector() as at:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", at.address)
        with running(tmp_path, grpc_port=str(port), models="mobile-sam") as server:
            scene = render_scene(51)
            x, y = scene.centre(1)
            asyncio.run(over_grpc(port, over_http(server, scene), pb.Point(x=x, y=y)))
            text = httpx.get(f"{server.address}/metrics").text
            server.stop()
        log = server.log()
    assert families(text) == {name: metric for name, metric in documented().items() if name not in UNUSED}
    if shutil.which("promtool"):
        assert subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True).returncode == 0  # noqa: S607
    check_spans(at)
    check_lines(log)


def check_spans(at: Collector) -> None:
    spans = [span for sent in at.resources() for scope in sent.scope_spans for span in scope.spans]
    (request,) = [span for span in spans if span.trace_id.hex() == TRACE_ID and span.name.endswith("/Segment")]
    parts = [span for span in spans if span.parent_span_id == request.span_id]
    assert sorted(span.name for span in parts) == ["postprocess", "prompt", "queue"]
    (prompt,) = [span for span in parts if span.name == "prompt"]
    (batch,) = [span for span in spans if span.span_id == prompt.links[0].span_id]
    assert (batch.name, batch.links[0].span_id) == ("batch prompt", request.span_id)


def check_lines(log: str) -> None:
    """All lines are JSON but the example for a person at the terminal."""
    written = [line for line in log.splitlines() if line and not line.startswith(("Ready. Try", "curl "))]
    lines = [json.loads(line) for line in written]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert {line["logger"].split(".")[0] for line in lines} >= {"pomona", "bentoml"}
    (line,) = [line for line in lines if line.get("request_id") == "belt-7"]
    assert line["trace_id"] == TRACE_ID

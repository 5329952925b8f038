"""A real server stops in time, whatever its callers do, and does not lose what it admitted."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtest.server import Server, free_port
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.fakes import image_bytes
from tests.system import calls
from tests.system.faults.servers import bench_server, gone, seconds_until, worker_of
from tests.system.faults.sockets import answer, get, opened, upload

DRAIN_S: Final = 4.0
BATCH_S: Final = 0.4
OPEN_FILES: Final = 400
ASSET: Final = "/static_content/swagger-ui-bundle.js"


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {"grpc": free_port(), "admin": free_port()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Server]:
    with bench_server(
        tmp_path_factory.mktemp("server"),
        batch_ms=BATCH_S * 1000,
        open_files=OPEN_FILES,
        grpc_port=str(ports["grpc"]),
        admin_port=str(ports["admin"]),
        drain_timeout_s=str(DRAIN_S),
    ) as started:
        yield started


def connections(port: int, count: int, stack: ExitStack) -> None:
    for _ in range(count):
        stack.enter_context(opened(port))


def test_more_idle_connections_than_open_files_lock_nobody_out(server: Server, ports: dict[str, int]) -> None:
    with ExitStack() as stack:
        connections(server.port, 2 * OPEN_FILES, stack)
        connections(ports["grpc"], OPEN_FILES, stack)
        for port in (server.port, ports["admin"]):
            for path in ("/livez", "/readyz", "/metrics"):
                assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
        assert httpx.get(f"{server.address}/v1/models").status_code == 200
    assert "Too many open files" not in server.log()


def test_the_port_for_probes_answers_nothing_else(ports: dict[str, int]) -> None:
    refused = httpx.get(f"http://127.0.0.1:{ports['admin']}/v1/models")
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


def test_a_stop_takes_no_longer_than_it_may_whatever_callers_do(server: Server, ports: dict[str, int]) -> None:
    """The last test of this server."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        half_sent = stack.enter_context(opened(server.port, upload(1000, 10)))
        stack.enter_context(opened(server.port, b"GET /livez HT"))
        kept = stack.enter_context(opened(server.port, get("/livez")))
        assert answer(kept)[0] == 200
        for _ in range(3):
            deaf = stack.enter_context(opened(server.port))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(get(ASSET) * 10)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}"))
        stub: Any = SegmentationStub(channel)  # type: ignore[arg-type]  # its types know asynchronous channels only
        health: Any = health_pb2_grpc.HealthStub(channel)
        stream = stub.SegmentStream(endless())
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        admitted = threads.submit(post, server)
        processes = [psutil.Process(server.process.pid), worker_of(server)]
        seconds_until(lambda: in_progress(server))

        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - began < DRAIN_S / 2  # not once the work is given up
        for port in (server.port, ports["admin"]):
            for path, status in (("/readyz", 503), ("/livez", 200)):
                with opened(port, get(path)) as probe:
                    assert answer(probe)[0] == status
        with opened(server.port, upload(1000, 1000)) as late:
            status, body = answer(late)
        assert (status, json.loads(body)["code"]) == (503, "not_ready")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListModels(pb.ListModelsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        assert admitted.result().status_code == 200
        assert answer(half_sent)[0] == 503
        seconds_until(lambda: all(gone(process) for process in processes))
        assert time.monotonic() - began < DRAIN_S + 2
        stream.cancel()
    assert server.process.wait(1) == 0


def post(server: Server) -> httpx.Response:
    with httpx.Client(base_url=server.address, timeout=30) as client:
        return calls.post(client, "/v1/segment", image_bytes(1), prompts=[{"points": [[4, 4]]}])


def in_progress(server: Server) -> bool:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return any(
        line.startswith("pomona_requests_in_progress{") and '"/v1/segment"' in line and not line.endswith(" 0.0")
        for line in lines
    )


def endless() -> Iterator[pb.SegmentStreamRequest]:
    """Frames without end, whose answers are never read."""
    prompt = pb.Prompt(points=[pb.Point(x=4, y=4)])
    while True:
        yield pb.SegmentStreamRequest(request=pb.SegmentRequest(image=image_bytes(2), prompts=[prompt]))
        time.sleep(0.05)

"""What a server listens on, and where it runs: both families of addresses, and the device that is required."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest

from loadtest.server import environment_of, free_port
from service.http.listener import listening_socket, reachable_host
from service.settings import MISCONFIGURED
from tests.system.faults.servers import WITHIN_S, bench_server

HAS_IPV6 = reachable_host("::") == "::"

needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


@needs_ipv6
def test_all_addresses_are_those_of_both_families() -> None:
    with listening_socket("::", 0, "POMONA_HTTP_PORT") as opened:
        port = opened.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=1).close()


def test_without_ipv6_all_addresses_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(family: int, kind: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refusing)
        assert reachable_host("::") == "0.0.0.0"  # noqa: S104 (what is meant)
        assert reachable_host("::1") == "::1", "an address of IPv6 that was asked for stays"


@needs_ipv6
def test_a_server_of_all_addresses_answers_over_ipv6_and_ipv4(tmp_path: Path) -> None:
    admin, grpc_port = free_port(), free_port()
    with bench_server(
        tmp_path, http_host="::", allow_anonymous="true", grpc_port=str(grpc_port), admin_port=str(admin)
    ) as server:
        for host in ("127.0.0.1", "[::1]"):
            for port in (server.port, admin):
                assert httpx.get(f"http://{host}:{port}/livez").status_code == 200
            with grpc.insecure_channel(f"{host}:{grpc_port}") as channel:
                grpc.channel_ready_future(channel).result(WITHIN_S)


def test_a_required_cuda_device_that_is_not_there_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    environment = environment_of(free_port(), models="unet-mobilenetv2-citrus", device="cuda")
    ended = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service.app:Pomona"],
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == MISCONFIGURED
    assert "pomona: POMONA_DEVICE=cuda requires a CUDA device, and none is visible" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout

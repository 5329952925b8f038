"""What `helm test` runs, against the real server: the file of the chart, as the pod runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.server import Server
from tests.charts import chart, environment

_ROOT = Path(__file__).parents[2]


def check(port: int, grpc_port: int, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the chart's file with the targets that the chart names, at another address."""
    (container,) = chart(tests=True).one("Pod")["spec"]["containers"]
    (target,) = json.loads(environment(container)["POMONA_TARGETS"])
    target |= {"host": "127.0.0.1", "http": port, "grpc": grpc_port, **changes}
    variables = {"POMONA_TARGETS": json.dumps([target]), "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, str(_ROOT / "deploy" / "chart" / "files" / "check.py")]
    return subprocess.run(
        command, env=os.environ | variables, cwd="/", capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.checkpoint
def test_a_release_that_answers_as_it_must_passes(server: Server, grpc_port: int) -> None:
    ran = check(server.port, grpc_port)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("both: a mask of ")
    assert "over HTTP, the same over gRPC" in ran.stdout
    assert "fruits inspected" in ran.stdout


@pytest.mark.checkpoint
def test_a_release_that_lets_strangers_in_although_it_has_keys_fails(server: Server, grpc_port: int) -> None:
    ran = check(server.port, grpc_port, keys=True)
    assert ran.returncode == 1
    assert ran.stdout == "both: FAILED: a caller without a key must be refused with 401, got 200\n"

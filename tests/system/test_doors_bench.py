"""Every endpoint is benchmarked for a moment against a server whose model does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtest.callers import CALLERS
from loadtest.server import BARE_GRPC

ROOT: Final = Path(__file__).parents[2]
COUNTS: Final = (1, 3)

# A process of its own: tritonclient's messages have the same names as ours, and a process registers only one of them.
SCRIPT: Final = f"""
import json
from dataclasses import asdict
from loadtest import cost, doors
from loadtest.report import Effort

with doors.no_op_lanes() as lanes:
    windows = cost.measure(lanes, {COUNTS}, Effort(rounds=2, seconds=0.1))
print(json.dumps([asdict(one) for one in cost.costs_of(windows)]))
"""


def test_every_endpoint_is_measured_with_all_its_formats() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    client = os.environ | {"PYTHONPATH": "clients/python/src"}
    run = subprocess.run(command, cwd=ROOT, env=client, stdout=subprocess.PIPE, timeout=120, check=True)
    costs = json.loads(run.stdout)
    kinds = [(name, masks) for name, (_, formats) in CALLERS.items() for masks in formats]
    expected = [(*kind, count) for count in COUNTS for kind in [*kinds, (BARE_GRPC, "RLE")]]
    assert [(cost["name"], cost["masks"], cost["callers"]) for cost in costs] == expected
    for cost in costs:
        assert 0 < cost["p50_ms"]["median"] <= cost["p99_ms"]["median"], cost
        assert cost["per_s"]["low"] > 0, cost
        assert cost["caller_cpu_ms"]["median"] > 0, cost
    # One short window may lie between two ticks of the kernel's clock, but not all of them.
    assert sum(cost["server_cpu_ms"]["median"] for cost in costs) > 0

"""The comparison of the doors, run for a moment against a server whose model does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtest.door_callers import DOORS

ROOT: Final = Path(__file__).parents[2]
CALLERS: Final = (1, 3)

# A process of its own, as Triton's messages have the names of ours and one process holds them only once.
SCRIPT: Final = f"""
import json
from dataclasses import asdict
from loadtest import doors

with doors.no_op() as lanes, doors.bare(lanes[0].target) as bare:
    costs = doors.measure([*lanes, bare], {CALLERS}, doors.Plan(rounds=2, window_s=0.1, warm_up_s=0.05))
print(json.dumps([asdict(cost) for cost in costs]))
"""


def test_every_door_is_measured_with_all_its_masks_at_both_ends() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    client = os.environ | {"PYTHONPATH": "clients/python/src"}
    run = subprocess.run(command, cwd=ROOT, env=client, stdout=subprocess.PIPE, timeout=120, check=True)
    costs = json.loads(run.stdout)
    kinds = [(door, masks) for door, (_, kinds) in DOORS.items() for masks in kinds]
    asked = [(*kind, count) for count in CALLERS for kind in [*kinds, ("gRPC, nothing behind it", "RLE")]]
    assert [(cost["door"], cost["masks"], cost["callers"]) for cost in costs] == asked
    for cost in costs:
        assert 0 < cost["p50_ms"]["median"] <= cost["p99_ms"]["median"], cost
        assert cost["per_s"]["low"] > 0, cost
        assert cost["caller_cpu_ms"]["median"] > 0, cost
    # A single short window may lie between two ticks of the kernel's clock, but not all of them.
    assert sum(cost["server_cpu_ms"]["median"] for cost in costs) > 0

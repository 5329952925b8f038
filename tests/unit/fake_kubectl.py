#!/usr/bin/env python3
"""A `kubectl` without a cluster: `FAKE_CLUSTER` is a folder with its state, and it writes down how it was called."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

folder = pathlib.Path(os.environ["FAKE_CLUSTER"])
arguments = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\n")
if "apply" in arguments:
    sys.stdin.read()
state = json.loads((folder / "state.json").read_text())

if arguments[:2] == ["config", "current-context"]:
    print(state["context"])
    sys.exit()
assert arguments[:1] == ["--context"], "every command must name the context"
assert arguments[1] == state["context"]
assert arguments[2] == "--namespace"
verb, *rest = arguments[4:]
if verb in state.get("fails", []):
    sys.stderr.write(f"error: {verb} failed\n")
    sys.exit(1)


def pod(name: str, node: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"nodeName": node},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"restartCount": state["restarts"], "lastState": {"terminated": {"reason": "OOMKilled"}}}
            ],
        },
    }


def answer() -> dict[str, Any] | None:
    if verb == "get" and rest[0] == "pods":
        return {"items": [] if state.get("split") else [pod(f"pomona-both-{n}", n) for n in state["nodes"]]}
    if verb == "get" and rest[0] == "nodes":
        return {"items": [{"metadata": {"name": name}, "spec": {}} for name in state["nodes"]]}
    if verb == "get" and rest[0] == "deployment":
        return {"spec": {"replicas": 3}}
    if verb == "get":
        return {"items": [{"metadata": {"name": name}} for name in state.get("left", [])]}
    return None


if verb == "exec" and "python" in rest:
    state["restarts"] += 1
    (folder / "state.json").write_text(json.dumps(state))
    sys.exit(137)
if verb == "logs":
    print("sending")
    print(json.dumps(state["counts"]))
elif (found := answer()) is not None:
    print(json.dumps(found))

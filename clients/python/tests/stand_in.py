"""A service that is not there, on a real socket: it answers what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

INSPECTED: dict[str, Any] = {
    "request_id": "5b6c",
    "image": {"id": "6ae3", "width": 16, "height": 8},
    "models": {
        "unet": {"name": "my-unet", "revision": "0f5c", "input_width": 448, "input_height": 224},
        "sam": None,
    },
    "fruits": [
        {
            "id": 1,
            "box": [2, 1, 6, 6],
            "area": 20,
            "mask": {"size": [8, 16], "counts": "a05300000_2"},
            "infected_mask": {"size": [8, 16], "counts": "k0170e2"},
            "infected_fraction": 0.1,
            "class": "infected",
            "confidence": 0.98,
            "grade": "B",
            "truncated": False,
            "refined": False,
        }
    ],
    "mode": "fast",
    "degraded": False,
    "reason": None,
    "frame": {"frame_id": None, "trigger_id": None, "captured_at_ns": None},
    "overlay": None,
    "batch": {"infer": 1, "encode": 0, "prompt": 0},
    "timing_ms": {"decode": 1, "queue": 1, "infer": 18, "encode": 0, "prompt": 0, "postprocess": 2, "total": 22.4},
}
SEGMENTED: dict[str, Any] = {
    "request_id": "41f8",
    "image": {"id": "6ae3", "width": 16, "height": 8},
    "model": {"name": "mobile-sam", "revision": "6dbb", "input_size": 1024, "padding": "none"},
    "results": [
        {
            "masks": [
                {
                    "mask": {"size": [8, 16], "counts": "a05300000_2"},
                    "score": 0.9,
                    "stability_score": 0.95,
                    "box": [2, 1, 6, 6],
                    "area": 20,
                }
            ]
        }
    ],
    "overlay": None,
    "degraded": False,
    "batch": {"encode": 1, "prompt": 1},
    "timing_ms": {"decode": 1, "queue": 1, "encode": 400, "prompt": 30, "postprocess": 2, "total": 434},
}
MODELS: dict[str, Any] = {
    "models": [
        {
            "name": "mobile-sam",
            "family": "sam",
            "revision": "6dbb90523a35",
            "licence": "Apache-2.0",
            "loaded": True,
            "device": "cpu",
            "backend": "openvino",
        },
        {
            "name": "sam-vit-b",
            "family": "sam",
            "revision": "ec2df62732",
            "licence": "Apache-2.0",
            "loaded": False,
            "device": None,
            "backend": None,
        },
    ]
}


@dataclass(frozen=True)
class Got:
    """A request as it came in."""

    method: str
    path: str
    fields: dict[str, Any]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered: JSON, or bytes as they are; None hangs up instead."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: bool = False


def problem(status: int, code: str, **headers: str) -> Reply:
    return Reply(status, {"code": code, "detail": f"It is {code}."}, headers)


@dataclass
class StandIn:
    """Attributes: where it answers; what came in; how it answers."""

    address: str
    got: list[Got] = field(default_factory=list)
    answer: Callable[[Got], Reply] = lambda got: Reply(body=ANSWERS[got.path])

    def usual(self, got: Got) -> Any:
        """What is answered where the test says nothing else."""
        return ANSWERS[got.path]

    def always(self, reply: Reply) -> None:
        """Answer the same to everything."""
        self.answer = lambda got: reply


ANSWERS: dict[str, Any] = {
    "/v1/inspect": INSPECTED,
    "/v1/segment": SEGMENTED,
    "/v1/models": MODELS,
    "/readyz": "ready",
}


@contextmanager
def standing_in() -> Iterator[StandIn]:
    """A service on a free port, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            target = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fields = json.loads(parse_qs(target.query).get("request", ["{}"])[0])
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(self.command, target.path, fields, headers, body)
            with lock:
                stand_in.got.append(got)
            reply = stand_in.answer(got)
            if reply.hang_up:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {
                "content-length": str(len(content)),
                "x-request-id": headers.get("x-request-id", ""),
                **{name.replace("_", "-"): value for name, value in reply.headers.items()},
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 (as http.server calls it)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

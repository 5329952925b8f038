"""A collector of traces on this machine: OTLP over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

_PATIENCE_S: Final = 10.0
"""Longer than any test waits."""


@dataclass
class Collector:
    """What arrived at its address."""

    address: str = ""
    bodies: list[bytes] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)
    """While it is not set nobody is answered."""

    def resources(self) -> list[ResourceSpans]:
        """All spans, by who sent them."""
        return [sent for body in self.bodies for sent in ExportTraceServiceRequest.FromString(body).resource_spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """Takes OTLP over HTTP on a free port until the block ends."""
    state = Collector()
    state.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            state.answers.wait(_PATIENCE_S)
            state.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()

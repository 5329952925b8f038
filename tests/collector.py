"""A local collector of traces: OTLP over HTTP."""

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
    """The address of a collector, and what arrived there."""

    address: str = ""
    bodies: list[bytes] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)
    """Requests are answered while it is set."""

    def resources(self) -> list[ResourceSpans]:
        """Return all spans, by sender."""
        return [sent for body in self.bodies for sent in ExportTraceServiceRequest.FromString(body).resource_spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """Receive OTLP over HTTP on a free port until the block ends."""
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

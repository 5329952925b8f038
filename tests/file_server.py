"""A web server of bytes on this machine, with the faults that downloads meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class SeenRequest:
    path: str
    range: str | None
    authorization: str | None


@dataclass
class FileServer:
    """What is served, how badly, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    seen: list[SeenRequest] = field(default_factory=list)
    takes_ranges: bool = True
    refuses_ranges: bool = False
    tells_length: bool = True
    pause_s: float = 0.0
    breaks_after: list[int] = field(default_factory=list)
    """Bytes of body after which to hang up, one for each coming answer."""

    def url(self, path: str) -> str:
        return self.address + path

    def requests_for(self, path: str) -> list[SeenRequest]:
        return [request for request in self.seen if request.path == path]


@contextmanager
def serving() -> Iterator[FileServer]:
    """Serve on a free port of the loopback interface until the block ends."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.seen.append(SeenRequest(self.path, wanted, self.headers.get("Authorization")))
            time.sleep(state.pause_s)
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = 0
            if wanted and state.refuses_ranges:
                self.send_error(416)
                return
            if wanted and state.takes_ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Type", "text/html")
            if state.tells_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            count = state.breaks_after.pop(0) if state.breaks_after else len(body)
            self.wfile.write(body[start : start + count])

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

"""A service on a real socket that answers what a test sets; here over HTTP, in `grpc_stand_in` over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pomona import NO_RETRY, AsyncClient, Client

IMAGE = b"\x89PNG\r\n\x1a\n and so on"
SILENCE_S = 0.6  # limit of callers of a silent service; a busy machine needs a part of it to connect
PATIENCE_S = 60.0  # of tests that fail; programs start slowly on a busy machine

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "answers.json").read_text())
INSPECTED, SEGMENTED, SEMANTIC, EMBEDDED, MODELS = (
    ANSWERS[name] for name in ("inspect", "segment", "semantic", "embed", "models")
)


@dataclass(frozen=True)
class Received:
    """A request as the service got it; `time_left` is gRPC's deadline in seconds."""

    operation: str
    fields: dict[str, Any]
    headers: dict[str, str]
    image: bytes | None = None
    image_id: str | None = None
    path: str = ""
    time_left: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A refusal with a code of Pomona's, on either transport."""

    code: str
    detail: str = "It failed."
    retry_after: int | None = None


@dataclass(frozen=True)
class Reply:
    """An answer of HTTP with any status: bytes as they are, else JSON."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: bool = False


@dataclass
class StandIn:
    """Attributes: where it answers; what it received; how it answers: an object of the API, a `Problem`, a `Reply`."""

    address: str
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Any] = lambda received: ANSWERS[received.operation]
    changed: threading.Condition = field(default_factory=threading.Condition)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def always(self, answer: Any) -> None:
        self.answer = lambda received: answer

    def answers(self, *answers: Any) -> None:
        """Give these answers in turn."""
        left = list(answers)
        self.answer = lambda received: left.pop(0)

    def receive(self, received: Received) -> Any:
        with self.changed:
            self.received.append(received)
            self.changed.notify_all()
        return self.answer(received)

    def wait_for(self, done: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(done, PATIENCE_S)


def use(kind: str, address: str, do: Callable[[Any], Any], **options: Any) -> Any:
    """Return what `do` returns for a client of this kind, or what it awaits to."""
    options = {"retry": NO_RETRY} | options
    if kind == "sync":
        with Client(address, **options) as client:
            return do(client)

    async def run() -> Any:
        async with AsyncClient(address, **options) as client:
            return await do(client)

    return asyncio.run(run())


def use_stream(
    kind: str,
    target: Any,
    frames: Any,
    request: Any,
    *,
    look: Callable[[Any], None] = lambda answer: None,
    **options: Any,
) -> list[Any]:
    """Return all answers of one stream by a client of this kind; `look` is called with each.

    Args:
        target: URL or transport.
        options: of the stream; and `retry` and `sleep`, of the client.
    """
    client_options = {"retry": NO_RETRY} | {each: options.pop(each) for each in ("retry", "sleep") if each in options}
    client_options |= {"url": target} if isinstance(target, str) else {"transport": target}
    answers = []
    if kind == "sync":
        with Client(**client_options) as client:
            for answer in client.stream(frames, request, **options):
                answers.append(answer)
                look(answer)
        return answers

    async def run() -> None:
        async with AsyncClient(**client_options) as client:
            async for answer in client.stream(frames, request, **options):
                answers.append(answer)
                look(answer)

    asyncio.run(run())
    return answers


@contextlib.contextmanager
def serve_http() -> Iterator[StandIn]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            target = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            texts = {name.encode(): values[0].encode() for name, values in parse_qs(target.query).items()}
            image = body
            if headers.get("content-type") == "application/json":
                texts, image = {b"request": body}, b""
            if headers.get("content-type", "").startswith("multipart/"):
                texts = dict(re.findall(rb'name="(\w+)"[^\r]*\r\n.*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL))
                image = texts.get(b"image", b"")
            received = Received(
                operation=target.path.rpartition("/")[2],
                fields=json.loads(texts.get(b"request", b"{}")),
                headers=headers,
                image=image or None,
                image_id=texts[b"image_id"].decode() if b"image_id" in texts else None,
                path=target.path,
            )
            answer = service.receive(received)
            reply = answer if isinstance(answer, Reply) else Reply(body=answer)
            if isinstance(answer, Problem):
                later = {} if answer.retry_after is None else {"retry-after": str(answer.retry_after)}
                reply = Reply(400, {"code": answer.code, "detail": answer.detail}, later)
            if reply.hang_up:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            usual = {"content-length": str(len(content)), "x-request-id": headers.get("x-request-id", "")}
            for name, value in {**usual, **reply.headers}.items():
                self.send_header(name, value)
            with contextlib.suppress(OSError):  # the client may have left
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 (as http.server calls it)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = StandIn(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

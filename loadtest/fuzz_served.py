"""The real server that requests of the fuzzing are sent to, over HTTP and gRPC.

It serves tiny models, so that thousands of inputs reach the end of a pipeline.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
from google.protobuf.message_factory import GetMessageClass

from loadtest.answers import PASSED, UNPROVOKED, Violation, code_of, judged
from loadtest.server import Server, free_port, running
from service.grpc.server import SEGMENTATION

MOST_S: Final = 30.0
"""Until an answer."""

SETTINGS: Final[Mapping[str, str]] = {
    "input_size": "512",
    "max_megapixels": "1",
    "max_upload_mib": "1",
    "log_level": "WARNING",
}

_ADDRESS: Final = "FUZZED_SERVER"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is."""

    http: str
    grpc: str

    @classmethod
    def current(cls) -> Address:
        """Return that of the server that this process, or its parent, started."""
        return cls(*os.environ[_ADDRESS].split(","))


@dataclass(frozen=True, slots=True)
class HttpInput:
    """A request; its first line as bytes is the JSON of all but the body."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return json.dumps([self.method, self.target, list(self.headers)]).encode() + b"\n" + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> HttpInput:
        """Read it."""
        head, _, body = data.partition(b"\n")
        method, target, headers = json.loads(head)
        return cls(method, target, [(name, value) for name, value in headers], body)


@dataclass(frozen=True, slots=True)
class GrpcInput:
    """A call; its first line as bytes is the JSON of path, metadata and the lengths of its messages."""

    path: str
    metadata: Sequence[tuple[str, str]]
    messages: Sequence[bytes]

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        head = [self.path, list(self.metadata), [len(message) for message in self.messages]]
        return json.dumps(head).encode() + b"\n" + b"".join(self.messages)

    @classmethod
    def from_bytes(cls, data: bytes) -> GrpcInput:
        """Read it."""
        head, _, rest = data.partition(b"\n")
        path, metadata, lengths = json.loads(head)
        messages = []
        for length in lengths:
            messages.append(rest[:length])
            rest = rest[length:]
        return cls(path, [(name, value) for name, value in metadata], messages)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run the server, for this process and those that it starts meanwhile."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(
            Path(scratch), bento="loadtest.peers.serve_tiny:Pomona", grpc_port=str(free_port()), **SETTINGS
        ) as server,
    ):
        os.environ[_ADDRESS] = f"{server.address},127.0.0.1:{server.grpc_port}"
        try:
            yield server
        finally:
            _client().close()
            _channel().close()
            _client.cache_clear()
            _channel.cache_clear()
            del os.environ[_ADDRESS]


def complaints(log: str) -> list[str]:
    """Return lines of a server's log that no input may lead to: errors and tracebacks."""
    return [line for line in log.splitlines() if "Traceback" in line or '"level": "ERROR"' in line or " ERROR " in line]


def send(data: bytes) -> str:
    """Send an `HttpInput` and judge the answer; see `Target.use`."""
    return judged(answer_of(HttpInput.from_bytes(data)))


def answer_of(given: HttpInput) -> httpx.Response:
    """Send a request.

    Raises:
        httpx.TransportError: there was no answer, or none in time.
    """
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.headers]
    request = httpx.Request(given.method, Address.current().http + given.target, headers=headers, content=given.body)
    return _client().send(request)


def call(data: bytes) -> str:
    """Call a method with a `GrpcInput` and judge how it ended; see `Target.use`.

    Returns:
        Of a stream, `PASSED` where any frame was answered, else the code of the last one.
    """
    given = GrpcInput.from_bytes(data)
    method: Any = _channel().stream_stream(given.path)
    outcome = PASSED
    try:
        replies = list(method(iter(given.messages), timeout=MOST_S, metadata=given.metadata))
    except grpc.RpcError as error:
        return code_of(error)
    if given.path.endswith("Stream"):
        outcome = _stream_outcome(given.path, replies, len(given.messages))
    elif len(replies) != 1:
        raise Violation(f"a call must have one answer, got {len(replies)}")
    return outcome


def _stream_outcome(path: str, replies: Sequence[bytes], sent: int) -> str:
    if len(replies) > sent:
        raise Violation(f"{sent} messages had {len(replies)} replies")
    reply_type = GetMessageClass(SEGMENTATION.methods_by_name[path.rpartition("/")[2]].output_type)
    codes = [reply_type.FromString(reply).problem.code for reply in replies]  # type: ignore[attr-defined]
    if unprovoked := set(codes) & UNPROVOKED:
        raise Violation(f"frames were refused with {', '.join(unprovoked)}")
    return codes[-1] if codes and all(codes) else PASSED


@cache
def _client() -> httpx.Client:
    return httpx.Client(timeout=MOST_S)


@cache
def _channel() -> grpc.Channel:
    return grpc.insecure_channel(Address.current().grpc, options=[("grpc.max_receive_message_length", -1)])

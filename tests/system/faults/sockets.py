"""Callers that misbehave, as plain sockets."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from tests.fakes import PATIENCE_S


def opened(port: int, sent: bytes = b"") -> closing[socket.socket]:
    """Connect, and send something."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.sendall(sent)
    return closing(connection)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: pomona\r\n\r\n".encode()


def upload(size: int, sent: int, path: str = "/v1/embed") -> bytes:
    """The head of an upload of `size` bytes, and the first of them."""
    head = f"POST {path} HTTP/1.1\r\nhost: pomona\r\ncontent-type: image/png\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + bytes(sent)


@contextmanager
def begin_upload(port: int, size: int) -> Iterator[socket.socket]:
    """Connect, send the head of an upload, and go on once the server waits for its body."""
    with opened(port, upload(size, 0).replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n")) as connection:
        assert received(connection).startswith(b"HTTP/1.1 100 ")
        yield connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read an answer to its end; return its status and what follows its head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, body = data.split(b"\r\n\r\n", 1)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += received(connection)
    return int(head.split()[1]), body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the connection was closed"
    return data


def seconds_open(connection: socket.socket) -> float:
    """Return the seconds until the server closes."""
    began = time.monotonic()
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed; nothing may be waiting to be read."""
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True

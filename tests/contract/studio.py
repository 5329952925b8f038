"""A server that stands in for Label Studio's storage: it serves files to its token, and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

LEGACY: Final = "0123456789abcdef0123456789abcdef01234567"
PERSONAL: Final = "header.payload.signature"


@dataclass
class Studio:
    """See the module.

    Attributes:
        files: content by path, for `GET` with the token.
        redirects: where a path leads to.
        slow: paths of which one byte comes at a time, until the test ends.
        access: what a personal access token is exchanged for; None to refuse it.
        requests: method and path of every request that came, with its header `authorization`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    access: str | None = "short-lived"
    requests: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.split("\r\n")
            method, target, _ = line.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((f"{method} {target}", headers.get("authorization", "")))
            await self._reply(writer, method, target, headers.get("authorization", ""), body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _reply(
        self, writer: asyncio.StreamWriter, method: str, target: str, authorization: str, body: bytes
    ) -> None:
        path = target.partition("?")[0]
        if method == "POST" and path == "/api/token/refresh/":
            fits = self.access is not None and json.loads(body) == {"refresh": PERSONAL}
            _send(writer, 200 if fits else 401, json.dumps({"access": self.access}).encode() if fits else b"{}")
        elif path in self.redirects:
            _send(writer, 302, b"", f"location: {self.redirects[path]}\r\n")
        elif authorization not in (f"Token {LEGACY}", f"Bearer {self.access}"):
            _send(writer, 401, b"{}")
        elif path in self.slow:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.005)
        elif target in self.files:
            _send(writer, 200, self.files[target])
        else:
            _send(writer, 404, b"{}")
        await writer.drain()


def _send(writer: asyncio.StreamWriter, status: int, body: bytes, more: str = "") -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{more}\r\n"
    writer.write(head.encode() + body)


@asynccontextmanager
async def open_studio() -> AsyncIterator[Studio]:
    studio = Studio()
    server = await asyncio.start_server(studio.answer, "127.0.0.1", 0)
    studio.port = server.sockets[0].getsockname()[1]
    try:
        yield studio
    finally:
        server.close()

"""What uvicorn's HTTP protocol does not bound: the bytes of a request's head, of trailers, and pipelined requests."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of request line and headers, or of chunk extensions and trailers between two pieces of a body."""

_MAX_PIPELINED: Final = 16
_PIECE: Final = 16 * 1024
"""Bytes that are parsed at a time: a head may be this much longer before it is noticed."""

_TOO_LARGE: Final = (
    b'{"type":"urn:pomona:problem:headers_too_large","title":"The headers are too large","status":431,'
    b'"detail":"Request line and headers must have at most 65536 bytes.","code":"headers_too_large"}'
)


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections whose heads, trailers or pipelines are larger than any caller needs."""

    _apart = 0
    """Bytes since the last piece of a body, or since the request began."""

    def data_received(self, data: bytes) -> None:
        """Parse in pieces, of any buffer: what the parser collects of an unfinished header is not known."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._apart += len(piece)
            super().data_received(piece)  # type: ignore[arg-type]
            if self.transport.is_closing():
                return
            if self._apart > MAX_HEAD_BYTES:
                self._refuse()
                return

    def on_message_begin(self) -> None:
        """Begin to count a request's head."""
        self._apart = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Let it be answered."""
        self._apart = 0
        if len(self.pipeline) >= _MAX_PIPELINED:
            self.transport.close()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._apart = 0
        super().on_body(body)

    def _refuse(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            head = (
                STATUS_LINE[431],
                b"content-type: application/problem+json\r\ncontent-length: %d\r\n" % len(_TOO_LARGE),
                b"connection: close\r\n\r\n",
            )
            self.transport.write(b"".join((*head, _TOO_LARGE)))
        self.transport.close()

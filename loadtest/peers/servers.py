"""How each server is started and asked."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import PIL.Image

from loadtest.peers.model import Work
from loadtest.server import Server, environment_of, free_port, launched
from loadtest.wire import CONTENT_TYPE, multipart, post
from models.types import Size

POMONA: Final = "Pomona"
POMONA_RAW: Final = "Pomona, raw body"
LITSERVE: Final = "LitServe"
MOSEC: Final = "mosec, raw body"
BENTOML: Final = "BentoML batchable"

COLOURS: Final = {
    POMONA: "#2e8b57",
    POMONA_RAW: "#8fce9f",
    LITSERVE: "#f0b429",
    MOSEC: "#4292c6",
    BENTOML: "#8e7cc3",
}
"""In plots."""

STRIP: Final = Size(16, 256)
"""Of the image that is sent: so small that neither its pixels nor its masks are what is measured.

A decoder batch is bounded in cells: what is one image of the full square is `BATCH` of these."""

_REQUEST: Final = json.dumps({"prompts": [{"points": [[128, 8]], "multimask": False}]})
_END_WITHIN_S: Final = 10


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it goes over the wire, without what differs from one to the next.

    Attributes:
        path: with its query.
        content_type: of the body.
        body: as it is.
        deadline_header: which header tells the server the milliseconds that are left; None where it knows none.
    """

    path: str
    content_type: str
    body: bytes
    deadline_header: str | None = None

    def chunks(self, left_ms: float | None = None) -> tuple[bytes, bytes]:
        """Head and body."""
        told = self.deadline_header is not None and left_ms is not None
        extra = {self.deadline_header or "": f"{left_ms:.1f}"} if told else None
        return post(self.path, self.content_type, self.body, extra)


def padded_jpeg(size: Size, length: int) -> bytes:
    """A grey JPEG with zeros behind its end, `length` bytes in all: readers stop at a JPEG's end.

    Raises:
        ValueError: it is longer by itself.
    """
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (size.width, size.height), (128, 128, 128)).save(encoded, "JPEG")
    data = encoded.getvalue()
    if len(data) > length:
        raise ValueError(f"a JPEG of {size} takes {len(data)} bytes, more than {length}")
    return data.ljust(length, b"\0")


def calls(image: bytes) -> dict[str, Call]:
    """By server, in its fastest documented form; Pomona in both of its forms."""
    form = multipart({"request": _REQUEST}, image)
    deadline = "X-Deadline-Ms"
    return {
        POMONA: Call("/v1/segment", CONTENT_TYPE, form, deadline),
        POMONA_RAW: Call(f"/v1/segment?request={quote(_REQUEST)}", "image/jpeg", image, deadline),
        LITSERVE: Call("/predict", CONTENT_TYPE, multipart({}, image)),
        MOSEC: Call("/inference", "application/octet-stream", image),
        BENTOML: Call("/segment", CONTENT_TYPE, multipart({}, image, "images")),
    }


@contextlib.contextmanager
def serving(names: Sequence[str], work: Work) -> Iterator[dict[str, Server]]:
    """Run a server of its own for each name, all at once.

    Raises:
        ServerFailed: one did not start.
    """
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            servers[name] = stack.enter_context(_starting(name, folder, work))
        yield servers


@contextlib.contextmanager
def _starting(name: str, folder: Path, work: Work) -> Iterator[Server]:
    port = free_port()
    environment, ready = environment_of(port, models="mobile-sam") | work.environment(), "/readyz"
    module = "loadtest.peers.serve_"
    if name in (POMONA, POMONA_RAW):
        arguments = ["-m", "bentoml", "serve", f"{module}pomona:Pomona"]
    elif name == LITSERVE:
        arguments, ready = ["-m", f"{module}litserve", str(port)], "/health"
    elif name == MOSEC:
        limits = [] if work.timeout_ms is None else ["--timeout", str(work.timeout_ms)]
        arguments = ["-m", f"{module}mosec", "--address", "127.0.0.1", "--port", str(port), *limits]
        ready = "/"
    else:
        arguments = ["-m", "bentoml", "serve", f"{module}bentoml:Plain", "--host", "127.0.0.1", "--port", str(port)]
    with launched(folder, port, arguments, environment, ready=ready) as server:
        yield server
        # Whoever does not end in time is killed.
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(_END_WITHIN_S)

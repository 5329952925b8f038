"""Plain BentoML, one worker: its own API with its batcher, and an ASGI app that only reads the body.

bentoml serve loadtest.peers.serve_bentoml:Plain (or :Bare)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import bentoml
from starlette.types import Receive, Scope, Send

from loadtest.peers import ANSWER, BATCH, Work

_WORK = Work.from_environment()
_DEFAULT_MAX_LATENCY_MS: Final = 60_000
_BODY: Final = b'{"masks": []}'.ljust(400)
"""As long as Pomona's answer to the same request."""

_HEADERS: Final = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]


async def read_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body and answer with 400 bytes."""
    if scope["type"] != "http":
        return
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    b"".join(parts)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


@bentoml.service(name="plain", workers=1, logging={"access": {"enabled": False}})
class Plain:
    """Answers nothing about images."""

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=_WORK.timeout_ms or _DEFAULT_MAX_LATENCY_MS)
    def segment(self, images: list[Path]) -> list[dict[str, Any]]:
        """Return an answer for each image."""
        _WORK.run(len(images))
        return [ANSWER] * len(images)


# The options of `service.app`: what differs is Pomona's own code.
@bentoml.service(
    name="bare",
    workers=1,
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(read_body, path="/")
class Bare:
    """What BentoML's worker and its server take by themselves."""

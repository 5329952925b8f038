"""What the services of the door share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from service.errors import NotReady
from service.grpc.attempts import Attempts
from service.grpc.frame_stream import FrameStream
from service.pipeline import Pipeline
from service.settings import Settings


@dataclass(slots=True)
class Desk:
    """See the module.

    Attributes:
        settings: limits.
        attempts: for what the interceptor cannot count, as it is a part of a call.
        pipeline: None until the models are ready.
    """

    settings: Settings
    attempts: Attempts
    pipeline: Pipeline | None = None
    _streams: set[FrameStream[Any, Any]] = field(default_factory=set)
    _ending: bool = False

    def ready(self) -> Pipeline:
        """The pipeline.

        Raises:
            NotReady: the models are still loading.
        """
        if self.pipeline is None:
            raise NotReady("Models are still loading; the health service tells when they are ready.")
        return self.pipeline

    @contextmanager
    def streaming(self, stream: FrameStream[Any, Any]) -> Iterator[None]:
        """While a stream is open: when the server ends, no more of its frames are read.

        Raises:
            NotReady: the server ended it.
        """
        self._streams.add(stream)
        if self._ending:
            stream.halt()
        try:
            yield
        finally:
            self._streams.discard(stream)
        if stream.halted:
            raise NotReady("The server stops. The frames that have no answer were not looked at: send them elsewhere.")

    def end(self) -> None:
        """Take no more frames."""
        self._ending = True
        for stream in self._streams:
            stream.halt()

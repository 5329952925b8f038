"""The async client: the sync one's methods, to be awaited, under asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import TypeVar

from pomona.asking import AsyncAsking, Wish
from pomona.asks import (
    Ask,
    Embed,
    InputSize,
    Inspect,
    ListModels,
    MaskFormat,
    Mode,
    OutlineFormat,
    Padding,
    Ready,
    Segment,
    Semantic,
)
from pomona.calls import ImageLike
from pomona.client import DEFAULT_URL
from pomona.errors import PomonaError
from pomona.facts import Capture
from pomona.images import ImageSource
from pomona.results import Embedding, Inspection, Model, Segmentation, SemanticMap
from pomona.retrying import Retry, Timeout, timeout_of
from pomona.shapes import Prompts
from pomona.streams import FrameAnswer, StreamOptions, Taken
from pomona.task_stream import Frames, streamed
from pomona.transport import AsyncStreamingTransport, AsyncTransport
from pomona.transports import Way

T = TypeVar("T")


class AsyncClient:
    """Asks a Pomona service, from one event loop; see `pomona.Client`, whose arguments and methods it has.

    A task that is cancelled while it waits cancels its work in the service too.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: Timeout | float | None = None,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        transport: AsyncTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = timeout_of(timeout)
        self._asking = AsyncAsking(limits, retry or Retry(), sleep)
        way = Way(url, headers, tls, limits.connect)
        self._transport = transport or way.async_transport()

    async def segment(
        self,
        image: ImageLike,
        prompts: Prompts,
        *,
        model: str | None = None,
        multimask: bool = True,
        format: MaskFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Segmentation:
        """Masks for prompts; see `pomona.Client.segment`."""
        ask = Segment(
            prompts,
            model=model,
            multimask=multimask,
            format=format,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return await self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def inspect(
        self,
        image: ImageLike,
        *,
        mode: Mode = "auto",
        model: str | None = None,
        sam_model: str | None = None,
        grades: Mapping[str, float] | None = None,
        format: OutlineFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Inspection:
        """Every fruit, how much of it is infected, and its grade; see `pomona.Client.inspect`."""
        ask = Inspect(mode=mode, model=model, sam_model=sam_model, grades=grades, format=format, overlay=overlay)
        capture = Capture(frame_id, trigger_id, captured_at_ns)
        return await self.ask(ask, image, capture, deadline=deadline, urgency=urgency, request_id=request_id)

    async def semantic(
        self,
        image: ImageLike,
        *,
        model: str | None = None,
        format: OutlineFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> SemanticMap:
        """Which pixels are healthy fruit, which infected; see `pomona.Client.semantic`."""
        ask = Semantic(model=model, format=format, overlay=overlay)
        return await self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def embed(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Embedding:
        """Encode a picture once, to prompt it often; see `pomona.Client.embed`."""
        ask = Embed(model=model, input_size=input_size, padding=padding)
        return await self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def models(self) -> tuple[Model, ...]:
        """What is loaded, first, and what could be."""
        return await self.ask(ListModels())

    async def ready(self) -> bool:
        """Whether the service has its models loaded; see `pomona.Client.ready`."""
        return await self.ask(Ready())

    async def ask(
        self,
        ask: Ask[T],
        image: ImageLike | None = None,
        capture: Capture | None = None,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> T:
        """Ask what an `Ask` says; the other methods are this one under friendlier names."""
        wish = Wish(deadline, urgency, request_id)
        return await self._asking.ask(self._transport, ask, image, capture, wish)

    def stream(
        self,
        frames: Frames,
        ask: Ask[T],
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        in_flight: int = 4,
        ordered: bool = True,
        newest_first: bool = False,
    ) -> AsyncGenerator[FrameAnswer[T], None]:
        """Ask the same of every frame of a camera; see `pomona.Client.stream`.

        `frames` may be an async iterable. Who leaves the loop early and closes the stream (`contextlib.aclosing`)
        cancels the frames on their way, in the service too.
        """
        options = StreamOptions(in_flight, ordered=ordered, newest_first=newest_first)
        whole = self._transport
        own = whole.astream(ask, in_flight) if isinstance(whole, AsyncStreamingTransport) else None

        async def answer(taken: Taken) -> FrameAnswer[T]:
            frame = taken.frame
            capture = Capture(frame.frame_id, frame.trigger_id, frame.captured_at_ns)
            try:
                wish = Wish(taken.left(deadline), urgency)
                result = await self._asking.ask(own or whole, ask, frame.image, capture, wish)
            except PomonaError as error:
                return FrameAnswer(frame, error=error)
            return FrameAnswer(frame, result)

        async def leave() -> None:
            if own is not None:
                await own.aclose()

        return streamed(frames, answer, options, leave=leave)

    async def close(self) -> None:
        """Let go of connections; calls after it raise `ClientClosed`."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

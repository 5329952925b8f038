"""The async client: the sync one's methods, to be awaited, under asyncio."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import TypeVar

from pomona.asks import (
    Ask,
    Call,
    Embed,
    Frame,
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
from pomona.calls import ImageLike, call_of, with_picture
from pomona.client import DEFAULT_URL
from pomona.errors import PomonaError
from pomona.facts import Capture, ImageInfo
from pomona.http_transport import AsyncHttpTransport
from pomona.images import ImageSource
from pomona.results import Embedding, Inspection, Model, Segmentation, SemanticMap
from pomona.retrying import Plan, Retry, RetryBudget, Timeout, Wait, answered, conversation, timeout_of
from pomona.shapes import Prompts
from pomona.streams import FrameAnswer, Outbox, checked_in_flight
from pomona.task_stream import Frames, streamed
from pomona.transport import AsyncTransport

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
        self._timeout = timeout_of(timeout)
        self._retry = retry or Retry()
        self._budget = RetryBudget(self._retry)
        self._transport = transport or AsyncHttpTransport(url, headers=headers, tls=tls)
        self._sleep = sleep

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
        plan = Plan(
            timeout=self._timeout,
            retry=self._retry,
            budget=self._budget,
            deadline=deadline,
            urgency=urgency,
            request_id=request_id or uuid.uuid4().hex,
        )
        if image is None or isinstance(image, (bytes, Embedding, ImageInfo)):
            call = call_of(ask, image, capture)
        else:
            # Files are read and pixels encoded beside the event loop.
            call = await asyncio.to_thread(call_of, ask, image, capture)
        return with_picture(await self._converse(call, plan), call)

    def stream(
        self,
        frames: Frames,
        ask: Ask[T],
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        in_flight: int = 4,
        ordered: bool = True,
    ) -> AsyncGenerator[FrameAnswer[T], None]:
        """Ask the same of every frame of a camera; see `pomona.Client.stream`.

        `frames` may be an async iterable. Who leaves the loop early and closes the stream (`contextlib.aclosing`)
        cancels the frames on their way, in the service too.
        """

        async def answer(frame: Frame) -> FrameAnswer[T]:
            capture = Capture(frame.frame_id, frame.trigger_id, frame.captured_at_ns)
            try:
                result = await self.ask(ask, frame.image, capture, deadline=deadline, urgency=urgency)
            except PomonaError as error:
                return FrameAnswer(frame, error=error)
            return FrameAnswer(frame, result)

        return streamed(frames, answer, checked_in_flight(in_flight), Outbox(ordered))

    async def close(self) -> None:
        """Let go of connections; calls after it raise `ClientClosed`."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _converse(self, call: Call[T], plan: Plan) -> T:
        steps = conversation(call, plan)
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                await self._sleep(step.seconds)
                step = next(steps)
                continue
            try:
                answer = await self._transport.acall(step.call, step.attempt)
            except PomonaError as error:
                step = steps.throw(error)
            else:
                return answered(steps, answer)

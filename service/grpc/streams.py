"""A camera's stream: every frame is attempted for itself, and answered whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from service.callers import Refusal
from service.errors import PROBLEMS, DeadlineExceeded, DeadlineUnreachable, MalformedRequest
from service.grpc import answers
from service.grpc.attempts import Dropped
from service.grpc.calls import Call, Wish, current_call
from service.grpc.desk import Desk
from service.grpc.frame_stream import FrameStream, StreamOptions
from service.grpc.reading import capture_of, stream_options
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

Q = TypeVar("Q", pb.SegmentStreamRequest, pb.InspectStreamRequest)
A = TypeVar("A", pb.SegmentStreamResponse, pb.InspectStreamResponse)

_LATE: Final = (PROBLEMS[DeadlineExceeded], PROBLEMS[DeadlineUnreachable])


@dataclass(frozen=True, slots=True)
class Streams(Generic[Q, A]):
    """Streams of one kind.

    Attributes:
        desk: what the services share.
        frame_of: what the camera says of a frame.
        answer: gives a frame its answer, without what is told of every frame.
        reply: the message.
    """

    desk: Desk
    frame_of: Callable[[Q], pb.Frame]
    answer: Callable[[Q, Call], Awaitable[A]]
    reply: type[A]

    async def run(self, requests: AsyncIterator[Q]) -> AsyncGenerator[A, None]:
        """Answer the frames of one stream as they are ready.

        Raises:
            MalformedRequest: the settings, or a message that cannot be read; what came before is answered.
            NotReady: the server stopped reading.
        """
        call = current_call()

        async def answer(message: Q, number: int, turn: asyncio.Future[bool]) -> A:
            return await self._answer(call, message, number, turn)

        stream = FrameStream[Q, A](_settle, answer)
        with self.desk.streaming(stream):
            async with aclosing(stream.answers(requests)) as replies:
                async for reply in replies:
                    yield reply

    async def _answer(self, stream: Call, message: Q, number: int, turn: asyncio.Future[bool]) -> A:
        call = stream.frame(number, _wish(message))
        frame = self.frame_of(message)
        call.note_frame(frame.frame_id, frame.trigger_id)

        async def work() -> A:
            await _its_turn(turn, call.when().within)
            if message.HasField("settings"):
                raise MalformedRequest("Only the first message of a stream has settings.")
            if not message.HasField("request"):
                raise MalformedRequest("The message has no request.")
            capture_of(frame)
            return await self.answer(message, call)

        try:
            reply = await self.desk.attempts.make(call, work)
            reply.outcome = pb.FRAME_OUTCOME_ANSWERED
        except Dropped:
            reply = self.reply(outcome=pb.FRAME_OUTCOME_DROPPED)
        except Refusal as refusal:
            late = refusal.problem in _LATE
            outcome = pb.FRAME_OUTCOME_LATE if late else pb.FRAME_OUTCOME_FAILED
            reply = self.reply(outcome=outcome, problem=answers.problem(refusal))
        reply.request_id = call.request_id
        reply.frame.CopyFrom(frame)
        return reply


def _settle(first: Q) -> tuple[StreamOptions, Q | None]:
    """How a stream behaves, and the frame that came with its settings, if any."""
    options = stream_options(first.settings)
    first.ClearField("settings")
    return options, first if first.HasField("request") else None


def _wish(message: pb.SegmentStreamRequest | pb.InspectStreamRequest) -> Wish:
    return Wish(
        message.deadline_ms if message.HasField("deadline_ms") else None,
        message.urgency if message.HasField("urgency") else None,
    )


async def _its_turn(turn: asyncio.Future[bool], within: float | None) -> None:
    """Wait for it.

    Raises:
        DeadlineExceeded: it did not come in time.
        Dropped: it will not come.
    """
    try:
        async with asyncio.timeout(within):
            mine = await turn
    except TimeoutError as error:
        raise DeadlineExceeded("The deadline passed before the frame's turn came.") from error
    if not mine:
        raise Dropped

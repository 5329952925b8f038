"""Streams of a camera's frames: a bounded number at a time, each answered as it is ready and for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Generic, TypeVar

from models.inspection import Grade
from service.api.context import RequestContext, StreamScope
from service.api.handler import Dropped, Refusal
from service.api.operations import Operation
from service.api.parsing import parse_fields
from service.api.schema import Frame
from service.errors import PROBLEMS, DeadlineExceeded, DeadlineUnreachable, MalformedRequest, NotReady
from service.grpc.calls import Call, Messages, Received
from service.grpc.codec import read_request, reader, write_response
from service.pipelines.engine import Engine
from service.pipelines.follow import Follower, Verdicts
from service.pipelines.source import encoded
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

Q = TypeVar("Q")
A = TypeVar("A")

DEFAULT_IN_FLIGHT: Final = 8
MAX_IN_FLIGHT: Final = 64

_LATE: Final = (PROBLEMS[DeadlineExceeded], PROBLEMS[DeadlineUnreachable])
_FRAME_FIELDS: Final = ("frame_id", "trigger_id", "captured_at_ns")


_TRACKS: Final[Mapping[int, Verdicts]] = {pb.TRACK_LEAVING: "leaving", pb.TRACK_ALL: "all"}


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream behaves.

    Attributes:
        max_in_flight: most frames that are processed at a time.
        newest_first: of the frames beyond these only the newest waits for its turn; else none is read.
        track: whether fruit is followed, and which verdicts are answered; None where it is not.
    """

    max_in_flight: int = DEFAULT_IN_FLIGHT
    newest_first: bool = False
    track: Verdicts | None = None

    @property
    def max_unanswered(self) -> int:
        """Most frames that are read and not answered, where the caller takes no answers."""
        return 2 * self.max_in_flight + 1 if self.newest_first else self.max_in_flight

    @classmethod
    def of(cls, settings: pb.StreamSettings) -> StreamOptions:
        """Read the settings of a stream.

        Raises:
            MalformedRequest: they are out of range.
        """
        if settings.max_in_flight > MAX_IN_FLIGHT:
            raise MalformedRequest(f"max_in_flight must be 1 to {MAX_IN_FLIGHT}, got {settings.max_in_flight}.")
        if settings.when_full not in pb.WhenFull.values():
            raise MalformedRequest(
                f"when_full must be one of {pb.WhenFull.keys()}, got the number {settings.when_full}."
            )
        if settings.track not in pb.Track.values():
            raise MalformedRequest(f"track must be one of {pb.Track.keys()}, got the number {settings.track}.")
        newest_first = settings.when_full == pb.WHEN_FULL_DROP_OLDEST
        track = _TRACKS.get(settings.track)
        return cls(settings.max_in_flight or DEFAULT_IN_FLIGHT, newest_first=newest_first, track=track)


class Turns:
    """Who may be processed: at most so many at a time, and the newest of the others next."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: asyncio.Future[bool] | None = None

    def take(self) -> asyncio.Future[bool]:
        """Request a turn; it is true when it comes, and false when a newer request waits in its place."""
        turn = asyncio.get_running_loop().create_future()
        if self._free:
            self._free -= 1
            turn.set_result(True)
            return turn
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(False)
        self._waiting = turn
        return turn

    def leave(self, turn: asyncio.Future[bool]) -> None:
        """Give a turn back, or stop waiting for it."""
        if turn is self._waiting:
            self._waiting = None
        elif not turn.cancelled() and turn.result():
            if self._waiting is None or self._waiting.done():
                self._free += 1
            else:
                self._waiting.set_result(True)
            self._waiting = None


class FrameStream(Generic[Q, A]):
    """The frames of one stream.

    Args:
        settle: returns from the first message how the stream behaves, and the frame that came with it, if any.
        answer: answers a frame, once its turn comes where it has to wait for that; receives the frame, its number
            from 1, and the turn. It must answer errors as well.
    """

    def __init__(
        self,
        settle: Callable[[Q], tuple[StreamOptions, Q | None]],
        answer: Callable[[Q, int, asyncio.Future[bool]], Awaitable[A]],
    ) -> None:
        self._settle = settle
        self._answer = answer
        self._turns = Turns(0)
        self._room = asyncio.Semaphore(0)
        self._outbox: asyncio.Queue[A | None] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self.halted = False

    def halt(self) -> None:
        """Read no more frames; those that were read are answered."""
        self.halted = True
        if self._reading is not None:
            self._reading.cancel()

    async def answers(self, frames: AsyncIterator[Q]) -> AsyncGenerator[A, None]:
        """Answer frames in the order in which they are ready.

        Raises:
            Exception: what `frames` raised, after all that came before was answered.
        """
        working = asyncio.create_task(self._work(frames))
        try:
            while (answer := await self._outbox.get()) is not None:
                yield answer
                self._room.release()
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _work(self, frames: AsyncIterator[Q]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if not self.halted:
                    self._reading = group.create_task(self._read(frames, group))
        finally:
            self._outbox.put_nowait(None)

    async def _read(self, frames: AsyncIterator[Q], group: asyncio.TaskGroup) -> None:
        try:
            options, frame = self._settle(await anext(frames))
            self._turns, self._room = Turns(options.max_in_flight), asyncio.Semaphore(options.max_unanswered)
            for number in count(1):
                await self._room.acquire()
                if frame is None:
                    frame = await anext(frames)
                group.create_task(self._serve(frame, number, self._turns.take()))
                frame = None
        except StopAsyncIteration:
            return
        except Exception as failure:  # noqa: BLE001 (raised again once the frames before it are answered)
            self._failure = failure

    async def _serve(self, frame: Q, number: int, turn: asyncio.Future[bool]) -> None:
        try:
            self._outbox.put_nowait(await self._answer(frame, number, turn))
        finally:
            self._turns.leave(turn)


@dataclass(slots=True)
class OpenStreams:
    """The streams that are open, to be halted when the server stops."""

    _streams: set[FrameStream[Any, Any]] = field(default_factory=set)
    _stopping: bool = False

    @contextmanager
    def opened(self, stream: FrameStream[Any, Any]) -> Iterator[None]:
        """Note a stream while it is open.

        Raises:
            NotReady: the server stopped reading it.
        """
        self._streams.add(stream)
        if self._stopping:
            stream.halt()
        try:
            yield
        finally:
            self._streams.discard(stream)
        if stream.halted:
            raise NotReady("The server is stopping. Frames without an answer were not processed: send them elsewhere.")

    def halt(self) -> None:
        """Read no more frames."""
        self._stopping = True
        for stream in self._streams:
            stream.halt()


@dataclass(frozen=True, slots=True)
class OperationStream:
    """Answers streams of an operation.

    Attributes:
        operation: what is done with every frame.
        open: receives the streams while they are open.
        reply: the message.
    """

    operation: Operation
    open: OpenStreams
    reply: type[Any]

    async def run(self, requests: Messages, call: Call) -> AsyncGenerator[Any, None]:
        """Answer the frames of one stream as they are ready.

        Raises:
            MalformedRequest: the settings, or a message that cannot be read; what came before is answered.
            NotReady: the server stopped reading.
        """
        follower: Follower | None = None
        scope = StreamScope()

        def settle(first: Received) -> tuple[StreamOptions, Received | None]:
            nonlocal follower
            options, frame = _settle(first)
            if options.track is not None:
                if "tracking" not in self.reply.DESCRIPTOR.fields_by_name:
                    raise MalformedRequest("Only InspectStream follows fruit: leave the setting track out.")
                follower = Follower(options.track)
            return options, frame

        async def answer(received: Received, number: int, turn: asyncio.Future[bool]) -> Any:
            try:
                return await self._answer(call, received, number, turn, follower, scope)
            finally:
                if follower is not None:
                    follower.finish(number)

        stream = FrameStream[Received, Any](settle, answer)
        with self.open.opened(stream), scope:
            async with aclosing(stream.answers(requests)) as replies:
                async for reply in replies:
                    yield reply

    async def _answer(
        self,
        call: Call,
        received: Received,
        number: int,
        turn: asyncio.Future[bool],
        follower: Follower | None,
        scope: StreamScope,
    ) -> Any:
        """Answer a frame, whatever goes wrong."""
        message = received.message
        context, frame = call.frame(number), _frame_of(message)
        context.stream = scope
        following = None if follower is None else (number, follower)
        context.held.append(received.held)
        context.log.update({name: value for name in ("frame_id", "trigger_id") if (value := getattr(frame, name))})
        try:
            reply = await call.handle(context, lambda: self._followed(call, context, message, frame, turn, following))
            reply.outcome = pb.FRAME_OUTCOME_ANSWERED
        except Dropped:
            reply = self.reply(outcome=pb.FRAME_OUTCOME_DROPPED)
        except Refusal as refusal:
            outcome = pb.FRAME_OUTCOME_LATE if refusal.problem in _LATE else pb.FRAME_OUTCOME_FAILED
            reply = self.reply(outcome=outcome, problem=_problem(refusal))
        reply.request_id = context.request_id
        reply.frame.CopyFrom(frame)
        return reply

    async def _followed(
        self,
        call: Call,
        context: RequestContext,
        message: Any,
        frame: pb.Frame,
        turn: asyncio.Future[bool],
        following: tuple[int, Follower] | None,
    ) -> Any:
        """Answer a frame, with its fruit followed from the frames before where the stream asks for that."""
        answer, reply = await self._work(call, context, message, frame, turn)
        if following is not None:
            number, follower = following
            engine = call.door.ready().engine
            grades = [Grade(each.grade, each.max_infected_fraction) for each in message.request.grades]
            tracking = await follower.follow(number, answer, grades or _server_grades(engine), engine, context)
            write_response(tracking, reply.tracking)
        return reply

    async def _work(
        self, call: Call, context: RequestContext, message: Any, frame: pb.Frame, turn: asyncio.Future[bool]
    ) -> tuple[Any, Any]:
        call.set_deadline(
            context,
            deadline_ms=message.deadline_ms if message.HasField("deadline_ms") else None,
            urgency=message.urgency if message.HasField("urgency") else None,
        )
        await _its_turn(turn, context)
        if message.HasField("settings"):
            raise MalformedRequest("Only the first message of a stream may have settings.")
        if not message.HasField("request"):
            raise MalformedRequest("Every message but the first must have a request.")
        parse_fields(reader(Frame, frame.DESCRIPTOR)(frame), Frame)
        answer = await run_operation(self.operation, call, context, message.request)
        reply = self.reply()
        write_response(answer, reply.response)
        return answer, reply


async def run_operation(operation: Operation, call: Call, context: RequestContext, message: Any) -> Any:
    """Run an operation on a message; return its answer as the schema has it."""
    request = read_request(message, operation.request)
    image = encoded(None)
    if operation.image != "none":
        image_id = message.image_id if operation.image == "or_id" and message.HasField("image_id") else None
        image = encoded(message.image if message.HasField("image") else None, image_id)
    return await operation.answer(call.door.ready(), request, image, context)


def _server_grades(engine: Engine) -> list[Grade]:
    return [Grade(each.grade, each.max_infected_fraction) for each in engine.settings.grades]


def _frame_of(message: Any) -> pb.Frame:
    """Return what the camera says about a frame: in the message, or in the request of `InspectStream`."""
    if "frame" in message.DESCRIPTOR.fields_by_name:
        frame: pb.Frame = message.frame
        return frame
    request = message.request
    return pb.Frame(**{name: getattr(request, name) for name in _FRAME_FIELDS if request.HasField(name)})


def _settle(first: Received) -> tuple[StreamOptions, Received | None]:
    """Return how a stream behaves, and the frame that came with its settings, if any."""
    message = first.message
    options = StreamOptions.of(message.settings)
    message.ClearField("settings")
    if message.HasField("request"):
        return options, first
    first.held.release()
    return options, None


async def _its_turn(turn: asyncio.Future[bool], context: RequestContext) -> None:
    """Wait for the frame's turn.

    Raises:
        DeadlineExceeded: it did not come in time.
        Dropped: it will not come.
    """
    within = None if context.deadline is None else context.deadline - context.clock()
    try:
        async with asyncio.timeout(within):
            mine = await turn
    except TimeoutError as error:
        raise DeadlineExceeded("The deadline passed before the frame's turn came.") from error
    if not mine:
        raise Dropped


def _problem(refusal: Refusal) -> pb.Problem:
    seconds = refusal.retry_after
    return pb.Problem(
        code=refusal.problem.code,
        title=refusal.problem.title,
        detail=refusal.detail,
        retry_after_ms=None if seconds is None else 1000 * seconds,
    )

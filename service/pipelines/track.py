"""Objects followed over frames by a SAM 2: wait for the frame before, reserve, decode, encode, track, encode masks.

A session remembers its objects between frames, see `service.pipelines.sessions`. A frame that is refused or failed
leaves no trace in it, nor one that is late, unless it was with the device already.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Final

from models.errors import MalformedPrompt, MaskError, NoPrompt, PromptError
from models.images import Stop
from models.letterbox import Letterbox
from models.sam.postprocess import crop_of
from models.sam.prompts import check
from models.sam2.frames import FrameInputs, TrackedMask, mask_for
from models.types import BinaryMask, Prompt, Size
from service.api import schema, video
from service.api.context import RequestContext
from service.errors import FrameSizeChanged, MalformedRequest, UnknownSession, WrongFamily
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import describe_image, describe_sam, encode_mask
from service.pipelines.engine import Engine
from service.pipelines.prompts import check_count, check_points, prompt_of
from service.pipelines.segment import SegmentPipeline
from service.pipelines.sessions import Session, Sessions
from service.pipelines.source import ImageInput, ImageSource
from service.runners.sam2 import Sam2Runner
from service.scheduler.queue import BatchResult

_DECODE: Final = "track.decode"
_POSTPROCESS: Final = "track.postprocess"


@dataclass(frozen=True, slots=True)
class _Found:
    """The objects on a frame, its number in the session, its hash, and how it was stretched."""

    index: int
    image_id: str
    letterbox: Letterbox
    objects: list[video.TrackedObject]


@dataclass(frozen=True, slots=True)
class TrackPipeline:
    """See the module.

    Attributes:
        engine: models and threads.
        segment: encodes masks.
        sessions: of all callers.
    """

    engine: Engine
    segment: SegmentPipeline
    sessions: Sessions

    async def run(self, request: video.TrackRequest, image: ImageInput, context: RequestContext) -> video.TrackResponse:
        """Find the objects of a session on its next frame.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        source = image.required()
        prompts = self._prompts(request)
        session = self._session(request, context)
        context.model = session.runner.entry.name
        opened = request.session is None and context.stream is None
        try:
            # The place is taken before anything is waited for: frames are looked at in the order in which they came.
            async with session.turn() as turn, self.engine.in_time(context, session.runner):
                found = await self._find(session, request, prompts, source, turn, context)
        except BaseException:
            if opened:  # its caller never learned its name
                self.sessions.end(session, context.observer)
            raise
        return video.TrackResponse.model_construct(
            request_id=context.request_id,
            session=session.name,
            frame_index=found.index,
            image=describe_image(found.image_id, found.letterbox.original),
            model=describe_sam(session.runner, found.letterbox),
            objects=found.objects,
            frame=schema.Frame.model_construct(
                frame_id=request.frame_id, trigger_id=request.trigger_id, captured_at_ns=request.captured_at_ns
            ),
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    async def end(self, request: video.EndTrackRequest, context: RequestContext) -> video.EndTrackResponse:
        """Close a session.

        Raises:
            SessionExpired, UnknownSession: there is none.
        """
        session = self.sessions.get(request.session, context.caller, context.observer)
        context.model = session.runner.entry.name
        self.sessions.end(session, context.observer)
        return video.EndTrackResponse.model_construct(request_id=context.request_id, frames=session.state.frames)

    def _session(self, request: video.TrackRequest, context: RequestContext) -> Session:
        """Find the session, or open one: for this request, or for all frames of its stream."""
        stream = context.stream
        name = request.session or (None if stream is None else stream.track_session)
        if name is not None:
            session = self.sessions.get(name, context.caller, context.observer)
            if request.model not in (None, session.runner.entry.name):
                raise MalformedRequest(
                    f"model must be the session's, {session.runner.entry.name}, or be left out; got {request.model}."
                )
            return session
        runner = self.engine.runner(Sam2Runner, request.model)
        if not runner.tracks:
            raise WrongFamily(f"The checkpoint of {runner.entry.name} has no memory, and follows nothing.")
        session = self.sessions.open(runner, context.caller, context.observer)
        if stream is not None:
            stream.track_session = session.name
            stream.ending.append(lambda: self.sessions.end(session, context.observer))
        return session

    def _prompts(self, request: video.TrackRequest) -> dict[int, Prompt]:
        """Convert the prompts, by their objects' ids.

        Raises:
            TooManyPrompts, MalformedPrompt, MaskError: one is malformed; the error names it.
        """
        check_count(len(request.prompts), self.engine.settings)
        prompts: dict[int, Prompt] = {}
        for number, each in enumerate(request.prompts):
            prompt = prompt_of(number, each, multimask=True)
            check_points(number, prompt, self.engine.settings)
            if each.object_id in prompts:
                raise MalformedPrompt(f"prompts[{number}].object_id must occur once, got {each.object_id} again.")
            if prompt.mask is not None and (prompt.points or prompt.box is not None):
                raise MalformedPrompt(f"prompts[{number}] must have a mask alone, or points and a box without one.")
            if each.object_id in request.remove:
                raise MalformedRequest(f"prompts[{number}].object_id must not be in remove, got {each.object_id}.")
            prompts[each.object_id] = prompt
        return prompts

    async def _find(
        self,
        session: Session,
        request: video.TrackRequest,
        prompts: dict[int, Prompt],
        source: ImageSource,
        turn: Any,
        context: RequestContext,
    ) -> _Found:
        """Look for the objects once it is the frame's turn."""
        engine, sessions, runner = self.engine, self.sessions, session.runner
        size = await engine.size(source)
        letterbox = runner.letterbox(size)
        for number, prompt in enumerate(prompts.values()):
            try:
                check(prompt, letterbox)
            except PromptError as error:
                raise type(error)(f"prompts[{number}]: {error.detail}") from error
        small = source.nbytes <= costs.HASHED_AT_ONCE
        image_id = source.content_id() if small else await engine.in_worker(source.content_id)

        tick = engine.clock()
        await turn
        context.took("queue", engine.clock() - tick)
        if not sessions.is_open(session):
            raise UnknownSession("The session was ended while this frame waited for those before it.")
        followed = self._followed(session, request, prompts, size)
        sessions.set_aside(session, followed, context.observer)
        deadline = context.due(before=engine.predict(_POSTPROCESS, size, len(followed)))
        ready_by = engine.clock() + engine.predict(_DECODE, size)
        places = runner.reserve_frame(context, letterbox, max(1, len(followed)), deadline=deadline, ready_by=ready_by)
        step: asyncio.Future[BatchResult[list[TrackedMask]]] | None = None
        try:
            async with context.hold(Kind.QUEUED, costs.queued_sam(letterbox, len(followed), whole=False)):
                inputs = await self._inputs(prompts, request, letterbox, context)
                async with context.hold(Kind.WORK, source.decoding(size)):
                    prepared = await engine.decode(
                        context, _DECODE, size, lambda stop: self._prepared(runner, source, letterbox, stop)
                    )
                encoded = await runner.encode(places.encode, prepared)
                context.timings.encode, context.batch.encode = encoded.ran, encoded.batch_size
                session.step = step = asyncio.ensure_future(
                    runner.track(places.track, session.state, encoded.value, inputs)
                )
                step.add_done_callback(lambda done: self._stepped(session, done, context))
                tracked = await asyncio.shield(step)
                context.timings.prompt, context.batch.prompt = tracked.ran, len(tracked.value)
                context.timings.queue += encoded.queued + tracked.queued
                session.size = size
                index = session.state.frames - 1
                objects = await self._encode(tracked, letterbox, request.format, context)
        finally:
            places.release()
            if step is None:
                sessions.settle(session, context.observer)
        return _Found(index, image_id, letterbox, objects)

    def _stepped(self, session: Session, done: asyncio.Future[Any], context: RequestContext) -> None:
        """Note that the device is done with a frame, also where its caller has left."""
        if not done.cancelled():
            done.exception()  # retrieved
        self.sessions.settle(session, context.observer)

    def _followed(
        self, session: Session, request: video.TrackRequest, prompts: dict[int, Prompt], size: Size
    ) -> frozenset[int]:
        """Return which objects are looked for on a frame that is next in its session.

        Raises:
            FrameSizeChanged: it is not as large as those before it.
            MalformedRequest: an object that is to be removed is unknown.
            NoPrompt: there is nothing to follow.
        """
        if session.size not in (None, size):
            wanted = session.size or size
            raise FrameSizeChanged(
                f"All frames of a session must have one size, {wanted.width} x {wanted.height} pixels in this one, got "
                f"{size.width} x {size.height}: open another session."
            )
        known = session.state.objects
        for number, each in enumerate(request.remove):
            if each not in known:
                followed = ", ".join(map(str, known)) or "none"
                raise MalformedRequest(
                    f"remove[{number}] must be the id of a followed object ({followed}), got {each}."
                )
        wanted_ids = frozenset((known.keys() - set(request.remove)) | prompts.keys())
        if not (wanted_ids or request.remove):
            raise NoPrompt("The session follows no objects: the frame must have prompts.")
        return wanted_ids

    async def _inputs(
        self, prompts: dict[int, Prompt], request: video.TrackRequest, letterbox: Letterbox, context: RequestContext
    ) -> FrameInputs:
        """Decode mask prompts one after another, keeping of each what the tracker takes."""
        masks: dict[int, BinaryMask] = {}
        for number, (each, prompt) in enumerate(prompts.items()):
            if prompt.mask is None:
                continue
            async with context.hold(Kind.WORK, costs.mask_prompts([prompt])):
                try:
                    masks[each] = await self.engine.in_worker(mask_for, prompt, letterbox)
                except MaskError as error:
                    raise MaskError(f"prompts[{number}].mask: {error.detail}") from error
        clicks = {each: prompt for each, prompt in prompts.items() if prompt.mask is None}
        return FrameInputs(letterbox, clicks, masks, frozenset(request.remove))

    def _prepared(self, runner: Sam2Runner, source: ImageSource, letterbox: Letterbox, stop: Stop) -> Any:
        (pixels,) = source.resized([letterbox], self.engine.settings.max_pixels, stop)
        return runner.prepare(pixels, letterbox)

    async def _encode(
        self,
        tracked: BatchResult[list[TrackedMask]],
        letterbox: Letterbox,
        mask_format: schema.MaskFormat,
        context: RequestContext,
    ) -> list[video.TrackedObject]:
        """Upsample and encode the masks."""
        engine, found, size = self.engine, tracked.value, letterbox.original
        tick = engine.clock()
        objects = await self.segment.for_each(
            len(found), lambda row: _described(found[row], letterbox, mask_format), size, mask_format, context
        )
        seconds = engine.clock() - tick
        engine.learn(_POSTPROCESS, size, seconds, max(1, len(found)))
        context.took("postprocess", seconds)
        context.observer.postprocessed(seconds)
        return objects


def _described(found: TrackedMask, letterbox: Letterbox, mask_format: schema.MaskFormat) -> video.TrackedObject:
    mask = encode_mask(crop_of(found.logits, found.score, letterbox), mask_format)
    return video.TrackedObject.model_construct(
        object_id=found.object_id,
        visible=found.presence > 0,
        presence=1 / (1 + math.exp(-found.presence)),
        mask=mask.mask,
        score=mask.score,
        stability_score=mask.stability_score,
        box=mask.box,
        area=mask.area,
    )

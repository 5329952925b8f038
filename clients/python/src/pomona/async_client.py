"""The async client: builds requests, and carries out by awaiting what `pomona.retries.attempts` decides."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from pomona._calling import (
    DEFAULT_URL,
    BaseClient,
    drop_if_outdated,
    frames_in_flight,
    frames_of,
    grpc_transports,
    is_grpc,
    refuse_track,
)
from pomona._requests import (
    Automatic,
    Call,
    Detect,
    EdgeDepth,
    Edges,
    Embed,
    FindInstances,
    FindText,
    ImageLike,
    InputSize,
    Inspect,
    ListModels,
    Mode,
    Padding,
    Preset,
    Ready,
    Request,
    Segment,
    Semantic,
)
from pomona.errors import PomonaError
from pomona.http import AsyncHttpTransport
from pomona.images import ImageSource
from pomona.prompts import Point, Prompts
from pomona.proposals import EdgeMap, Progress, Proposals
from pomona.results import (
    Detections,
    Embedding,
    FrameInfo,
    ImageInfo,
    Inspection,
    Instances,
    Model,
    Segmentation,
    SemanticMap,
)
from pomona.retries import Plan, Retry, Timeout, Wait, attempts, first_attempt
from pomona.streams import FrameAnswer, Frames, StreamOptions, TakenFrame, astream_frames, failed
from pomona.transports import AsyncStreamingTransport, AsyncTransport, ClientCertificate, following, with_api_key
from pomona.video import EndTracking, TrackedFrame, TrackFrame

T = TypeVar("T")


class AsyncClient(BaseClient):
    """A client of a Pomona service for one event loop, with the methods and arguments of `Client`.

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
        api_key: str | None = None,
        client_certificate: ClientCertificate | None = None,
        transport: AsyncTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(timeout, retry)
        self._sleep = sleep
        options: dict[str, Any] = {
            "headers": with_api_key(headers, api_key),
            "tls": tls,
            "client_certificate": client_certificate,
        }
        self._transport: AsyncTransport
        if transport is not None:
            self._transport = transport
        elif is_grpc(url):
            self._transport = grpc_transports().GrpcTransport(url, **options, connect=self._timeout.connect)
        else:
            self._transport = AsyncHttpTransport(url, **options)

    async def segment(
        self,
        image: ImageLike,
        prompts: Prompts,
        *,
        model: str | None = None,
        multimask: bool = True,
        logits: bool = False,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Segmentation:
        """Return masks for prompts; see `Client.segment`."""
        request = Segment(
            prompts,
            model=model,
            multimask=multimask,
            logits=logits,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def inspect(
        self,
        image: ImageLike,
        *,
        mode: Mode = "auto",
        model: str | None = None,
        sam_model: str | None = None,
        grades: Mapping[str, float] | None = None,
        overlay: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Inspection:
        """Return every fruit, how much of it is infected, and its grade; see `Client.inspect`."""
        request = Inspect(mode=mode, model=model, sam_model=sam_model, grades=grades, overlay=overlay)
        frame = FrameInfo(frame_id, trigger_id, captured_at_ns)
        return await self.send(request, image, frame, deadline=deadline, urgency=urgency, request_id=request_id)

    async def semantic(
        self,
        image: ImageLike,
        *,
        model: str | None = None,
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> SemanticMap:
        """Return the class of every pixel; see `Client.semantic`."""
        request = Semantic(model=model, overlay=overlay)
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def detect(
        self,
        image: ImageSource,
        *,
        classes: Sequence[str] | None = None,
        model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Detections:
        """Return the boxes of objects of known classes; see `Client.detect`."""
        request = Detect(
            classes=classes,
            model=model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
            overlay=overlay,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def instances(
        self,
        image: ImageSource,
        *,
        classes: Sequence[str] | None = None,
        model: str | None = None,
        sam_model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_instances: int | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Instances:
        """Return masks of what a detector finds; see `Client.instances`."""
        request = FindInstances(
            classes=classes,
            model=model,
            sam_model=sam_model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_instances=max_instances,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def text(
        self,
        image: ImageSource,
        text: str,
        *,
        points: Sequence[Point] = (),
        model: str | None = None,
        sam_model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_instances: int | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Instances:
        """Return masks of what a text names; see `Client.text`."""
        request = FindText(
            text,
            points=points,
            model=model,
            sam_model=sam_model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_instances=max_instances,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

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
        """Encode an image once, to prompt it often; see `Client.embed`."""
        request = Embed(model=model, input_size=input_size, padding=padding)
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def automatic(
        self,
        image: ImageLike,
        *,
        preset: Preset = "full",
        points_per_side: int | None = None,
        crop_layers: int = 0,
        pred_iou_threshold: float | None = None,
        stability_score_threshold: float | None = None,
        box_nms_threshold: float | None = None,
        mask_nms_threshold: float | None = None,
        min_area: int = 0,
        max_area: int | None = None,
        min_side: int = 0,
        max_side: int | None = None,
        max_masks: int | None = None,
        model: str | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Proposals:
        """Return masks of everything in an image; see `Client.automatic`."""
        request = Automatic(
            preset=preset,
            points_per_side=points_per_side,
            crop_layers=crop_layers,
            pred_iou_threshold=pred_iou_threshold,
            stability_score_threshold=stability_score_threshold,
            box_nms_threshold=box_nms_threshold,
            mask_nms_threshold=mask_nms_threshold,
            min_area=min_area,
            max_area=max_area,
            min_side=min_side,
            max_side=max_side,
            max_masks=max_masks,
            model=model,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def edges(
        self,
        image: ImageLike,
        *,
        points_per_side: int | None = None,
        box_nms_threshold: float | None = None,
        thick: bool = False,
        depth: EdgeDepth = "8",
        model: str | None = None,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> EdgeMap:
        """Return the edges of everything in an image; see `Client.edges`."""
        request = Edges(
            points_per_side=points_per_side,
            box_nms_threshold=box_nms_threshold,
            thick=thick,
            depth=depth,
            model=model,
            input_size=input_size,
            padding=padding,
        )
        return await self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    async def follow(
        self,
        request: Automatic,
        image: ImageLike,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Progress | Proposals, None]:
        """Ask for everything in an image, and return masks as they are found; see `Client.follow`."""
        transport = following(self._transport)
        plan = self._plan(deadline, urgency, request_id)
        send = first_attempt(await self._call(request, image, None), plan)
        updates = transport.follow(send.call, send.attempt)
        try:
            while (update := await asyncio.to_thread(next, updates, None)) is not None:
                yield update
        finally:
            await asyncio.to_thread(updates.close)

    async def track(
        self,
        image: ImageSource,
        prompts: Mapping[int, Prompts] | None = None,
        *,
        session: str | None = None,
        remove: Sequence[int] = (),
        model: str | None = None,
        logits: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> TrackedFrame:
        """Return masks of objects that are followed over frames; see `Client.track`."""
        request = TrackFrame(prompts=prompts or {}, session=session, remove=remove, model=model, logits=logits)
        frame = FrameInfo(frame_id, trigger_id, captured_at_ns)
        return await self.send(request, image, frame, deadline=deadline, urgency=urgency, request_id=request_id)

    async def end_tracking(self, session: str) -> int:
        """Close a session of `track`; see `Client.end_tracking`."""
        return await self.send(EndTracking(session))

    async def models(self) -> tuple[Model, ...]:
        """Return the models of the catalogue, loaded ones first."""
        return await self.send(ListModels())

    async def ready(self) -> bool:
        """Return whether the service has its models loaded and warmed up; see `Client.ready`."""
        return await self.send(Ready())

    async def send(
        self,
        request: Request[T],
        image: ImageLike | None = None,
        frame: FrameInfo | None = None,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> T:
        """Send a request object; the other methods build one and call this."""
        refuse_track(request)
        plan = self._plan(deadline, urgency, request_id)
        return await self._send(self._transport, await self._call(request, image, frame), plan)

    async def _call(self, request: Request[T], image: ImageLike | None, frame: FrameInfo | None) -> Call[T]:
        if image is None or isinstance(image, (bytes, Embedding, ImageInfo)):
            return Call.of(request, image, frame)
        # Files are read and pixels encoded beside the event loop.
        return await asyncio.to_thread(Call.of, request, image, frame)

    async def _send(self, transport: AsyncTransport, call: Call[T], plan: Plan, taken: TakenFrame | None = None) -> T:
        steps = attempts(call, plan)
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                await self._sleep(step.seconds)
                drop_if_outdated(taken)
                step = next(steps)
                continue
            try:
                return call.finish(await transport.asend(step.call, step.attempt))
            except PomonaError as error:
                step = steps.throw(error)

    def stream(
        self,
        frames: Frames,
        request: Request[T],
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        in_flight: int = 4,
        ordered: bool = True,
        newest_first: bool = False,
        capture_clock: Callable[[], int] | None = time.time_ns,
    ) -> AsyncGenerator[FrameAnswer[T], None]:
        """Send a request for every frame of a camera; see `Client.stream`.

        `frames` may be an async iterable. Leaving the loop early and closing the stream (`contextlib.aclosing`) cancels
        the frames in flight, in the service too.
        """
        camera = frames_of(frames, request, or_async=True)
        in_flight = frames_in_flight(request, in_flight)
        options = StreamOptions(in_flight, ordered, newest_first, deadline, capture_clock)
        self._plan(deadline, urgency, None)  # checked before any frame is taken
        whole = self._transport
        own = whole.astream(request, in_flight) if isinstance(whole, AsyncStreamingTransport) else None
        if own is None:
            refuse_track(request)

        async def answer(taken: TakenFrame) -> FrameAnswer[T]:
            frame = taken.frame
            try:
                plan = self._frame_plan(taken, options, urgency)
                call = await self._call(request, frame.image, frame.info)
                return FrameAnswer(frame, await self._send(own or whole, call, plan, taken))
            except PomonaError as error:
                return failed(taken, error)

        async def close() -> None:
            if own is not None:
                await own.aclose()

        return astream_frames(camera, answer, options, close=close)

    async def close(self) -> None:
        """Close connections; later calls raise `ClientClosed`."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

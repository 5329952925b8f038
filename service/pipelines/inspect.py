"""Every fruit of an image, with its infected fraction and grade, by a U-Net and a SAM.

Reserve, decode, find the fruit with the U-Net, outline it with the SAM, grade, encode. In mode `auto` the U-Net's
fruit is also the answer wherever the SAM's outlines would be late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from models.backends.base import Embedding
from models.drift import Statistic, image_statistics
from models.images import Stop
from models.inspection import Fruit, Grade, Inspection, inspect_scales
from models.letterbox import HasResized, resize
from models.overlay import draw_fruits, encode_overlay
from models.types import Pixels
from models.unet.letterbox import UNetLetterbox
from service.api import schema
from service.api.context import RequestContext
from service.errors import DeadlineExceeded, DeadlineUnreachable, ModelNotLoaded, Overloaded
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.capturing import Capturing
from service.pipelines.detect import DetectPipeline, describe_detector
from service.pipelines.drifting import DriftWatches
from service.pipelines.encoding import describe_image, describe_sam, describe_unet, encode_fruits
from service.pipelines.engine import Engine
from service.pipelines.finding import Boxes, Finding
from service.pipelines.letterboxes import may_scale
from service.pipelines.looking import Look
from service.pipelines.refinement import Refinement, Refiner
from service.pipelines.shadow import Shadows, grades_of
from service.pipelines.source import ImageInput, ImageSource
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.scheduler.queue import BatchResult

_MARGIN_S: Final = 0.025
"""More than encoding takes, where the SAM may be given up at the last moment: the U-Net's fruit must not be late."""

_NO_SAM: Final = "No SAM is loaded, so the U-Net's outlines are the best there are."


@dataclass(slots=True)
class _Plan:
    """How a request is answered: its places on the device, and why it gets less than the best, where it does.

    Attributes:
        letterboxes: at which the U-Net sees the image; its answer is in cells of the first.
        reason: why there is no SAM.
    """

    letterboxes: Sequence[UNetLetterbox]
    reason: str | None
    look: Look | None = None
    refinement: Refinement | None = None
    degraded: bool = False
    finding: Finding | None = None
    boxes: asyncio.Task[Boxes] | None = None
    outputs: Sequence[Any] = ()

    @property
    def letterbox(self) -> UNetLetterbox:
        """That of the U-Net's answer."""
        return self.letterboxes[0]

    def degrade(self, reason: str) -> None:
        self.degraded, self.reason = True, reason

    def drop_sam(self, error: Exception) -> None:
        """Answer with the U-Net alone."""
        if self.refinement is not None:
            self.refinement.ticket.release()
            self.refinement = None
        self.degrade(f"The SAM's outlines would have been late. {error}".strip())

    def release(self) -> None:
        """Release every place that is not running."""
        if self.look is not None:
            self.look.release()
        if self.refinement is not None:
            self.refinement.ticket.release()
        if self.boxes is not None:
            self.boxes.cancel()


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image's id, the inputs of the U-Net and of the SAM, and where they are needed its pixels and statistics."""

    image_id: str
    small: Sequence[Any]
    large: Any
    pixels: Pixels | None
    statistics: Mapping[Statistic, float]


@dataclass(frozen=True, slots=True)
class InspectPipeline:
    """See the module. Nothing is kept of an image, unless another revision is to see it too.

    Attributes:
        engine: models and threads.
        refiner: the SAM's part.
        detect: finds boxes, where a detector is to find fruit.
        shadows: other revisions of the U-Net, where frames are to be compared.
        capturing: offers hard frames for capture, where that is wanted.
        drift: watches what U-Nets see and say.
    """

    engine: Engine
    refiner: Refiner
    detect: DetectPipeline
    shadows: Shadows | None = None
    capturing: Capturing | None = None
    drift: DriftWatches | None = None

    def unwatched(self) -> InspectPipeline:
        """Return this pipeline for images that are not of a line: nothing is compared, captured or counted of them."""
        return replace(self, shadows=None, capturing=None, drift=None)

    async def run(
        self, request: schema.InspectRequest, image: ImageInput, context: RequestContext
    ) -> schema.InspectResponse:
        """Find, outline and grade the fruit of an image.

        Raises:
            ImageError, NoImage: the image cannot be used.
            UnknownModel, WrongFamily: no such U-Net is loaded, or no such SAM where one is named or needed.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: there is no answer in time.
            BackendError: the device failed.
        """
        source = image.required()
        try:
            return await self._answer(request, source, context)
        except (DeadlineUnreachable, DeadlineExceeded) as late:
            if self.capturing is not None:
                self.capturing.late(source, request, context, late)
            raise

    async def _answer(
        self, request: schema.InspectRequest, source: ImageSource, context: RequestContext
    ) -> schema.InspectResponse:
        runner = self.engine.runner(UNetRunner, request.model)
        context.model = runner.entry.name
        sam, reason = self._sam(request)
        finding = Finding.of(self.detect, request)
        async with self.engine.in_time(context, runner), AsyncExitStack() as held:
            size = await self.engine.size(source)
            letterboxes = (runner.letterbox(size, fast=True),) if sam is None else runner.scales(size)
            plan = _Plan(letterboxes, reason)
            try:
                look = self._reserve(plan, request, runner, sam, context)
                await held.enter_async_context(context.hold(Kind.QUEUED, _waiting(plan, request)))
                if finding is not None:
                    plan.finding, plan.boxes = finding, asyncio.create_task(finding.find(source, context))
                decoded = await self._decode(plan, request, look, source, context)
                inspection = await self._look(plan, request, look, decoded, context)
            finally:
                plan.release()
            fruits, overlay = await self._encode(plan, request, runner, decoded, inspection, context)
            grades = grades_of(request.grades or self.engine.settings.grades)
            if self.shadows is not None:
                own, prepared = plan.outputs[0], decoded.small[0]
                self.shadows.offer(runner, prepared, plan.letterbox, own, source, grades, context)
        refinement = plan.refinement
        answer = schema.InspectResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(decoded.image_id, plan.letterbox.original),
            models=schema.InspectModels.model_construct(
                unet=describe_unet(runner, plan.letterbox),
                sam=None if refinement is None else describe_sam(refinement.runner, refinement.letterbox),
                detector=_describe_finding(plan),
            ),
            fruits=fruits,
            mode="fast" if refinement is None else "accurate",
            degraded=plan.degraded,
            reason=plan.reason,
            dismissed=inspection.dismissed,
            frame=schema.Frame.model_construct(
                frame_id=request.frame_id, trigger_id=request.trigger_id, captured_at_ns=request.captured_at_ns
            ),
            overlay=overlay,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )
        if self.capturing is not None:
            self.capturing.answered(source, answer, inspection.fruits, grades, runner.intervals)
        if self.drift is not None:
            self.drift.saw(runner, decoded.statistics, inspection.fruits, plan.letterbox.original)
        return answer

    def _sam(self, request: schema.InspectRequest) -> tuple[SamRunner | None, str | None]:
        """Choose the SAM that outlines fruit, or say why there is none."""
        if request.mode == "fast":
            return None, None
        try:
            return self.engine.runner(SamRunner, request.sam_model), None
        except ModelNotLoaded:
            if request.mode == "accurate" or request.sam_model is not None:
                raise
            return None, _NO_SAM

    def _reserve(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        runner: UNetRunner,
        sam: SamRunner | None,
        context: RequestContext,
    ) -> Look:
        """Reserve the places of a request on arrival: also the SAM's, where there is time for it."""
        size = plan.letterbox.original
        ready_by = self.engine.clock() + self._predict(_decode_work(whole=request.overlay or sam is not None), plan)
        if sam is not None:
            deadline = self._outlines_due(plan, request, context)
            # The U-Net's deadline is the earlier one: what it finds becomes the SAM's prompts.
            before = (
                None
                if deadline is None
                else deadline - self._predict(_find_work(plan), plan) - self.refiner.predict(sam, size)
            )
            try:
                plan.look = Look.reserve(runner, plan.letterboxes, context, deadline=before, ready_by=ready_by)
                plan.refinement = self.refiner.reserve(sam, size, context, deadline=deadline, ready_by=ready_by)
            except (DeadlineUnreachable, Overloaded) as refusal:
                if request.mode == "accurate":
                    raise
                plan.release()
                plan.drop_sam(refusal)
                plan.letterboxes = (runner.letterbox(size, fast=True),)
            else:
                if plan.refinement.degraded:
                    side = plan.refinement.letterbox.side
                    plan.degrade(f"To be in time, the SAM saw the image at {side} pixels.")
                return plan.look
        return self._reserve_alone(plan, request, runner, context, ready_by=ready_by)

    def _reserve_alone(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        runner: UNetRunner,
        context: RequestContext,
        *,
        ready_by: float,
    ) -> Look:
        """Reserve the U-Net's place where no SAM follows."""
        deadline = context.due(
            before=self._predict(_find_work(plan), plan) + self._predict(_encode_work(request), plan)
        )
        plan.look = Look.reserve(runner, plan.letterboxes, context, deadline=deadline, ready_by=ready_by)
        return plan.look

    async def _decode(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        look: Look,
        source: ImageSource,
        context: RequestContext,
    ) -> _Decoded:
        """Decode once for both models."""
        limit, size, refinement = self.engine.settings.max_pixels, plan.letterbox.original, plan.refinement
        letterboxes: list[HasResized] = [*look.letterboxes, *([] if refinement is None else [refinement.letterbox])]
        scaled = not request.overlay and (refinement is None or may_scale(refinement.letterbox))

        def decode(stop: Stop) -> _Decoded:
            pixels = source.pixels(limit, stop) if request.overlay else None
            if pixels is None:
                resized = source.resized(letterboxes, limit, stop, scaled=scaled)
            else:
                resized = [resize(pixels, each) for each in letterboxes]
            small, large = resized[: len(look.letterboxes)], resized[len(look.letterboxes) :]
            prepared = None if refinement is None else refinement.prepare(*large)
            watched = self.drift is not None and self.drift.watches(look.runner)
            statistics = image_statistics(small[0]) if watched else {}
            return _Decoded(source.content_id(), look.prepare(small), prepared, pixels, statistics)

        work = _decode_work(whole=request.overlay or refinement is not None)
        async with context.hold(Kind.WORK, source.decoding(size, letterboxes if scaled else [])):
            return await self.engine.decode(context, work, size, decode)

    async def _look(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        look: Look,
        decoded: _Decoded,
        context: RequestContext,
    ) -> Inspection:
        """Find the fruit, and let the SAM outline it."""
        refinement, tick = plan.refinement, self.engine.clock()
        if refinement is None:
            inspection, context.timings.postprocess = await self._find(plan, look, decoded, context)
            return inspection
        encoding = asyncio.ensure_future(refinement.runner.encode(refinement.ticket, decoded.large))
        try:
            try:
                inspection, _ = await self._find(plan, look, decoded, context)
            except DeadlineExceeded as late:
                # Too late for the SAM, which was to follow; the U-Net alone may be in time.
                if request.mode == "accurate":
                    raise
                plan.drop_sam(late)
                look.release()
                plan.letterboxes = plan.letterboxes[:1]
                alone = self._reserve_alone(plan, request, look.runner, context, ready_by=self.engine.clock())
                inspection, _ = await self._find(plan, alone, decoded, context)
            if inspection.fruits and plan.refinement is not None:
                inspection = await self._refine(plan, request, (refinement, encoding), inspection, context)
        finally:
            encoding.cancel()
            await asyncio.gather(encoding, return_exceptions=True)
        # Fruit is found while the SAM encodes: what did not run on the device was waiting.
        timings = context.timings
        ran = timings.infer + timings.encode + timings.prompt
        timings.queue = max(0.0, self.engine.clock() - tick - ran)
        return inspection

    async def _find(
        self, plan: _Plan, look: Look, decoded: _Decoded, context: RequestContext
    ) -> tuple[Inspection, float]:
        """Return what the U-Net sees, and how long it took to read that from its output."""
        plan.outputs = await look.see(decoded.small, context)
        tick = self.engine.clock()
        async with context.hold(Kind.WORK, costs.encoding_classes(plan.letterbox.original, overlay=False)):
            inspection = await self.engine.in_worker(inspect_scales, plan.outputs, look.letterboxes)
        seconds = self.engine.clock() - tick
        self.engine.learn(_find_work(plan), plan.letterbox.original, seconds)
        context.record("postprocess", seconds)
        return await self._with_boxes(plan, inspection, context), seconds

    async def _with_boxes(self, plan: _Plan, inspection: Inspection, context: RequestContext) -> Inspection:
        """Return the fruit that the detector finds, or that both find, where one is to find fruit and is in time."""
        if plan.finding is None or plan.boxes is None:
            return inspection
        tick = self.engine.clock()
        try:
            boxes = await plan.boxes
        except (DeadlineUnreachable, DeadlineExceeded, Overloaded) as late:
            if plan.finding.wanted:
                raise
            plan.finding = None
            plan.degrade(f"The detector would have been late: the U-Net alone found the fruit. {late}".strip())
            return inspection
        # It ran beside the U-Net: what was left to wait for is part of the whole.
        context.timings.infer += self.engine.clock() - tick
        return await self.engine.in_worker(plan.finding.combine, inspection, boxes.found)

    async def _refine(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        by: tuple[Refinement, Awaitable[BatchResult[Embedding]]],
        found: Inspection,
        context: RequestContext,
    ) -> Inspection:
        """Return the SAM's outlines, or the U-Net's where these would be late and the mode allows that."""
        deadline = self._outlines_due(plan, request, context)
        try:
            async with asyncio.timeout_at(None if request.mode == "accurate" else deadline):
                return await self.refiner.refine(*by, found, context, deadline, confirmed=plan.finding is not None)
        except (DeadlineUnreachable, DeadlineExceeded, Overloaded, TimeoutError) as late:
            if request.mode == "accurate":
                raise
            plan.drop_sam(late)
            return found

    async def _encode(
        self,
        plan: _Plan,
        request: schema.InspectRequest,
        runner: UNetRunner,
        decoded: _Decoded,
        inspection: Inspection,
        context: RequestContext,
    ) -> tuple[list[schema.Fruit], bytes | None]:
        """Grade and encode the fruit, and draw the overlay where requested."""
        tick, in_worker = self.engine.clock(), self.engine.in_worker
        grades = grades_of(request.grades or self.engine.settings.grades)
        overlay: bytes | None = None
        async with context.hold(Kind.WORK, costs.encoding_classes(plan.letterbox.original, overlay=request.overlay)):
            encoding = in_worker(encode_fruits, inspection.fruits, grades, runner.intervals, request.format)
            if request.overlay and decoded.pixels is not None:
                drawing = in_worker(_draw, decoded.pixels, inspection.fruits, grades)
                fruits, overlay = await asyncio.gather(encoding, drawing)
            else:
                fruits = await encoding
        seconds = self.engine.clock() - tick
        self.engine.learn(_encode_work(request), plan.letterbox.original, seconds)
        context.took("postprocess", seconds)
        context.observer.postprocessed(context.timings.postprocess)
        return fruits, overlay

    def _outlines_due(self, plan: _Plan, request: schema.InspectRequest, context: RequestContext) -> float | None:
        """Return when the outlines must be drawn."""
        encode = self._predict(_encode_work(request), plan)
        return context.due(before=encode if request.mode == "accurate" else encode + _MARGIN_S)

    def _predict(self, work: Hashable, plan: _Plan) -> float:
        return self.engine.predict(work, plan.letterbox.original)


def _describe_finding(plan: _Plan) -> schema.DetectorModel | None:
    if plan.finding is None or plan.boxes is None:
        return None
    return describe_detector(plan.finding.runner, plan.boxes.result().letterbox)


def _decode_work(*, whole: bool) -> Hashable:
    return "inspect.decode", whole


def _find_work(plan: _Plan) -> Hashable:
    return "inspect.find", len(plan.letterboxes)


def _encode_work(request: schema.InspectRequest) -> Hashable:
    return "inspect.encode", request.overlay


def _waiting(plan: _Plan, request: schema.InspectRequest) -> int:
    """Return the bytes that a request holds while it waits for the device."""
    letterbox, refinement = plan.letterbox, plan.refinement
    large = None if refinement is None else refinement.letterbox
    return costs.queued_fruits(
        [each.padded for each in plan.letterboxes], letterbox.original, large, whole=request.overlay
    )


def _draw(pixels: Pixels, fruits: list[Fruit], grades: list[Grade]) -> bytes:
    """Draw graded fruit into the image; PNG."""
    return encode_overlay(draw_fruits(pixels, fruits, grades))

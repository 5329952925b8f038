"""From an image to judged fruits: reserve, decode, find with the U-Net, redraw with the SAM, judge, encode.

In mode `auto` what the U-Net finds is also the answer wherever the SAM's outlines would be late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

from models import images
from models.backends.base import Embedding
from models.inspection import Inspection, inspect
from models.letterbox import resize
from models.types import Pixels
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from service.device_queue import Place, Ran
from service.errors import DeadlineExceeded, DeadlineUnreachable, ModelNotLoaded, Overloaded
from service.keys import megapixels
from service.messages import Drawer, Inspected, InspectRequest
from service.observability.tracing import took
from service.reception import Reception, Visit
from service.redrawing import Redrawer, Redrawing, earlier
from service.rendering import render_fruit_overlay, render_fruits
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.service_times import ServiceTimes
from service.work import Terms

_DECODE: Final = "decode"
_FIND: Final = "find"
_FINISH: Final = "finish"
_SPARE_S: Final = 0.025
"""More than encoding takes, where the SAM may be given up at the last moment: the U-Net's fruits must not be late."""

_NO_SAM: Final = "No SAM is loaded, so the U-Net's outlines are the best there are."

_Visit = Visit[UNetRunner]


@dataclass(slots=True)
class _Course:
    """How a request goes: its places on the device, and why it gets less than the best, where it does."""

    frame: UNetLetterbox
    reason: str | None
    place: Place | None = None
    redrawing: Redrawing | None = None
    degraded: bool = False

    def degrade(self, why: str) -> None:
        self.degraded, self.reason = True, why

    def without_sam(self, why: Exception) -> None:
        if self.redrawing is not None:
            self.redrawing.place.leave()
            self.redrawing = None
        self.degrade(f"The SAM's outlines would have been late. {why}".strip())

    def leave(self) -> None:
        """Give up every place that is not running."""
        if self.place is not None:
            self.place.leave()
        if self.redrawing is not None:
            self.redrawing.place.leave()


@dataclass(frozen=True, slots=True)
class _Image:
    """An image's id, what the U-Net and the SAM take of it, and all its pixels where these are needed."""

    image_id: str
    small: Any
    large: Any
    pixels: Pixels | None


@dataclass(frozen=True, slots=True)
class InspectionPath:
    """What a U-Net and a SAM answer together. Every image is looked at anew: nothing is kept of it.

    Attributes:
        reception: where requests begin.
        redrawer: the SAM's part.
        times: learned of what the workers do, by megapixels.
    """

    reception: Reception
    redrawer: Redrawer
    times: ServiceTimes = field(default_factory=ServiceTimes)

    async def inspect(self, request: InspectRequest) -> Inspected:
        """Validator every fruit of an image; see `Pipeline.inspect`."""
        visit = self.reception.arrive(UNetRunner, request.model, request.when)
        sam, reason = self._sam(request)
        async with self.reception.in_time(visit):
            size = images.read_size(request.data, max_pixels=self.reception.settings.max_pixels)
            course = _Course(unet_letterbox(size), reason)
            try:
                place = self._reserve(course, request, sam, visit)
                image = await self._decode(course, request, visit)
                inspection = await self._look(course, request, place, image, visit)
            finally:
                course.leave()
            return await self._finish(course, request, image, inspection, visit)

    def _sam(self, request: InspectRequest) -> tuple[SamRunner | None, str | None]:
        """Who is to draw the outlines, or why nobody does though somebody might."""
        if request.mode == "fast":
            return None, None
        try:
            return self.reception.arrive(SamRunner, request.sam_model, request.when).runner, None
        except ModelNotLoaded:
            if request.mode == "accurate" or request.sam_model is not None:
                raise
            return None, _NO_SAM

    def _reserve(self, course: _Course, request: InspectRequest, sam: SamRunner | None, visit: _Visit) -> Place:
        """Take the places of a request at the door: also the SAM's, where there is time for it."""
        size = course.frame.original
        find, finish = self._seconds(_FIND, course), self._seconds((_FINISH, request.overlay), course)
        whole = request.overlay or sam is not None
        ready_by = self.reception.clock() + self._seconds((_DECODE, whole), course)
        if sam is not None:
            try:
                drawn = self._terms(course, request, visit)
                # The U-Net's deadline is the earlier one: what it finds is asked of the SAM.
                found = earlier(drawn, find + self.redrawer.seconds(sam, size))
                course.place = visit.runner.reserve(found, course.frame, ready_by=ready_by)
                course.redrawing = self.redrawer.reserve(sam, size, drawn, ready_by)
            except (DeadlineUnreachable, Overloaded) as refusal:
                if request.mode == "accurate":
                    raise
                course.leave()
                course.without_sam(refusal)
            else:
                if course.redrawing.degraded:
                    side = course.redrawing.frame.side
                    course.degrade(f"To be in time, the SAM saw the image at {side} pixels.")
                return course.place
        terms = visit.terms(after=find + finish)
        course.place = visit.runner.reserve(terms, course.frame, ready_by=ready_by)
        return course.place

    async def _decode(self, course: _Course, request: InspectRequest, visit: _Visit) -> _Image:
        """Decode once for both models."""
        limit, frame, redrawing = self.reception.settings.max_pixels, course.frame, course.redrawing
        whole = request.overlay or redrawing is not None

        def decode() -> _Image:
            if whole:
                pixels = images.decode(request.data, max_pixels=limit).pixels
                small = resize(pixels, frame)
            else:
                pixels, small = None, images.decode_resized(request.data, frame.resized, max_pixels=limit)
            large = None if redrawing is None or pixels is None else redrawing.prepare(pixels)
            return _Image(images.content_id(request.data), visit.runner.prepare(small, frame), large, pixels)

        image = await self.reception.in_decoder(visit, decode)
        self._learn((_DECODE, whole), course, visit.timings.decode)
        return image

    async def _look(
        self, course: _Course, request: InspectRequest, place: Place, image: _Image, visit: _Visit
    ) -> Inspection:
        """Find the fruits, and let the SAM draw their outlines."""
        redrawing, tick = course.redrawing, self.reception.clock()
        if redrawing is None:
            inspection, visit.timings.postprocess = await self._find(course, place, image, visit)
            return inspection
        encoding = asyncio.ensure_future(redrawing.runner.encode(redrawing.place, image.large))
        try:
            inspection, _ = await self._find(course, place, image, visit)
            if inspection.fruits:
                inspection = await self._redrawn(course, request, (redrawing, encoding), inspection, visit)
        finally:
            encoding.cancel()
            await asyncio.gather(encoding, return_exceptions=True)
        # Fruits are found while the SAM encodes: what did not run on the device was waiting.
        timings = visit.timings
        ran = timings.infer + timings.encode + timings.prompt
        timings.queue = max(0.0, self.reception.clock() - tick - ran)
        return inspection

    async def _find(self, course: _Course, place: Place, image: _Image, visit: _Visit) -> tuple[Inspection, float]:
        """What the U-Net sees, and how long it took to read that from its output."""
        done = await visit.runner.infer(place, image.small)
        visit.timings.queue, visit.timings.infer = done.queued, done.ran
        visit.together.infer = done.batch
        tick = self.reception.clock()
        inspection = await self.reception.in_worker(inspect, done.value, course.frame)
        seconds = self.reception.clock() - tick
        self._learn(_FIND, course, seconds)
        took("postprocess", seconds)
        return inspection, seconds

    async def _redrawn(
        self,
        course: _Course,
        request: InspectRequest,
        by: tuple[Redrawing, Awaitable[Ran[Embedding]]],
        found: Inspection,
        visit: _Visit,
    ) -> Inspection:
        """With the SAM's outlines, or as it was found where these would be late and the mode allows that."""
        terms = self._terms(course, request, visit)
        try:
            async with asyncio.timeout_at(None if request.mode == "accurate" else terms.deadline):
                return await self.redrawer.redraw(*by, found, terms, visit)
        except (DeadlineUnreachable, DeadlineExceeded, Overloaded, TimeoutError) as late:
            if request.mode == "accurate":
                raise
            course.without_sam(late)
            return found

    async def _finish(
        self,
        course: _Course,
        request: InspectRequest,
        image: _Image,
        inspection: Inspection,
        visit: _Visit,
    ) -> Inspected:
        """Fruits graded and encoded, and the overlay where it was asked for."""
        tick, in_worker = self.reception.clock(), self.reception.in_worker
        grades = request.grades or tuple(grade.domain for grade in self.reception.settings.grades)
        overlay: bytes | None = None
        encoding = in_worker(render_fruits, inspection.fruits, grades, request.format)
        if request.overlay and image.pixels is not None:
            drawing = in_worker(render_fruit_overlay, image.pixels, inspection.fruits, grades)
            fruits, overlay = await asyncio.gather(encoding, drawing)
        else:
            fruits = await encoding
        seconds = self.reception.clock() - tick
        self._learn((_FINISH, request.overlay), course, seconds)
        visit.timings.postprocess += seconds
        took("postprocess", seconds)
        self.reception.observer.postprocessed(visit.timings.postprocess)
        by = course.redrawing
        return Inspected(
            image_id=image.image_id,
            frame=course.frame,
            model=visit.runner.entry,
            sam=None if by is None else Drawer(by.runner.entry, by.frame),
            fruits=fruits,
            degraded=course.degraded,
            reason=course.reason,
            capture=request.capture,
            overlay=overlay,
            timings=visit.timings,
            together=visit.together,
        )

    def _terms(self, course: _Course, request: InspectRequest, visit: _Visit) -> Terms:
        """Until when the outlines must be drawn."""
        finish = self._seconds((_FINISH, request.overlay), course)
        return visit.terms(after=finish if request.mode == "accurate" else finish + _SPARE_S)

    def _seconds(self, work: Hashable, course: _Course) -> float:
        return self.times.predict(work, megapixels(course.frame.original))

    def _learn(self, work: Hashable, course: _Course, seconds: float) -> None:
        self.times.learn(work, megapixels(course.frame.original), seconds)

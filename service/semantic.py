"""From an image to the class of every pixel: reserve, decode, infer, classify, encode."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models import images
from models.letterbox import resize
from models.types import Pixels
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.postprocess import objects
from service.device_queue import Place
from service.keys import megapixels
from service.messages import Classified, SemanticRequest
from service.observability.tracing import took
from service.reception import Reception, Visit
from service.rendering import render_class_overlay, render_classes
from service.runners.unet import UNetRunner
from service.service_times import ServiceTimes

_DECODE: Final = "decode"
_POSTPROCESS: Final = "postprocess"


@dataclass(frozen=True, slots=True)
class _Image:
    """An image's id, what the network takes of it, and its pixels where an overlay needs them."""

    image_id: str
    prepared: Any
    pixels: Pixels | None


@dataclass(frozen=True, slots=True)
class SemanticPath:
    """What U-Nets answer. Every image is looked at anew: nothing is kept of it.

    Attributes:
        reception: where requests begin.
        times: learned of what the workers do, by megapixels.
    """

    reception: Reception
    times: ServiceTimes = field(default_factory=ServiceTimes)

    async def classify(self, request: SemanticRequest) -> Classified:
        """Tell of every pixel whether it is background, healthy or infected; see `Pipeline.semantic`."""
        visit = self.reception.arrive(UNetRunner, request.model, request.when)
        async with self.reception.in_time(visit):
            size = images.read_size(request.data, max_pixels=self.reception.settings.max_pixels)
            frame = unet_letterbox(size)
            place = self._reserve(frame, visit)
            try:
                image = await self._decode(request, frame, visit)
                logits = await self._infer(place, image, visit)
            finally:
                place.leave()
            return await self._finish(logits, request, image, frame, visit)

    def _reserve(self, frame: UNetLetterbox, visit: Visit[UNetRunner]) -> Place:
        work = megapixels(frame.original)
        terms = visit.terms(after=self.times.predict(_POSTPROCESS, work))
        ready_by = self.reception.clock() + self.times.predict(_DECODE, work)
        return visit.runner.reserve(terms, frame, ready_by=ready_by)

    async def _decode(self, request: SemanticRequest, frame: UNetLetterbox, visit: Visit[UNetRunner]) -> _Image:
        limit = self.reception.settings.max_pixels

        def decode() -> _Image:
            pixels: Pixels | None = None
            if request.overlay:
                pixels = images.decode(request.data, max_pixels=limit).pixels
                small = resize(pixels, frame)
            else:
                small = images.decode_resized(request.data, frame.resized, max_pixels=limit)
            return _Image(images.content_id(request.data), visit.runner.prepare(small, frame), pixels)

        image = await self.reception.in_decoder(visit, decode)
        self.times.learn(_DECODE, megapixels(frame.original), visit.timings.decode)
        return image

    async def _infer(self, place: Place, image: _Image, visit: Visit[UNetRunner]) -> NDArray[np.float32]:
        done = await visit.runner.infer(place, image.prepared)
        visit.timings.queue, visit.timings.infer = done.queued, done.ran
        visit.together.infer = done.batch
        return done.value

    async def _finish(
        self,
        logits: NDArray[np.float32],
        request: SemanticRequest,
        image: _Image,
        frame: UNetLetterbox,
        visit: Visit[UNetRunner],
    ) -> Classified:
        """Classes and objects found and encoded, and the overlay where it was asked for."""
        tick = self.reception.clock()
        in_worker = self.reception.in_worker
        rendered, regions = await asyncio.gather(
            in_worker(render_classes, logits, frame, request.format), in_worker(objects, logits, frame)
        )
        self.times.learn(_POSTPROCESS, megapixels(frame.original), self.reception.clock() - tick)
        overlay = None
        if image.pixels is not None:
            overlay = await in_worker(render_class_overlay, image.pixels, rendered.pixels)
        visit.timings.postprocess = self.reception.clock() - tick
        self.reception.observer.postprocessed(visit.timings.postprocess)
        took("postprocess", visit.timings.postprocess)
        return Classified(
            image_id=image.image_id,
            frame=frame,
            model=visit.runner.entry,
            classes=rendered.classes,
            pixels=rendered.pixels,
            class_map=rendered.png,
            objects=regions,
            overlay=overlay,
            timings=visit.timings,
            together=visit.together,
        )

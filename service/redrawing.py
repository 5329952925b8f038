"""The SAM's part of an inspection: encode the image while the U-Net finds fruits, then draw their outlines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median_high
from typing import Any, Final

from models.backends.base import Embedding
from models.inspection import Inspection, prompt_for, refine
from models.letterbox import Letterbox, resize
from models.types import Pixels, Size
from service.device_queue import Place, Ran
from service.errors import DeadlineUnreachable
from service.frames import candidate_frames
from service.keys import share
from service.messages import InputChoice
from service.observability.tracing import took
from service.reception import Reception, Visit
from service.rendering import render_cutout
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.service_times import ServiceTimes
from service.work import Terms

_REDRAW: Final = "redraw"
_LATELY: Final = 16
"""Images whose fruits are counted, to tell how many the next will have."""


@dataclass(frozen=True, slots=True)
class Redrawing:
    """The SAM that is to draw outlines, how the image lies in its square, and its place at the encoder.

    Attributes:
        degraded: a larger frame was not in time.
    """

    runner: SamRunner
    frame: Letterbox
    place: Place
    degraded: bool

    def prepare(self, pixels: Pixels) -> Any:
        """What the encoder takes of a whole image; for worker threads."""
        return self.runner.prepare(resize(pixels, self.frame), self.frame)


def earlier(terms: Terms, seconds: float) -> Terms:
    """The same with a deadline that is `seconds` earlier, where there is one."""
    return terms if terms.deadline is None else replace(terms, deadline=terms.deadline - seconds)


@dataclass(frozen=True, slots=True)
class Redrawer:
    """See the module.

    Attributes:
        reception: where requests begin.
        times: learned of prompts and masks, by prompts on the full square.
        counts: prompts for the last images.
    """

    reception: Reception
    times: ServiceTimes = field(default_factory=ServiceTimes)
    counts: deque[int] = field(default_factory=lambda: deque(maxlen=_LATELY))

    def seconds(self, sam: SamRunner, size: Size) -> float:
        """Predicted from the embedding to the outlines, in the smallest frame that may be taken."""
        return self._seconds(self._frames(sam, size)[-1])

    def _seconds(self, frame: Letterbox) -> float:
        """How many fruits there will be is not known yet: as many as lately."""
        return self.times.predict(_REDRAW, median_high(self.counts or (1,)) * share(frame))

    def _frames(self, sam: SamRunner, size: Size) -> list[Letterbox]:
        """What the SAM may see of an image: by the settings, the largest first."""
        default = self.reception.settings.input_size
        return candidate_frames(InputChoice(), size, flexible=sam.backend.flexible, default=default)

    def reserve(self, sam: SamRunner, size: Size, terms: Terms, ready_by: float) -> Redrawing:
        """Take the encoder's place, in the largest frame that is in time.

        Args:
            sam: the runner.
            size: of the image.
            terms: the deadline is when the outlines must be drawn.
            ready_by: when the image should be prepared, seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
        """
        frames = self._frames(sam, size)
        for frame in frames[:-1]:
            with suppress(DeadlineUnreachable):
                place = self._at_encoder(sam, frame, terms, ready_by, last=False)
                return Redrawing(sam, frame, place, degraded=frame != frames[0])
        place = self._at_encoder(sam, frames[-1], terms, ready_by, last=True)
        return Redrawing(sam, frames[-1], place, degraded=len(frames) > 1)

    def _at_encoder(self, sam: SamRunner, frame: Letterbox, terms: Terms, ready_by: float, *, last: bool) -> Place:
        encoded = earlier(terms, self._seconds(frame))
        place = sam.reserve(encoded, (), frame, encode=True, ready_by=ready_by, last=last).encode
        if place is None:
            raise ValueError("no place was taken")
        return place

    async def redraw(
        self,
        redrawing: Redrawing,
        encoding: Awaitable[Ran[Embedding]],
        inspection: Inspection,
        terms: Terms,
        visit: Visit[UNetRunner],
    ) -> Inspection:
        """The inspection with the SAM's outlines, of the largest fruits where there are more than a request's prompts.

        Args:
            redrawing: with the encoder's place.
            encoding: the image, on its way through the encoder.
            inspection: with at least one fruit.
            terms: the deadline is when the prompts must be off the device.
            visit: is told where the time went.

        Raises:
            Overloaded, DeadlineUnreachable: the prompts would be late.
            DeadlineExceeded: the image or a prompt was dropped from the queue.
            BackendError: the device failed.
        """
        sam, frame = redrawing.runner, redrawing.frame
        ranked = sorted(range(len(inspection.fruits)), key=lambda index: -inspection.fruits[index].area)
        chosen = ranked[: self.reception.settings.max_prompts]
        prompts = [prompt_for(inspection.fruits[index]) for index in chosen]
        self.counts.append(len(prompts))
        # Taken while the image is encoded, so that no other image goes between.
        reservation = sam.reserve(terms, prompts, frame, encode=False, ready_by=self.reception.clock())
        try:
            encoded = await encoding
            visit.timings.encode, visit.together.encode = encoded.ran, encoded.batch
            tick = self.reception.clock()
            decoded = await sam.decode(reservation, encoded.value, prompts, frame)
        finally:
            reservation.leave()
        visit.timings.prompt, visit.together.prompt = decoded.ran, decoded.batch
        in_worker, rendering = self.reception.in_worker, self.reception.clock()
        masks = await asyncio.gather(
            *(in_worker(render_cutout, decoded.value, row, frame) for row in range(len(prompts)))
        )
        redrawn = await in_worker(refine, inspection, dict(zip(chosen, masks, strict=True)))
        took("postprocess", self.reception.clock() - rendering)
        self.times.learn(_REDRAW, len(prompts) * share(frame), self.reception.clock() - tick)
        return redrawn

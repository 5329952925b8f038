"""The SAM's part of an inspection: encode the image while the U-Net finds fruit, then outline each fruit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from statistics import median_high
from typing import Any, Final

from models.backends.base import Embedding
from models.inspection import Fruit, Inspection, agreeing, prompt_for, refine
from models.letterbox import Letterbox
from models.masks import CroppedMask
from models.types import Pixels, Size
from service.api.context import RequestContext
from service.api.schema import EmbedRequest
from service.errors import DeadlineUnreachable
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.engine import Engine
from service.pipelines.letterboxes import candidate_letterboxes
from service.runners.base import share
from service.runners.sam import Decoded, SamRunner
from service.scheduler.queue import BatchResult, Ticket

_REFINE: Final = "refine"
_RECENT: Final = 16
"""Images whose fruits are counted, to predict how many the next has."""

_DEFAULTS: Final = EmbedRequest()


@dataclass(frozen=True, slots=True)
class Refinement:
    """The SAM that is to outline fruit, how the image fits into its square, and its place at the encoder.

    Attributes:
        degraded: a larger letterbox was not in time.
    """

    runner: SamRunner
    letterbox: Letterbox
    ticket: Ticket
    degraded: bool

    def prepare(self, pixels: Pixels) -> Any:
        """Return the encoder's input from an image of the size `letterbox.resized`; for worker threads."""
        return self.runner.prepare(pixels, self.letterbox)


@dataclass(frozen=True, slots=True)
class Refiner:
    """See the module.

    Attributes:
        engine: models and threads.
        counts: prompts of the last images.
    """

    engine: Engine
    counts: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def predict(self, sam: SamRunner, size: Size) -> float:
        """Predict seconds from the embedding to the outlines, in the smallest letterbox that may be chosen."""
        return self._predict(self._letterboxes(sam, size)[-1])

    def reserve(
        self, sam: SamRunner, size: Size, context: RequestContext, *, deadline: float | None, ready_by: float
    ) -> Refinement:
        """Reserve a place at the encoder, in the largest letterbox that is in time.

        Args:
            sam: the runner.
            size: of the image.
            context: of the request.
            deadline: when the outlines must be drawn.
            ready_by: when the image should be prepared; both in seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
        """
        letterboxes = self._letterboxes(sam, size)
        for letterbox in letterboxes:
            last = letterbox is letterboxes[-1]
            before = None if deadline is None else deadline - self._predict(letterbox)
            try:
                reservation = sam.reserve(
                    context, (), letterbox, deadline=before, encode=True, ready_by=ready_by, last=last
                )
            except DeadlineUnreachable:
                if last:
                    raise
                continue
            if reservation.encode is None:
                break
            return Refinement(sam, letterbox, reservation.encode, degraded=letterbox is not letterboxes[0])
        raise ValueError("no place was reserved")

    async def refine(
        self,
        refinement: Refinement,
        encoding: Awaitable[BatchResult[Embedding]],
        inspection: Inspection,
        context: RequestContext,
        deadline: float | None,
        *,
        confirmed: bool,
    ) -> Inspection:
        """Return the inspection with the SAM's outlines, of the largest fruits where there are more than max_prompts.

        Args:
            refinement: with the place at the encoder.
            encoding: of the image.
            inspection: with at least one fruit.
            context: of the request.
            deadline: when the prompts must be off the device.
            confirmed: a detector has seen all fruits, so that the SAM dismisses none.

        Raises:
            Overloaded, DeadlineUnreachable: the prompts would be late.
            DeadlineExceeded: the image or a prompt was dropped from the queue.
            BackendError: the device failed.
        """
        engine, sam, letterbox = self.engine, refinement.runner, refinement.letterbox
        ranked = sorted(range(len(inspection.fruits)), key=lambda index: -inspection.fruits[index].area)
        chosen = ranked[: engine.settings.max_prompts]
        prompts = [prompt_for(inspection.fruits[index]) for index in chosen]
        self.counts.append(len(prompts))
        # Reserved while the image is encoded, so that no other image goes between.
        reservation = sam.reserve(context, prompts, letterbox, deadline=deadline, encode=False, ready_by=engine.clock())
        try:
            encoded = await encoding
            context.timings.encode, context.batch.encode = encoded.ran, encoded.batch_size
            tick = engine.clock()
            decoded = await sam.decode(reservation, encoded.value, prompts, letterbox)
        finally:
            reservation.release()
        context.timings.prompt, context.batch.prompt = decoded.ran, decoded.batch_size
        upsampling = engine.clock()
        size = letterbox.original
        turns = asyncio.Semaphore(costs.at_once(size, "rle"))

        async def outline(row: int) -> CroppedMask | None:
            async with turns:
                return await engine.in_worker(_outline, inspection.fruits[chosen[row]], decoded.value, row, letterbox)

        async with context.hold(Kind.WORK, costs.encoding(size, "rle", len(prompts))):
            outlines = await asyncio.gather(*map(outline, range(len(prompts))))
            masks = dict(zip(chosen, outlines, strict=True))
            refined = await engine.in_worker(partial(refine, confirmed=confirmed), inspection, masks)
        context.record("postprocess", engine.clock() - upsampling)
        engine.learn_cost(_REFINE, len(prompts) * share(letterbox), engine.clock() - tick)
        return refined

    def _predict(self, letterbox: Letterbox) -> float:
        """How many fruits there will be is not known yet: as many as lately."""
        return self.engine.predict_cost(_REFINE, median_high(self.counts or (1,)) * share(letterbox))

    def _letterboxes(self, sam: SamRunner, size: Size) -> list[Letterbox]:
        return candidate_letterboxes(_DEFAULTS, size, sam.backend, self.engine.input_size(sam))


def _outline(fruit: Fruit, decoded: Decoded, row: int, letterbox: Letterbox) -> CroppedMask | None:
    """Return the one mask of the prompt in `row`, if it may show the fruit."""
    return agreeing(fruit, next(decoded.crops(row, letterbox)))

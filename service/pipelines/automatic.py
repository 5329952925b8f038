"""Masks of everything in an image: encode, ask at a grid of points, choose, encode the masks.

With crops, the same for parts of the image, each encoded for itself. A deadline ends the search, and the best masks
found until then are the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.errors import TooManyPrompts
from models.images import Stop
from models.letterbox import Letterbox, letterbox_for, resize
from models.masks import CroppedMask
from models.overlay import draw_overlay, encode_overlay
from models.sam.grid import Crop, crops_of, point_grid, points_in, spread
from models.sam.proposals import Candidate, Limits, Proposal, Selection, candidates_of
from models.types import Pixels, Size
from service.api.context import RequestContext
from service.api.proposals import (
    MAX_MASKS,
    POINTS_PER_SIDE,
    AutomaticProgress,
    AutomaticRequest,
    AutomaticResponse,
    ProposedMask,
)
from service.errors import MalformedRequest
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import describe_image, describe_sam, encode_outline
from service.pipelines.engine import Engine
from service.pipelines.segment import Encoded, SegmentPipeline
from service.pipelines.source import ImageInput
from service.pipelines.sweep import AHEAD, OutOfTime, Points, Sweep, chunk_of, end_of_search
from service.runners.sam import Decoded, SamRunner

_FINISH: Final = "automatic.finish"
_CROP: Final = "automatic.crop"
_MASKS: Final = 3
"""Of each point."""

_REPORT_EVERY_S: Final = 0.5
"""Least seconds between two reports of what was found: each looks at all masks again."""

_HASTE: Final = 1.5
"""Times the predicted time that is kept for choosing and encoding masks: it is short, and being late loses all."""


@dataclass(frozen=True, slots=True)
class AutomaticPipeline:
    """See the module.

    Attributes:
        engine: models and threads.
        segment: encodes images, and keeps their embeddings.
    """

    engine: Engine
    segment: SegmentPipeline

    async def run(self, request: AutomaticRequest, image: ImageInput, context: RequestContext) -> AutomaticResponse:
        """Return the masks of everything in an image, best first.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        image.check_one()
        per_side = request.points_per_side or POINTS_PER_SIDE[request.preset]
        self._check(request, per_side, image)
        runner = self.segment.runner(request, context)
        whole = request.overlay or request.crop_layers > 0
        beside = costs.proposals(crops=request.crop_layers > 0)
        async with (
            self.engine.in_time(context, runner),
            self.segment.encoded(
                runner,
                request,
                image,
                context,
                masks=AHEAD * _MASKS * chunk_of(runner),
                beside=beside,
                whole=whole,
            ) as encoded,
        ):
            search = _Search(self, request, per_side, runner, encoded, context)
            await search.run()
            chosen = await search.finish()
            masks = await self._encode(chosen, request, encoded, context)
            overlay = await self._overlay(chosen, encoded, context) if request.overlay else None
        letterbox = encoded.embedded.letterbox
        return AutomaticResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(encoded.image_id, letterbox.original),
            model=describe_sam(runner, letterbox),
            masks=masks,
            points_done=search.done,
            points_total=search.total,
            overlay=overlay,
            degraded=encoded.degraded or search.done < search.total,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    async def encode_mask(self, proposal: Proposal, request: AutomaticRequest) -> ProposedMask:
        """Encode one mask in a worker thread."""
        return await self.engine.in_worker(_encode, proposal, request)

    def _check(self, request: AutomaticRequest, per_side: int, image: ImageInput) -> None:
        for name, wanted in (("overlay", request.overlay), ("crop_layers", request.crop_layers)):
            if wanted and image.source is None:
                raise MalformedRequest(
                    f"{name} needs the image's pixels, of which only the embedding is kept: send the image, or leave "
                    f"{name} out."
                )
        points, most = points_in(per_side, request.crop_layers), self.engine.settings.max_grid_points
        if points > most:
            raise TooManyPrompts(
                f"All grids together must have at most {most} points (POMONA_MAX_GRID_POINTS), got {points}: "
                f"{per_side} x {per_side} for each of {points // per_side**2} images."
            )

    async def _encode(
        self, chosen: Sequence[Proposal], request: AutomaticRequest, encoded: Encoded, context: RequestContext
    ) -> list[ProposedMask]:
        size = encoded.embedded.letterbox.original
        tick = self.engine.clock()
        masks = await self.segment.for_each(
            len(chosen), lambda row: _encode(chosen[row], request), size, request.format, context
        )
        context.took("postprocess", self.engine.clock() - tick)
        return masks

    async def _overlay(self, chosen: Sequence[Proposal], encoded: Encoded, context: RequestContext) -> bytes:
        pixels = encoded.pixels
        if pixels is None:
            raise ValueError("there must be pixels to draw into")
        async with context.hold(Kind.WORK, costs.OVERLAY * encoded.embedded.letterbox.original.pixels):
            return await self.engine.in_worker(_draw, pixels, [one.candidate for one in chosen])


class _Search:
    """The search of one request.

    Args:
        pipeline: whose request it is.
        request: the request.
        per_side: points along each side of a grid.
        runner: of the SAM.
        encoded: the image.
        context: of the request.

    Attributes:
        total: points of all grids.
    """

    def __init__(
        self,
        pipeline: AutomaticPipeline,
        request: AutomaticRequest,
        per_side: int,
        runner: SamRunner,
        encoded: Encoded,
        context: RequestContext,
    ) -> None:
        self._engine = pipeline.engine
        self._pipeline = pipeline
        self._request = request
        self._per_side = per_side
        self._runner = runner
        self._encoded = encoded
        self._context = context
        self._limits = limits_of(request)
        self._selection = Selection(self._limits, costs.CANDIDATES)
        self._sweep = Sweep(runner, context, self._until)
        self._told: list[Candidate] = []
        self._withdrawn: set[int] = set()
        self._next_report = context.clock() + _REPORT_EVERY_S
        self._crops = list(crops_of(self._size, request.crop_layers))
        self.total = per_side**2 * len(self._crops)

    @property
    def done(self) -> int:
        """Points that were asked."""
        return self._sweep.done

    async def run(self) -> None:
        """Ask at all points, or until the time is up."""
        whole, *parts = self._crops
        embedded = self._encoded.embedded
        try:
            await self._ask(whole, embedded.letterbox, embedded.embedding)
            for crop in parts:
                letterbox = _letterbox_of(crop, embedded.letterbox)
                embedding = await self._sweep.encode(letterbox, lambda: self._prepare(crop, letterbox))  # noqa: B023
                await self._ask(crop, letterbox, embedding)
        except OutOfTime:
            return

    async def finish(self) -> list[Proposal]:
        """Choose the masks of the answer, best first."""
        engine, size = self._engine, self._size
        tick = engine.clock()
        chosen = await engine.in_worker(self._selection.chosen)
        seconds = engine.clock() - tick
        engine.learn(_FINISH, size, seconds, max(1, len(self._selection)))
        self._context.took("postprocess", seconds)
        return chosen[: self._request.max_masks or MAX_MASKS]

    async def _ask(self, crop: Crop, letterbox: Letterbox, embedding: object) -> None:
        points = point_grid(self._per_side, crop.size)[spread(self._per_side)]

        async def receive(asked: Points, decoded: Decoded) -> None:
            found = await self._engine.in_worker(
                candidates_of, decoded.logits, decoded.scores, asked, crop, letterbox, self._limits
            )
            await self._engine.in_worker(self._selection.add, found)
            await self._report(len(asked))

        await self._sweep.run(embedding, letterbox, points, receive)  # type: ignore[arg-type]

    async def _prepare(self, crop: Crop, letterbox: Letterbox) -> object:
        engine, pixels = self._engine, self._encoded.pixels
        if pixels is None:
            raise ValueError("there must be pixels to crop")

        def prepare(stop: Stop) -> object:  # noqa: ARG001 (a crop is resized in milliseconds)
            x0, y0, x1, y1 = crop.box
            part = np.ascontiguousarray(pixels[y0:y1, x0:x1])
            return self._runner.prepare(resize(part, letterbox), letterbox)

        return await engine.decode(self._context, _CROP, crop.size, prepare)

    async def _report(self, fresh: int) -> None:
        """Report what was found since the last report, where the caller listens and it is time."""
        context = self._context
        if context.report is None or context.clock() < self._next_report:
            return
        chosen = await self._engine.in_worker(self._selection.chosen)
        chosen = chosen[: self._request.max_masks or MAX_MASKS]
        kept = {id(one.candidate) for one in chosen}
        known = {id(one) for one in self._told}
        new = [one for one in chosen if id(one.candidate) not in known]
        withdrawn = [
            number for number, one in enumerate(self._told) if id(one) not in kept and number not in self._withdrawn
        ]
        returned = [number for number, one in enumerate(self._told) if id(one) in kept and number in self._withdrawn]
        self._withdrawn = (self._withdrawn | set(withdrawn)) - set(returned)
        found = [await self._pipeline.encode_mask(one, self._request) for one in new]
        self._told += [one.candidate for one in new]
        await context.report(
            AutomaticProgress.model_construct(
                points_done=self.done + fresh, points_total=self.total, found=found, withdrawn=withdrawn
            )
        )
        self._next_report = context.clock() + _REPORT_EVERY_S

    def _until(self) -> float:
        count = max(1, len(self._selection))
        finishing = _HASTE * self._engine.predict(_FINISH, self._size, count)
        return end_of_search(self._context, self._engine.settings.request_timeout_s, finishing)

    @property
    def _size(self) -> Size:
        return self._encoded.embedded.letterbox.original


def limits_of(request: AutomaticRequest) -> Limits:
    """Return which masks a request wants."""
    return Limits(
        score=request.pred_iou_threshold,
        stability=request.stability_score_threshold,
        box_iou=request.box_nms_threshold,
        mask_iou=request.mask_nms_threshold,
        min_area=request.min_area,
        max_area=request.max_area,
        min_side=request.min_side,
        max_side=request.max_side,
    )


def _encode(proposal: Proposal, request: AutomaticRequest) -> ProposedMask:
    candidate, measures = proposal.candidate, proposal.measures
    return ProposedMask.model_construct(
        mask=encode_outline(candidate.mask(request.min_area), request.format),
        score=candidate.score,
        stability_score=measures.stability,
        box=measures.box,
        area=measures.area,
        point=candidate.point,
    )


def _letterbox_of(crop: Crop, whole: Letterbox) -> Letterbox:
    """Return the letterbox of a crop, like that of the whole image."""
    return letterbox_for(crop.size, whole.side, whole.padding)


def _draw(pixels: Pixels, chosen: Sequence[Candidate]) -> bytes:
    # The largest first, so that none is hidden.
    def area(candidate: Candidate) -> int:
        return candidate.reach_area

    masks = [functools.partial(_mask, one) for one in sorted(chosen, key=area, reverse=True)]
    return encode_overlay(draw_overlay(pixels, masks))


def _mask(candidate: Candidate) -> CroppedMask:
    return candidate.mask()

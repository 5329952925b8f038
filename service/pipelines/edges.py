"""Edges of everything in an image: encode, ask at a grid of points, remove duplicates, add up the masks' boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from models.edges import EdgeAccumulator, encode_edges
from models.errors import TooManyPrompts
from models.letterbox import Letterbox
from models.sam.grid import crops_of, point_grid, points_in, spread
from models.sam.proposals import Limits, Proposal, Selection, candidates_of
from service.api.context import RequestContext
from service.api.proposals import EdgesRequest, EdgesResponse
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import describe_image, describe_sam
from service.pipelines.engine import Engine
from service.pipelines.segment import SegmentPipeline
from service.pipelines.source import ImageInput
from service.pipelines.sweep import AHEAD, OutOfTime, Points, Sweep, chunk_of, end_of_search
from service.runners.sam import Decoded

_FINISH: Final = "edges.finish"
_MASKS: Final = 3
_HASTE: Final = 1.5


@dataclass(frozen=True, slots=True)
class EdgesPipeline:
    """See the module.

    Attributes:
        engine: models and threads.
        segment: encodes images, and keeps their embeddings.
    """

    engine: Engine
    segment: SegmentPipeline

    async def run(self, request: EdgesRequest, image: ImageInput, context: RequestContext) -> EdgesResponse:
        """Return the map of an image's edges.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        image.check_one()
        engine, total = self.engine, points_in(request.points_per_side, 0)
        if total > engine.settings.max_grid_points:
            raise TooManyPrompts(
                f"The grid must have at most {engine.settings.max_grid_points} points (POMONA_MAX_GRID_POINTS), "
                f"got {total}."
            )
        runner = self.segment.runner(request, context)
        # Every mask counts, however unsure or unstable, except that of two alike the better.
        limits = Limits(score=-math.inf, stability=-math.inf, box_iou=request.box_nms_threshold)
        selection = Selection(limits, costs.CANDIDATES)
        in_hand = AHEAD * _MASKS * chunk_of(runner)
        beside = costs.proposals(crops=False)
        async with (
            engine.in_time(context, runner),
            self.segment.encoded(runner, request, image, context, masks=in_hand, beside=beside) as encoded,
        ):
            letterbox = encoded.embedded.letterbox
            crop = next(crops_of(letterbox.original, 0))

            async def receive(asked: Points, decoded: Decoded) -> None:
                found = await engine.in_worker(
                    candidates_of, decoded.logits, decoded.scores, asked, crop, letterbox, limits
                )
                await engine.in_worker(selection.add, found)

            def until() -> float:
                finishing = _HASTE * engine.predict(_FINISH, letterbox.original, max(1, len(selection)))
                return end_of_search(context, engine.settings.request_timeout_s, finishing)

            sweep = Sweep(runner, context, until)
            points = point_grid(request.points_per_side, letterbox.original)[spread(request.points_per_side)]
            with suppress(OutOfTime):
                await sweep.run(encoded.embedded.embedding, letterbox, points, receive)
            tick = engine.clock()
            async with context.hold(Kind.WORK, costs.edges(letterbox)):
                chosen = await engine.in_worker(selection.chosen)
                png = await engine.in_worker(_draw, chosen, letterbox, request)
            seconds = engine.clock() - tick
            engine.learn(_FINISH, letterbox.original, seconds, max(1, len(selection)))
            context.took("postprocess", seconds)
            context.observer.postprocessed(seconds)
        return EdgesResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(encoded.image_id, letterbox.original),
            model=describe_sam(runner, letterbox),
            edges=png,
            masks=len(chosen),
            points_done=sweep.done,
            points_total=total,
            degraded=encoded.degraded or sweep.done < total,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )


def _draw(chosen: Sequence[Proposal], letterbox: Letterbox, request: EdgesRequest) -> bytes:
    edges = EdgeAccumulator(letterbox)
    for proposal in chosen:
        candidate = proposal.candidate
        edges.add(candidate.logits, candidate.top, candidate.left)
    return encode_edges(edges.finish(thin=not request.thick), letterbox.original, request.depth)

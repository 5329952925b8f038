"""Fruit of a stream of frames, followed from one to the next: frames wait for those before them, and are compared."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from models.inspection import Grade, grade_of
from models.tracking import Tracker, Update, View
from models.tracking import Verdict as Judged
from models.types import Size
from service.api import schema
from service.api.context import RequestContext
from service.api.tracking import Tracking, Verdict
from service.errors import DeadlineExceeded
from service.pipelines.engine import Engine

Verdicts: TypeAlias = Literal["leaving", "all"]
"""Which verdicts an answer brings: on fruit that has left, or also those so far on fruit in view."""

_FRAMES: Final = 1024
"""Frames whose identifiers are kept: more than any fruit is in view for."""


class Follower:
    """Follows the fruit of one stream. Its memory is bounded, however long the stream is.

    Frames are compared in the order of their numbers, from 1. Every number must be given to `finish` once, also that
    of a frame that was dropped, late or failed: later frames wait for it.

    Args:
        verdicts: which verdicts an answer brings.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._tracker = Tracker()
        self._frames: OrderedDict[int, schema.Frame] = OrderedDict()
        self._next = 1
        self._finished: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def follow(
        self,
        number: int,
        answer: schema.InspectResponse,
        grades: Sequence[Grade],
        engine: Engine,
        context: RequestContext,
    ) -> Tracking:
        """Compare a frame with those before it, once these are finished.

        Args:
            number: of the frame.
            answer: to the frame.
            grades: of verdicts.
            engine: threads.
            context: of the frame.

        Raises:
            DeadlineExceeded: those before it were not finished in time.
        """
        await self._turn(number, context)
        self._frames[number] = answer.frame
        while len(self._frames) > _FRAMES:
            self._frames.popitem(last=False)
        update, in_view = await engine.in_worker(self._update, number, answer)
        return Tracking.model_construct(
            track_ids=list(update.track_ids),
            verdicts=[self._described(verdict, grades) for verdict in (*update.verdicts, *in_view)],
        )

    def finish(self, number: int) -> None:
        """Let the frames after this one be compared."""
        self._finished.add(number)
        while self._next in self._finished:
            self._finished.discard(self._next)
            self._next += 1
        turn = self._waiting.get(self._next)
        if turn is not None and not turn.done():
            turn.set_result(None)

    async def _turn(self, number: int, context: RequestContext) -> None:
        if number == self._next:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[number] = turn
        within = None if context.deadline is None else context.deadline - context.clock()
        try:
            async with asyncio.timeout(within):
                await turn
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed before the frames before it were answered.") from error
        finally:
            del self._waiting[number]

    def _update(self, number: int, answer: schema.InspectResponse) -> tuple[Update, Sequence[Judged]]:
        views = [
            View(fruit.box, fruit.area, fruit.infected_fraction, fruit.confidence, fruit.truncated)
            for fruit in answer.fruits
        ]
        captured = answer.frame.captured_at_ns
        time = None if captured is None else captured / 1e9
        update = self._tracker.update(number, time, Size(answer.image.height, answer.image.width), views)
        return update, self._tracker.in_view() if self._verdicts == "all" else ()

    def _described(self, verdict: Judged, grades: Sequence[Grade]) -> Verdict:
        first, last, best = (
            self._frames.get(number, schema.Frame())
            for number in (verdict.first_frame, verdict.last_frame, verdict.best_frame)
        )
        return Verdict.model_construct(
            track_id=verdict.track_id,
            views=verdict.views,
            infected_fraction=verdict.infected,
            infected_fraction_max=verdict.infected_max,
            infected_fraction_mean=verdict.infected_mean,
            grade=grade_of(verdict.infected, grades),
            first_frame=first,
            last_frame=last,
            best_frame=best,
            best_box=verdict.best_box,
            left=verdict.left,
        )

"""Shadows: a second revision of a U-Net answers live frames too, in idle time, and is compared with the first.

A frame is taken over from a live request once the active revision has seen it: the network's prepared input and what
the active revision made of it. At most one frame of each model waits, the newest. It is run once no request is being
answered and the device can spare the time (`BatchPolicy.spare`), so that by what is known no request is late for it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import PomonaError
from models.inspection import Grade
from models.unet.letterbox import UNetLetterbox
from service.api import revisions as api
from service.api import schema
from service.api.context import LEAST_URGENT, RequestContext
from service.errors import ModelConflict
from service.memory import Holding
from service.observability.observer import Observer
from service.pipelines.comparison import Comparison, compare
from service.pipelines.engine import Engine
from service.pipelines.source import EncodedImage, ImageSource
from service.pipelines.workers import rank_work
from service.runners.base import Runner
from service.runners.unet import UNetRunner

_LOG: Final = logging.getLogger("pomona.shadow")
_WORST: Final = 8
"""Frames of a report."""


@dataclass(frozen=True, slots=True)
class Disagreed:
    """A frame that is among the worst so far, as a hook receives it.

    Attributes:
        model: name of the model.
        active: revision that answered.
        shadow: revision that was compared with it.
        frame: as the report has it.
        image: the file as it was sent; None where it came as pixels.
    """

    model: str
    active: str
    shadow: str
    frame: api.Disagreement
    image: bytes | None


def grades_of(grades: Iterable[schema.Grade]) -> list[Grade]:
    """Return grades of a request or of the settings as the domain has them."""
    return [Grade(grade.grade, grade.max_infected_fraction) for grade in grades]


Hook: TypeAlias = Callable[[Disagreed], None]
"""Receives the worst disagreements, on the event loop: it must return at once, and bound what it keeps."""


@dataclass(slots=True, eq=False)
class _Frame:
    """A frame that waits for idle time."""

    prepared: Any
    letterbox: UNetLetterbox
    output: NDArray[np.float32]
    grades: Sequence[Grade]
    request_id: str
    frame_id: str | None
    image: bytes | None
    held: Holding

    def release(self) -> None:
        """Give its memory back; harmless when repeated."""
        self.held.release()


@dataclass(slots=True, eq=False)
class _Shadow:
    """A revision that is compared with the active one, and what that has shown."""

    runner: UNetRunner
    active: str
    share: float
    due: float = 0.0
    waiting: _Frame | None = None
    compared: int = 0
    skipped: int = 0
    failed: int = 0
    fruits: int = 0
    grade_changes: int = 0
    ious: int = 0
    iou_sum: float = 0.0
    least_iou: float | None = None
    differences: int = 0
    difference_sum: float = 0.0
    largest_difference: float | None = None
    worst: list[tuple[float, int, api.Disagreement]] = field(default_factory=list)

    def takes(self) -> bool:
        """Return whether the next frame is one of the share."""
        self.due += self.share
        if self.due < 1:
            return False
        self.due -= 1
        return True

    def add(self, comparison: Comparison) -> None:
        self.compared += 1
        self.fruits += comparison.fruits
        self.grade_changes += comparison.grade_changes
        if comparison.iou is not None:
            self.ious += 1
            self.iou_sum += comparison.iou
            self.least_iou = comparison.iou if self.least_iou is None else min(self.least_iou, comparison.iou)
        if comparison.fraction_differences:
            self.differences += len(comparison.fraction_differences)
            self.difference_sum += sum(comparison.fraction_differences)
            self.largest_difference = max(self.largest_difference or 0.0, comparison.largest_difference)

    def note(self, disagreement: float, frame: api.Disagreement) -> bool:
        """Keep a frame if it is among the worst so far; return whether it is."""
        place = (disagreement, -self.compared, frame)
        if disagreement <= 0:
            return False
        if len(self.worst) < _WORST:
            heapq.heappush(self.worst, place)
            return True
        return heapq.heappushpop(self.worst, place) is not place

    def report(self) -> api.ShadowReport:
        return api.ShadowReport(
            model=self.runner.entry.name,
            revision=self.runner.entry.revision,
            active_revision=self.active,
            share=self.share,
            compared=self.compared,
            skipped=self.skipped,
            failed=self.failed,
            fruits=self.fruits,
            grade_changes=self.grade_changes,
            mean_iou=self.iou_sum / self.ious if self.ious else None,
            least_iou=self.least_iou,
            mean_infected_fraction_difference=self.difference_sum / self.differences if self.differences else None,
            largest_infected_fraction_difference=self.largest_difference,
            worst=[frame for _, _, frame in sorted(self.worst, key=lambda place: place[:2], reverse=True)],
        )


@dataclass(slots=True)
class Shadows:
    """See the module. For one event loop.

    Attributes:
        engine: with the runners, and the threads that compare.
        observer: receives what is compared.
        hook: receives the worst disagreements with their images; None for no such receiver.
    """

    engine: Engine
    observer: Observer = field(default_factory=Observer)
    hook: Hook | None = None
    _shadows: dict[str, _Shadow] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _stopped: bool = False

    def __post_init__(self) -> None:
        """Look for work each time when no request is being answered."""
        self.engine.quiet.append(self._look)

    def set_share(self, name: str, revision: str, share: float) -> None:
        """Compare a revision that is loaded beside the active one from now on, or with another share.

        Raises:
            ModelConflict: it cannot be compared.
        """
        known = self._shadows.get(name)
        compared = known is not None and known.runner.entry.revision == revision
        if known is not None and compared and share > 0:
            known.share = share
            return
        if compared or share > 0:
            self.end(name)
        if share <= 0:
            return
        active, runner = self.engine.runners[name], self.engine.loaded(name, revision)
        if runner is active or not isinstance(runner, UNetRunner):
            raise ModelConflict(f"shadow must be 0 for {revision}, which is the active revision of {name}.")
        self._shadows[name] = _Shadow(runner, active.entry.revision, share)

    @staticmethod
    def check(active: Runner, share: float, *, promote: bool) -> None:
        """Check that another revision of the active one's model can be compared with it.

        Raises:
            ModelConflict: it cannot.
        """
        if share > 0 and not isinstance(active, UNetRunner):
            raise ModelConflict(f"shadow must be 0 for {active.entry.name}: only the revisions of U-Nets are compared.")
        if share > 0 and promote:
            raise ModelConflict("shadow must be 0 with promote: the new revision would be the active one.")

    def share(self, name: str, revision: str) -> float:
        """Return the share of live frames that a revision answers too."""
        known = self._shadows.get(name)
        return 0.0 if known is None or known.runner.entry.revision != revision else known.share

    def end(self, name: str) -> None:
        """Compare revisions of a model no more."""
        shadow = self._shadows.pop(name, None)
        if shadow is not None and shadow.waiting is not None:
            shadow.waiting.release()
            shadow.waiting = None

    def stop(self) -> None:
        """Compare nothing more: the server stops."""
        self._stopped = True
        for name in list(self._shadows):
            self.end(name)

    async def settle(self) -> None:
        """Wait until no frame is being compared."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def report(self) -> api.ShadowResponse:
        """Return what the comparisons have shown."""
        return api.ShadowResponse(shadows=[shadow.report() for shadow in self._shadows.values()])

    def offer(
        self,
        runner: Runner,
        prepared: Any,
        letterbox: UNetLetterbox,
        output: NDArray[np.float32],
        source: ImageSource,
        grades: Sequence[Grade],
        context: RequestContext,
    ) -> None:
        """Take a frame over from a live request, if it is one of the share; a few microseconds.

        Args:
            runner: that answers the request.
            prepared: the network's input.
            letterbox: of the image.
            output: of the network.
            source: of the image.
            grades: of the request.
            context: of the request.
        """
        shadow = self._shadows.get(runner.entry.name)
        if shadow is None or runner is not self.engine.runners[runner.entry.name] or not shadow.takes():
            return
        if shadow.waiting is not None:
            shadow.waiting.release()
            self._skip(shadow)
        image = source.data if self.hook is not None and isinstance(source, EncodedImage) else None
        # It is there already, so nothing is refused; others wait for memory until it is given back.
        held = context.memory.debit(output.nbytes + letterbox.padded.pixels * 12 + (0 if image is None else len(image)))
        frame_id = context.log.get("frame_id")
        shadow.waiting = _Frame(prepared, letterbox, output, grades, context.request_id, frame_id, image, held)

    def _look(self) -> None:
        """Begin to compare a frame that waits, if nothing is being answered."""
        if self._task is None and not self._stopped and any(each.waiting for each in self._shadows.values()):
            self._task = asyncio.create_task(self._compare_waiting())
            self._task.add_done_callback(self._compared)

    def _compared(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a frame could not be compared", exc_info=error)

    async def _compare_waiting(self) -> None:
        rank_work(LEAST_URGENT, None)
        for shadow in list(self._shadows.values()):
            frame = shadow.waiting
            if frame is None or self.engine.busy:
                continue
            shadow.waiting = None
            try:
                await self._compare(shadow, frame)
            finally:
                if shadow.waiting is not frame:
                    frame.release()

    async def _compare(self, shadow: _Shadow, frame: _Frame) -> None:
        """Let the shadow answer a frame and compare; the frame waits on where the device has better things to do."""
        name = shadow.runner.entry.name
        try:
            result = await shadow.runner.infer_idle(frame.prepared, frame.letterbox)
        except PomonaError as error:
            shadow.failed += 1
            self.observer.shadow_ended(name, "failed")
            _LOG.warning("the shadow failed", extra={"model": name, "detail": error.detail})
            return
        if result is not None:
            compared = self.engine.in_worker(compare, frame.output, result.value, frame.letterbox, frame.grades)
            self._count(shadow, frame, await compared)
        elif shadow.waiting is None and self._shadows.get(name) is shadow:
            shadow.waiting = frame
        else:
            self._skip(shadow)

    def _count(self, shadow: _Shadow, frame: _Frame, found: Comparison) -> None:
        entry = shadow.runner.entry
        shadow.add(found)
        self.observer.shadow_ended(entry.name, "compared")
        self.observer.shadow_compared(entry.name, found.iou, found.fraction_differences, found.grade_changes)
        shown = api.Disagreement(
            request_id=frame.request_id,
            frame_id=frame.frame_id,
            iou=1.0 if found.iou is None else found.iou,
            infected_fraction_difference=found.largest_difference,
            grade_changes=found.grade_changes,
        )
        if shadow.note(found.disagreement, shown) and self.hook is not None:
            self.hook(Disagreed(entry.name, shadow.active, entry.revision, shown, frame.image))

    def _skip(self, shadow: _Shadow) -> None:
        shadow.skipped += 1
        self.observer.shadow_ended(shadow.runner.entry.name, "skipped")

"""A model of an open vocabulary on a device: one image with its nouns at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from models.backends.base import GroundingBackend
from models.catalog import CatalogueEntry, Family
from models.detector.postprocess import Detection, Thresholds
from models.grounding.build import Phrases
from models.grounding.letterbox import GroundingLetterbox
from models.types import Pixels, Size
from service.runners.base import Runner, megapixels
from service.scheduler.policy import Limits, Requester, WorkItem
from service.scheduler.queue import BatchKey, BatchResult, DeviceQueue, Ticket

_WARM_UP: Final = ("fruit",)


class GroundingRunner(Runner):
    """One model of an open vocabulary on one device; see `Runner`."""

    family: ClassVar[Family] = "grounding"

    def __init__(self, entry: CatalogueEntry, backend: GroundingBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend

    def asked(self, nouns: Sequence[str]) -> AskedGrounding:
        """Return what finds these nouns.

        Raises:
            MalformedPrompt: they are more than the network can read.
        """
        return AskedGrounding(self, self.backend.read(nouns))

    def reserve(
        self,
        request: Requester,
        letterbox: GroundingLetterbox,
        phrases: Phrases,
        *,
        deadline: float | None,
        ready_by: float,
    ) -> Ticket:
        """Reserve the place of one image on arrival; see `UNetRunner.reserve`."""
        item: WorkItem[BatchKey, Any] = WorkItem(
            self._key(), request, deadline=deadline, cost=_cost(letterbox, phrases), ready_by=ready_by
        )
        (ticket,) = self._queue.reserve(item)
        return ticket

    def _key(self) -> BatchKey:
        return BatchKey(self._model, "infer", None)

    def _warm_up(self) -> None:
        phrases, letterbox = self.backend.read(_WARM_UP), self.backend.letterbox(Size(768, 1024))
        blank = np.zeros((letterbox.resized.height, letterbox.resized.width, 3), np.uint8)
        work = _Question(self.backend.prepare(blank, letterbox), phrases)
        self._timed(self._key(), [work], _cost(letterbox, phrases))

    def _limits(self, key: BatchKey) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        return Limits(1, math.inf)

    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        questions: Sequence[_Question] = payloads
        return [self.backend.infer(question.prepared, question.phrases) for question in questions]


@dataclass(frozen=True, slots=True)
class AskedGrounding:
    """A model of an open vocabulary that looks for some nouns; see `service.pipelines.detect.BoxFinder`."""

    runner: GroundingRunner
    phrases: Phrases

    @property
    def classes(self) -> tuple[str, ...]:
        """The nouns."""
        return self.phrases.nouns

    def letterbox(self, size: Size) -> GroundingLetterbox:
        """Fit an image into the network's input."""
        return self.runner.backend.letterbox(size)

    def output_values(self, letterbox: GroundingLetterbox) -> int:  # noqa: ARG002 (outputs are of one size)
        """Return the number of values of an output."""
        return self.runner.backend.output_values(len(self.classes))

    def prepare(self, pixels: Pixels, letterbox: GroundingLetterbox) -> Any:
        """Return the network's input from a resized image; for worker threads."""
        return self.runner.backend.prepare(pixels, letterbox)

    def reserve(
        self, request: Requester, letterbox: GroundingLetterbox, *, deadline: float | None, ready_by: float
    ) -> Ticket:
        """Reserve the place of one image on arrival; see `UNetRunner.reserve`."""
        return self.runner.reserve(request, letterbox, self.phrases, deadline=deadline, ready_by=ready_by)

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        """Run the network on a prepared image.

        Raises:
            DeadlineExceeded: the item was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(_Question(prepared, self.phrases))

    def boxes(
        self, output: NDArray[np.float32], letterbox: GroundingLetterbox, thresholds: Thresholds
    ) -> list[Detection]:
        """Return the objects in an output, best first; for worker threads."""
        return self.runner.backend.boxes(output, letterbox, thresholds)


@dataclass(frozen=True, slots=True)
class _Question:
    """A prepared image, and what is looked for in it."""

    prepared: Any
    phrases: Phrases


def _cost(letterbox: GroundingLetterbox, phrases: Phrases) -> float:
    """Return an upper estimate of the work: CLIPSeg looks at the image once for each noun."""
    return megapixels(letterbox.resized) * len(phrases.nouns)

"""Offers the hard ones of inspected frames for capture; see `service.capture`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.confidence import FractionIntervals
from models.errors import PomonaError
from models.inspection import Fruit, Grade
from service.api import schema
from service.api.context import RequestContext
from service.capture.captures import Captures
from service.capture.reasons import HardFrames
from service.capture.records import Offer
from service.errors import problem_of
from service.pipelines.encoding import encode_fruits
from service.pipelines.source import ImageSource


@dataclass(frozen=True, slots=True)
class Capturing:
    """See the module.

    Attributes:
        captures: takes what is offered.
        hard: says which frames are.
    """

    captures: Captures
    hard: HardFrames

    def answered(
        self,
        source: ImageSource,
        answer: schema.InspectResponse,
        fruits: Sequence[Fruit],
        grades: Sequence[Grade],
        intervals: FractionIntervals | None,
    ) -> None:
        """Offer a frame that was answered, if it is a hard one.

        Args:
            source: its image.
            answer: in the format of the request.
            fruits: those of the answer.
            grades: by which they were graded.
            intervals: of their infected fractions.
        """
        reasons = self.hard.reasons(answer, grades)
        if not reasons:
            return

        def exact() -> schema.InspectResponse:
            """Encode the masks as RLE: the caller may have them as polygons, which lose pixels."""
            return answer.model_copy(
                update={"fruits": encode_fruits(fruits, grades, intervals, "rle"), "overlay": None}
            )

        nbytes = sum(fruit.mask.pixels.nbytes + fruit.infected.pixels.nbytes for fruit in fruits)
        self.captures.offer(Offer(source, reasons, answer.request_id, answer.frame, exact, nbytes))

    def late(
        self, source: ImageSource, request: schema.InspectRequest, context: RequestContext, error: PomonaError
    ) -> None:
        """Offer a frame for which there was no answer in time."""
        frame = schema.Frame.model_construct(
            frame_id=request.frame_id, trigger_id=request.trigger_id, captured_at_ns=request.captured_at_ns
        )
        self.captures.offer(Offer(source, ("late",), context.request_id, frame, problem=problem_of(error).code))

"""A service that is not there: for tests of code that uses this package.

>>> from pomona import Client, Inspect
>>> from pomona.testing import MockTransport, a_fruit, an_inspection
>>> transport = MockTransport()
>>> transport.answer(Inspect, an_inspection([a_fruit((10, 10, 50, 50), infected=0.2, grade="C")]))
>>> with Client(transport=transport) as pomona:
...     ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from pomona.asks import Ask, Attempt, Call
from pomona.errors import ClientClosed, InvalidArgument, PomonaError
from pomona.facts import ImageInfo, ModelUsed
from pomona.images import open_image
from pomona.masks import Mask, ScoredMask
from pomona.results import Embedding, Fruit, Inspection, Model, Segmentation

T = TypeVar("T")

Answer: TypeAlias = T | PomonaError | Callable[[Call[T]], T]
"""What to answer, an error to raise, or a function of the call that does either."""

SIZE: Final = (480, 640)
"""Height and width of the picture that answers are about, unless a test says another."""

SAM: Final = ModelUsed("mobile-sam", "6dbb90523a35", 1024, "none")
UNET: Final = ModelUsed("my-unet", "0f5c1a2b3c4d", (448, 224))


@dataclass(frozen=True)
class Sent:
    """A call that was sent, and how."""

    call: Call[Any]
    attempt: Attempt


class MockTransport:
    """Answers what the test says, for `Client` and `AsyncClient` alike.

    Attributes:
        sent: every attempt, in order.
        closed: whether the client was closed.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.closed = False
        self._answers: dict[type[Ask[Any]], list[Any]] = {}
        self._lock = threading.Lock()

    def answer(self, ask: type[Ask[T]], *answers: Answer[T]) -> None:
        """Say what is answered when this is asked.

        Args:
            ask: `Segment`, `Inspect`, `Semantic`, `Embed`, `ListModels` or `Ready`.
            answers: the first for the first attempt and so on; the last for all that follow.

        Raises:
            InvalidArgument: no answer at all.
        """
        if not answers:
            raise InvalidArgument("Say at least one answer.")
        self._answers[ask] = list(answers)

    def call(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.Transport`.

        Raises:
            ClientClosed: after `close`.
            InvalidArgument: the test said no answer for this.
        """
        with self._lock:
            if self.closed:
                raise ClientClosed("The client was closed.")
            self.sent.append(Sent(call, attempt))
            answers = self._answers.get(type(call.ask))
            if not answers:
                raise InvalidArgument(f"The test said no answer for {type(call.ask).__name__}.")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, PomonaError):
            raise answer
        result: T = answer
        return result

    async def acall(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.AsyncTransport`."""
        return self.call(call, attempt)

    def close(self) -> None:
        """See `pomona.transport.Transport`."""
        self.closed = True

    async def aclose(self) -> None:
        """See `pomona.transport.AsyncTransport`."""
        self.closed = True


def a_mask(box: tuple[int, int, int, int], *, size: tuple[int, int] = SIZE, score: float = 0.9) -> ScoredMask:
    """A rectangular mask.

    Args:
        box: x0, y0, x1, y1, half-open.
        size: height and width of the picture.
        score: predicted IoU.
    """
    mask = _rectangle(box, size)
    return ScoredMask(mask, score, score, mask.box, mask.area)


def a_segmentation(
    *results: Sequence[ScoredMask], size: tuple[int, int] = SIZE, overlay_png: bytes | None = None
) -> Segmentation:
    """An answer to `segment`.

    Args:
        results: for each prompt its masks, best first.
        size: height and width of the picture.
        overlay_png: what the service drew.
    """
    return Segmentation(
        request_id="test",
        image=_info(size),
        overlay_png=overlay_png,
        model=SAM,
        results=tuple(tuple(masks) for masks in results),
    )


def a_fruit(
    box: tuple[int, int, int, int],
    *,
    infected: float = 0.0,
    grade: str = "A",
    size: tuple[int, int] = SIZE,
    confidence: float = 0.95,
) -> Fruit:
    """A rectangular fruit, infected from the left.

    Args:
        box: x0, y0, x1, y1, half-open, inside the picture.
        infected: share that is infected, rounded to whole columns.
        grade: its name.
        size: height and width of the picture.
        confidence: 0 to 1.
    """
    x0, y0, x1, y1 = box
    mask, sick = _rectangle(box, size), _rectangle((x0, y0, x0 + round((x1 - x0) * infected), y1), size)
    fraction = sick.area / mask.area if mask.area else 0.0
    return Fruit(
        id=1,
        box=mask.box,
        area=mask.area,
        mask=mask,
        infected_mask=sick,
        infected_fraction=fraction,
        fruit_class="infected" if fraction else "healthy",
        confidence=confidence,
        grade=grade,
        truncated=x0 == 0 or y0 == 0 or x1 == size[1] or y1 == size[0],
    )


def an_inspection(fruits: Sequence[Fruit] = (), *, size: tuple[int, int] = SIZE) -> Inspection:
    """An answer to `inspect`, fruits numbered in the order given."""
    numbered = tuple(replace(fruit, id=number) for number, fruit in enumerate(fruits, start=1))
    return Inspection(request_id="test", image=_info(size), fruits=numbered, unet=UNET)


def an_embedding(size: tuple[int, int] = SIZE) -> Embedding:
    """An answer to `embed`."""
    return Embedding(request_id="test", image=_info(size), model=SAM)


def a_model(name: str = "mobile-sam", *, loaded: bool = True) -> Model:
    """An entry of the answer to `models`."""
    return Model(name, "sam", "6dbb90523a35", "Apache-2.0", loaded, *(("cpu", "openvino") if loaded else (None, None)))


def size_of(call: Call[Any]) -> tuple[int, int]:
    """Height and width of the picture that was sent, for answers that are functions of the call.

    Raises:
        InvalidArgument: none was sent.
    """
    if call.picture is None:
        raise InvalidArgument("No picture was sent.")
    picture = open_image(call.picture.data)
    return picture.height, picture.width


def _rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> Mask:
    x0, y0, x1, y1 = box
    array = np.zeros(size, np.bool_)
    array[y0:y1, x0:x1] = True
    return Mask.of(array)


def _info(size: tuple[int, int]) -> ImageInfo:
    return ImageInfo("0" * 32, size[1], size[0])

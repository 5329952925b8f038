"""Tests without a service, for code that uses this package.

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

from pomona._requests import Attempt, Call, Request
from pomona.errors import ClientClosed, InvalidArgument, PomonaError
from pomona.images import open_image
from pomona.masks import Mask, ScoredMask
from pomona.results import Embedding, Fruit, ImageInfo, Inspection, Model, ModelUsed, Segmentation

T = TypeVar("T")

Answer: TypeAlias = T | PomonaError | Callable[[Call[T]], T]
"""A result to return, an error to raise, or a function of the call that does either."""

SIZE: Final = (480, 640)
"""Height and width of the image of results, unless given."""

SAM: Final = ModelUsed("mobile-sam", "6dbb90523a35", 1024, "none")
UNET: Final = ModelUsed("my-unet", "0f5c1a2b3c4d", (448, 224))


@dataclass(frozen=True)
class Sent:
    """An attempt that was sent."""

    call: Call[Any]
    attempt: Attempt


class MockTransport:
    """A transport that returns what the test sets, for `Client` and `AsyncClient`.

    Attributes:
        sent: every attempt, in order.
        closed: whether the client was closed.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.closed = False
        self._answers: dict[type[Request[Any]], list[Any]] = {}
        self._lock = threading.Lock()

    def answer(self, request: type[Request[T]], *answers: Answer[T]) -> None:
        """Set the answers to a kind of request.

        Args:
            request: `Segment`, `Inspect`, `Semantic`, `Embed`, `ListModels` or `Ready`.
            answers: the first for the first attempt and so on; the last for all that follow.

        Raises:
            InvalidArgument: there is no answer.
        """
        if not answers:
            raise InvalidArgument("answer() needs at least one answer.")
        self._answers[request] = list(answers)

    def send(self, call: Call[T], attempt: Attempt) -> T:
        """Return the next answer; see `pomona.transports.Transport`.

        Raises:
            ClientClosed: after `close`.
            InvalidArgument: the test set no answer for this request.
        """
        with self._lock:
            if self.closed:
                raise ClientClosed("The client was closed.")
            self.sent.append(Sent(call, attempt))
            answers = self._answers.get(type(call.request))
            if not answers:
                raise InvalidArgument(f"The test must set an answer for {type(call.request).__name__}.")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, PomonaError):
            raise answer
        result: T = answer
        return result

    async def asend(self, call: Call[T], attempt: Attempt) -> T:
        """Return the next answer; see `pomona.transports.AsyncTransport`."""
        return self.send(call, attempt)

    def close(self) -> None:
        """Refuse later calls."""
        self.closed = True

    async def aclose(self) -> None:
        """Refuse later calls."""
        self.closed = True


def a_mask(box: tuple[int, int, int, int], *, size: tuple[int, int] = SIZE, score: float = 0.9) -> ScoredMask:
    """Return a rectangular mask.

    Args:
        box: x0, y0, x1, y1, half-open.
        size: height and width of the image.
        score: predicted IoU.
    """
    mask = _rectangle(box, size)
    return ScoredMask(mask, score, score, mask.box, mask.area)


def a_segmentation(
    *results: Sequence[ScoredMask], size: tuple[int, int] = SIZE, overlay_png: bytes | None = None
) -> Segmentation:
    """Return a result of `segment`.

    Args:
        results: for each prompt its masks, best first.
        size: height and width of the image.
        overlay_png: the service's drawing.
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
    """Return a rectangular fruit, infected from the left.

    Args:
        box: x0, y0, x1, y1, half-open, inside the image.
        infected: fraction that is infected, rounded to whole columns.
        grade: name of the grade.
        size: height and width of the image.
        confidence: 0 to 1.
    """
    x0, y0, x1, y1 = box
    mask, spot = _rectangle(box, size), _rectangle((x0, y0, x0 + round((x1 - x0) * infected), y1), size)
    fraction = spot.area / mask.area if mask.area else 0.0
    return Fruit(
        id=1,
        box=mask.box,
        area=mask.area,
        mask=mask,
        infected_mask=spot,
        infected_fraction=fraction,
        fruit_class="infected" if fraction else "healthy",
        confidence=confidence,
        grade=grade,
        truncated=x0 == 0 or y0 == 0 or x1 == size[1] or y1 == size[0],
    )


def an_inspection(fruits: Sequence[Fruit] = (), *, size: tuple[int, int] = SIZE) -> Inspection:
    """Return a result of `inspect`, with fruits numbered in the order given."""
    numbered = tuple(replace(fruit, id=number) for number, fruit in enumerate(fruits, start=1))
    return Inspection(request_id="test", image=_info(size), fruits=numbered, unet=UNET, mode="fast")


def an_embedding(size: tuple[int, int] = SIZE) -> Embedding:
    """Return a result of `embed`."""
    return Embedding(request_id="test", image=_info(size), model=SAM)


def a_model(name: str = "mobile-sam", *, loaded: bool = True) -> Model:
    """Return an entry of the result of `models`."""
    return Model(name, "sam", "6dbb90523a35", "Apache-2.0", loaded, *(("cpu", "openvino") if loaded else (None, None)))


def size_of(call: Call[Any]) -> tuple[int, int]:
    """Return height and width of the image that was sent, for answers that are functions of the call.

    Raises:
        InvalidArgument: the call has only the id of an image.
    """
    if call.image is None:
        raise InvalidArgument("The call must have an image, got only an id.")
    image = open_image(call.image.data)
    return image.height, image.width


def _rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> Mask:
    x0, y0, x1, y1 = box
    array = np.zeros(size, np.bool_)
    array[y0:y1, x0:x1] = True
    return Mask.of(array)


def _info(size: tuple[int, int]) -> ImageInfo:
    return ImageInfo("0" * 32, size[1], size[0])

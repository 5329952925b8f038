"""The sync client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from pomona.asking import Asking, Wish
from pomona.asks import (
    Ask,
    Embed,
    Frame,
    InputSize,
    Inspect,
    ListModels,
    MaskFormat,
    Mode,
    OutlineFormat,
    Padding,
    Ready,
    Segment,
    Semantic,
)
from pomona.calls import ImageLike
from pomona.errors import PomonaError
from pomona.facts import Capture
from pomona.images import ImageSource
from pomona.results import Embedding, Inspection, Model, Segmentation, SemanticMap
from pomona.retrying import Retry, Timeout, timeout_of
from pomona.shapes import Prompts
from pomona.streams import FrameAnswer, StreamOptions, Taken
from pomona.thread_stream import streamed
from pomona.transport import StreamingTransport, Transport
from pomona.transports import Way

T = TypeVar("T")

DEFAULT_URL = "http://localhost:3000"


class Client:
    """Asks a Pomona service. It may be used from many threads, and keeps connections: make one and close it at the end.

    Args:
        url: of the service: `http://` or `https://`, or with the extra `grpc` `grpc://`, or `grpcs://` for TLS.
        timeout: limits in seconds; a number limits a call with all its attempts.
        retry: what to try again; `NO_RETRY` for nothing.
        headers: sent with every request, for what stands between (a proxy's token).
        tls: for a certificate authority of your own, or None for the usual ones; gRPC takes nothing else of it.
        transport: instead of `url`, `headers` and `tls`: another way to the service, or `pomona.testing`'s.
        sleep: how to wait between attempts.

    Raises:
        InvalidArgument: an address that is none.
        MissingPackage: an address of gRPC without the extra `grpc`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: Timeout | float | None = None,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        limits = timeout_of(timeout)
        self._asking = Asking(limits, retry or Retry(), sleep)
        way = Way(url, headers, tls, limits.connect)
        self._transport = transport or way.transport()

    def segment(
        self,
        image: ImageLike,
        prompts: Prompts,
        *,
        model: str | None = None,
        multimask: bool = True,
        format: MaskFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Segmentation:
        """Masks for prompts.

        Args:
            image: a path, encoded bytes, a PIL picture, a uint8 array (RGB); or an `Embedding`, whose picture is sent
                again only where the service has forgotten it.
            prompts: a point, box or mask; a list of these, which together mean one thing; or for several things a list
                of such lists.
            model: catalogue name of a SAM, or None for the default.
            multimask: three masks, best first, for what is ambiguous; else one.
            format: how masks travel.
            overlay: also let the service draw the masks into the picture.
            input_size: what the encoder sees, longest side in pixels; `auto` by the deadline.
            padding: how the picture is padded for the encoder.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: names the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` past the deadline.
        """
        ask = Segment(
            prompts,
            model=model,
            multimask=multimask,
            format=format,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def inspect(
        self,
        image: ImageLike,
        *,
        mode: Mode = "auto",
        model: str | None = None,
        sam_model: str | None = None,
        grades: Mapping[str, float] | None = None,
        format: OutlineFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Inspection:
        """Every fruit, how much of it is infected, and its grade.

        Args:
            image: a path, encoded bytes, a PIL picture, or a uint8 array (RGB).
            mode: `fast` is the U-Net alone, `accurate` lets a SAM draw the outlines, `auto` is accurate where that is
                in time.
            model: catalogue name of the U-Net, or None for the default.
            sam_model: catalogue name of the SAM, or None for the default.
            grades: the most that may be infected for each grade, from the best to the worst, rising: `{"A": 0.01}`.
            format: how masks travel.
            overlay: also let the service draw the fruits into the picture.
            frame_id: the camera's, told again in the answer.
            trigger_id: the same.
            captured_at_ns: the same.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: names the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` past the deadline.
        """
        ask = Inspect(mode=mode, model=model, sam_model=sam_model, grades=grades, format=format, overlay=overlay)
        capture = Capture(frame_id, trigger_id, captured_at_ns)
        return self.ask(ask, image, capture, deadline=deadline, urgency=urgency, request_id=request_id)

    def semantic(
        self,
        image: ImageLike,
        *,
        model: str | None = None,
        format: OutlineFormat = "rle",  # noqa: A002 (the service's word)
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> SemanticMap:
        """Which pixels are healthy fruit, which infected; arguments as those of `inspect`."""
        ask = Semantic(model=model, format=format, overlay=overlay)
        return self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def embed(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Embedding:
        """Encode a picture once; give what comes back to `segment` as often as you like. Arguments as there."""
        ask = Embed(model=model, input_size=input_size, padding=padding)
        return self.ask(ask, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def models(self) -> tuple[Model, ...]:
        """What is loaded, first, and what could be."""
        return self.ask(ListModels())

    def ready(self) -> bool:
        """Whether the service has its models loaded and warmed up.

        Raises:
            ConnectionFailed: there is no service.
        """
        return self.ask(Ready())

    def ask(
        self,
        ask: Ask[T],
        image: ImageLike | None = None,
        capture: Capture | None = None,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> T:
        """Ask what an `Ask` says; the other methods are this one under friendlier names."""
        wish = Wish(deadline, urgency, request_id)
        return self._asking.ask(self._transport, ask, image, capture, wish)

    def stream(
        self,
        frames: Iterable[Frame | ImageSource],
        ask: Ask[T],
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        in_flight: int = 4,
        ordered: bool = True,
        newest_first: bool = False,
    ) -> Iterator[FrameAnswer[T]]:
        """Ask the same of every frame of a camera, several on their way at once.

        A frame that fails is answered with its error, and the stream goes on. A frame is taken from `frames` only when
        fewer than `in_flight` are on their way or wait to be looked at. Frames are taken by a thread of their own, so
        a camera that blocks delays no answer. Over gRPC all frames of an `Inspect` or a `Segment` go over one stream,
        and who leaves the loop early cancels what is on its way; over HTTP that finishes unseen, and
        `AsyncClient.stream` cancels it.

        Args:
            frames: pictures, or `Frame`s with what the camera says of them.
            ask: `Inspect(…)`, `Segment(…)` or `Semantic(…)`.
            deadline: seconds after which a frame's answer is too late, from when it was taken from `frames`.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            in_flight: most frames on their way.
            ordered: answers in the order of the frames, else as they come.
            newest_first: frames are taken as they come, and of those for which there is no place only the newest
                waits: the one that waited before it is not sent, and its answer is `FrameDropped`. For a camera that
                does not wait.

        Raises:
            StreamBroken: the service left; what `frames` raises is raised here too.
        """
        options = StreamOptions(in_flight, ordered=ordered, newest_first=newest_first)
        whole = self._transport
        own = whole.stream(ask, in_flight) if isinstance(whole, StreamingTransport) else None

        def answer(taken: Taken) -> FrameAnswer[T]:
            frame = taken.frame
            capture = Capture(frame.frame_id, frame.trigger_id, frame.captured_at_ns)
            try:
                wish = Wish(taken.left(deadline), urgency)
                result = self._asking.ask(own or whole, ask, frame.image, capture, wish)
            except PomonaError as error:
                return FrameAnswer(frame, error=error)
            return FrameAnswer(frame, result)

        def leave() -> None:
            if own is not None:
                own.close()

        return streamed(frames, answer, options, leave=leave)

    def close(self) -> None:
        """Let go of connections; calls after it raise `ClientClosed`."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

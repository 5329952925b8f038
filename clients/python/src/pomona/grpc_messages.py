"""Calls as gRPC messages: pure functions, for the sync and the async transport alike; also for frames of a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message

from pomona._proto import segmentation_pb2 as pb
from pomona.asks import Ask, Attempt, Call, Embed, Inspect, ListModels, Ready, Segment, Semantic
from pomona.errors import InvalidArgument
from pomona.facts import Capture
from pomona.masks import Logits, Mask
from pomona.shapes import Prompt

_SERVICE: Final = "/pomona.v1.Segmentation/"

MOST_IN_FLIGHT: Final = 64
"""Frames of one stream that the service works on at a time, at most."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_NAME: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")

_FORMATS: Final[Mapping[str, pb.MaskFormat.ValueType]] = {
    "rle": pb.MASK_FORMAT_RLE,
    "png": pb.MASK_FORMAT_PNG,
    "polygons": pb.MASK_FORMAT_POLYGONS,
    "logits": pb.MASK_FORMAT_LOGITS,
}
_SIZES: Final[Mapping[int | str | None, pb.InputSize.ValueType]] = {
    None: pb.INPUT_SIZE_UNSPECIFIED,
    1024: pb.INPUT_SIZE_1024,
    768: pb.INPUT_SIZE_768,
    512: pb.INPUT_SIZE_512,
    "auto": pb.INPUT_SIZE_AUTO,
}
_PADDINGS: Final[Mapping[str | None, pb.Padding.ValueType]] = {
    None: pb.PADDING_UNSPECIFIED,
    "none": pb.PADDING_NONE,
    "square": pb.PADDING_SQUARE,
}
_MODES: Final[Mapping[str, pb.InspectMode.ValueType]] = {
    "fast": pb.INSPECT_MODE_FAST,
    "accurate": pb.INSPECT_MODE_ACCURATE,
    "auto": pb.INSPECT_MODE_AUTO,
}
_METHODS: Final[Mapping[type[Ask[Any]], str]] = {
    Segment: _SERVICE + "Segment",
    Semantic: _SERVICE + "Semantic",
    Inspect: _SERVICE + "Inspect",
    Embed: _SERVICE + "Embed",
    ListModels: _SERVICE + "ListModels",
    Ready: _SERVICE + "ListModels",  # answered once the models are loaded, and refused before
}
_STREAMS: Final[Mapping[type[Ask[Any]], str]] = {
    Segment: _SERVICE + "SegmentStream",
    Inspect: _SERVICE + "InspectStream",
}


@dataclass(frozen=True)
class GrpcRequest:
    """What a transport sends.

    Attributes:
        method: its path.
        data: the message.
    """

    method: str
    data: bytes


def request_of(call: Call[Any]) -> GrpcRequest:
    """The request for a call.

    Raises:
        InvalidArgument: an ask that gRPC does not know, or values that no message can hold.
    """
    method = _METHODS.get(type(call.ask))
    if method is None:
        raise InvalidArgument(f"{type(call.ask).__name__} cannot be asked over gRPC.")
    return GrpcRequest(method, _serialized(call))


def metadata_of(attempt: Attempt) -> Metadata:
    """What is told beside the message; the call's own deadline is the transport's to set.

    Raises:
        InvalidArgument: a request id that cannot be sent.
    """
    told = []
    if attempt.request_id:
        told.append(("x-request-id", attempt.request_id))
    if attempt.deadline is not None:
        told.append(("x-deadline-ms", f"{attempt.deadline * 1000:.3f}"))
    if attempt.urgency is not None:
        told.append(("priority", f"u={attempt.urgency}"))
    return checked(*told)


def checked(*metadata: tuple[str, str]) -> Metadata:
    """The same metadata, where they can be sent.

    Raises:
        InvalidArgument: they cannot.
    """
    for name, value in metadata:
        if not (_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise InvalidArgument(f"{name!r} cannot be {value!r}: in gRPC it is ASCII that can be printed.")
    return metadata


def stream_of(ask: Ask[Any]) -> str | None:
    """The path of the method that answers frames, or None where there is none for this."""
    return _STREAMS.get(type(ask))


def settings_of(ask: Ask[Any], in_flight: int) -> bytes:
    """The first message of a stream.

    Args:
        ask: of every frame.
        in_flight: most frames that are on their way.
    """
    settings = pb.StreamSettings(max_in_flight=min(in_flight, MOST_IN_FLIGHT), when_full=pb.WHEN_FULL_WAIT)
    if isinstance(ask, Segment):
        return pb.SegmentStreamRequest(settings=settings).SerializeToString()
    return pb.InspectStreamRequest(settings=settings).SerializeToString()


def frame_of(call: Call[Any], attempt: Attempt) -> bytes:
    """A frame of a stream.

    Raises:
        InvalidArgument: values that no message can hold.
    """
    deadline_ms = None if attempt.deadline is None else attempt.deadline * 1000
    try:
        if isinstance(call.ask, Segment):
            return pb.SegmentStreamRequest(
                request=_segment(call.ask, call),
                frame=_frame(call.capture),
                deadline_ms=deadline_ms,
                urgency=attempt.urgency,
            ).SerializeToString()
        return pb.InspectStreamRequest(
            request=_inspect(call.ask, call), deadline_ms=deadline_ms, urgency=attempt.urgency
        ).SerializeToString()
    except (ValueError, TypeError) as error:
        raise _unfit(error) from error


def _serialized(call: Call[Any]) -> bytes:
    ask = call.ask
    message: Message
    try:
        if isinstance(ask, Segment):
            message = _segment(ask, call)
        elif isinstance(ask, Inspect):
            message = _inspect(ask, call)
        elif isinstance(ask, Semantic):
            message = pb.SemanticRequest(
                image=_data(call), model=ask.model or "", format=_one(_FORMATS, ask.format), overlay=ask.overlay
            )
        elif isinstance(ask, Embed):
            message = pb.EmbedRequest(
                image=_data(call),
                model=ask.model or "",
                input_size=_one(_SIZES, ask.input_size),
                padding=_one(_PADDINGS, ask.padding),
            )
        else:
            message = pb.ListModelsRequest()
        return message.SerializeToString()
    except (ValueError, TypeError) as error:
        raise _unfit(error) from error


def _unfit(error: Exception) -> InvalidArgument:
    if isinstance(error, InvalidArgument):
        return error
    return InvalidArgument(f"The request cannot be built: {error}.")


def _segment(ask: Segment, call: Call[Any]) -> pb.SegmentRequest:
    message = pb.SegmentRequest(
        prompts=[_prompt(thing) for thing in ask.things],
        model=ask.model or "",
        format=_one(_FORMATS, ask.format),
        overlay=ask.overlay,
        input_size=_one(_SIZES, ask.input_size),
        padding=_one(_PADDINGS, ask.padding),
    )
    if call.image_id is not None:
        message.image_id = call.image_id
    else:
        message.image = _data(call)
    return message


def _inspect(ask: Any, call: Call[Any]) -> pb.InspectRequest:
    if not isinstance(ask, Inspect):
        raise InvalidArgument(f"{type(ask).__name__} cannot be asked of a stream.")
    grades = (ask.grades or {}).items()
    return pb.InspectRequest(
        image=_data(call),
        model=ask.model or "",
        sam_model=ask.sam_model or "",
        mode=_one(_MODES, ask.mode),
        format=_one(_FORMATS, ask.format),
        grades=[pb.Grade(grade=name, max_infected_fraction=float(most)) for name, most in grades],
        overlay=ask.overlay,
        frame=_frame(call.capture),
    )


def _data(call: Call[Any]) -> bytes:
    if call.picture is None:
        raise InvalidArgument("There is neither a picture nor the id of one.")
    return call.picture.data


def _one(numbers: Mapping[Any, Any], word: Any) -> Any:
    if word not in numbers:
        known = ", ".join(repr(each) for each in numbers if each is not None)
        raise InvalidArgument(f"{word!r} is none of {known}.")
    return numbers[word]


def _frame(capture: Capture) -> pb.Frame:
    return pb.Frame(frame_id=capture.frame_id, trigger_id=capture.trigger_id, captured_at_ns=capture.captured_at_ns)


def _prompt(prompt: Prompt) -> pb.Prompt:
    box = prompt.box
    message = pb.Prompt(
        points=[pb.Point(x=point.x, y=point.y, label=int(point.label)) for point in prompt.points],
        box=None if box is None else pb.Box(x0=box.x0, y0=box.y0, x1=box.x1, y1=box.y1),
        multimask=prompt.multimask,
    )
    if prompt.mask is not None:
        _put_mask(message, prompt.mask)
    return message


def _put_mask(message: pb.Prompt, mask: Mask) -> None:
    if isinstance(mask.encoded, Logits):
        height, width = mask.encoded.shape
        message.logits.CopyFrom(pb.LogitsMask(height=height, width=width, data=mask.encoded.data))
    else:
        height, width = mask.rle.size
        message.rle.CopyFrom(pb.RleMask(height=height, width=width, counts=mask.rle.counts.encode()))

"""gRPC messages as results: pure functions, for the sync and the async transport alike; also for frames of a stream.

Fields that are not known here are passed over: a newer service may tell more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, cast

from google.protobuf.message import DecodeError

from pomona._proto import segmentation_pb2 as pb
from pomona.asks import Ask, Call, Embed, Inspect, ListModels, Ready, Segment, Semantic
from pomona.errors import BadAnswer, FrameDropped, error_of
from pomona.facts import Batch, Capture, ImageInfo, ModelUsed, Timings
from pomona.masks import Encoded, Logits, Mask, PixelBox, Png, Polygons, ScoredMask, masks_of_map, window_of
from pomona.results import Embedding, Fruit, FruitClass, Inspection, Model, Region, Segmentation, SemanticMap
from pomona.rle import Rle

T = TypeVar("T")
Reply = pb.SegmentStreamResponse | pb.InspectStreamResponse

_CLASSES: Final[Mapping[int, FruitClass]] = {pb.PIXEL_CLASS_HEALTHY: "healthy", pb.PIXEL_CLASS_INFECTED: "infected"}
_FAMILIES: Final[Mapping[int, str]] = {pb.MODEL_FAMILY_SAM: "sam", pb.MODEL_FAMILY_UNET: "unet"}
_PADDINGS: Final[Mapping[int, str]] = {pb.PADDING_NONE: "none", pb.PADDING_SQUARE: "square"}
_MODES: Final[Mapping[int, Literal["fast", "accurate"]]] = {
    pb.INSPECT_MODE_FAST: "fast",
    pb.INSPECT_MODE_ACCURATE: "accurate",
}


def answer_of(call: Call[T], data: bytes) -> T:
    """Read an answer.

    Args:
        call: that was answered.
        data: the message.

    Raises:
        BadAnswer: it is not what Pomona answers.
    """
    if isinstance(call.ask, Ready):
        return cast("T", True)  # noqa: FBT003 (a service that is not ready refuses)
    kind, parse = _PARSERS[type(call.ask)]
    try:
        return cast("T", parse(kind.FromString(data)))
    except (DecodeError, KeyError, ValueError) as error:
        raise _bad(error) from error


def reply_of(ask: Ask[Any], data: bytes) -> Reply:
    """Read what a stream tells of a frame.

    Raises:
        BadAnswer: it is not what Pomona tells.
    """
    kind = pb.SegmentStreamResponse if isinstance(ask, Segment) else pb.InspectStreamResponse
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise _bad(error) from error


def number_of(reply: Reply) -> int:
    """Which frame of its stream a reply is about, from 1 on.

    Raises:
        BadAnswer: that cannot be told.
    """
    number = reply.request_id.rpartition(".")[2]
    if not (number.isascii() and number.isdecimal()):
        raise BadAnswer(f"A stream answered a frame {reply.request_id!r}, which tells no number.")
    return int(number)


def frame_answer_of(call: Call[T], reply: Reply) -> T:
    """The answer for a frame.

    Raises:
        PomonaError: the frame's error, by its code; `FrameDropped`; `BadAnswer`.
    """
    if reply.outcome == pb.FRAME_OUTCOME_ANSWERED:
        try:
            return cast("T", _PARSERS[type(call.ask)][1](reply.response))
        except (KeyError, ValueError) as error:
            raise _bad(error, reply.request_id) from error
    if reply.outcome == pb.FRAME_OUTCOME_DROPPED:
        raise FrameDropped("A newer frame took its turn.", request_id=reply.request_id)
    problem = reply.problem
    if not problem.code:
        raise BadAnswer(f"A frame has neither an answer nor a problem: {reply}.", request_id=reply.request_id)
    raise error_of(
        problem.code,
        problem.detail,
        refused=True,
        request_id=reply.request_id,
        retry_after=problem.retry_after_ms / 1000 if problem.HasField("retry_after_ms") else None,
    )


def _bad(error: Exception, request_id: str | None = None) -> BadAnswer:
    return BadAnswer(
        f"The answer is not what Pomona answers: {type(error).__name__} {error}.", request_id=request_id or None
    )


def _segmentation(message: pb.SegmentResponse) -> Segmentation:
    image, model = _image(message.image), _sam(message.model)
    size = (image.height, image.width)
    window = window_of(size, message.model.input_size)
    return Segmentation(
        request_id=message.request_id,
        image=image,
        batch=_batch(message.batch),
        timings=_timings(message.timing),
        overlay_png=message.overlay if message.HasField("overlay") else None,
        model=model,
        results=tuple(
            tuple(
                ScoredMask(
                    mask=Mask(size, _encoded(mask.mask, window)),
                    score=mask.score,
                    stability_score=mask.stability_score,
                    box=_box(mask.box),
                    area=mask.area,
                )
                for mask in result.masks
            )
            for result in message.results
        ),
        degraded=message.degraded,
    )


def _inspection(message: pb.InspectResponse) -> Inspection:
    image, frame = _image(message.image), message.frame
    size = (image.height, image.width)
    return Inspection(
        request_id=message.request_id,
        image=image,
        batch=_batch(message.batch),
        timings=_timings(message.timing),
        overlay_png=message.overlay if message.HasField("overlay") else None,
        fruits=tuple(_fruit(fruit, size) for fruit in message.fruits),
        unet=_unet(message.unet),
        sam=_sam(message.sam) if message.HasField("sam") else None,
        mode=_MODES[message.mode],
        degraded=message.degraded,
        reason=message.reason if message.HasField("reason") else None,
        capture=Capture(
            frame.frame_id if frame.HasField("frame_id") else None,
            frame.trigger_id if frame.HasField("trigger_id") else None,
            frame.captured_at_ns if frame.HasField("captured_at_ns") else None,
        ),
    )


def _fruit(fruit: pb.Fruit, size: tuple[int, int]) -> Fruit:
    return Fruit(
        id=fruit.id,
        box=_box(fruit.box),
        area=fruit.area,
        mask=Mask(size, _encoded(fruit.mask)),
        infected_mask=Mask(size, _encoded(fruit.infected_mask)),
        infected_fraction=fruit.infected_fraction,
        fruit_class=_CLASSES[fruit.pixel_class],
        confidence=fruit.confidence,
        grade=fruit.grade,
        truncated=fruit.truncated,
        refined=fruit.refined,
    )


def _semantic(message: pb.SemanticResponse) -> SemanticMap:
    image = _image(message.image)
    size = (image.height, image.width)
    classes = {_CLASSES[each.pixel_class]: each for each in message.classes}
    if message.HasField("class_map"):
        healthy, infected = masks_of_map(message.class_map, size)
    else:
        healthy, infected = (Mask(size, _encoded(classes[name].mask)) for name in _CLASSES.values())
    return SemanticMap(
        request_id=message.request_id,
        image=image,
        batch=_batch(message.batch),
        timings=_timings(message.timing),
        overlay_png=message.overlay if message.HasField("overlay") else None,
        model=_unet(message.model),
        healthy=healthy,
        infected=infected,
        healthy_area=classes["healthy"].area,
        infected_area=classes["infected"].area,
        objects=tuple(
            Region(_CLASSES[each.pixel_class], _box(each.box), each.area, each.score) for each in message.objects
        ),
    )


def _embedding(message: pb.EmbedResponse) -> Embedding:
    return Embedding(
        request_id=message.request_id,
        image=_image(message.image),
        batch=_batch(message.batch),
        timings=_timings(message.timing),
        model=_sam(message.model),
    )


def _models(message: pb.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(
        Model(
            name=each.name,
            family=_FAMILIES[each.family],
            revision=each.revision,
            licence=each.licence,
            loaded=each.loaded,
            device=each.device if each.HasField("device") else None,
            backend=each.backend if each.HasField("backend") else None,
        )
        for each in message.models
    )


_PARSERS: Final[Mapping[type[Ask[Any]], tuple[Any, Callable[[Any], Any]]]] = {
    Segment: (pb.SegmentResponse, _segmentation),
    Semantic: (pb.SemanticResponse, _semantic),
    Inspect: (pb.InspectResponse, _inspection),
    Embed: (pb.EmbedResponse, _embedding),
    ListModels: (pb.ListModelsResponse, _models),
}


def _image(image: pb.Image) -> ImageInfo:
    if image.width < 1 or image.height < 1:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels")
    return ImageInfo(image.id, image.width, image.height)


def _sam(model: pb.SamModel) -> ModelUsed:
    return ModelUsed(model.name, model.revision, model.input_size, _PADDINGS[model.padding])


def _unet(model: pb.UnetModel) -> ModelUsed:
    return ModelUsed(model.name, model.revision, (model.input_width, model.input_height))


def _batch(batch: pb.Batch) -> Batch:
    return Batch(encode=batch.encode, prompt=batch.prompt, infer=batch.infer)


def _timings(timing: pb.Timing) -> Timings:
    return Timings(
        decode=timing.decode_ms,
        queue=timing.queue_ms,
        encode=timing.encode_ms,
        prompt=timing.prompt_ms,
        infer=timing.infer_ms,
        postprocess=timing.postprocess_ms,
        total=timing.total_ms,
    )


def _box(box: pb.PixelBox) -> PixelBox:
    return PixelBox(box.x0, box.y0, box.x1, box.y1)


def _encoded(mask: pb.EncodedMask, window: tuple[float, float] = (0, 0)) -> Encoded:
    kind = mask.WhichOneof("mask")
    if kind == "rle":
        return Rle((mask.rle.height, mask.rle.width), mask.rle.counts.decode("ascii"))
    if kind == "png":
        return Png(mask.png)
    if kind == "polygons":
        rings = [[ring.coordinates for ring in polygon.rings] for polygon in mask.polygons.polygons]
        return Polygons([[_corners(ring) for ring in polygon] for polygon in rings])
    if kind == "logits":
        return Logits((mask.logits.height, mask.logits.width), mask.logits.data, window)
    raise ValueError("a mask of no known format")


def _corners(ring: Sequence[float]) -> list[list[float]]:
    return [[x, y] for x, y in zip(ring[::2], ring[1::2], strict=True)]

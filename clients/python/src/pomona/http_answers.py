"""HTTP answers as results: pure functions, for the sync and the async transport alike.

Fields that are not known here are passed over: a newer service may tell more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final, TypeVar, cast

from pomona.asks import Ask, Call, Embed, Inspect, ListModels, Ready, Segment, Semantic
from pomona.errors import BadAnswer, NotReady, Overloaded, PomonaError, TimedOut, UploadTooLarge, error_of
from pomona.facts import Batch, Capture, ImageInfo, ModelUsed, Timings
from pomona.masks import (
    Encoded,
    Logits,
    Mask,
    PixelBox,
    Png,
    Polygons,
    ScoredMask,
    from_base64,
    masks_of_map,
    window_of,
)
from pomona.results import (
    Embedding,
    Fruit,
    Inspection,
    Model,
    Region,
    Segmentation,
    SemanticMap,
)
from pomona.rle import Rle

T = TypeVar("T")
_Json = Mapping[str, Any]
_SHOWN: Final = 200
_BY_STATUS: Final = {
    413: UploadTooLarge.default_code,
    429: Overloaded.default_code,
    502: NotReady.default_code,
    503: NotReady.default_code,
    504: TimedOut.default_code,
}
"""What a proxy between means, which knows no codes."""


def answer_of(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """Read an answer.

    Args:
        call: that was answered.
        status: of the response.
        headers: of the response, names in lower case or of a mapping that does not care.
        body: the whole.

    Raises:
        PomonaError: the service's error, by its code, or `BadAnswer`.
    """
    if isinstance(call.ask, Ready):
        if status not in (200, 503):
            raise _error(status, headers, body)
        return cast("T", status == 200)
    if status != 200:
        raise _error(status, headers, body)
    try:
        return cast("T", _PARSERS[type(call.ask)](json.loads(body)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(
            f"The answer is not what Pomona answers: {type(error).__name__} {error}; it begins with "
            f"{body[:_SHOWN].decode(errors='replace')!r}.",
            request_id=headers.get("x-request-id"),
        ) from error


def _error(status: int, headers: Mapping[str, str], body: bytes) -> PomonaError:
    try:
        problem = json.loads(body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        # Not Pomona's words: those of a proxy between.
        code = _BY_STATUS.get(status, "")
        detail = f"HTTP {status}: {body[:_SHOWN].decode(errors='replace').strip() or 'no words'}"
    retry_after = _seconds(headers.get("retry-after", ""))
    request_id = headers.get("x-request-id")
    if not code and status < 400:
        return BadAnswer(detail, request_id=request_id)
    return error_of(code or None, detail, refused=status < 500, request_id=request_id, retry_after=retry_after)


def _seconds(retry_after: str) -> float | None:
    """Of `Retry-After`, where it tells seconds; dates, which Pomona never sends, are passed over."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None


def _segmentation(body: _Json) -> Segmentation:
    image, model = _image(body["image"]), _sam(body["model"])
    size = (image.height, image.width)
    window = window_of(size, body["model"]["input_size"])
    return Segmentation(
        request_id=body["request_id"],
        image=image,
        batch=_batch(body["batch"]),
        timings=_timings(body["timing_ms"]),
        overlay_png=_png(body.get("overlay")),
        model=model,
        results=tuple(
            tuple(
                ScoredMask(
                    mask=Mask(size, _encoded(mask["mask"], window)),
                    score=float(mask["score"]),
                    stability_score=float(mask["stability_score"]),
                    box=PixelBox(*mask["box"]),
                    area=int(mask["area"]),
                )
                for mask in result["masks"]
            )
            for result in body["results"]
        ),
        degraded=bool(body["degraded"]),
    )


def _inspection(body: _Json) -> Inspection:
    image = _image(body["image"])
    size = (image.height, image.width)
    sam, frame = body["models"]["sam"], body["frame"]
    return Inspection(
        request_id=body["request_id"],
        image=image,
        batch=_batch(body["batch"]),
        timings=_timings(body["timing_ms"]),
        overlay_png=_png(body.get("overlay")),
        fruits=tuple(_fruit(fruit, size) for fruit in body["fruits"]),
        unet=_unet(body["models"]["unet"]),
        sam=None if sam is None else _sam(sam),
        mode=body["mode"],
        degraded=bool(body["degraded"]),
        reason=body["reason"],
        capture=Capture(frame["frame_id"], frame["trigger_id"], frame["captured_at_ns"]),
    )


def _fruit(fruit: _Json, size: tuple[int, int]) -> Fruit:
    return Fruit(
        id=int(fruit["id"]),
        box=PixelBox(*fruit["box"]),
        area=int(fruit["area"]),
        mask=Mask(size, _encoded(fruit["mask"])),
        infected_mask=Mask(size, _encoded(fruit["infected_mask"])),
        infected_fraction=float(fruit["infected_fraction"]),
        fruit_class=fruit["class"],
        confidence=float(fruit["confidence"]),
        grade=str(fruit["grade"]),
        truncated=bool(fruit["truncated"]),
        refined=bool(fruit["refined"]),
    )


def _semantic(body: _Json) -> SemanticMap:
    image = _image(body["image"])
    size = (image.height, image.width)
    classes = {each["class"]: each for each in body["classes"]}
    if body["class_map"] is None:
        healthy, infected = (Mask(size, _encoded(classes[name]["mask"])) for name in ("healthy", "infected"))
    else:
        healthy, infected = masks_of_map(from_base64(body["class_map"]), size)
    return SemanticMap(
        request_id=body["request_id"],
        image=image,
        batch=_batch(body["batch"]),
        timings=_timings(body["timing_ms"]),
        overlay_png=_png(body.get("overlay")),
        model=_unet(body["model"]),
        healthy=healthy,
        infected=infected,
        healthy_area=int(classes["healthy"]["area"]),
        infected_area=int(classes["infected"]["area"]),
        objects=tuple(
            Region(each["class"], PixelBox(*each["box"]), int(each["area"]), float(each["score"]))
            for each in body["objects"]
        ),
    )


def _embedding(body: _Json) -> Embedding:
    return Embedding(
        request_id=body["request_id"],
        image=_image(body["image"]),
        batch=_batch(body["batch"]),
        timings=_timings(body["timing_ms"]),
        model=_sam(body["model"]),
    )


def _models(body: _Json) -> tuple[Model, ...]:
    return tuple(
        Model(
            name=each["name"],
            family=each["family"],
            revision=each["revision"],
            licence=each["licence"],
            loaded=bool(each["loaded"]),
            device=each["device"],
            backend=each["backend"],
        )
        for each in body["models"]
    )


_PARSERS: Final[Mapping[type[Ask[Any]], Callable[[Any], Any]]] = {
    Segment: _segmentation,
    Semantic: _semantic,
    Inspect: _inspection,
    Embed: _embedding,
    ListModels: _models,
}


def _image(image: _Json) -> ImageInfo:
    return ImageInfo(str(image["id"]), int(image["width"]), int(image["height"]))


def _sam(model: _Json) -> ModelUsed:
    return ModelUsed(model["name"], model["revision"], int(model["input_size"]), model["padding"])


def _unet(model: _Json) -> ModelUsed:
    return ModelUsed(model["name"], model["revision"], (int(model["input_width"]), int(model["input_height"])))


def _batch(batch: _Json) -> Batch:
    return Batch(**{each.name: int(batch.get(each.name, 0)) for each in fields(Batch)})


def _timings(timings: _Json) -> Timings:
    return Timings(**{each.name: float(timings.get(each.name, 0)) for each in fields(Timings)})


def _png(text: str | None) -> bytes | None:
    return None if text is None else from_base64(text)


def _encoded(mask: _Json, window: tuple[float, float] = (0, 0)) -> Encoded:
    if "counts" in mask:
        height, width = mask["size"]
        return Rle((int(height), int(width)), str(mask["counts"]))
    if "png" in mask:
        return Png(from_base64(mask["png"]))
    if "polygons" in mask:
        return Polygons(mask["polygons"])
    height, width = mask["shape"]
    return Logits((int(height), int(width)), from_base64(mask["data"]), window)

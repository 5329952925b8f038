"""The pipeline's answers and the service's errors as HTTP responses."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from models.catalog import CatalogueEntry
from models.letterbox import Letterbox
from models.masks import EncodedLogits, Rle
from models.types import PixelClass, Size
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import Region
from service.callers import Refusal
from service.formats import EncodedMask, Png, Polygons
from service.http import inspect_schema as inspection
from service.http import schema
from service.http import semantic_schema as semantic
from service.messages import (
    Classified,
    ClassResult,
    Embedded,
    FruitResult,
    Inspected,
    MaskResult,
    Segmented,
    Timings,
)
from service.runners.base import Runner

_CLASS_NAMES: Final[Mapping[PixelClass, semantic.ClassName]] = {
    PixelClass.HEALTHY: "healthy",
    PixelClass.INFECTED: "infected",
}


def segmented(answer: Segmented, request_id: str) -> Response:
    """The answer of `/v1/segment`."""
    return _json(
        schema.SegmentOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            model=_model(answer.model, answer.frame),
            results=[schema.ResultOut(masks=[_mask(mask) for mask in masks]) for masks in answer.results],
            overlay=None if answer.overlay is None else _base64(answer.overlay),
            degraded=answer.degraded,
            batch=schema.SegmentBatch(encode=answer.together.encode, prompt=answer.together.prompt),
            timing_ms=schema.SegmentTimings(**timings_ms(answer.timings, schema.SegmentTimings)),
        )
    )


def embedded(answer: Embedded, request_id: str) -> Response:
    """The answer of `/v1/embed`."""
    return _json(
        schema.EmbedOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            model=_model(answer.model, answer.frame),
            batch=schema.EmbedBatch(encode=answer.together.encode),
            timing_ms=schema.EmbedTimings(**timings_ms(answer.timings, schema.EmbedTimings)),
        )
    )


def classified(answer: Classified, request_id: str) -> Response:
    """The answer of `/v1/semantic`."""
    return _json(
        semantic.SemanticOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            model=_unet(answer.model, answer.frame),
            classes=[_class(result) for result in answer.classes],
            class_map=None if answer.class_map is None else _base64(answer.class_map),
            objects=[_object(region) for region in answer.objects],
            overlay=None if answer.overlay is None else _base64(answer.overlay),
            batch=semantic.SemanticBatch(infer=answer.together.infer),
            timing_ms=semantic.SemanticTimings(**timings_ms(answer.timings, semantic.SemanticTimings)),
        )
    )


def inspected(answer: Inspected, request_id: str) -> Response:
    """The answer of `/v1/inspect`."""
    together, sam = answer.together, answer.sam
    return _json(
        inspection.InspectOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            models=inspection.InspectModels(
                unet=_unet(answer.model, answer.frame), sam=None if sam is None else _model(sam.model, sam.frame)
            ),
            fruits=[_fruit(fruit) for fruit in answer.fruits],
            mode=answer.mode,
            degraded=answer.degraded,
            reason=answer.reason,
            frame=inspection.FrameOut(
                frame_id=answer.capture.frame_id,
                trigger_id=answer.capture.trigger_id,
                captured_at_ns=answer.capture.captured_at_ns,
            ),
            overlay=None if answer.overlay is None else _base64(answer.overlay),
            batch=inspection.InspectBatch(infer=together.infer, encode=together.encode, prompt=together.prompt),
            timing_ms=inspection.InspectTimings(**timings_ms(answer.timings, inspection.InspectTimings)),
        )
    )


def models(runners: Mapping[str, Runner], catalogue: Mapping[str, CatalogueEntry]) -> Response:
    """The answer of `/v1/models`: what is loaded first, the default of each family before its others."""
    names = [*runners, *(name for name in catalogue if name not in runners)]
    return _json(
        schema.ModelsOut(
            models=[
                schema.ModelOut(
                    name=name,
                    family=catalogue[name].architecture.family,
                    revision=catalogue[name].revision,
                    licence=catalogue[name].licence,
                    loaded=name in runners,
                    device=runners[name].device if name in runners else None,
                    backend=runners[name].backend_name if name in runners else None,
                )
                for name in names
            ]
        )
    )


def timings_ms(timings: Timings, parts: type[BaseModel]) -> dict[str, float]:
    """Those parts of a request that `parts` names, in milliseconds."""
    return {part: round(getattr(timings, part) * 1000, 2) for part in parts.model_fields}


def problem(refusal: Refusal, request_id: str) -> Response:
    """An error as problem+json, RFC 9457, with the request's id."""
    row = refusal.problem
    body = schema.ProblemOut(
        type=f"urn:pomona:problem:{row.code}",
        title=row.title,
        status=row.status,
        detail=refusal.detail,
        code=row.code,
        request_id=request_id,
    )
    return Response(body.model_dump_json(), row.status, headers_of(refusal), media_type="application/problem+json")


def headers_of(refusal: Refusal) -> dict[str, str]:
    """What an error says in headers, whatever its body."""
    headers: dict[str, str] = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.problem.status == 413:
        # The rest of the body is not read: the connection cannot be used again.
        headers["connection"] = "close"
    return headers


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(by_alias=True), media_type="application/json")


def _image(image_id: str, size: Size) -> schema.ImageOut:
    return schema.ImageOut(id=image_id, width=size.width, height=size.height)


def _model(entry: CatalogueEntry, frame: Letterbox) -> schema.ModelRef:
    square = frame.padded == Size(frame.side, frame.side)
    return schema.ModelRef(
        name=entry.name, revision=entry.revision, input_size=frame.side, padding="square" if square else "none"
    )


def _unet(entry: CatalogueEntry, frame: UNetLetterbox) -> semantic.SemanticModelRef:
    seen = frame.resized
    return semantic.SemanticModelRef(
        name=entry.name, revision=entry.revision, input_width=seen.width, input_height=seen.height
    )


def _fruit(fruit: FruitResult) -> inspection.FruitOut:
    return inspection.FruitOut(
        id=fruit.id,
        box=fruit.box,
        area=fruit.area,
        mask=_shape(fruit.mask),
        infected_mask=_shape(fruit.infected_mask),
        infected_fraction=fruit.infected_fraction,
        name=_CLASS_NAMES[fruit.pixel_class],
        confidence=fruit.confidence,
        grade=fruit.grade,
        truncated=fruit.truncated,
        refined=fruit.refined,
    )


def _mask(result: MaskResult) -> schema.MaskOut:
    return schema.MaskOut(
        mask=_encoding(result.encoded),
        score=result.mask.score,
        stability_score=result.mask.stability_score,
        box=result.mask.box,
        area=result.mask.area,
    )


def _class(result: ClassResult) -> semantic.ClassOut:
    mask = None if result.encoded is None else _outline(result.encoded)
    return semantic.ClassOut(name=_CLASS_NAMES[result.pixel_class], mask=mask, area=result.area)


def _object(region: Region) -> semantic.ObjectOut:
    return semantic.ObjectOut(
        name=_CLASS_NAMES[region.pixel_class], box=region.box, area=region.area, score=region.score
    )


def _encoding(
    encoded: EncodedMask | None,
) -> schema.RleMask | schema.PngMask | schema.PolygonsMask | schema.LogitsMask:
    if encoded is None:
        raise ValueError("no format was asked for")
    if isinstance(encoded, EncodedLogits):
        return schema.LogitsMask(shape=encoded.shape, dtype="float16", data=_base64(encoded.data))
    return _shape(encoded)


def _shape(encoded: Rle | Png | Polygons) -> schema.RleMask | schema.PngMask | schema.PolygonsMask:
    if isinstance(encoded, Png):
        return schema.PngMask(png=_base64(encoded.data))
    return _outline(encoded)


def _outline(encoded: Rle | Polygons) -> schema.RleMask | schema.PolygonsMask:
    if isinstance(encoded, Rle):
        return schema.RleMask(size=encoded.size, counts=encoded.counts)
    return schema.PolygonsMask.model_construct(polygons=encoded.polygons)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

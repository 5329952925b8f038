"""The pipeline's answers and the service's errors as HTTP responses."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response

from models.errors import PomonaError
from models.masks import EncodedLogits, Rle
from models.transforms import Frame
from models.types import Size
from models.zoo import CatalogueEntry
from service.errors import Overloaded, problem_of
from service.formats import EncodedMask, Png
from service.http import schema
from service.messages import Embedded, MaskResult, Segmented, Timings
from service.runners import SamRunner

_MAX_DETAIL: Final = 600


def segmented(answer: Segmented, request_id: str) -> Response:
    """The answer of `/v1/segment`."""
    return _json(
        schema.SegmentOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            model=_model(answer.model, answer.frame),
            results=[schema.ResultOut(masks=[_mask(mask) for mask in masks]) for masks in answer.results],
            overlay=None if answer.overlay is None else _base64(answer.overlay),
            timing_ms=schema.SegmentTimings(**timings_ms(answer.timings)),
        )
    )


def embedded(answer: Embedded, request_id: str) -> Response:
    """The answer of `/v1/embed`."""
    timings = timings_ms(answer.timings)
    return _json(
        schema.EmbedOut(
            request_id=request_id,
            image=_image(answer.image_id, answer.frame.original),
            model=_model(answer.model, answer.frame),
            timing_ms=schema.EmbedTimings(**{part: timings[part] for part in schema.EmbedTimings.model_fields}),
        )
    )


def models(runners: Mapping[str, SamRunner], catalogue: Mapping[str, CatalogueEntry]) -> Response:
    """The answer of `/v1/models`: what is loaded first, the default at the top."""
    names = [*runners, *(name for name in catalogue if name not in runners)]
    return _json(
        schema.ModelsOut(
            models=[
                schema.ModelOut(
                    name=name,
                    revision=catalogue[name].revision,
                    licence=catalogue[name].licence,
                    loaded=name in runners,
                    device=runners[name].backend.device if name in runners else None,
                    backend=runners[name].backend.name if name in runners else None,
                )
                for name in names
            ]
        )
    )


def timings_ms(timings: Timings) -> dict[str, float]:
    """The parts of a request in milliseconds, by name."""
    return {part: round(seconds * 1000, 2) for part, seconds in asdict(timings).items()}


def problem(error: PomonaError, request_id: str, *, detail: str | None = None) -> Response:
    """An error as problem+json, RFC 9457.

    Args:
        error: looked up in the table.
        request_id: echoed.
        detail: said instead of the error's own text.
    """
    row = problem_of(error)
    body = schema.ProblemOut(
        type=f"urn:pomona:problem:{row.code}",
        title=row.title,
        status=row.status,
        detail=_shortened(detail or error.detail),
        code=row.code,
        request_id=request_id,
    )
    response = Response(body.model_dump_json(), row.status, media_type="application/problem+json")
    if row.retry_after is not None:
        seconds = error.retry_after if isinstance(error, Overloaded) else row.retry_after
        response.headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if row.status == 413:
        # The rest of the body is not read: the connection cannot be used again.
        response.headers["connection"] = "close"
    return response


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def _image(image_id: str, size: Size) -> schema.ImageOut:
    return schema.ImageOut(id=image_id, width=size.width, height=size.height)


def _model(entry: CatalogueEntry, frame: Frame) -> schema.ModelRef:
    square = frame.padded == Size(frame.side, frame.side)
    return schema.ModelRef(
        name=entry.name, revision=entry.revision, input_size=frame.side, padding="square" if square else "none"
    )


def _mask(result: MaskResult) -> schema.MaskOut:
    return schema.MaskOut(
        mask=_encoding(result.encoded),
        score=result.mask.score,
        stability_score=result.mask.stability_score,
        box=result.mask.box,
        area=result.mask.area,
    )


def _encoding(
    encoded: EncodedMask,
) -> schema.RleMask | schema.PngMask | schema.PolygonsMask | schema.LogitsMask:
    if isinstance(encoded, Rle):
        return schema.RleMask(size=encoded.size, counts=encoded.counts)
    if isinstance(encoded, Png):
        return schema.PngMask(png=_base64(encoded.data))
    if isinstance(encoded, EncodedLogits):
        return schema.LogitsMask(shape=encoded.shape, dtype="float16", data=encoded.data)
    return schema.PolygonsMask.model_construct(polygons=encoded.polygons)


def _shortened(detail: str) -> str:
    """A detail may quote what the caller sent, which may be of any length."""
    return detail if len(detail) <= _MAX_DETAIL else detail[: _MAX_DETAIL - 1] + "…"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""Request bodies: read within the limit, taken apart, and turned into what the pipeline takes."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.errors import MalformedPrompt, MaskError, NoPrompt, NotAnImage
from models.masks import EncodedLogits, Rle, decode_logits, decode_rle
from models.types import FOREGROUND, BinaryMask, Box, Logits, Point, Prompt
from service.errors import (
    MalformedJson,
    MalformedRequest,
    NoImage,
    UnknownField,
    UnsupportedFormat,
    UploadTooLarge,
)
from service.http.inspect_schema import InspectIn
from service.http.schema import PromptIn, RleMask, SegmentIn
from service.http.semantic_schema import SemanticIn
from service.messages import Capture, InputChoice, InspectRequest, SegmentRequest, SemanticRequest

M = TypeVar("M", bound=BaseModel)

_SPOOL_NOTHING = 1 << 40  # bodies are bounded: parts stay in memory rather than on a disk


class _Parser(MultiPartParser):
    """Refuses a body that ends before its closing boundary, of which Starlette's would drop the last part."""

    spool_max_size = _SPOOL_NOTHING

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], *, max_part_size: int) -> None:
        super().__init__(headers, self._whole(stream), max_files=8, max_fields=8, max_part_size=max_part_size)
        self._complete = False

    def on_end(self) -> None:
        """The closing boundary was read."""
        self._complete = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._complete:
            raise MultiPartException("it ends before its closing boundary")


class Parts:
    """The parts of a body: `image`, `image_id` and `request`, each None where absent."""

    def __init__(self, image: bytes | None, image_id: str | None, request: bytes | None) -> None:
        self.image = image
        self.image_id = image_id
        self.request = request


async def read_body(request: Request, *, allowed: frozenset[str], max_bytes: int) -> Parts:
    """Read a multipart body, or an image that is the body itself, with the JSON in the query parameter `request`.

    The second form spares a high-rate caller and the server the framing of multipart.

    Args:
        request: whose body was not read yet.
        allowed: names of the parts that the endpoint takes.
        max_bytes: limit of the whole body.

    Raises:
        UploadTooLarge: as soon as the announced or the read bytes pass the limit.
        MalformedRequest: of neither form, or damaged, or a part twice.
        UnknownField: a part or a query parameter of another name.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_multipart(request, allowed, max_bytes)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await _read_image(request, max_bytes)
    raise MalformedRequest(
        f"The body is {kind or 'of no type'}; multipart/form-data would be right, with the image in the part image "
        "and JSON in the field request, or the image itself as image/jpeg, with the JSON in the query parameter "
        "request."
    )


async def _read_image(request: Request, max_bytes: int) -> Parts:
    unknown = set(request.query_params) - {"request"}
    if unknown:
        raise UnknownField(f"There is no query parameter {min(unknown)!r} here; known: request.")
    # Chunks are joined once: a growing buffer would be copied again and again.
    body = b"".join([chunk async for chunk in limited(request, max_bytes)])
    asked = request.query_params.get("request")
    return Parts(body, None, None if asked is None else asked.encode(errors="replace"))


async def _read_multipart(request: Request, allowed: frozenset[str], max_bytes: int) -> Parts:
    parser = _Parser(request.headers, limited(request, max_bytes), max_part_size=max_bytes)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise MalformedRequest(f"The multipart body is damaged: {error}.") from error
    try:
        return await _parts(form, allowed)
    finally:
        await form.close()


async def limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body.

    Raises:
        UploadTooLarge: as soon as the announced or the read bytes pass the limit.
    """
    too_large = UploadTooLarge(f"The request body is larger than {max_bytes / 2**20:g} MiB (POMONA_MAX_UPLOAD_MIB).")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > max_bytes:
            raise too_large
        yield chunk


async def _parts(form: FormData, allowed: frozenset[str]) -> Parts:
    values: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name not in allowed:
            raise UnknownField(f"There is no part {name!r} here; known: {', '.join(sorted(allowed))}.")
        if name in values:
            raise MalformedRequest(f"The part {name} was sent twice.")
        if isinstance(value, UploadFile):
            values[name] = await value.read()
        elif name == "image" and value:
            # Decoded as text by now: the bytes are lost. Also what a URL looks like.
            raise NotAnImage(
                "The part image came as text, without a file name; send the image's bytes as a file "
                "(curl -F image=@orange.jpg). URLs are never fetched."
            )
        else:
            values[name] = value.encode(errors="replace")
    # Forms in a browser send what was left empty as empty parts.
    image_id = values.get("image_id", b"").decode(errors="replace") or None
    image = values.get("image")
    return Parts(None if image_id and not image else image, image_id, values.get("request"))


def parse_json(raw: bytes | None, model: type[M]) -> M:
    """Check the field `request` against its schema.

    Args:
        raw: the JSON, or None where the field is absent: as if it were `{}`.
        model: the schema.

    Raises:
        MalformedJson, UnknownField, UnsupportedFormat, NoPrompt, MalformedPrompt, MalformedRequest: by what is wrong
            first; the detail names the place.
    """
    try:
        return model.model_validate_json(b"{}" if raw is None else raw)
    except ValidationError as error:
        # An unknown field often is a misspelt known one: it tells more than what is then missing.
        problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        place, kind, text = problems[0]["loc"], problems[0]["type"], problems[0]["msg"]
        where = _where(place)
        if kind == "json_invalid":
            raise MalformedJson(f"The field request is not valid JSON: {text}.") from error
        if kind == "extra_forbidden":
            raise UnknownField(f"There is no field {where} in the request.") from error
        if place == ("format",):
            raise UnsupportedFormat(f"format: {text}.") from error
        if place == ("prompts",) and kind == "missing":
            raise NoPrompt("The request has no prompts.") from error
        if place[:1] == ("prompts",):
            raise MalformedPrompt(f"{where}: {text}.") from error
        raise MalformedRequest(f"{where or 'request'}: {text}.") from error


def _where(place: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")


def segment_request(parts: Parts, body: SegmentIn, *, max_pixels: int) -> SegmentRequest:
    """Build the pipeline's request; decodes mask prompts, so it belongs into a worker thread where there are any.

    Raises:
        NoImage, NoPrompt, MalformedPrompt, MaskError, MalformedRequest: by what is wrong.
    """
    if parts.image is not None and parts.image_id is not None:
        raise MalformedRequest("Send either image or image_id, not both.")
    if parts.image is None and parts.image_id is None:
        raise NoImage("Send an image in the part image, or the image_id of an earlier answer.")
    if body.overlay and parts.image is None:
        raise MalformedRequest(
            "An overlay needs the image's pixels, of which only the embedding is kept: "
            "send the part image, or leave overlay out."
        )
    if not body.prompts:
        raise NoPrompt("The request has no prompts.")
    return SegmentRequest(
        prompts=[_prompt(number, prompt, max_pixels) for number, prompt in enumerate(body.prompts)],
        data=parts.image,
        image_id=parts.image_id,
        model=body.model,
        format=body.format,
        overlay=body.overlay,
        input=InputChoice(body.input_size, body.padding),
    )


def semantic_request(parts: Parts, body: SemanticIn) -> SemanticRequest:
    """Build the pipeline's request.

    Raises:
        NoImage: without an image.
    """
    return SemanticRequest(image_of(parts), model=body.model, format=body.format, overlay=body.overlay)


def inspect_request(parts: Parts, body: InspectIn) -> InspectRequest:
    """Build the pipeline's request.

    Raises:
        NoImage: without an image.
    """
    return InspectRequest(
        image_of(parts),
        model=body.model,
        sam_model=body.sam_model,
        mode=body.mode,
        format=body.format,
        grades=None if body.grades is None else tuple(grade.domain for grade in body.grades),
        overlay=body.overlay,
        capture=Capture(body.frame_id, body.trigger_id, body.captured_at_ns),
    )


def image_of(parts: Parts) -> bytes:
    """The image of an endpoint that takes nothing instead.

    Raises:
        NoImage: it is not there.
    """
    if parts.image is None:
        raise NoImage("Send an image in the part image.")
    return parts.image


def _prompt(number: int, prompt: PromptIn, max_pixels: int) -> Prompt:
    points = prompt.points or []
    labels = [FOREGROUND] * len(points) if prompt.labels is None else prompt.labels
    if len(points) != len(labels):
        raise MalformedPrompt(
            f"prompts[{number}] has {len(points)} points and {len(labels)} labels: one label per point is right."
        )
    mask: BinaryMask | Logits | None = None
    try:
        if isinstance(prompt.mask, RleMask):
            mask = decode_rle(Rle(prompt.mask.size, prompt.mask.counts), max_pixels=max_pixels)
        elif prompt.mask is not None:
            data = base64.b64decode(prompt.mask.data, validate=True)
            mask = decode_logits(EncodedLogits(prompt.mask.shape, prompt.mask.dtype, data))
    except MaskError as error:
        raise MaskError(f"prompts[{number}].mask: {error.detail}") from error
    except ValueError as error:
        raise MaskError(f"prompts[{number}].mask.data must be base64: {error}.") from error
    return Prompt(
        points=tuple(Point(x, y, label) for (x, y), label in zip(points, labels, strict=True)),
        box=None if prompt.box is None else Box(*prompt.box),
        mask=mask,
        multimask=prompt.multimask,
    )

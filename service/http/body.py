"""The body of an operation: multipart, or the image itself with the JSON in the query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import NotAnImage
from service.errors import MalformedRequest, UnknownField, UploadTooLarge
from service.http.messages import HttpRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS: Final = 16
_MAX_JSON: Final = 64 * 1024
"""Bytes of a body that is JSON alone."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a body, each None where absent."""

    image: bytes | None = None
    image_id: str | None = None
    request: bytes | None = None


async def read_body(request: HttpRequest, allowed: frozenset[str], max_bytes: int) -> Parts:
    """Read a multipart body; or a body that is the image, with the JSON in the query parameter `request`.

    The second form saves a caller with many frames, and the server, the framing of multipart.

    Args:
        request: whose body was not read yet.
        allowed: names of the parts that the operation takes.
        max_bytes: limit of the whole body.

    Raises:
        UploadTooLarge: as soon as the announced or the read bytes exceed the limit.
        MalformedRequest: the body has neither form, is damaged, or has a part twice.
        UnknownField: a part or a query parameter is unknown.
        NotAnImage: the image came as text.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_multipart(request, content_type, allowed, max_bytes)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await _read_image(request, max_bytes)
    raise MalformedRequest(
        "The body must be multipart/form-data with the image in the part image and JSON in the field request, or the "
        f"image itself as image/jpeg with the JSON in the query parameter request; got {kind or 'no content type'}."
    )


async def read_json(request: HttpRequest) -> Parts:
    """Read a body that is the JSON itself, of an operation without an image.

    Raises:
        UploadTooLarge: it is longer than such a request can be.
        MalformedRequest: it is declared as something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MalformedRequest(f"The body must be JSON, as application/json; got {kind or 'no content type'}.")
    try:
        return Parts(request=await request.body(_MAX_JSON))
    except UploadTooLarge as error:
        raise UploadTooLarge(f"The JSON of this operation must have at most {_MAX_JSON >> 10} KiB.") from error


async def _read_image(request: HttpRequest, max_bytes: int) -> Parts:
    query = request.query()
    unknown = set(query) - {"request"}
    if unknown:
        raise UnknownField(f"There is no query parameter {min(unknown)!r}; known: request.")
    body = await request.body(max_bytes)
    options = query.get("request")
    return Parts(image=body, request=None if options is None else options.encode(errors="replace"))


async def _read_multipart(request: HttpRequest, content_type: str, allowed: frozenset[str], max_bytes: int) -> Parts:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("The multipart body is damaged: its Content-Type has no boundary.")
    form = _Form(allowed)
    parser = MultipartParser(boundary, form.callbacks())
    try:
        async for chunk in request.chunks(max_bytes):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest(f"The multipart body is damaged: {error}.") from error
    if not form.complete:
        raise MalformedRequest("The multipart body is damaged: it ends before its closing boundary.")
    # Browsers send what was left empty in a form as empty parts.
    values: dict[str, bytes] = {}
    for name, chunks in form.values.items():
        values[name] = b"".join(chunks)
        chunks.clear()
    request.joined(sum(map(len, values.values())))
    image_id = values.get("image_id", b"").decode(errors="replace") or None
    image = values.get("image")
    return Parts(None if image_id and not image else image, image_id, values.get("request"))


@dataclass(slots=True)
class _Form:
    """Collects the parts as python-multipart parses them."""

    allowed: frozenset[str]
    values: dict[str, list[bytes]] = field(default_factory=dict)
    complete: bool = False
    _part: list[bytes] = field(default_factory=list)
    _text_image: bool = False
    _header: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    _disposition: bytes = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._collect(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._collect(1, data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.values) >= _MAX_PARTS:
            raise MalformedRequest(f"The multipart body must have at most {_MAX_PARTS} parts.")
        self._disposition = b""

    def _collect(self, which: int, data: bytes) -> None:
        self._header[which].append(data)

    def _header_end(self) -> None:
        name, value = (b"".join(part) for part in self._header)
        self._header = ([], [])
        if name.lower() == b"content-disposition":
            self._disposition = value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedRequest("The multipart body is damaged: a part has no name in its Content-Disposition.")
        name = options[b"name"].decode(errors="replace")
        if name not in self.allowed:
            raise UnknownField(f"There is no part {name!r}; known: {', '.join(sorted(self.allowed))}.")
        if name in self.values:
            raise MalformedRequest(f"The part {name} was sent twice.")
        self._part = self.values[name] = []
        self._text_image = name == "image" and b"filename" not in options

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._text_image and end > start:
            # Such a part may have been decoded as text, which loses bytes; a URL looks like this too.
            raise NotAnImage(
                "The part image must be a file, with a file name (curl -F image=@orange.jpg); got text. URLs are never "
                "fetched."
            )
        self._part.append(data[start:end])

    def _end(self) -> None:
        self.complete = True

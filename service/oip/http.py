"""`/v2` over HTTP: JSON, followed by the binary data of tensors where a header says so."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from service.api.context import deadline_of, urgency_of
from service.api.handler import Refusal
from service.api.openapi import VERSION
from service.api.parsing import place_of
from service.errors import MalformedJson, MalformedRequest
from service.http.app import HttpApp, Route, refusal_headers
from service.http.messages import HttpRequest, HttpResponse
from service.memory import Kind
from service.oip import models
from service.oip.inference import (
    MAX_LISTED,
    MAX_RAW,
    InferRequest,
    InferResponse,
    Parameter,
    by_name,
    infer,
    refuse_unsupported,
)
from service.oip.models import TensorSpec
from service.oip.openapi import CODE_HEADER, LENGTH_HEADER, InferenceRequest, describe
from service.oip.tensors import Header, Tensor, from_bytes, from_list, to_bytes, to_json

PREFIX: Final = "/v2"

_MODEL_PATH: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_LONG: Final = 64 * 1024
"""Bytes of JSON that take a noticeable part of a millisecond."""

_COPIES: Final = 3
"""How often a body is held: as it came, what base64 or JSON in it means, and the tensors' arrays."""

_VALUE_BYTES: Final = 80
"""Of a value of JSON while it is parsed."""

_MAX_DIGITS: Final = 18
_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"


def mount(app: HttpApp) -> None:
    """Add `/v2` to the application."""
    app.mount(PREFIX, _Endpoints(app).route, error_response, describe)


def error_response(refusal: Refusal, request_id: str) -> HttpResponse:  # noqa: ARG001 (the application returns the id)
    """Return an error as the protocol has it."""
    headers = {CODE_HEADER: refusal.problem.code, **refusal_headers(refusal)}
    return HttpResponse(json.dumps({"error": refusal.detail}).encode(), refusal.problem.status, headers=headers)


@dataclass(frozen=True, slots=True)
class _Endpoints:
    app: HttpApp

    def route(self, path: str) -> Route | None:  # noqa: PLR0911 (one per path)
        """Find what answers a path; its name in metrics is without versions."""
        if path in (PREFIX, f"{PREFIX}/"):
            return Route(PREFIX, self._server, problem=error_response)
        if path == "/v2/health/live":
            return Route(path, self._live, problem=error_response, needs=None)
        if path == "/v2/health/ready":
            return Route(path, self._ready, problem=error_response, needs=None)
        match = _MODEL_PATH.fullmatch(path)
        if match is None:
            return None
        name, version, what = match[1], match[2] or "", match[3] or ""
        label = f"/v2/models/{{model}}{what}"
        if what == "/infer":
            return Route(label, lambda request: self._infer(request, name, version), ("POST",), error_response)
        if what == "/ready":
            return Route(label, lambda request: self._model_ready(request, name, version), problem=error_response)
        return Route(label, lambda request: self._metadata(request, name, version), problem=error_response)

    async def _live(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 (an endpoint's signature, here and below)
        live = models.is_live(self.app.pipelines)
        return _json({"live": live}, 200 if live else 503)

    async def _ready(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002
        ready = models.all_ready(self.app.serving)
        return _json({"ready": ready}, 200 if ready else 503)

    async def _server(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002
        return _json({"name": models.SERVER_NAME, "version": VERSION, "extensions": models.EXTENSIONS})

    async def _model_ready(self, request: HttpRequest, name: str, version: str) -> HttpResponse:  # noqa: ARG002
        ready = models.is_ready(self.app.serving, name, version)
        return _json({"name": name, "ready": ready}, 200 if ready else 503)

    async def _metadata(self, request: HttpRequest, name: str, version: str) -> HttpResponse:  # noqa: ARG002
        metadata = models.metadata(self.app.ready(), name, version)
        return _json(
            {
                "name": metadata.name,
                "versions": metadata.versions,
                "platform": metadata.platform,
                "inputs": [_spec(spec) for spec in metadata.tensors.inputs],
                "outputs": [_spec(spec) for spec in metadata.tensors.outputs],
            }
        )

    async def _infer(self, request: HttpRequest, name: str, version: str) -> HttpResponse:
        pipelines, context = self.app.ready(), request.context
        model = models.find(pipelines, name, version)
        context.model = name
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise MalformedRequest(f"The body must be sent without a content encoding, got {encoding!r}.")
        context.deadline = deadline_of(request.headers, context.received)
        context.urgency = urgency_of(request.headers)
        async with self.app.drain.uploading():
            raw = await request.body(self.app.settings.max_upload_bytes, copies=_COPIES)
        length = json_length(request.headers.get(LENGTH_HEADER), len(raw))
        if length <= _LONG:
            body = read_body(raw, length)
        else:
            cost = length + _VALUE_BYTES * (raw.count(b",", 0, length) + raw.count(b"{", 0, length))
            async with context.hold(Kind.WORK, cost):
                body = await asyncio.to_thread(read_body, raw, length)
        del raw
        context.arrived = context.clock()
        answer = await request.while_connected(infer(pipelines, model, body.request, context))
        return await asyncio.to_thread(write_response, answer, body)


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request.

    Attributes:
        id: to be returned, or None.
        request: of the model.
        binary: whether an output is sent as binary data, where the request says so of it alone.
        all_binary: whether the others are.
    """

    id: str | None
    request: InferRequest
    binary: Mapping[str, bool]
    all_binary: bool


def json_length(given: str | None, size: int) -> int:
    """Return the bytes of JSON that a body begins with.

    Args:
        given: the header `Inference-Header-Content-Length`, or None where all is JSON.
        size: bytes of the body.

    Raises:
        MalformedRequest: it is not such a number.
    """
    if given is None:
        return size
    if not (given.isascii() and given.isdecimal()) or len(given) > _MAX_DIGITS or int(given) > size:
        raise MalformedRequest(
            f"Inference-Header-Content-Length must be the bytes of the JSON, at most the {size} of the body, got "
            f"{given[: 2 * _MAX_DIGITS]!r}."
        )
    return int(given)


def read_body(body: bytes, length: int) -> Body:
    """Parse a request's body; long JSON belongs in a worker thread.

    Args:
        body: whole.
        length: bytes of JSON, which the binary data follow.

    Raises:
        MalformedJson: it is not JSON.
        MalformedRequest: it is not of the protocol, a tensor is repeated, or its elements do not fit its type and
            shape.
        UnknownField: a parameter of a tensor is not supported.
    """
    request = _parsed(body[:length])
    for tensor in (*request.inputs, *request.outputs):
        refuse_unsupported(tensor.name, tensor.parameters)
    outputs = by_name("output", ((output.name, output) for output in request.outputs))
    binary = {
        name: _boolean(output.parameters[_BINARY], f"{_BINARY} of {name}")
        for name, output in outputs.items()
        if _BINARY in output.parameters
    }
    parameters: dict[str, Parameter] = dict(request.parameters)
    all_binary = _boolean(parameters.pop(_ALL_BINARY, False), _ALL_BINARY)
    inputs = by_name("input", ((tensor.name, tensor) for tensor in _tensors(request, memoryview(body)[length:])))
    max_elements = MAX_RAW if binary.get("masks", all_binary) else MAX_LISTED
    return Body(request.id, InferRequest(inputs, tuple(outputs), parameters, max_elements), binary, all_binary)


def write_response(answer: InferResponse, body: Body) -> HttpResponse:
    """Return the answer of an inference; belongs in a worker thread."""
    head: dict[str, Any] = {"model_name": answer.model.name, "model_version": answer.model.revision}
    if body.id is not None:
        head["id"] = body.id
    if answer.parameters:
        head["parameters"] = dict(answer.parameters)
    outputs: list[bytes] = []
    data: list[bytes] = []
    for tensor in answer.outputs:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if body.binary.get(tensor.name, body.all_binary):
            data.append(to_bytes(tensor))
            outputs.append(_open(output | {"parameters": {_SIZE: len(data[-1])}}) + b"}")
        else:
            outputs.append(b"".join((_open(output), b',"data":', to_json(tensor), b"}")))
    text = b"".join((_open(head), b',"outputs":[', b",".join(outputs), b"]}"))
    if not data:
        return HttpResponse(text)
    headers = {LENGTH_HEADER: str(len(text))}
    return HttpResponse((text, *data), media_type="application/octet-stream", headers=headers)


def _json(content: Mapping[str, Any], status: int = 200) -> HttpResponse:
    return HttpResponse(json.dumps(content).encode(), status)


def _open(content: Mapping[str, Any]) -> bytes:
    """Return a mapping as JSON without its last brace, for what is JSON already."""
    return json.dumps(content, separators=(",", ":")).encode()[:-1]


def _spec(spec: TensorSpec) -> dict[str, Any]:
    form = spec.forms[0]
    return {"name": spec.name, "datatype": form.datatype, "shape": form.shape}


def _parsed(raw: bytes) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise MalformedJson(f"The body is not valid JSON: {problem['msg']}.") from error
        raise MalformedRequest(f"{place_of(problem['loc']) or 'The body'}: {problem['msg']}.") from error


def _tensors(request: InferenceRequest, data: memoryview) -> list[Tensor]:
    tensors: list[Tensor] = []
    at = 0
    for tensor in request.inputs:
        header = Header(tensor.name, tensor.datatype, tuple(tensor.shape))
        size = tensor.parameters.get(_SIZE)
        if size is None:
            if tensor.data is None:
                raise MalformedRequest(f"The input {tensor.name} must have data or a {_SIZE}.")
            tensors.append(from_list(header, tensor.data))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(data) - at:
            raise MalformedRequest(
                f"The {_SIZE} of {tensor.name} must be at most the {len(data) - at} bytes that are left behind the "
                f"JSON, got {size!r}."
            )
        if tensor.data is not None:
            raise MalformedRequest(f"The input {tensor.name} must have either data or a {_SIZE}, not both.")
        tensors.append(from_bytes(header, data[at : at + size]))
        at += size
    if at != len(data):
        raise MalformedRequest(f"The inputs must take all {len(data)} bytes behind the JSON, got {at}.")
    return tensors


def _boolean(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedRequest(f"{what} must be true or false, got {value!r}.")
    return value

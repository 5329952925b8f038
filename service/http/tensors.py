"""Bodies of the Open Inference Protocol: JSON, with the binary data of tensors behind it where a header says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from service.errors import MalformedJson, MalformedRequest
from service.http.inference_schema import InferenceIn
from service.oip.asking import MOST_LISTED, MOST_RAW, Asked, Parameter, by_name, refuse_elsewhere
from service.oip.inference import Inferred
from service.oip.models import ModelMetadata, TensorSpec
from service.oip.tensors import Header, Tensor, from_bytes, from_list, to_bytes, to_json

JSON_LENGTH: Final = "inference-header-content-length"

_MOST_DIGITS: Final = 18
_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"


@dataclass(frozen=True, slots=True)
class Body:
    """What a request's body says.

    Attributes:
        id: to be told again, or None.
        asked: of the model.
        binary: whether an output goes out as binary data, where that was said of it alone.
        all_binary: whether the others do.
    """

    id: str | None
    asked: Asked
    binary: Mapping[str, bool]
    all_binary: bool


def json_length(told: str | None, most: int) -> int:
    """Bytes of JSON that a body begins with.

    Args:
        told: the header `Inference-Header-Content-Length`, or None where all is JSON.
        most: bytes of the body.

    Raises:
        MalformedRequest: no such number.
    """
    if told is None:
        return most
    if not (told.isascii() and told.isdecimal()) or len(told) > _MOST_DIGITS or int(told) > most:
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {told!r}; the bytes of the JSON, at most the body's {most}, would be "
            "right."
        )
    return int(told)


def read(body: bytes, length: int) -> Body:
    """Read a request's body; long JSON belongs into a worker thread.

    Args:
        body: whole.
        length: bytes of JSON, behind which binary data are.

    Raises:
        MalformedJson: no JSON.
        MalformedRequest: not what the protocol has, a tensor twice, or one whose elements are not of its type and
            shape.
        UnknownField: a parameter of a tensor that asks for what is not done here.
    """
    request = _parsed(body[:length])
    for tensor in (*request.inputs, *request.outputs):
        refuse_elsewhere(tensor.name, tensor.parameters)
    outputs = by_name("output", ((output.name, output) for output in request.outputs))
    binary = {
        name: _truth(output.parameters[_BINARY], f"{_BINARY} of {name}")
        for name, output in outputs.items()
        if _BINARY in output.parameters
    }
    parameters: dict[str, Parameter] = dict(request.parameters)
    all_binary = _truth(parameters.pop(_ALL_BINARY, False), _ALL_BINARY)
    inputs = by_name("input", ((tensor.name, tensor) for tensor in _tensors(request, memoryview(body)[length:])))
    room = MOST_RAW if binary.get("masks", all_binary) else MOST_LISTED
    return Body(request.id, Asked(inputs, tuple(outputs), parameters, room), binary, all_binary)


def inferred(answer: Inferred, body: Body) -> Response:
    """The answer of an inference; belongs into a worker thread."""
    told: dict[str, Any] = {"model_name": answer.model.name, "model_version": answer.model.revision}
    if body.id is not None:
        told["id"] = body.id
    if answer.parameters:
        told["parameters"] = dict(answer.parameters)
    outputs: list[bytes] = []
    data: list[bytes] = []
    for tensor in answer.outputs:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if body.binary.get(tensor.name, body.all_binary):
            data.append(to_bytes(tensor))
            outputs.append(_open(output | {"parameters": {_SIZE: len(data[-1])}}) + b"}")
        else:
            outputs.append(b"".join((_open(output), b',"data":', to_json(tensor), b"}")))
    text = b"".join((_open(told), b',"outputs":[', b",".join(outputs), b"]}"))
    if not data:
        return Response(text, media_type="application/json")
    headers = {JSON_LENGTH: str(len(text))}
    return Response(b"".join((text, *data)), media_type="application/octet-stream", headers=headers)


def metadata(told: ModelMetadata) -> Response:
    """The answer of a model's metadata."""
    return JSONResponse(
        {
            "name": told.name,
            "versions": told.versions,
            "platform": told.platform,
            "inputs": [_spec(spec) for spec in told.tensors.inputs],
            "outputs": [_spec(spec) for spec in told.tensors.outputs],
        }
    )


def _open(told: Mapping[str, Any]) -> bytes:
    """JSON of a mapping without its last brace, for what is JSON already."""
    return json.dumps(told, separators=(",", ":")).encode()[:-1]


def _spec(spec: TensorSpec) -> dict[str, Any]:
    form = spec.forms[0]
    return {"name": spec.name, "datatype": form.datatype, "shape": form.shape}


def _parsed(raw: bytes) -> InferenceIn:
    try:
        return InferenceIn.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise MalformedJson(f"The body is not valid JSON: {problem['msg']}.") from error
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        raise MalformedRequest(f"{where.removeprefix('.') or 'The body'}: {problem['msg']}.") from error


def _tensors(request: InferenceIn, data: memoryview) -> list[Tensor]:
    tensors: list[Tensor] = []
    at = 0
    for tensor in request.inputs:
        header = Header(tensor.name, tensor.datatype, tuple(tensor.shape))
        size = tensor.parameters.get(_SIZE)
        if size is None:
            if tensor.data is None:
                raise MalformedRequest(f"The input {tensor.name} has neither data nor a {_SIZE}.")
            tensors.append(from_list(header, tensor.data))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(data) - at:
            raise MalformedRequest(
                f"The {_SIZE} of {tensor.name} is {size!r}; at most the {len(data) - at} bytes that are left behind "
                "the JSON would be right."
            )
        if tensor.data is not None:
            raise MalformedRequest(f"The input {tensor.name} has both data and a {_SIZE}.")
        tensors.append(from_bytes(header, data[at : at + size]))
        at += size
    if at != len(data):
        raise MalformedRequest(f"Behind the JSON are {len(data)} bytes, of which the inputs take {at}.")
    return tensors


def _truth(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedRequest(f"{what} is {value!r}; true or false would be right.")
    return value

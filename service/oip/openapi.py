"""The JSON of `/v2`, and its part of the OpenAPI description.

What the protocol may add is ignored; no value is converted to another type.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from models.catalog import Family
from models.masks import encode_png
from service.api.openapi import EVERYBODY, Described, reference
from service.oip.models import TENSORS, TensorSpec

CODE_HEADER: Final = "x-pomona-code"
"""Header of an error: the code that a problem of `/v1` has."""

LENGTH_HEADER: Final = "inference-header-content-length"

Parameters = dict[str, bool | int | float | str]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Named(_Part):
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class RequestedOutput(_Named):
    """An output that is wanted."""

    parameters: dict[str, Any] = Field(
        default_factory=dict, description="binary_data: its elements are sent as bytes behind the JSON."
    )


class InputTensor(_Named):
    """An input, with its elements or with how many bytes they take behind the JSON."""

    shape: list[int]
    datatype: str = Field(description="BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64 or BYTES.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="binary_data_size: bytes of its elements behind the JSON, instead of data."
    )
    data: list[Any] | None = Field(
        None, description="Row by row in one list, or nested lists; an image is base64 text."
    )


class InferenceRequest(_Part):
    """The body of `infer`, or the JSON it begins with."""

    id: str | None = Field(None, description="Returned in the answer.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="priority, timeout in microseconds, binary_data_output; for SAMs mask_format, input_size, padding.",
    )
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = Field(default_factory=list, description="All where empty.")


class OutputTensor(_Named):
    """An output, with its elements or with how many bytes they take behind the JSON."""

    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict, description="binary_data_size, where there is no data.")
    data: list[Any] | None = Field(None, description="Row by row.")


class InferenceResponse(_Part):
    """The answer of `infer`, or the JSON it begins with."""

    model_name: str
    model_version: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    id: str | None = None
    parameters: Parameters = Field(
        default_factory=dict, description="Of SAMs: degraded, whether input_size auto took less to meet the deadline."
    )
    outputs: list[OutputTensor]


class ServerMetadata(_Part):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Part):
    """Datatype and shape of a tensor; -1 is a dimension of any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataResponse(_Part):
    """What a model takes and returns; the first form where a tensor has two."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(_Part):
    """Whether the server is live."""

    live: bool


class Ready(_Part):
    """Whether all models are loaded."""

    ready: bool


class ModelReady(Ready):
    """Whether a model is loaded."""

    name: str


class InferenceError(_Part):
    """An error; its code is in the header `X-Pomona-Code`."""

    error: str = Field(description="What was wrong and what must hold.")


_SCHEMAS: Final[tuple[type[BaseModel], ...]] = (
    InferenceRequest,
    InferenceResponse,
    ServerMetadata,
    ModelMetadataResponse,
    Live,
    Ready,
    ModelReady,
    InferenceError,
)
_TAG: Final = "Open Inference Protocol"
_MODEL: Final = "/v2/models/{model}"
_VERSION: Final = "/versions/{version}"
_FAMILIES: Final[Mapping[Family, str]] = {"sam": "SAMs and SAM 2s", "unet": "U-Nets", "detector": "detectors"}
_SIDE: Final = 64
_LENGTH: Final = "Inference-Header-Content-Length"
_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "model": {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "example": "mobile-sam"},
        "description": "In the catalogue.",
    },
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "The revision: first 12 hex digits of the checkpoint's SHA-256.",
    },
    "length": {
        "name": _LENGTH,
        "in": "header",
        "schema": {"type": "integer"},
        "description": "Bytes of JSON that the body begins with; the binary data of inputs follow.",
    },
}


def describe(codes: Mapping[int, Sequence[str]]) -> Described:
    """Describe the paths under `/v2`.

    Args:
        codes: of every status of errors.
    """
    errors = {str(status): _error(names) for status, names in codes.items()}
    paths: dict[str, Any] = {
        "/v2/health/live": _get("Whether the server is live; 503 where not", Live, (503,), {}),
        "/v2/health/ready": _get("Whether all models are loaded; 503 where not", Ready, (503,), {}),
        "/v2": _get("Name, version and extensions of the server", ServerMetadata, (), errors),
    }
    for health in ("/v2/health/live", "/v2/health/ready"):
        paths[health]["get"] |= EVERYBODY
    for path, names in ((_MODEL, ("model",)), (_MODEL + _VERSION, ("model", "version"))):
        parameters = {"parameters": [_PARAMETERS[name] for name in names]}
        metadata = _get("Which tensors a model takes and returns", ModelMetadataResponse, (), errors)
        paths[path] = parameters | metadata
        paths[f"{path}/ready"] = parameters | _get(
            "Whether a model is loaded; 503 where not", ModelReady, (503,), errors
        )
        paths[f"{path}/infer"] = parameters | {"post": _infer(errors)}
    return paths, _SCHEMAS


def _infer(errors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "summary": "Tensors in, tensors out",
        "description": "\n\n".join(_tensors(family) for family in _FAMILIES),
        "tags": [_TAG],
        "parameters": [_PARAMETERS["length"]],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": reference(InferenceRequest), "example": _example()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs; binary where requested",
                "headers": {_LENGTH: {"schema": {"type": "integer"}, "description": "Bytes of JSON, where binary."}},
                "content": {
                    "application/json": {"schema": reference(InferenceResponse)},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **errors,
        },
    }


def _get(
    summary: str, answer: type[BaseModel], also: Sequence[int], errors: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    content = {"application/json": {"schema": reference(answer)}}
    answers = {str(status): {"description": "The answer", "content": content} for status in (200, *also)}
    return {"get": {"summary": summary, "tags": [_TAG], "responses": {**errors, **answers}}}


def _error(codes: Sequence[str]) -> dict[str, Any]:
    return {
        "description": "code: " + ", ".join(codes),
        "headers": {"X-Pomona-Code": {"schema": {"type": "string"}, "description": "Stable, for programs."}},
        "content": {"application/json": {"schema": reference(InferenceError)}},
    }


def _tensors(family: Family) -> str:
    tensors = TENSORS[family]
    inputs, outputs = ("; ".join(map(_forms, specs)) for specs in (tensors.inputs, tensors.outputs))
    return f"{_FAMILIES[family]} take {inputs}. They return {outputs}."


def _forms(spec: TensorSpec) -> str:
    return f"`{spec.name}` " + " or ".join(f"{form.datatype} {list(form.shape)}" for form in spec.forms)


def _example() -> dict[str, Any]:
    """Return a disc, and a point at its centre."""
    ys, xs = np.mgrid[:_SIDE, :_SIDE] - _SIDE / 2
    image = base64.b64encode(encode_png(np.hypot(xs, ys) < _SIDE / 3)).decode()
    return {
        "inputs": [
            {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]},
            {"name": "points", "shape": [1, 1, 2], "datatype": "FP32", "data": [_SIDE / 2, _SIDE / 2]},
        ],
        "outputs": [{"name": "scores"}, {"name": "boxes"}, {"name": "masks"}],
        "parameters": {"mask_format": "rle"},
    }

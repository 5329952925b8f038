"""The part of the OpenAPI description that tells of `/v2`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from models.catalog import Family
from models.masks import encode_png
from service.http import inference_schema as oip
from service.oip.models import TENSORS, TensorSpec

SCHEMAS: Final[tuple[type[BaseModel], ...]] = (
    oip.InferenceIn,
    oip.InferenceOut,
    oip.ServerMetadataOut,
    oip.ModelMetadataOut,
    oip.LiveOut,
    oip.ReadyOut,
    oip.ModelReadyOut,
    oip.InferenceErrorOut,
)
"""What the paths refer to."""

_TAG: Final = "Open Inference Protocol"
_MODEL: Final = "/v2/models/{model}"
_VERSION: Final = "/versions/{version}"
_FAMILIES: Final[Mapping[Family, str]] = {"sam": "SAMs", "unet": "U-Nets"}
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


def paths(statuses: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """What is under `/v2`.

    Args:
        statuses: every status that refuses, with the codes that have it.
    """
    errors = {str(status): _error(codes) for status, codes in statuses.items()}
    told: dict[str, Any] = {
        "/v2/health/live": _get("Whether the server can be relied on; 503 where not", oip.LiveOut, (503,), {}),
        "/v2/health/ready": _get("Whether all models are loaded; 503 where not", oip.ReadyOut, (503,), {}),
        "/v2": _get("What the server is", oip.ServerMetadataOut, (), errors),
    }
    for path, names in ((_MODEL, ("model",)), (_MODEL + _VERSION, ("model", "version"))):
        parameters = {"parameters": [_PARAMETERS[name] for name in names]}
        told[path] = parameters | _get("Which tensors a model takes and gives", oip.ModelMetadataOut, (), errors)
        told[f"{path}/ready"] = parameters | _get(
            "Whether a model is loaded; 503 where not", oip.ModelReadyOut, (503,), errors
        )
        told[f"{path}/infer"] = parameters | {"post": _infer(errors)}
    return told


def _infer(errors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "summary": "Tensors in, tensors out",
        "description": "\n\n".join(_tensors(family) for family in TENSORS),
        "tags": [_TAG],
        "parameters": [_PARAMETERS["length"]],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference(oip.InferenceIn), "example": _example()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs; binary where that was asked for",
                "headers": {_LENGTH: {"schema": {"type": "integer"}, "description": "Bytes of JSON, where binary."}},
                "content": {
                    "application/json": {"schema": _reference(oip.InferenceOut)},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **errors,
        },
    }


def _get(
    summary: str, answer: type[BaseModel], also: Sequence[int], errors: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    content = {"application/json": {"schema": _reference(answer)}}
    answers = {str(status): {"description": "The answer", "content": content} for status in (200, *also)}
    return {"get": {"summary": summary, "tags": [_TAG], "responses": {**errors, **answers}}}


def _error(codes: Sequence[str]) -> dict[str, Any]:
    return {
        "description": "code: " + ", ".join(codes),
        "headers": {"X-Pomona-Code": {"schema": {"type": "string"}, "description": "Stable; for programs."}},
        "content": {"application/json": {"schema": _reference(oip.InferenceErrorOut)}},
    }


def _tensors(family: Family) -> str:
    tensors = TENSORS[family]
    inputs, outputs = ("; ".join(map(_forms, specs)) for specs in (tensors.inputs, tensors.outputs))
    return f"{_FAMILIES[family]} take {inputs}. They give {outputs}."


def _forms(spec: TensorSpec) -> str:
    return f"`{spec.name}` " + " or ".join(f"{form.datatype} {list(form.shape)}" for form in spec.forms)


def _example() -> dict[str, Any]:
    """A disc, and a point in its middle."""
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


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}

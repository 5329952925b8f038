"""The OpenAPI description, generated from the operations and their schemas."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from service.api.operations import OPERATIONS, Operation
from service.api.schema import Problem
from service.errors import PROBLEMS
from service.settings import Settings

VERSION: Final = "0.1.0"

Described = tuple[dict[str, Any], tuple[type[BaseModel], ...]]
"""Paths, and the schemas they refer to."""

_PARAMETERS: Final = (
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "maxLength": 128},
        "description": "Yours; returned in the answer and written to the log.",
    },
    {
        "name": "request",
        "in": "query",
        "schema": {"type": "string", "contentMediaType": "application/json"},
        "description": "The JSON, where the body is the image itself (image/jpeg); else leave it out.",
    },
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Milliseconds from arrival until the answer is too late; it is then refused or dropped.",
    },
    {
        "name": "Priority",
        "in": "header",
        "schema": {"type": "string", "example": "u=3"},
        "description": "RFC 9218: u=0, the most urgent, to u=7.",
    },
)

EVERYBODY: Final[Mapping[str, Any]] = {"security": []}
"""Of an operation that needs no API key."""

_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service has them."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}

DescribePaths = Callable[[Mapping[int, list[str]]], Described]
"""Describes the paths of another protocol, from the statuses and codes of errors."""


def describe(settings: Settings, others: Sequence[DescribePaths] = ()) -> dict[str, Any]:
    """Return the description, OpenAPI 3.1, with the limits in force; `others` are further protocols."""
    codes = _codes()
    extra = [paths(codes) for paths in others]
    models = [model for operation in OPERATIONS for model in (operation.request, operation.response)]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pomona",
            "version": VERSION,
            "description": (
                "Segmentation for fruit sorting lines. Coordinates are pixels of the image after EXIF orientation, "
                "x right, y down; boxes are half-open `[x0, y0, x1, y1)`. Errors are `application/problem+json` "
                "with a stable `code`. `X-Request-Id` is accepted and returned."
            ),
        },
        "servers": [{"url": "."}],
        "x-grades": [grade.model_dump() for grade in settings.grades],  # of requests that name none
        "paths": {
            **{operation.path: _operation(operation, settings, codes) for operation in OPERATIONS},
            **{path: item for paths, _ in extra for path, item in paths.items()},
            "/livez": _probe("200 while the process is healthy"),
            "/readyz": _probe("200 once the models are loaded and warmed up"),
            "/metrics": _probe("Prometheus metrics", everybody=settings.metrics_access == "open"),
        },
        "components": {
            "schemas": _json_schemas(*models, Problem, *(model for _, more in extra for model in more)),
            "securitySchemes": _SECURITY,
        },
        **({} if settings.api_keys_file is None else {"security": [{name: []} for name in _SECURITY]}),
    }


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json_schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """Return JSON schemas by name, with references into `#/components/schemas`."""
    definitions: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    return definitions


def _operation(operation: Operation, settings: Settings, codes: Mapping[int, list[str]]) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary, "tags": ["Segmentation"]}
    if operation.image == "none" and operation.posts:
        content = {"schema": reference(operation.request), "example": operation.example}
        return {
            "post": {
                **described,
                "parameters": [each for each in _PARAMETERS if each["in"] == "header"],
                "requestBody": {"required": True, "content": {"application/json": content}},
                "responses": {"200": _answer(operation), **_problems(codes)},
            }
        }
    if operation.image == "none":
        return {"get": {**described, "responses": {"200": _answer(operation), **_problems(codes)}}}
    parts: dict[str, Any] = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": (
                f"JPEG, PNG, WebP, BMP or TIFF; at most {settings.max_upload_mib:g} MiB and "
                f"{settings.max_megapixels:g} megapixels."
            ),
        },
        "request": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": reference(operation.request),
            "description": f"JSON, see the schema {operation.request.__name__}.",
            "example": json.dumps(operation.example),
        },
    }
    required = [name for name, field in operation.request.model_fields.items() if field.is_required()]
    names = ["request"] if required else []
    if operation.image == "or_id":
        parts["image_id"] = {"type": "string", "description": "Of an earlier answer, instead of image.", "example": ""}
    else:
        names.insert(0, "image")
    body = {"type": "object", "properties": parts, "required": names}
    return {
        "post": {
            **described,
            "parameters": list(_PARAMETERS),
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": body},
                    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": {"200": _answer(operation), **_problems(codes)},
        }
    }


def _answer(operation: Operation) -> dict[str, Any]:
    return {"description": "The answer", "content": {"application/json": {"schema": reference(operation.response)}}}


def _codes() -> dict[int, list[str]]:
    """Return every status of errors, in order, with its codes."""
    by_status: dict[int, list[str]] = defaultdict(list)
    for problem in PROBLEMS.values():
        if problem.code not in by_status[problem.status]:
            by_status[problem.status].append(problem.code)
    return dict(sorted(by_status.items()))


def _problems(codes: Mapping[int, list[str]]) -> dict[str, Any]:
    return {
        str(status): {
            "description": "code: " + ", ".join(names),
            "content": {"application/problem+json": {"schema": reference(Problem)}},
        }
        for status, names in codes.items()
    }


def _probe(summary: str, *, everybody: bool = True) -> dict[str, Any]:
    described = {"summary": summary, "tags": ["Health"], "responses": {"200": {"description": "OK"}}}
    return {"get": {**described, **EVERYBODY} if everybody else described}

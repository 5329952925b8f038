"""The OpenAPI description of the HTTP door, and the page that lets a person try it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.errors import PROBLEMS
from service.http import inference_openapi, schema
from service.http import inspect_schema as inspection
from service.http import semantic_schema as semantic
from service.http.examples import INSPECT, INSPECTED
from service.settings import Settings

# Swagger UI as BentoML ships it, without the tracker of BentoML's own page: a factory floor has no internet.
PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Pomona</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="stylesheet" href="./static_content/index.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
"""

_EXAMPLE: Final = {
    "model": "mobile-sam",
    "prompts": [{"points": [[548, 190]], "labels": [1], "multimask": True}],
    "format": "rle",
    "overlay": False,
}

_SEMANTIC_EXAMPLE: Final = {"format": "rle", "overlay": False}


def openapi(settings: Settings) -> dict[str, Any]:
    """The description, OpenAPI 3.1, with the limits that are in force."""
    image = {
        "type": "string",
        "format": "binary",
        "description": (
            f"JPEG, PNG, WebP, BMP or TIFF; at most {settings.max_upload_mib:g} MiB and "
            f"{settings.max_megapixels:g} megapixels."
        ),
    }
    image_id = {"type": "string", "description": "Of an earlier answer, instead of image.", "example": ""}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pomona",
            "version": "0.1.0",
            "description": (
                "Segmentation for fruit sorting lines. Coordinates are pixels of the image after EXIF orientation, "
                "x right, y down; boxes are half-open `[x0, y0, x1, y1)`. Errors are `application/problem+json` "
                "with a stable `code`. `X-Request-Id` is accepted and returned."
            ),
        },
        "servers": [{"url": "."}],
        "paths": {
            "/v1/segment": {
                "post": _upload(
                    "Masks for points, boxes and masks on an image",
                    {
                        "image": image,
                        "image_id": image_id,
                        "request": _json_field(schema.SegmentIn, _EXAMPLE),
                    },
                    ["request"],
                    schema.SegmentOut,
                )
            },
            "/v1/embed": {
                "post": _upload(
                    "Encode an image once, to prompt it many times by its image_id",
                    {
                        "image": image,
                        "request": _json_field(schema.EmbedIn, {"model": "mobile-sam"}),
                    },
                    ["image"],
                    schema.EmbedOut,
                )
            },
            "/v1/semantic": {
                "post": _upload(
                    "Which pixels are healthy fruit, and which are infected",
                    {
                        "image": image,
                        "request": _json_field(semantic.SemanticIn, _SEMANTIC_EXAMPLE),
                    },
                    ["image"],
                    semantic.SemanticOut,
                )
            },
            "/v1/inspect": {
                "post": _upload(
                    "Every fruit: where it is, how much of it is infected, its grade",
                    {
                        "image": image,
                        "request": _json_field(inspection.InspectIn, INSPECT),
                    },
                    ["image"],
                    inspection.InspectOut,
                    example=INSPECTED,
                )
            },
            "/v1/models": {
                "get": {
                    "summary": "What is loaded, and what could be",
                    "tags": ["Segmentation"],
                    "responses": {"200": _answer(schema.ModelsOut), **_problems()},
                }
            },
            **inference_openapi.paths(_codes()),
            "/livez": _probe("200 while the process is sound"),
            "/readyz": _probe("200 once the models are loaded and warmed up"),
            "/metrics": _probe("Prometheus metrics"),
        },
        "components": {
            "schemas": schema.json_schema(
                schema.SegmentIn,
                schema.SegmentOut,
                schema.EmbedIn,
                schema.EmbedOut,
                semantic.SemanticIn,
                semantic.SemanticOut,
                inspection.InspectIn,
                inspection.InspectOut,
                schema.ModelsOut,
                schema.ProblemOut,
                *inference_openapi.SCHEMAS,
            )
        },
    }


def _upload(
    summary: str,
    parts: dict[str, Any],
    required: list[str],
    answer: type[BaseModel],
    *,
    example: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    body = {"type": "object", "properties": parts, "required": required}
    return {
        "summary": summary,
        "tags": ["Segmentation"],
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "schema": {"type": "string", "maxLength": 128},
                "description": "Yours, echoed in the answer and in the log.",
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
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": body},
                "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {"200": _answer(answer, example), **_problems()},
    }


def _json_field(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _reference(model),
        "description": f"JSON, see the schema {model.__name__}.",
        "example": json.dumps(example),
    }


def _answer(model: type[BaseModel], example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    shown = {} if example is None else {"example": example}
    return {
        "description": "The answer",
        "content": {"application/json": {"schema": _reference(model), **shown}},
    }


def _codes() -> dict[int, list[str]]:
    """Every status that refuses, in order, with the codes that have it."""
    by_status: dict[int, list[str]] = defaultdict(list)
    for problem in PROBLEMS.values():
        if problem.code not in by_status[problem.status]:
            by_status[problem.status].append(problem.code)
    return dict(sorted(by_status.items()))


def _problems() -> dict[str, Any]:
    return {
        str(status): {
            "description": "code: " + ", ".join(codes),
            "content": {"application/problem+json": {"schema": _reference(schema.ProblemOut)}},
        }
        for status, codes in _codes().items()
    }


def _probe(summary: str) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "tags": ["Operation"],
            "responses": {"200": {"description": "OK"}},
        }
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
